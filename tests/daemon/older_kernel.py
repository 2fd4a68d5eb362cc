"""A daemon on a kernel that seems to be an older one, for tests; its successors too.

Usage: `-m tests.daemon.older_kernel MINOR TRAP`, then as `kaifs.daemon.main`. While the file TRAP
exists the kernel is not told of names: the thread that would tell it renames the file to
TRAP.reached, and waits for ever.
"""

import sys
import threading
from contextlib import suppress
from pathlib import Path

from kaifs.base.types import KernelNode
from kaifs.daemon import main
from kaifs.fuse.kernel_transport import KernelConnection
from tests.fuse.older_kernel import pretend


def _set_trap(trap: Path) -> None:
    tell = KernelConnection.invalidate_entry

    def stop_or_tell(self: KernelConnection, parent: KernelNode, name: bytes) -> None:
        with suppress(FileNotFoundError):
            trap.rename(trap.with_suffix(".reached"))
            threading.Event().wait()
        tell(self, parent, name)

    KernelConnection.invalidate_entry = stop_or_tell  # type: ignore[method-assign]


def _serve(minor: str, trap: str, *arguments: str) -> int:
    server_command = main.server_command

    def command(store: Path, mountpoint: Path, options: str, foreground: bool) -> list[str]:
        """Return what starts a successor."""
        python, _, _, *rest = server_command(store, mountpoint, options, foreground)
        return [python, "-m", "tests.daemon.older_kernel", minor, trap, *rest]

    main.server_command = command
    sys.argv = [sys.argv[0], *arguments]
    pretend(int(minor))
    _set_trap(Path(trap))
    return main.main()


if __name__ == "__main__":
    sys.exit(_serve(*sys.argv[1:]))

"""Which transport serves a mount."""

from pathlib import Path
from typing import Literal, Protocol

from kaifs.fuse.handlers import Handlers
from kaifs.fuse.invalidate import Notifier
from kaifs.fuse.mounting import MountOptions

Name = Literal["auto", "kernel", "pyfuse3"]


class Transport(Protocol):
    """One mount, by whatever transport."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def notifier(self) -> Notifier:
        """What tells the kernel that it remembers something wrongly, once mounted."""
        ...

    def mount(self, mountpoint: Path, options: MountOptions) -> None:
        """Mount. Requests wait until `serve` runs. Raises `MountFailedError`."""
        ...

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or `terminate` is called."""
        ...

    def terminate(self) -> None:
        """Let `serve` return; the mount stays, and answers nothing."""
        ...

    def unmount(self) -> None:
        """Detach the mount if it is there, and close the connection."""
        ...


def make_transport(name: Name, handlers: Handlers) -> Transport:
    """Return the transport called *name*; `auto` is pyfuse3, which works everywhere.

    Raises:
        MountFailedError: this pyfuse3 cannot be used.
    """
    # Each is imported only if it is used: pyfuse3 alone takes 30 ms.
    if name == "kernel":
        from kaifs.fuse.kernel_transport import Features, KernelMount

        return KernelMount(handlers, Features())
    from kaifs.fuse.pyfuse3_transport import Pyfuse3Mount

    return Pyfuse3Mount(handlers)

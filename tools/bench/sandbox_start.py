"""How long it takes from the request until a command is executed in a sandbox.

Beside it, in the same run and in turns: starting the same command plainly, and
in bubblewrap alone. Usage: python -m tools.bench.sandbox_start [RUNS]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kaifs.linux.namespaces import MountFlag, attach
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.run import Owner, start

BUBBLEWRAP = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "true"]


@dataclass(frozen=True)
class FolderMount:
    """A plain folder in place of a snapshot, so that the sandbox alone is measured."""

    folder: Path

    def mount(self, staging: Path, owner: Owner) -> None:
        """Bind the folder."""
        attach(str(self.folder), staging, "", MountFlag.BIND)


def sandbox_ms(folder: Path) -> float:
    """Start `true` in a sandbox with all limits."""
    with start(Policy(), ["true"], FolderMount(folder), label="bench") as running:
        running.wait()
        return running.start_s * 1000


def plain_ms(command: list[str]) -> float:
    """Run *command* to its end."""
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    times: dict[str, list[float]] = {"plain": [], "bubblewrap alone": [], "sandbox": []}
    with tempfile.TemporaryDirectory() as folder:
        # The command is nobody that the host knows.
        Path(folder).chmod(0o755)
        for _ in range(runs):
            times["plain"].append(plain_ms(["true"]))
            times["bubblewrap alone"].append(plain_ms(BUBBLEWRAP))
            times["sandbox"].append(sandbox_ms(Path(folder)))
    plain = statistics.median(times["plain"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:18} median {median:6.1f} ms, min {min(values):6.1f}, {median / plain:5.1f} x")


if __name__ == "__main__":
    main()

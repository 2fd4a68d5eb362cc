"""What a system call costs on each transport, beside ext4 and fuse-overlayfs.

All in one run and in turns, so that what else the machine does slows all of them.
Each figure is the median over the turns of the mean of one turn, in µs; behind it
the ratio to the first system. Absolute figures of two runs cannot be compared.
Usage: python -m tools.bench.transports [--turns N] [--files N] [--only NAME,…] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kaifs.daemon import lifecycle
from kaifs.store.store import Store
from kaifs.tree.forest import Forest

AGENT = "bench"
PAYLOAD = os.urandom(4096)
WRITES = 16
"""4 KiB writes to one open file in a turn, for each file."""

KAIFS = {
    "kaifs kernel, one view": f"transport=kernel,agent={AGENT},view=current",
    "kaifs kernel, one view, busypoll": f"transport=kernel,agent={AGENT},view=current,busypoll=100",
    "kaifs kernel, one view, busypoll, latency": (
        f"transport=kernel,agent={AGENT},view=current,busypoll=100,latency=auto"
    ),
    "kaifs kernel": "transport=kernel",
    "kaifs pyfuse3": "transport=pyfuse3",
}


@contextmanager
def kaifs(base: Path, options: str) -> Iterator[Path]:
    """Yield a folder in the current of a new agent of a new store that is mounted with *options*."""
    store, mountpoint = base / "store", base / "mnt"
    mountpoint.mkdir()
    opened = Store.create(store)
    forest = Forest(opened)
    opened.add_agent(AGENT, os.geteuid(), os.getegid(), forest.new_tree(0o755, 0, 0).root)
    opened.close()
    lifecycle.mount(store, mountpoint, [options], probe_timeout_s=5)
    try:
        yield mountpoint if "view=" in options else mountpoint / AGENT / "current"
    finally:
        lifecycle.umount(mountpoint, lazy=False, probe_timeout_s=5)


@contextmanager
def fuse_overlayfs(base: Path) -> Iterator[Path]:
    """Yield an overlay of empty folders."""
    for name in ("lower", "upper", "work", "mnt"):
        (base / name).mkdir()
    layers = f"lowerdir={base / 'lower'},upperdir={base / 'upper'},workdir={base / 'work'}"
    subprocess.run(["fuse-overlayfs", "-o", layers, base / "mnt"], check=True)
    try:
        yield base / "mnt"
    finally:
        subprocess.run(["umount", base / "mnt"], check=True)


class Turn:
    """One turn in one folder."""

    def __init__(self, top: Path, files: int) -> None:
        self._folder = top / "turn"
        self._folder.mkdir()
        self._paths = [f"{self._folder}/f{number}" for number in range(files)]
        self.us: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Do everything once and return the µs of each."""
        paths = self._paths
        self._each("create + 4 KiB", paths, create)
        self._each("first stat", paths, os.stat)
        self._each("later stat", paths, os.stat)
        self._each("open + read", paths, read)
        self._each("open + read, warm", paths, read)
        self._each("open + close, warm", paths, touch)
        self._writes(paths[: max(1, len(paths) // WRITES)])
        self._each("rename", paths, lambda path: os.rename(path, path + "-"))
        self._each("mkdir", paths, os.mkdir)
        self._each("rmdir", paths, os.rmdir)
        moved = [path + "-" for path in paths]
        self._each("unlink", moved, os.unlink)
        shutil.rmtree(self._folder)
        return self.us

    def _each(self, what: str, paths: list[str], action: Callable[[str], object]) -> None:
        began = time.perf_counter_ns()
        for path in paths:
            action(path)
        self.us[what] = (time.perf_counter_ns() - began) / 1000 / len(paths)

    def _writes(self, paths: list[str]) -> None:
        took = 0
        for path in paths:
            fd = os.open(path, os.O_WRONLY)
            began = time.perf_counter_ns()
            for number in range(WRITES):
                os.pwrite(fd, PAYLOAD, number * len(PAYLOAD))
            took += time.perf_counter_ns() - began
            os.close(fd)
        self.us["4 KiB write"] = took / 1000 / len(paths) / WRITES


def create(path: str) -> None:
    """Make a file of 4 KiB."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, PAYLOAD)
    os.close(fd)


def read(path: str) -> None:
    """Read a file of 4 KiB."""
    fd = os.open(path, os.O_RDONLY)
    os.pread(fd, len(PAYLOAD), 0)
    os.close(fd)


def touch(path: str) -> None:
    """Open and close."""
    os.close(os.open(path, os.O_RDONLY))


def measure(tops: dict[str, Path], turns: int, files: int) -> dict[str, dict[str, float]]:
    """Return the median µs of each row for each system."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in tops}
    for turn in range(turns + 1):
        for name, top in tops.items():
            for row, us in Turn(top, files).run().items():
                # The first turn warms what is asked only once.
                if turn:
                    times[name].setdefault(row, []).append(us)
    return {
        name: {row: statistics.median(values) for row, values in rows.items()}
        for name, rows in times.items()
    }


def show(medians: dict[str, dict[str, float]]) -> None:
    """Print a table: a row for each call, a column for each system."""
    names = list(medians)
    base = medians[names[0]]
    for number, name in enumerate(names):
        print(f"{chr(65 + number)}: {name}")
    print(f"{'µs (ratio to A)':22}" + "".join(f"{chr(65 + n):>16}" for n in range(len(names))))
    for row, first in base.items():
        cells = (f"{medians[name][row]:8.1f} ({medians[name][row] / first:5.1f})" for name in names)
        print(f"{row:22}" + "".join(f"{cell:>16}" for cell in cells))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--only", default="", help="systems whose names begin like this, by commas")
    parser.add_argument("--json", type=Path, help="where to write the medians too")
    args = parser.parse_args()
    wanted = tuple(args.only.split(",")) if args.only else ("",)
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plain = base / "plain"
        plain.mkdir()
        tops = {"ext4": plain}
        for number, (name, options) in enumerate(KAIFS.items()):
            if name.startswith(wanted):
                place = base / str(number)
                place.mkdir()
                tops[name] = stack.enter_context(kaifs(place, options))
        if shutil.which("fuse-overlayfs") and "fuse-overlayfs".startswith(wanted):
            place = base / "overlay"
            place.mkdir()
            tops["fuse-overlayfs"] = stack.enter_context(fuse_overlayfs(place))
        medians = measure(tops, args.turns, args.files)
    show(medians)
    if args.json:
        machine = f"{platform.release()}, {os.cpu_count()} cores"
        args.json.write_text(json.dumps({"machine": machine, "us": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()

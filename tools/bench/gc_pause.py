"""What a client of the mount sees while gc runs beside it: latencies with gc and without, in turns.

A store gets VERSIONS versions of FILES files, which differ in a part of them, and loses
all but the first; gc then marks, sweeps and compacts. Meanwhile a client asks for what
nothing caches: a statvfs, a create, a read of a file that was not read before, an
unlink, one after the other.
Usage: python -m tools.bench.gc_pause [FILES]
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

from kaifs.control.client import call
from kaifs.daemon import lifecycle
from kaifs.service.remove import Params as RemoveParams
from kaifs.service.seal import Params as SealParams
from kaifs.service.status import Params as StatusParams
from kaifs.store.store import Store

VERSIONS = 6
CHANGED = 5
"""One file in so many is another one in each version."""
TURNS = 3
QUIET_S = 3.0
"""Seconds of the client alone, before each gc."""
FOLDER_FILES = 200

Latencies = dict[str, list[float]]


def fill(current: Path, files: int, version: int) -> None:
    """Write what a version has that the one before has not."""
    noise = random.Random(version)  # noqa: S311 - content of files
    for number in range(files):
        if version and number % CHANGED != version % CHANGED:
            continue
        folder = current / f"d{number // FOLDER_FILES}"
        folder.mkdir(exist_ok=True)
        size = noise.choice([300, 2000, 4000, 12_000])
        (folder / f"f{number}").write_bytes(noise.randbytes(size))


def client(folder: Path, unread: list[Path], until: Callable[[], bool]) -> Latencies:
    """Return what each operation took, seconds, until *until* says so."""
    taken: Latencies = {"statvfs": [], "create": [], "read": [], "unlink": []}

    def timed(what: str, work: Callable[[], object]) -> None:
        begun = time.perf_counter()
        work()
        taken[what].append(time.perf_counter() - begun)

    rest = cycle(unread)
    for number in cycle(range(1 << 30)):
        if until():
            return taken
        path = folder / f"new{number}"
        timed("statvfs", lambda: os.statvfs(folder))
        timed("create", path.touch)
        timed("read", lambda: next(rest).read_bytes())
        timed("unlink", path.unlink)
        time.sleep(0.0005)
    raise AssertionError("it ends before")


def is_past(moment_s: float) -> bool:
    """Return whether the clock has passed *moment_s*."""
    return time.perf_counter() > moment_s


def is_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether *process* has ended."""
    return process.poll() is not None


def add(to: Latencies, more: Latencies) -> None:
    """Add the latencies in *more*."""
    for what, taken in more.items():
        to.setdefault(what, []).extend(taken)


def measure(store: Path, mountpoint: Path, files: int) -> tuple[Latencies, Latencies, list[float]]:
    """Return latencies without gc, those with it, and how long each gc took."""
    quiet: Latencies = {}
    beside: Latencies = {}
    lasted = []
    current = mountpoint / "agent" / "current"
    (mountpoint / "agent").mkdir()
    for turn in range(TURNS):
        for version in range(VERSIONS):
            fill(current, files, turn * VERSIONS + version)
            call(store, "seal", SealParams(agent="agent", label=f"{turn}.{version}.0"))
        for version in range(VERSIONS - 1):
            params = RemoveParams(reference=f"agent@{turn}.{version}.0", force=True)
            call(store, "remove", params)
        folder = mountpoint / "agent" / "@versions" / f"{turn}.{VERSIONS - 1}.0"
        unread = [path for path in folder.rglob("*") if path.is_file()]
        stop = time.perf_counter() + QUIET_S
        add(quiet, client(current, unread, partial(is_past, stop)))
        begun = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "kaifs", "gc", "--store", str(store)], stdout=subprocess.DEVNULL
        ) as gc:
            add(beside, client(current, unread[::-1], partial(is_ended, gc)))
        lasted.append(time.perf_counter() - begun)
    return quiet, beside, lasted


def main() -> None:
    """Measure and print."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        store, mountpoint = Path(name) / "store", Path(name) / "mnt"
        Store.create(store).close()
        mountpoint.mkdir()
        lifecycle.mount(store, mountpoint, [])
        try:
            quiet, beside, lasted = measure(store, mountpoint, files)
            stored = call(store, "status", StatusParams()).space.stored
        finally:
            lifecycle.umount(mountpoint)
    print(
        f"{files} files, {stored / 1e6:.0f} MB left; gc took {', '.join(f'{s:.1f}' for s in lasted)} s"
    )
    print(
        f"{'ms':<10}{'median':>9}{'p99':>9}{'longest':>9}   with gc:{'median':>9}{'p99':>9}{'longest':>9}"
    )
    for what, alone in quiet.items():
        row = [*summary(alone), *summary(beside[what])]
        print(
            f"{what:<10}"
            + "".join(f"{ms:9.2f}" + " " * (11 * (i == 2)) for i, ms in enumerate(row))
        )


def summary(taken: list[float]) -> tuple[float, float, float]:
    """Return median, 99th percentile and longest, ms."""
    taken = sorted(taken)
    return tuple(1e3 * taken[int(part * (len(taken) - 1))] for part in (0.5, 0.99, 1))  # type: ignore[return-value]


if __name__ == "__main__":
    main()

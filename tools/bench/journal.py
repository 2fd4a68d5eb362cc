"""What the journal costs for each operation, what it makes of fsync, and how long recovery takes.

Without a mount: two stores side by side in one process, one with a journal and one
without, in turns, so that whatever else the machine does slows both. Times are
medians over the turns; CPU time is what remains of them on a busy machine. Then a
process is taken to have died after OPERATIONS creates and writes without an epoch
in between, and a copy of its store is opened.
Usage: python -m tools.bench.journal [OPERATIONS]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kaifs.base.types import TOP_INO, Ino
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.forest import Forest
from kaifs.tree.tree import Tree

TURNS = 40
BATCH = 250
"""Operations of one kind in one turn."""
OPENINGS = 5
SIZE = 4096
FILE = 0o100644
FOLDER_SIZE = 500
JOURNALED = StoreOptions(journal=True)


class Bench:
    """One store with one agent, and how to do things to it."""

    def __init__(self, path: Path, *, journal: bool) -> None:
        self.store = Store.create(path, options=StoreOptions(journal=journal))
        self.tree = self._new_tree()
        self.store.commit()
        self.folder = TOP_INO
        self.files: list[Ino] = []
        self.noise = os.urandom(SIZE + 4096)

    def _new_tree(self) -> Tree:
        forest = Forest(self.store)
        tree = forest.new_tree(0o755, 0, 0)
        self.store.add_agent("agent", 0, 0, tree.root)
        return tree

    def create(self, count: int) -> None:
        """Make empty files, and acknowledge each."""
        for number in range(len(self.files), len(self.files) + count):
            if number % FOLDER_SIZE == 0:
                self.folder = self.tree.make(TOP_INO, b"d%d" % number, 0o40755, 0, 0, number)
            self.files.append(self.tree.make(self.folder, b"f%d" % number, FILE, 0, 0, number))
            self.store.flush_journal()

    def each(self, work: Callable[[Ino], None], files: list[Ino]) -> None:
        """Do *work* with each file."""
        for file in files:
            work(file)

    def write(self, file: Ino) -> None:
        """Write new bytes to the file, and acknowledge them."""
        start = file % 4096
        payload = file.to_bytes(8, "big") + self.noise[start : start + SIZE - 8]
        self.tree.write(file, 0, payload, None)
        self.store.flush_journal()

    def rename(self, file: Ino) -> None:
        """Give the file another name, and acknowledge it."""
        ((parent, name),) = self.tree.links(file)
        self.tree.rename(parent, name, parent, name + b"'", 1)
        self.store.flush_journal()

    def fsync(self, file: Ino) -> None:
        """Write, and wait for the disk: for the journal if there is one, else for an epoch."""
        self.write(file)
        if self.store.journal is None:
            self.store.commit()
        else:
            sync = self.store.prepare_sync()
            self.store.write_sync(sync)
            self.store.end_sync(sync, is_durable=True)


def timed(count: int, work: Callable[[], None]) -> tuple[float, float]:
    """Return microseconds by the clock and of the CPU that each of *count* operations took."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return (
        (time.perf_counter() - clock) * 1e6 / count,
        (time.process_time() - cpu) * 1e6 / count,
    )


class Taken:
    """Times of operations, by what was done and on which side."""

    def __init__(self) -> None:
        self.times: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def add(self, what: str, side: str, count: int, work: Callable[[], None]) -> None:
        """Do *work*, which is *count* operations, and note what each took."""
        self.times.setdefault((what, side), []).append(timed(count, work))

    def medians(self, what: str, side: str) -> tuple[float, float]:
        """Return the medians by the clock and of the CPU."""
        clock, cpu = zip(*self.times[what, side], strict=True)
        return statistics.median(clock), statistics.median(cpu)


def compare(folder: Path) -> None:
    """Print what each operation takes with and without a journal."""
    sides = {
        "off": Bench(folder / "off", journal=False),
        "on": Bench(folder / "on", journal=True),
    }
    taken = Taken()
    for turn in range(TURNS):
        for side in sorted(sides, reverse=bool(turn % 2)):
            bench = sides[side]
            taken.add("create", side, BATCH, partial(bench.create, BATCH))
            new = bench.files[-BATCH:]
            taken.add("4 KiB write", side, BATCH, partial(bench.each, bench.write, new))
            taken.add("rename", side, BATCH, partial(bench.each, bench.rename, new))
            taken.add("write + fsync", side, 3, partial(bench.each, bench.fsync, new[:3]))
            bench.store.commit()
    print(
        f"{'µs an operation':<16}{'off':>9}{'on':>9}{'more':>9}   CPU: {'off':>7}{'on':>9}{'more':>9}"
    )
    for what in dict.fromkeys(what for what, _ in taken.times):
        off, on = taken.medians(what, "off"), taken.medians(what, "on")
        print(
            f"{what:<16}{off[0]:9.1f}{on[0]:9.1f}{on[0] - off[0]:9.1f}        "
            f"{off[1]:7.1f}{on[1]:9.1f}{on[1] - off[1]:9.1f}"
        )
    for bench in sides.values():
        bench.store.close(commit=False)


def recover(folder: Path, operations: int) -> None:
    """Print how long a store takes to open after that many operations without an epoch."""
    bench = Bench(folder / "died", journal=True)
    while len(bench.files) * 2 < operations:
        bench.create(1)
        bench.write(bench.files[-1])
    bench.store.close(commit=False)
    taken, opened = Taken(), list[Store]()
    copy = folder / "copy"
    for _ in range(OPENINGS):
        shutil.copytree(folder / "died", copy)
        # As a daemon opens it.
        taken.add("open", "on", 1, lambda: opened.append(Store.open(copy, options=JOURNALED)))
        opened[-1].close(commit=False)
        shutil.rmtree(copy)
    clock, cpu = (us / 1e6 for us in taken.medians("open", "on"))
    found = opened[-1].recovery
    print(
        f"recovery of {operations} operations ({found.records} records, {found.blocks} blocks): "
        f"median {clock:.2f} s, CPU {cpu:.2f} s"
    )


def main() -> None:
    """Measure and print."""
    operations = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder))
        recover(Path(folder), operations)


if __name__ == "__main__":
    main()

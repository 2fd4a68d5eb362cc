"""What kaifs must reach: each bar is a row, what it is compared with, and how much is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tools.bench.product import BTRFS
from tools.bench.results import Cell, Results
from tools.bench.systems import BASE, MAIN, OVERLAY, PASSTHROUGH, PYFUSE3, TREE

MS = 1000.0
SAME = 1.3
"""Two medians of less than a millisecond that differ by less are the same."""
MESSAGES_MIN = 0.05
"""For each operation; less comes from the turn's beginning."""


@dataclass(frozen=True, slots=True)
class Bar:
    """At most so much."""

    row: str
    """A regular expression for the names of its rows."""
    limit: float
    base: str = BASE
    """The system that it is compared with; empty: the limit is a value in the row's unit."""
    system: str = MAIN


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a bar."""

    section: str
    row: str
    system: str
    cell: Cell | None
    """None: it was not measured."""
    base: str
    base_value: float | None
    limit: float

    @property
    def ratio(self) -> float | None:
        """To the base, or to the limit if there is no base."""
        if self.cell is None or (self.base and not self.base_value):
            return None
        return self.cell.median / (self.base_value or 1)

    @property
    def is_met(self) -> bool | None:
        """None: one side is missing."""
        ratio = self.ratio
        return None if ratio is None else ratio <= self.limit


def _each(rows: tuple[str, ...], limit: float, *bases: str, system: str = MAIN) -> tuple[Bar, ...]:
    return tuple(Bar(row, limit, base, system) for row in rows for base in bases or (BASE,))


_OPENS = (r"open \+ close, warm", r"open \+ read 4 KiB \+ close, warm")
_MAKES = (r"untar, .*", r"cp -a, .*", r"git add \+ commit, .*")

BARS: tuple[Bar, ...] = (
    *_each(("stat, warm", "negative lookup, warm", r"scandir \+ stat, warm"), 1.4),
    *_each(_OPENS, 2.0),
    *_each(_OPENS, 0.4, OVERLAY, system=TREE),
    *_each((r"4 KiB write\(2\), buffered",), 2.5),
    *_each((r"create \+ 4 KiB \+ close",), 0.5, OVERLAY, PASSTHROUGH),
    *_each(("mkdir",), 0.4, OVERLAY),
    *_each(("stat, first after a write", "unlink", "rename"), 0.8, OVERLAY),
    *_each(_MAKES, 0.5, OVERLAY),
    *_each(_MAKES, 4.0),
    *_each(("rm -rf, .*",), 0.8, OVERLAY),
    *_each(("rm -rf, .*",), 8.0),
    *_each(("sequential read, .*, warm",), 1.2),
    *_each(("sequential read, .*, cold",), 2.0),
    *_each(("sequential write, .*, then fsync",), 4.0),
    *_each(("grep -r, .*", "find, .*", "ls -lR, [^/]* files", "diff -r of two versions, .*"), 1.5),
    *_each(("Python importing .*, warm",), 1.1),
    *_each(("Python importing .*, cold",), 2.0),
    *_each(("git status, .*",), 1.3),
    *_each(("git clone, .*",), 3.0),
    *_each(("pip install of wheels",), 1.7),
    *_each(("C build, make -j",), 1.2),
    Bar(r"snapshot, the verb alone, .*", 1 * MS, ""),
    Bar(r"snapshot from a shell, .*", 1.0, BTRFS),
    Bar(r"kaifs snapshot in all, .*", 50 * MS, ""),
    Bar(r"seal, one changed file, 100?,000 files", 100 * MS, ""),
    Bar(r"rollback, nothing dirty, .*", 10 * MS, ""),
    Bar(r"mount ready, by the command", 300 * MS, ""),
    Bar(r"memory \(RssAnon\) after ls -lR, .*", 150e6 / 1024, ""),
    Bar(r"command line: --help", 4.0, "python -c pass"),
)

_ASKED_AFTER_CLOSE = (
    "with the writeback cache the kernel does not count a file's blocks, and asks for its attributes after "
    "each close (fuse_flush() in fs/fuse/file.c): a GETATTR a file. A read-only mount does without that cache "
    "and is not asked."
)
_WALKED = (
    " Whoever walks and reads time and again has the listings ahead dropped, so that READDIRPLUS brings the attributes: "
    "two messages a directory, its listing and the end of that, and 1 µs a file in the kernel."
)

LIMITS = {
    r"create \+ .*": "five messages, none of which a server can keep the kernel from sending: the folder's attributes "
    "after each change in it, the name, the file, `security.capability` before the first write, the bytes. "
    "fuse-overlayfs has as many; with cores that wake as soon as on this day, its C takes less for each than Python.",
    "stat, first after a write": _ASKED_AFTER_CLOSE
    + " One message, so what counts is its handling: Python against C.",
    "grep -r, .*": _ASKED_AFTER_CLOSE + _WALKED,
    "diff -r of two versions, .*": _ASKED_AFTER_CLOSE + _WALKED,
    "Python importing .*, warm": _ASKED_AFTER_CLOSE
    + " Python asks with an ioctl(2) besides whether it is a terminal.",
    "rm -rf, .*": "three messages a file: UNLINK, the times that the kernel has gathered, the folder's attributes.",
    "(mount ready|kaifs snapshot in all|C build).*": "a bar in milliseconds, or between programs that mostly compute: it is "
    "met or missed as fast as the machine is in that hour, which an interpreter's start shows (command line: --help).",
    "sequential read, .*, warm": "no message at all: the page cache of FUSE is what takes the time, and every "
    "FUSE file system in the table takes as much.",
}
"""What keeps a row from being faster, as far as it is known."""

FASTER = {r"create \+ 4 KiB \+ close": 1 / 3, r"open \+ read 4 KiB \+ close, warm": 1 / 10}
"""Of the time with pyfuse3; any other row that sends messages must be faster at all."""


def limit_of(row: str) -> str:
    """Return what keeps *row* from being faster; empty if nothing is known."""
    return next((text for pattern, text in LIMITS.items() if re.fullmatch(pattern, row)), "")


def judge(results: Results) -> Iterator[Verdict]:
    """Yield what came of every bar, in the order of the issue."""
    rows = results.usual
    for bar in BARS:
        for section, row, cells in rows:
            if re.fullmatch(bar.row, row):
                yield _verdict(section, row, cells, bar)
    yield from _same_at_any_size(results)
    compared = dict.fromkeys(bar.row for bar in BARS if bar.system == MAIN)
    for pattern in compared:
        for section, row, cells in rows:
            if re.fullmatch(pattern, row) and section != "product" and _sends(cells):
                yield _verdict(section, row, cells, Bar(pattern, FASTER.get(pattern, 1.0), PYFUSE3))


def _verdict(section: str, row: str, cells: dict[str, Cell], bar: Bar) -> Verdict:
    base = cells.get(bar.base)
    value = None if base is None else base.median
    return Verdict(section, row, bar.system, cells.get(bar.system), bar.base, value, bar.limit)


def _sends(cells: dict[str, Cell]) -> bool:
    """Tell whether either transport has messages in a row; unknown counts as yes."""
    counted = [cells[name].messages for name in (MAIN, PYFUSE3) if name in cells]
    known = [messages for messages in counted if messages is not None]
    return not known or any(sum(messages.values()) > MESSAGES_MIN for messages in known)


def _same_at_any_size(results: Results) -> Iterator[Verdict]:
    alone = [
        (section, row, cells)
        for section, row, cells in results.usual
        if row.startswith("snapshot, the verb alone") and MAIN in cells
    ]
    if len(alone) > 1:
        (_, small, least), (section, large, cells) = alone[0], alone[-1]
        base = "kaifs at " + small.rpartition(", ")[2]
        yield Verdict(section, large, MAIN, cells[MAIN], base, least[MAIN].median, SAME)

"""What a run has found, as it is kept: one JSON document for each run."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tools.bench.run import Figures, Rows

FOLDER = Path(__file__).parent / "results"


class Cell(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One row of one system."""

    median: float
    low: float
    """The lower quartile."""
    high: float
    count: int
    """How many measurements there are."""
    unit: str = "µs"
    cpu_us: float = 0.0
    """CPU time of the server for each operation."""
    wakeups: float = 0.0
    """Of the server's threads, for each operation."""
    messages: dict[str, float] | None = None
    """From the kernel to the server for each operation, by opcode; None: not counted."""


Table = dict[str, dict[str, dict[str, Cell]]]
"""Sections; in each the rows; in each the systems."""


class Results(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One run."""

    date: str
    is_quick: bool
    took_s: float
    machine: dict[str, str]
    unavailable: dict[str, str]
    """Systems, and programs, that could not be had; and why."""
    failed: dict[str, str]
    """What did not finish, and why."""
    sections: Table
    """Each system as its users get it."""
    awake: Table
    """With the cores kept awake for all."""

    @property
    def usual(self) -> list[tuple[str, str, dict[str, Cell]]]:
        """Sections, rows and their systems, as users get them."""
        return [
            (section, row, cells)
            for section, rows in self.sections.items()
            for row, cells in rows.items()
        ]


def cell(figures: Figures) -> Cell | None:
    """Return the medians of *figures*; None if there is not a single measurement."""
    if not figures.samples:
        return None
    low, high = figures.spread()
    return Cell(
        median=round(figures.median(lambda sample: sample.value), 3),
        low=round(low, 3),
        high=round(high, 3),
        count=len(figures.samples),
        unit=figures.unit,
        cpu_us=round(figures.median(lambda sample: sample.cpu_us), 2),
        wakeups=round(figures.median(lambda sample: sample.wakeups), 3),
        messages=None
        if figures.messages is None
        else {name: round(count, 3) for name, count in figures.messages.items() if count >= 0.005},
    )


def table(sections: dict[str, Rows]) -> Table:
    """Return what is kept of the figures of sections."""
    return {
        section: {
            row: {name: kept for name, one in systems.items() if (kept := cell(one)) is not None}
            for row, systems in rows.items()
        }
        for section, rows in sections.items()
    }


def save(results: Results, path: Path) -> None:
    """Write a run."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def load(path: Path) -> Results:
    """Read a run."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def newest() -> Path:
    """Return the newest run that is kept.

    Raises:
        FileNotFoundError: there is none.
    """
    kept = sorted(FOLDER.glob("*.json"))
    if not kept:
        raise FileNotFoundError(f"no results in {FOLDER}")
    return kept[-1]

"""What the benchmark makes of its figures; it measures nothing here."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.bench import report, results, run
from tools.bench.bars import BARS, judge
from tools.bench.results import Cell, Results
from tools.bench.systems import BASE, MAIN, OVERLAY, PYFUSE3, System


def cell(median: float, **facts: object) -> Cell:
    return Cell(median=median, low=median, high=median, count=3, **facts)  # type: ignore[arg-type]


def run_of(rows: Mapping[str, dict[str, Cell]], **facts: object) -> Results:
    empty = {
        "date": "2026-01-01 00:00 UTC",
        "is_quick": False,
        "took_s": 60.0,
        "machine": {"kernel": "6.18"},
        "unavailable": {},
        "failed": {},
        "sections": {"micro": dict(rows)},
        "awake": {},
    }
    return Results(**(empty | facts))  # type: ignore[arg-type]


def said(found: Results) -> dict[tuple[str, str], bool | None]:
    return {(verdict.row, verdict.base): verdict.is_met for verdict in judge(found)}


def test_a_bar_is_met_up_to_its_limit_and_missed_beyond() -> None:
    rows = {
        "stat, warm": {BASE: cell(1.0), MAIN: cell(1.4)},
        "negative lookup, warm": {BASE: cell(1.0), MAIN: cell(1.5)},
    }

    verdicts = said(run_of(rows))

    assert verdicts["stat, warm", BASE] is True
    assert verdicts["negative lookup, warm", BASE] is False


def test_a_bar_whose_base_is_not_there_is_told_and_not_dropped() -> None:
    rows = {"mkdir": {BASE: cell(1.0), MAIN: cell(1.4)}}
    found = run_of(rows, unavailable={OVERLAY: "not installed"})

    assert said(found)["mkdir", OVERLAY] is None
    assert re.search(r"\| mkdir \| 1.40 µs \| - .* not measured \|", report.page(found))
    assert "| fuse-overlayfs | not available: not installed |" in report.page(found)


def test_rows_that_send_messages_are_compared_with_pyfuse3() -> None:
    rows = {
        "stat, warm": {name: cell(1.0, messages={}) for name in (BASE, MAIN, PYFUSE3)},
        "mkdir": {
            MAIN: cell(1.0, messages={"MKDIR": 1.0}),
            PYFUSE3: cell(1.5, messages={"MKDIR": 1.0}),
        },
    }

    verdicts = said(run_of(rows))

    assert ("stat, warm", PYFUSE3) not in verdicts
    assert verdicts["mkdir", PYFUSE3] is True


def test_a_missed_row_shows_where_its_time_goes() -> None:
    slow = cell(50.0, cpu_us=20.0, wakeups=1.5, messages={"MKDIR": 1.0, "FORGET": 2.0})
    page = report.page(run_of({"mkdir": {OVERLAY: cell(50.0), MAIN: slow}}))

    (line,) = [line for line in page.splitlines() if "MKDIR" in line]

    assert "| 20.0 µs | 30.0 µs | 1.50 | 1.00 |" in line


def test_every_bar_names_rows_by_a_pattern_that_compiles() -> None:
    for bar in BARS:
        re.compile(bar.row)


def test_what_is_kept_can_be_read_again(tmp_path: Path) -> None:
    found = run_of({"mkdir": {BASE: cell(1.0, messages={"MKDIR": 1.0})}})

    results.save(found, tmp_path / "one.json")

    assert results.load(tmp_path / "one.json") == found


def test_a_plot_is_well_formed() -> None:
    rows = {"a < b": {BASE: cell(1.0), MAIN: cell(0.001), OVERLAY: cell(1e6)}}

    ((name, picture),) = report.plots(run_of(rows))

    assert name == "micro"
    assert ElementTree.fromstring(picture).tag.endswith("svg")


@pytest.mark.parametrize("newest", sorted(results.FOLDER.glob("*.json"))[-1:], ids=str)
def test_the_page_is_that_of_the_newest_results(newest: Path) -> None:
    """Nobody edits it by hand, and no run is kept without its page. Skipped if none is kept."""
    page = report.page(results.load(newest))

    assert report.PAGE.read_text() == page.rstrip() + "\n"


def test_systems_take_turns_and_one_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "settle", lambda: None)
    order: list[str] = []

    def section(watch: run.Stopwatch, scale: run.Scale) -> None:
        order.append(watch.system.name)
        if watch.system.name == "b":
            raise subprocess.SubprocessError("it broke")
        with watch("row", 2):
            pass

    systems = {name: System(name, tmp_path) for name in "abc"}

    rows, failed = run.interleave(section, systems, 3, run.QUICK)

    assert order == ["a", "b", "c", "c", "a", "c", "a"]
    assert {name: len(figures.samples) for name, figures in rows["row"].items()} == {"a": 3, "c": 3}
    assert failed == {"b": "SubprocessError: it broke"}

"""Running tests in a snapshot from the command line, for the verbs that do."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from kaifs.cli.output import DONE, FAILED, printable, say, warn
from kaifs.cli.session import shows_progress, store_of

if TYPE_CHECKING:
    from kaifs.service.suite import TestSuite
    from kaifs.service.suite_runner import SuiteProgress
    from kaifs.service.testing import Result

SHOWN_MAX = 50
"""Failures that are printed; the rest is counted."""


def run_tests(
    args: argparse.Namespace, reference: str, suite: TestSuite | None, source: str
) -> Result:
    """Run a suite, or what the snapshot's own files imply, and tell what came of it."""
    from kaifs.api.snapshots import SnapshotIsolationManager

    if not args.json:
        say(args, f"Running tests in snapshot {reference}...")
    manager = SnapshotIsolationManager(store_of(args))
    with _ProgressLine(args) as line:
        result = manager.test_in_snapshot(reference, suite, source=source, on_progress=line.show)
    if result.unenforced:
        warn_unenforced(args, result.unenforced)
    _tell(args, result)
    return result


def warn_unenforced(args: argparse.Namespace, limits: tuple[str, ...]) -> None:
    """Say that commands ran without limits that nobody had asked for."""
    warn(args, f"not limited on this machine: {'; '.join(limits)}")


def _tell(args: argparse.Namespace, result: Result) -> None:
    # Source: specification, AgentVersionCLI.runSnapshotTests.
    counts = f"({result.passed_tests}/{result.total_tests})"
    if result.success:
        say(args, f"{DONE} All tests passed {counts}")
        return
    say(args, f"{FAILED} Tests failed {counts}")
    for failure in result.failures[:SHOWN_MAX]:
        say(args, f"  {FAILED} {failure.test}: {printable(failure.error)}")
    if len(result.failures) > SHOWN_MAX:
        say(args, f"  … and {len(result.failures) - SHOWN_MAX} more")


class _ProgressLine:
    """One line on stderr that is written over, if somebody watches."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._is_shown = shows_progress(args)

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def show(self, progress: SuiteProgress) -> None:
        """Show how far the run is."""
        if progress.running is not None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            number = f"{progress.done + 1}/{progress.total}{failed}"
            self._write(f"[{number}] {printable(progress.running)}")

    def _write(self, text: str) -> None:
        if self._is_shown:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write(f"\r\x1b[K{text[: max(width - 1, 0)]}")
            sys.stderr.flush()

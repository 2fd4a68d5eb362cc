"""Running tests in a snapshot from the command line, for the verbs that do."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaifs.base.errors import SuiteError
from kaifs.cli import sandbox_session
from kaifs.cli.output import DONE, FAILED, printable, say
from kaifs.cli.session import call, shows_progress

if TYPE_CHECKING:
    from kaifs.service.steps import Item
    from kaifs.service.suite import TestSuite
    from kaifs.service.suite_runner import SuiteProgress

SHOWN_MAX = 50
"""Failures that are printed; the rest is counted."""


def read_suite(path: str) -> TestSuite:
    """Return the suite in a file of the user's.

    Raises:
        SuiteError: it cannot be read, or is none.
    """
    from kaifs.service.suite import SIZE_MAX, load_suite

    try:
        with Path(path).open("rb") as file:
            payload = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}") from error
    return load_suite(payload, path)


def run_tests(
    args: argparse.Namespace, reference: str, suite: TestSuite | None, source: str
) -> Any:
    """Run a suite, or what the snapshot's own files imply, and tell what came of it.

    Returns:
        The verb's result: `kaifs.service.testing.Result`.
    """
    import msgspec

    from kaifs.service.suite_runner import SuiteRunner
    from kaifs.service.testing import Order, Params, report_items

    order = bytearray()

    def report() -> Iterator[Item]:
        # Begun when the verb wants the report, which is after it has said what to run.
        wanted = msgspec.json.decode(bytes(order), type=Order)
        with (
            sandbox_session.open_session(args, wanted.snapshot) as session,
            _ProgressLine(args) as line,
        ):
            ran = SuiteRunner(session, line.show).run(wanted.suite)
        yield from report_items(ran)

    say(args, f"Running tests in snapshot {reference}...")
    told = os.fsencode(source).decode("utf-8", "replace")
    params = Params(reference=reference, suite=suite, source=told)
    result = call(args, "test", params, source=report(), on_output=order.extend)
    _tell(args, result)
    return result


def _tell(args: argparse.Namespace, result: Any) -> None:
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

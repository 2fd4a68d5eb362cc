"""Runs a suite by an executor and says what came of it.

The executor starts one command somewhere, a sandbox as a rule, and waits for
it; this module knows nothing of processes. A test that leaves JUnit XML in the
folder that `KAIFS_REPORTS` names counts with the tests in there, any other one
counts as one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

import msgspec

from kaifs.service.evidence import TestFailure
from kaifs.service.junit import ReportError, read_report
from kaifs.service.suite import TestCase, TestSuite
from kaifs.service.suite_detect import REPORTS_VARIABLE

LOG_MAX: Final = 256 << 10
"""Bytes of output kept of a whole run: the end of it."""
ERROR_MAX: Final = 2000
"""Characters of what is said of one failure."""
MATCH_TIMEOUT_S: Final = 10.0
"""Seconds that looking for a test's expectOutput may take."""
FAILURES_MAX: Final = 1000
"""Failures of one run that are told one by one."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What one command came to."""

    exit_status: int
    """As a shell tells it: 128 and the signal if one ended it."""
    output: bytes
    """What it wrote to stdout and stderr; the end of it if it was much."""
    duration_s: float
    timed_out: bool = False
    oom_killed: bool = False
    """Something in it was ended because memory ran out."""
    dropped: int = 0
    """Bytes of output before `output` that were not kept."""
    reports: tuple[tuple[str, bytes], ...] = ()
    """Name and content of each `.xml` file that it left in the report folder."""
    unenforced: tuple[str, ...] = ()
    """Limits that were not in force, each with the reason."""


class Executor(Protocol):
    """Runs commands, one after the other."""

    @property
    def report_folder(self) -> str:
        """A folder for reports as commands see it: empty for each command, not in the tree."""
        ...

    def run(
        self, command: str | tuple[str, ...], env: Mapping[str, str], timeout_s: float
    ) -> Execution:
        """Run *command* to its end, with *env* over the environment; end it after *timeout_s*."""
        ...


class TestResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's TestResult."""

    __test__: ClassVar[bool] = False

    success: bool
    passed_tests: int
    total_tests: int
    failures: tuple[TestFailure, ...] = ()


class SuiteRun(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A result with how long it took and what was written."""

    result: TestResult
    duration_s: float
    log: bytes
    """A heading for each test, and its output; the end of it if it was much."""
    unenforced: tuple[str, ...] = ()
    """Limits that were not in force for some test, each with the reason."""


@dataclass(frozen=True, slots=True)
class SuiteProgress:
    """How far a run is."""

    done: int
    """Tests of the suite that have ended."""
    total: int
    running: str | None
    """The one that runs now; None at the end."""
    failed: int
    """Failures so far."""


OnSuiteProgress = Callable[[SuiteProgress], None]


@dataclass(slots=True)
class _Tally:
    passed: int = 0
    total: int = 0
    failures: list[TestFailure] = field(default_factory=list)

    def add(self, total: int, failures: list[TestFailure], failed: int) -> None:
        self.total += total
        self.passed += total - failed
        self.failures += failures[: FAILURES_MAX - len(self.failures)]


class SuiteRunner:
    """Runs suites by one executor."""

    def __init__(self, executor: Executor, on_progress: OnSuiteProgress | None = None) -> None:
        self._executor = executor
        self._on_progress = on_progress or (lambda progress: None)

    def run(self, suite: TestSuite) -> SuiteRun:
        """Run every test of *suite*, also after one has failed."""
        tally = _Tally()
        log = _Log()
        duration_s = 0.0
        unenforced: dict[str, None] = {}
        for done, case in enumerate(suite.test):
            failed = tally.total - tally.passed
            self._on_progress(SuiteProgress(done, len(suite.test), case.name, failed))
            env = {REPORTS_VARIABLE: self._executor.report_folder, **case.env}
            execution = self._executor.run(case.command, env, case.timeout)
            duration_s += execution.duration_s
            unenforced |= dict.fromkeys(execution.unenforced)
            _judge(case, execution, tally, log)
        failed = tally.total - tally.passed
        self._on_progress(SuiteProgress(len(suite.test), len(suite.test), None, failed))
        result = TestResult(
            success=failed == 0,
            passed_tests=tally.passed,
            total_tests=tally.total,
            failures=tuple(tally.failures),
        )
        return SuiteRun(
            result=result,
            duration_s=duration_s,
            log=log.tail(),
            unenforced=tuple(unenforced),
        )


def _judge(case: TestCase, execution: Execution, tally: _Tally, log: _Log) -> None:
    total = failed = 0
    failures: list[TestFailure] = []
    notes = []
    for name, payload in execution.reports:
        try:
            report = read_report(payload)
        except ReportError as error:
            notes.append(f"{name} is no JUnit report: {error}")
            continue
        total += report.total
        failed += report.failed
        failures += [
            TestFailure(test=f"{case.name}: {one.test}", error=one.error) for one in report.failures
        ]
    reason = _own_failure(case, execution)
    # A framework that reports failures ends with a status that says no more than they do.
    if reason is not None and (failed == 0 or execution.timed_out or execution.oom_killed):
        total, failed = total + 1, failed + 1
        failures.append(TestFailure(test=case.name, error=reason[:ERROR_MAX]))
    elif total == 0:
        total = 1
    tally.add(total, failures, failed)
    outcome = f"{failed} of {total} failed" if failed else "ok"
    log.begin(f"=== {case.name}: {outcome} ({execution.duration_s:.2f} s)")
    if execution.dropped:
        log.write(b"[%d bytes before this were not kept]\n" % execution.dropped)
    log.write(execution.output)
    for note in notes:
        log.begin(f"[{note}]")


def _own_failure(case: TestCase, execution: Execution) -> str | None:
    """Return why the command itself failed, None if it did as expected."""
    if execution.timed_out:
        return f"timed out after {case.timeout:g} s"
    if execution.oom_killed:
        return "ran out of memory"
    if execution.exit_status != case.expect_exit:
        reason = f"exit status {execution.exit_status}"
        if case.expect_exit:
            reason += f" instead of {case.expect_exit}"
        last = _last_line(execution.output)
        return f"{reason}: {last}" if last else reason
    if case.expect_output is not None:
        return match_output(case.expect_output, execution.output)
    return None


def _last_line(output: bytes) -> str:
    lines = output[-4096:].decode("utf-8", "replace").split("\n")
    printable = ("".join(c if c.isprintable() else " " for c in line).strip() for line in lines)
    return next((line for line in reversed(list(printable)) if line), "")[:300]


_MATCHER: Final = (
    "import json,re,sys\n"
    "pattern,text=json.load(sys.stdin)\n"
    "sys.exit(0 if re.search(pattern,text,re.MULTILINE) else 3)\n"
)


def match_output(pattern: str, output: bytes) -> str | None:
    """Return None if *pattern* is found in *output*, else why not.

    A pattern of the agent's may take for ever on its own output, and Python's
    `re` cannot be interrupted: the search runs in a process of its own.
    """
    text = output.decode("utf-8", "replace")
    if not re.search(r"[\\.^$*+?{}\[\]|()]", pattern):
        return None if pattern in text else f"output does not have {pattern!r}"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            input=json.dumps([pattern, text]).encode(),
            capture_output=True,
            timeout=MATCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"looking for {pattern!r} took over {MATCH_TIMEOUT_S:g} s"
    if done.returncode == 0:
        return None
    if done.returncode == 3:
        return f"output does not match {pattern!r}"
    return f"could not look for {pattern!r}"


class _Log:
    """The end of everything that a run writes."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._dropped = 0

    def begin(self, line: str) -> None:
        if self._kept and not self._kept.endswith(b"\n"):
            self._kept += b"\n"
        self.write(line.encode("utf-8", "replace") + b"\n")

    def write(self, payload: bytes) -> None:
        self._kept += payload
        if len(self._kept) > 2 * LOG_MAX:
            self._cut()

    def _cut(self) -> None:
        over = len(self._kept) - LOG_MAX
        if over > 0:
            del self._kept[:over]
            self._dropped += over

    def tail(self) -> bytes:
        self._cut()
        if self._dropped:
            return b"[%d bytes before this were not kept]\n" % self._dropped + bytes(self._kept)
        return bytes(self._kept)

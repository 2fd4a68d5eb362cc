"""Running suites, by real local processes."""

import time
from pathlib import Path

import pytest

from kaifs.service import suite_runner
from kaifs.service.suite_runner import LOG_MAX, SuiteProgress, SuiteRun, SuiteRunner, match_output
from tests.service.lab import LocalExecutor, suite

REPORT = "<testsuite><testcase name='a'/><testcase name='b'>{}</testcase></testsuite>"


def run(folder: Path, *commands: str, **fields: object) -> SuiteRun:
    return SuiteRunner(LocalExecutor(folder)).run(suite(*commands, **fields))


def errors(ran: SuiteRun) -> list[tuple[str, str]]:
    return [(failure.test, failure.error) for failure in ran.result.failures]


def test_each_command_counts_and_all_are_run(tmp_path: Path) -> None:
    """Also after one has failed."""
    ran = run(tmp_path, "true", "echo why; exit 3", "echo done")

    assert not ran.result.success
    assert (ran.result.passed_tests, ran.result.total_tests) == (2, 3)
    assert errors(ran) == [("2", "exit status 3: why")]
    assert ran.log.startswith(b"=== 1: ok (")
    assert b"\nwhy\n=== 3: ok (" in ran.log
    assert ran.log.endswith(b"done\n")
    assert ran.duration_s > 0


def test_expected_exit_and_output_decide(tmp_path: Path) -> None:
    assert run(tmp_path, "exit 7", expectExit=7).result.success
    assert errors(run(tmp_path, "true", expectExit=7)) == [("1", "exit status 0 instead of 7")]
    assert run(tmp_path, "echo a; echo bcd", expectOutput="^b.d$").result.success
    assert errors(run(tmp_path, "echo x", expectOutput="^y+")) == [
        ("1", "output does not match '^y+'")
    ]
    assert errors(run(tmp_path, "echo x", expectOutput="plain")) == [
        ("1", "output does not have 'plain'")
    ]


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    begun = time.monotonic()

    ran = run(tmp_path, "sleep 60 & sleep 60", timeout=0.2)

    assert time.monotonic() - begun < 10
    assert errors(ran) == [("1", "timed out after 0.2 s")]


def test_environment_is_the_tests_own(tmp_path: Path) -> None:
    ran = run(tmp_path, 'test "$A" = b && test -d "$KAIFS_REPORTS"', env={"A": "b"})

    assert ran.result.success


def test_a_command_that_a_signal_ends_fails(tmp_path: Path) -> None:
    assert errors(run(tmp_path, "kill -9 $$")) == [("1", "exit status 137")]


def test_junit_reports_give_the_counts(tmp_path: Path) -> None:
    good = f'echo "{REPORT.format("")}" > "$KAIFS_REPORTS/r.xml"'
    failed = REPORT.format("<failure message='no'/>")
    bad = f'echo "{failed}" > "$KAIFS_REPORTS/r.xml"; exit 1'

    ran = run(tmp_path, good, bad)

    assert (ran.result.passed_tests, ran.result.total_tests) == (3, 4)
    assert errors(ran) == [("2: b", "no")]


def test_a_clean_report_does_not_excuse_the_exit_status(tmp_path: Path) -> None:
    """A runner that crashes after its report was written has failed."""
    ran = run(tmp_path, f'echo "{REPORT.format("")}" > "$KAIFS_REPORTS/r.xml"; exit 139')

    assert (ran.result.success, ran.result.total_tests) == (False, 3)
    assert errors(ran) == [("1", "exit status 139")]


def test_a_failure_in_a_report_fails_whatever_the_exit_status(tmp_path: Path) -> None:
    failed = REPORT.format("<error message='no'/>")

    assert not run(tmp_path, f'echo "{failed}" > "$KAIFS_REPORTS/r.xml"').result.success


def test_a_report_that_is_none_is_noted(tmp_path: Path) -> None:
    ran = run(tmp_path, 'echo "<x>" > "$KAIFS_REPORTS/r.xml"')

    assert ran.result.success
    assert b"[r.xml is no JUnit report" in ran.log


def test_reports_of_one_command_do_not_count_for_the_next(tmp_path: Path) -> None:
    ran = run(tmp_path, f'echo "{REPORT.format("")}" > "$KAIFS_REPORTS/r.xml"', "true")

    assert ran.result.total_tests == 3


def test_only_the_end_of_much_output_is_kept(tmp_path: Path) -> None:
    ran = run(tmp_path, *["seq 20000"] * 8)

    assert len(ran.log) < LOG_MAX + 100
    assert ran.log.startswith(b"[")
    assert ran.log.endswith(b"\n20000\n")


def test_progress_tells_what_runs(tmp_path: Path) -> None:
    told: list[SuiteProgress] = []

    SuiteRunner(LocalExecutor(tmp_path), told.append).run(suite("false", "true"))

    assert told == [
        SuiteProgress(0, 2, "1", 0),
        SuiteProgress(1, 2, "2", 1),
        SuiteProgress(2, 2, None, 1),
    ]


def test_a_pattern_that_never_ends_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """`re` cannot be interrupted; its process can."""
    monkeypatch.setattr(suite_runner, "MATCH_TIMEOUT_S", 0.5)

    assert match_output("(a+)+$", b"a" * 60 + b"!") == "looking for '(a+)+$' took over 0.5 s"

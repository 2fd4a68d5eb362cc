"""JUnit XML: counts, failures, and hostile files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.service.junit import (
    DEPTH_MAX,
    FAILURES_MAX,
    SIZE_MAX,
    ReportedFailure,
    ReportError,
    read_report,
)

PYTEST = b"""<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="5">
<testcase classname="tests.test_x" name="test_good" time="0.1"/>
<testcase classname="tests.test_x" name="test_bad"><failure message="assert 1 == 2">def test_bad():
E   assert 1 == 2</failure></testcase>
<testcase classname="tests.test_x" name="test_skipped"><skipped type="pytest.skip"/></testcase>
<testcase classname="" name="tests.test_y"><error>Traceback:
ImportError: no y</error></testcase>
<testcase name="alone"><system-out>noise</system-out></testcase>
</testsuite></testsuites>"""


def test_counts_and_failures_are_those_of_the_cases() -> None:
    report = read_report(PYTEST)

    assert (report.total, report.failed) == (4, 2)
    assert report.failures == (
        ReportedFailure("tests.test_x.test_bad", "assert 1 == 2"),
        ReportedFailure("tests.test_y", "ImportError: no y"),
    )


def test_a_case_that_fails_and_errs_counts_once() -> None:
    report = read_report(
        b'<testsuite><testcase name="t"><failure message="a"/><error message="b"/></testcase>'
        b"</testsuite>"
    )

    assert (report.total, report.failed) == (1, 1)
    assert report.failures == (ReportedFailure("t", "a"),)


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<testsuite><testcase name="&b;"/></testsuite>"""


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"text",
        b"<other/>",
        b"<testsuite>",
        BOMB,
        b'<!DOCTYPE testsuite SYSTEM "file:///etc/passwd"><testsuite/>',
        b"<testsuite>" + b"<a>" * (DEPTH_MAX + 1),
        b"<testsuite/>" + b" " * SIZE_MAX,
        b'<?xml version="1.0" encoding="no-such"?><testsuite/>',
    ],
)
def test_what_is_no_report_is_refused(payload: bytes) -> None:
    with pytest.raises(ReportError):
        read_report(payload)


def test_much_is_counted_and_little_kept() -> None:
    failure = b'<testcase name="n"><failure message="' + b"m" * 5000 + b'"/></testcase>'

    report = read_report(b"<testsuite>" + failure * (FAILURES_MAX + 5) + b"</testsuite>")

    assert report.failed == FAILURES_MAX + 5
    assert len(report.failures) == FAILURES_MAX
    assert len(report.failures[0].error) == 2000


@given(st.binary(max_size=100))
def test_no_bytes_crash_the_reader(payload: bytes) -> None:
    with pytest.raises(ReportError):
        read_report(b"<testsuite>" + payload)

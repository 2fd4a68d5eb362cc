"""Time is a thing that is passed in, and has one spelling."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.clock import Clock, ManualClock, SystemClock, format_time


def test_manual_clock_moves_only_when_told() -> None:
    clock: Clock = ManualClock(5)
    assert clock.now_ns() == 5
    assert clock.now_ns() == 5

    manual = ManualClock(5)
    manual.advance_ns(7)

    assert manual.now_ns() == 12


def test_system_clock_is_the_time_of_day_in_nanoseconds() -> None:
    clock: Clock = SystemClock()

    before = datetime.now(UTC).timestamp()
    now = clock.now_ns() / 1e9
    after = datetime.now(UTC).timestamp()

    assert before - 0.01 <= now <= after + 0.01


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_795_378_503_000_000_000, "2026-11-22T20:15:03.000000Z"),
        (1_999, "1970-01-01T00:00:00.000001Z"),
        (999_999_999, "1970-01-01T00:00:00.999999Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (951_782_400_123_456_789, "2000-02-29T00:00:00.123456Z"),
    ],
)
def test_times_are_spelled_in_microseconds_and_cut(time_ns: int, text: str) -> None:
    assert format_time(time_ns) == text


@given(st.integers(0, 4_102_444_800 * 10**9), st.integers(0, 4_102_444_800 * 10**9))
def test_spelled_times_sort_as_the_times_do(a: int, b: int) -> None:
    """Text order is time order, so that a listing sorted by name is sorted by time."""
    assert (format_time(a) <= format_time(b)) is (a // 1000 <= b // 1000)


@given(st.integers(-(2**33), 2**33 - 1), st.integers(0, 999_999_999))
def test_a_spelled_time_reads_back_to_the_microsecond(seconds: int, rest: int) -> None:
    time_ns = seconds * 10**9 + rest

    moment = datetime.strptime(format_time(time_ns), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)

    assert moment.microsecond == rest // 1000
    assert moment.replace(microsecond=0).timestamp() == seconds

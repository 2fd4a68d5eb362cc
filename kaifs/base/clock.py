"""Time, as something that tests own.

Nothing else in kaifs reads the system's clock; whoever needs the time takes a
`Clock`.
"""

import time
from datetime import UTC, datetime
from typing import Protocol

_CLOCK_REALTIME_COARSE = 5
"""Python has no name for it. Source: linux/time.h."""


class Clock(Protocol):
    """Where the time comes from."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01T00:00:00Z."""
        ...


class SystemClock:
    """The machine's clock, in the steps in which the kernel stamps files: 1 to 10 ms.

    A finer one would make what the daemon stamps younger than what the kernel stamps after it.
    """

    def now_ns(self) -> int:
        """Return CLOCK_REALTIME_COARSE in nanoseconds."""
        return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def exact_now_ns() -> int:
    """Return what `SystemClock` does, to the nanosecond: for what waits for a moment to be past."""
    return time.time_ns()


class ManualClock:
    """A clock that moves only when told, for tests and reproducible runs."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """Return the time last set."""
        return self._now_ns

    def advance_ns(self, delta_ns: int) -> None:
        """Move the clock by *delta_ns* nanoseconds."""
        self._now_ns += delta_ns


def format_time(time_ns: int) -> str:
    """Return *time_ns* as records and JSON spell it: `2026-11-22T20:15:03.000000Z`."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

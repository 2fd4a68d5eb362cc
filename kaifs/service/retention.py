"""Retention: which versions of an agent are kept, and by which rule.

The rules are restic's. Each keeps the versions that it names; a version that no
rule keeps is to go. Days, weeks, months and years are those of UTC, weeks begin
on Monday, as ISO 8601 has it. What *must* be kept whatever the rules say is known
to the verb, not here.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from kaifs.base.errors import ArgumentValueError
from kaifs.service.record import SnapshotType

COUNT_MAX: Final = 1_000_000
_DURATION: Final = re.compile(
    r"(?:(\d{1,6})y)?(?:(\d{1,6})m)?(?:(\d{1,6})w)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?"
)


class Retention(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """Rules of what is kept. A version is kept if one of them says so."""

    keep_last: int = 0
    """As many of the newest; 0: the rule does not count, here and below."""
    keep_daily: int = 0
    """The newest of each of as many days that have one, and so on for the next three."""
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within: str = ""
    """Those made no longer than this before the newest: `1y6m2w3d12h`, m are months."""
    keep_tagged: tuple[str, ...] = ()
    """Those with a tag that fits one of these patterns of the shell; `*` is any tag."""
    keep_types: tuple[SnapshotType, ...] = ()
    """Those of one of these types."""

    def __bool__(self) -> bool:
        return self != NO_RETENTION

    def check(self) -> None:
        """Check that the rules can be followed.

        Raises:
            ArgumentValueError: a count is negative or a duration is none.
        """
        for field in COUNTED:
            count = getattr(self, field)
            if not 0 <= count <= COUNT_MAX:
                name = field.replace("_", "-")
                raise ArgumentValueError(f"--{name} {count}: a number from 0 to {COUNT_MAX}")
        parse_duration(self.keep_within)


COUNTED: Final = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")
NO_RETENTION: Final = Retention()


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the rules look at in one version."""

    label: str
    created_ns: int
    snapshot_type: str
    tags: tuple[str, ...]


def kept_by(rules: Retention, candidates: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """Return for each candidate what keeps it, in words; nothing if no rule does.

    Args:
        rules: The rules, which `Retention.check` accepts.
        candidates: Versions of one agent, newest first.
    """
    found: list[list[str]] = [[] for _ in candidates]
    _keep_counted(rules, candidates, found)
    within = parse_duration(rules.keep_within)
    if within is not None and candidates:
        first_ns = _before(candidates[0].created_ns, within)
        for reasons, candidate in zip(found, candidates, strict=True):
            if candidate.created_ns >= first_ns:
                reasons.append(f"within {rules.keep_within}")
    for reasons, candidate in zip(found, candidates, strict=True):
        reasons += [
            f"tagged {tag}"
            for tag in candidate.tags
            if any(fnmatchcase(tag, pattern) for pattern in rules.keep_tagged)
        ]
        if candidate.snapshot_type in rules.keep_types:
            reasons.append(f"type {candidate.snapshot_type}")
    return [tuple(reasons) for reasons in found]


def _keep_counted(
    rules: Retention, candidates: Sequence[Candidate], found: list[list[str]]
) -> None:
    for field, period in _PERIODS.items():
        left: int = getattr(rules, field)
        last: object = None
        name = field.removeprefix("keep_")
        for number, (reasons, candidate) in enumerate(zip(found, candidates, strict=True)):
            if left == 0:
                break
            here = number if period is None else period(_moment(candidate.created_ns))
            if here != last:
                reasons.append(name)
                last = here
                left -= 1


_PERIODS: Final[dict[str, Callable[[datetime], object] | None]] = {
    "keep_last": None,
    "keep_daily": lambda moment: moment.date(),
    "keep_weekly": lambda moment: moment.isocalendar()[:2],
    "keep_monthly": lambda moment: (moment.year, moment.month),
    "keep_yearly": lambda moment: moment.year,
}
"""For each rule that counts, what two versions share of which it keeps one."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A span of the calendar."""

    months: int
    hours: int


def parse_duration(text: str) -> Duration | None:
    """Return the duration that *text* spells, such as `1y6m2w3d12h`; None for no text.

    Raises:
        ArgumentValueError: it spells none.
    """
    if not text:
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ArgumentValueError(f"duration {text[:40]!r}: write 1y6m2w3d12h or a part of it")
    years, months, weeks, days, hours = (int(part or 0) for part in match.groups())
    return Duration(years * 12 + months, (weeks * 7 + days) * 24 + hours)


def _before(time_ns: int, duration: Duration) -> int:
    """Return the time that is *duration* before; the earliest there is if that is too far."""
    moment = _moment(time_ns)
    month = moment.year * 12 + moment.month - 1 - duration.months
    year, month = divmod(month, 12)
    if year < 1:
        return -(1 << 63)
    day = min(moment.day, monthrange(year, month + 1)[1])
    try:
        earlier = moment.replace(year=year, month=month + 1, day=day) - timedelta(
            hours=duration.hours
        )
    except OverflowError:
        return -(1 << 63)
    # In whole seconds: what a float of a date cannot hold is put back.
    return int(earlier.timestamp()) * 10**9 + time_ns % 10**9


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // 10**9, UTC)

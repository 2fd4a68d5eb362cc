"""Which lines of two texts differ, in bounded time.

What is equal at both ends is set aside. Lines that are there exactly once on both
sides are anchors; between two of them it goes on in the same way. Where there are
none, the shortest way from one side to the other is looked for (Myers, "An O(ND)
Difference Algorithm", 1986), within a budget. What is left then differs as a
whole: a larger patch than need be, and still a right one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

CONTEXT: Final = 3
"""Equal lines shown around a change, as diff and git show."""
STEPS_MAX: Final = 400_000
"""Steps of searching for short ways in one pair of texts: some 0.2 s."""
_EDITS_MAX: Final = 400
"""Lines of difference in one stretch without anchors above which no short way is looked for."""


@dataclass(frozen=True, slots=True)
class Change:
    """Lines [start, stop) became lines [new_start, new_stop)."""

    start: int
    stop: int
    new_start: int
    new_stop: int


def split_lines(text: bytes) -> list[bytes]:
    """Return the lines of *text* with their ends; only the last may have none."""
    # Not splitlines: it also breaks at form feeds and other characters that diff keeps.
    lines = text.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def changes(before: Sequence[bytes], after: Sequence[bytes]) -> list[Change]:
    """Return what differs, in order; between two changes there is an equal line."""
    numbers: dict[bytes, int] = {}
    old = [numbers.setdefault(line, len(numbers)) for line in before]
    new = [numbers.setdefault(line, len(numbers)) for line in after]
    steps = [STEPS_MAX]
    found: list[Change] = []
    # A stack and no recursion: anchors may be as many as lines.
    stack = [Change(0, len(old), 0, len(new))]
    while stack:
        part = _trimmed(old, new, stack.pop())
        if part.start == part.stop or part.new_start == part.new_stop:
            if (part.start, part.new_start) != (part.stop, part.new_stop):
                found.append(part)
            continue
        between = _between_anchors(old, new, part)
        if between is None:
            found += _shortest(old, new, part, steps)
        else:
            stack += between[::-1]
    return _joined(found)


def hunks(before: Sequence[bytes], after: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the lines of a unified diff of two texts, without its two headings."""
    for group in _groups(changes(before, after)):
        start = max(group[0].start - CONTEXT, 0)
        stop = min(group[-1].stop + CONTEXT, len(before))
        new_start = group[0].new_start - (group[0].start - start)
        new_stop = group[-1].new_stop + (stop - group[-1].stop)
        yield b"@@ -%s +%s @@\n" % (_range(start, stop), _range(new_start, new_stop))
        place = start
        for change in group:
            yield from (_line(b" ", line) for line in before[place : change.start])
            yield from (_line(b"-", line) for line in before[change.start : change.stop])
            yield from (_line(b"+", line) for line in after[change.new_start : change.new_stop])
            place = change.stop
        yield from (_line(b" ", line) for line in before[place:stop])


def _trimmed(old: list[int], new: list[int], part: Change) -> Change:
    """Return *part* without what is equal at its ends."""
    start, stop, new_start, new_stop = part.start, part.stop, part.new_start, part.new_stop
    while start < stop and new_start < new_stop and old[start] == new[new_start]:
        start += 1
        new_start += 1
    while start < stop and new_start < new_stop and old[stop - 1] == new[new_stop - 1]:
        stop -= 1
        new_stop -= 1
    return Change(start, stop, new_start, new_stop)


def _between_anchors(old: list[int], new: list[int], part: Change) -> list[Change] | None:
    """Return what lies between the anchors of *part*; None if it has none."""
    places = _once(old, part.start, part.stop)
    others = _once(new, part.new_start, part.new_stop)
    pairs = sorted((place, others[line]) for line, place in places.items() if line in others)
    if not pairs:
        return None
    anchors = [
        (part.start - 1, part.new_start - 1),
        *_growing(pairs),
        (part.stop, part.new_stop),
    ]
    return [
        Change(left + 1, right, new_left + 1, new_right)
        for (left, new_left), (right, new_right) in pairwise(anchors)
    ]


def _once(lines: list[int], start: int, stop: int) -> dict[int, int]:
    """Return the place of each line that is there once."""
    places: dict[int, int] = {}
    several: set[int] = set()
    for place in range(start, stop):
        line = lines[place]
        if line in places:
            several.add(line)
        places[line] = place
    return {line: place for line, place in places.items() if line not in several}


def _growing(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest part of *pairs*, sorted by the first, in which the second grows too."""
    ends: list[int] = []
    """The smallest second with which a run of each length ends."""
    last: list[int] = []
    before: list[int] = []
    for index, (_, second) in enumerate(pairs):
        length = bisect_left(ends, second)
        before.append(last[length - 1] if length else -1)
        if length == len(ends):
            ends.append(second)
            last.append(index)
        else:
            ends[length], last[length] = second, index
    found = []
    index = last[-1]
    while index >= 0:
        found.append(pairs[index])
        index = before[index]
    return found[::-1]


def _shortest(old: list[int], new: list[int], part: Change, steps: list[int]) -> list[Change]:
    """Return the fewest changes that lead through *part*, or all of it as one.

    *steps* holds what is left of the budget.
    """
    a, b = old[part.start : part.stop], new[part.new_start : part.new_stop]
    furthest = {1: 0}
    trace: list[dict[int, int]] = []
    for edits in range(min(len(a) + len(b), _EDITS_MAX) + 1):
        trace.append(dict(furthest))
        steps[0] -= 2 * edits + 1
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1]
            )
            x = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            y = x - diagonal
            first = x
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x += 1
                y += 1
            steps[0] -= x - first
            furthest[diagonal] = x
            if x >= len(a) and y >= len(b):
                return _way_back(part, trace, len(a), len(b))
        if steps[0] < 0:
            break
    return [part]


def _way_back(part: Change, trace: list[dict[int, int]], x: int, y: int) -> list[Change]:
    found: list[Change] = []
    for edits in range(len(trace) - 1, 0, -1):
        furthest = trace[edits]
        diagonal = x - y
        down = diagonal == -edits or (
            diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1]
        )
        previous = diagonal + 1 if down else diagonal - 1
        x = furthest[previous]
        y = x - previous
        start, new_start = part.start + x, part.new_start + y
        if down:
            found.append(Change(start, start, new_start, new_start + 1))
        else:
            found.append(Change(start, start + 1, new_start, new_start))
    return found[::-1]


def _joined(found: list[Change]) -> list[Change]:
    """Return *found* in order, those that touch as one."""
    joined: list[Change] = []
    for change in sorted(found, key=lambda one: (one.start, one.new_start, one.stop)):
        last = joined[-1] if joined else None
        if last is not None and (last.stop, last.new_stop) == (change.start, change.new_start):
            joined[-1] = Change(last.start, change.stop, last.new_start, change.new_stop)
        else:
            joined.append(change)
    return joined


def _groups(found: list[Change]) -> Iterator[list[Change]]:
    """Yield the changes of each hunk: those whose context would touch."""
    group: list[Change] = []
    for change in found:
        if group and change.start - group[-1].stop > 2 * CONTEXT:
            yield group
            group = []
        group.append(change)
    if group:
        yield group


def _range(start: int, stop: int) -> bytes:
    # An empty range names the line before it. Source: POSIX, diff -u.
    if stop - start == 1:
        return b"%d" % stop
    return b"%d,%d" % (start + 1 if stop > start else start, stop - start)


def _line(mark: bytes, line: bytes) -> bytes:
    if line.endswith(b"\n"):
        return mark + line
    return mark + line + b"\n\\ No newline at end of file\n"

"""Ranges of semantic versions, in npm's notation: `^1.2`, `~1.2.3`, `>=1 <3 || 5.x`, `1 - 2`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

RANGE_MAX: Final = 256
"""Letters in a range. As npm has it."""


class Range:
    """A range that labels are in or not.

    As in npm, a label with a pre-release part is in only if a comparator with the same
    major, minor and patch number has one too; build metadata counts for nothing.
    """

    def __init__(self, text: str) -> None:
        """Parse *text*; empty and `*` are every label without a pre-release part.

        Raises:
            ValueError: it is no range.
        """
        # 28 ms to import; few verbs need it.
        import nodesemver

        if len(text) > RANGE_MAX or not text.isascii() or not text.isprintable():
            raise ValueError(f"no range of versions, or over {RANGE_MAX} letters")
        try:
            self._range: Any = nodesemver.make_range(text, loose=False)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError("no range of versions") from error

    def has(self, label: str) -> bool:
        """Return whether *label*, an exact semantic version, is in the range."""
        try:
            return bool(self._range.test(label.partition("+")[0]))
        except ValueError:
            return False


@lru_cache(maxsize=4096)
def parse_range(text: str) -> Range:
    """Return the range that *text* tells, parsing each text once.

    Raises:
        ValueError: as `Range`.
    """
    return Range(text)

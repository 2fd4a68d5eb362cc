"""Which files are meant: patterns of paths, as an agent's manifest has them.

A pattern is a path from the top. In each name `*` is any run of letters, `?`
one, `[…]` one of several; `**` alone is any number of folders, and at the end
everything below. Letters of hidden files are letters like others.
"""

from __future__ import annotations

import fnmatch
import os
import re
from functools import lru_cache
from typing import Final

PATTERNS_MAX: Final = 64
PATTERN_MAX: Final = 1024
"""Letters in a pattern."""
NAMES_MAX: Final = 16
"""Names in a pattern."""

_Rest = tuple[str, ...]
State = frozenset[_Rest]
"""The patterns' parts that have still to fit, for what is in one folder."""
_ANY: Final = "**"


class Patterns:
    """A choice of files: those that at least one pattern fits."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        """Parse *patterns*.

        Raises:
            ValueError: one is none, or there are too many; the text says which.
        """
        if len(patterns) > PATTERNS_MAX:
            raise ValueError(f"over {PATTERNS_MAX} patterns")
        self._top = _close({_parse(pattern) for pattern in patterns})

    def top(self) -> State:
        """Return what counts for the entries of the top."""
        return self._top

    def below(self, state: State, name: bytes) -> State:
        """Return what counts for the entries of the directory *name*."""
        text = os.fsdecode(name)
        return _close(
            {rest if rest[0] == _ANY else rest[1:] for rest in state if _fits_folder(rest, text)}
        )

    def takes(self, state: State, name: bytes) -> bool:
        """Return whether the file *name* is meant."""
        return _last_names(state).fullmatch(os.fsdecode(name)) is not None


def _parse(pattern: str) -> _Rest:
    names = tuple(pattern.split("/"))
    shown = pattern if len(pattern) <= 80 else pattern[:77] + "..."
    if not all(names) or any(name in (".", "..") for name in names) or "\0" in pattern:
        raise ValueError(f"{shown!a} is no path from the top")
    if len(pattern) > PATTERN_MAX or len(names) > NAMES_MAX:
        raise ValueError(f"{shown!a} is too long")
    if any(_ANY in name and name != _ANY for name in names) or names.count(_ANY) > 1:
        raise ValueError(f"{shown!a}: '**' stands alone between slashes, and once")
    return names


def _close(rests: set[_Rest]) -> State:
    """Add what is left of patterns whose `**` stands for no folder at all."""
    return frozenset(rests | {rest[1:] for rest in rests if rest[0] == _ANY and len(rest) > 1})


def _fits_folder(rest: _Rest, name: str) -> bool:
    return rest[0] == _ANY or (len(rest) > 1 and _fits(rest[0], name))


def _fits(pattern: str, name: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _last_names(state: State) -> re.Pattern[str]:
    """Return what fits the names of files that are meant, in a folder with *state*."""
    names = {rest[0] for rest in state if len(rest) == 1}
    if _ANY in names:
        return re.compile(r"(?s:.*)")
    # Nothing fits the last alternative, which is the only one where nothing is meant.
    return re.compile("|".join([*map(fnmatch.translate, sorted(names)), "(?!)"]))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))

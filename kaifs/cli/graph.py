"""Draws a history as `git log --graph` does: one column for each branch.

Versions come newest first, each before its parent. A column waits for the version
that its branch came from; where two wait for the same one, they join.
"""

from __future__ import annotations

from collections.abc import Iterator


class Graph:
    """The columns, as far as they are drawn."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        """For each column the version that comes next in it."""
        self._row = ""
        """How columns have moved since the last version; drawn if another comes."""

    def draw(self, version: str, parent: str | None, lines: list[str]) -> Iterator[str]:
        """Yield *lines*, at least one, behind the columns; *parent* goes on in the same column."""
        waiting = self._waiting
        if self._row:
            yield self._row
            self._row = ""
        if version not in waiting:
            waiting.append(version)
        column = waiting.index(version)
        for number, line in enumerate(lines):
            cells = ["|"] * len(waiting)
            if number == 0:
                cells[column] = "*"
            elif parent is None:
                cells[column] = " "
            yield f"{' '.join(cells)} {line}".rstrip()
        if parent is None:
            if column + 1 < len(waiting):
                self._row = self._shifted(column, column)
            del waiting[column]
        elif parent in waiting:
            left, right = sorted((waiting.index(parent), column))
            self._row = self._shifted(left, right)
            waiting[left] = parent
            del waiting[right]
        else:
            waiting[column] = parent

    def _shifted(self, left: int, right: int) -> str:
        """Return the row in which column *right* moves into *left*, and those after it one on.

        Equal: the column ends.
        """
        cells = [" "] * (2 * len(self._waiting))
        for column in range(len(self._waiting)):
            if column < right:
                cells[2 * column] = "|"
            elif column > right or left != right:
                cells[2 * column - 1] = "/"
        for place in range(2 * left + 1, 2 * right - 2, 2):
            cells[place] = "_"
        return "".join(cells).rstrip()

"""How much of each file differs, as `git diff --stat` prints it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kaifs.cli.output import coloured

if TYPE_CHECKING:
    from kaifs.service.diff import Change

WIDTH = 80
"""Columns of a line that is for no terminal. Source: git-diff(1), --stat."""
_GRAPH_MIN = 10
_BINARY = "Bin"
_DIRECTORY = "04"
"""What the mode of a directory begins with."""


def stat_lines(changes: Sequence[Change]) -> list[str]:
    """Return the lines for *changes*, and the sum; nothing if there are none."""
    # A folder that came, went or moved is left out, unless there is nothing else to tell.
    changes = [change for change in changes if not _is_folder_of_files(change)] or changes
    if not changes:
        return []
    names = [_name(change) for change in changes]
    name_width = max(map(len, names))
    most = max(change.added + change.removed for change in changes)
    number_width = len(str(most))
    if any(change.is_binary for change in changes):
        number_width = max(number_width, len(_BINARY))
    room = shutil.get_terminal_size((WIDTH, 0)).columns - name_width - number_width - 6
    room = max(room, _GRAPH_MIN)
    lines = []
    for name, change in zip(names, changes, strict=True):
        count: int | str = change.added + change.removed
        tail = f" {_graph(change.added, change.removed, most, room)}" if count else ""
        if change.is_binary:
            count, tail = _BINARY, f" {change.old_size} -> {change.new_size} bytes"
        lines.append(f" {name:<{name_width}} | {count:>{number_width}}{tail}")
    return [*lines, _sum(changes)]


def _is_folder_of_files(change: Change) -> bool:
    """Return whether it is a folder that came, went or moved: what is in it is told."""
    mode = change.new_mode or change.old_mode or ""
    return mode.startswith(_DIRECTORY) and change.status in "ADR"


def _graph(added: int, removed: int, most: int, room: int) -> str:
    if most > room:
        whole = _scaled(added + removed, most, room)
        if added and removed:
            plus = min(max(_scaled(added, most, room), 1), max(whole - 1, 1))
            added, removed = plus, max(whole - plus, 1)
        else:
            added, removed = (whole, 0) if added else (0, whole)
    return coloured("+" * added, "green") + coloured("-" * removed, "red")


def _scaled(count: int, most: int, room: int) -> int:
    # What is there at all is shown.
    return 1 + count * (room - 1) // most if count else 0


def _sum(changes: Sequence[Change]) -> str:
    added = sum(change.added for change in changes)
    removed = sum(change.removed for change in changes)
    text = f" {_counted(len(changes), 'file', '')} changed"
    if added or not removed:
        text += f", {_counted(added, 'insertion', '(+)')}"
    if removed or not added:
        text += f", {_counted(removed, 'deletion', '(-)')}"
    return text


def _counted(count: int, what: str, mark: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}{mark}"


def _name(change: Change) -> str:
    if change.old_path is None:
        return _shown(change.path)
    old, new = change.old_path, change.path
    if not (old + new).isprintable():
        return f"{_shown(old)} => {_shown(new)}"
    return _renamed(old, new)


def _renamed(old: str, new: str) -> str:
    """Return `a/{b => c}/d`: what two paths share is said once, in whole names."""
    before, after = old.split("/"), new.split("/")
    head = 0
    while head < min(len(before), len(after)) - 1 and before[head] == after[head]:
        head += 1
    tail = 0
    while (
        tail < min(len(before), len(after)) - head
        and before[len(before) - 1 - tail] == after[len(after) - 1 - tail]
    ):
        tail += 1
    if not head and not tail:
        return f"{old} => {new}"
    middle, other = ("/".join(names[head : len(names) - tail]) for names in (before, after))
    left = "".join(name + "/" for name in before[:head])
    right = "".join("/" + name for name in before[len(before) - tail :]) if tail else ""
    return f"{left}{{{middle} => {other}}}{right}"


def _shown(path: str) -> str:
    """Return *path* for a line: in quotes with C escapes if a line could not hold it."""
    if path.isprintable() and '"' not in path:
        return path
    from kaifs.service.text import quote_path

    return quote_path(path.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")

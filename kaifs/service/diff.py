"""Compares two trees."""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterable
from typing import Literal

import msgspec

from kaifs.base.errors import BadReferenceError
from kaifs.base.types import RootId
from kaifs.service.context import Context
from kaifs.service.patch import Side, count_lines, find_side, has_lines, render, what_differs
from kaifs.service.reference import resolve
from kaifs.service.steps import Item, Output, Progress, Step, tell
from kaifs.service.text import path_text, quote_path
from kaifs.tree.diff import Difference, by_file, diff_steps
from kaifs.tree.tree import Tree


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to compare, and how to tell it."""

    old: str
    new: str | None = None
    """None: *old* is a snapshot, which is compared with what it was made from."""
    style: Literal["names", "stat", "patch"] = "names"
    """`names` and `patch` output text; `stat` counts lines in the result."""
    has_changes: bool = True
    """Whether the result tells each change; without, memory does not grow with them."""


class Change(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One path at which the trees differ."""

    status: str
    """A added, D deleted, M modified, R renamed, T type changed."""
    path: str
    old_path: str | None = None
    """Where it was, if it was elsewhere."""
    what: tuple[str, ...] = ()
    """Which facts differ, if it is on both sides: type, content, target (of a link), mode,
    owner, device, xattrs, links (hard ones)."""
    old_mode: str | None = None
    """Type and permissions as git writes them, `100644`; None if it is not on that side."""
    new_mode: str | None = None
    old_size: int = 0
    new_size: int = 0
    added: int = 0
    """Lines; counted for `stat` only, as are the next two."""
    removed: int = 0
    is_binary: bool = False
    """No line diff of it can be made: it is no text, or too large."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What differs, by path."""

    is_different: bool
    changes: tuple[Change, ...]


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Compare two trees as they are now.

    Raises:
        KaifsError: as `resolve`; E105 if a file is closed to the caller.
    """
    old_root, new_root = _roots(context, params)
    changes: list[Change] = []
    is_different = False
    with context.frozen(old_root) as old, context.frozen(new_root) as new:
        differences: Iterable[Difference] = yield from _compare(old, new)
        if params.style != "names":
            differences = by_file(old, new, differences)
        for difference in differences:
            is_different = True
            before = find_side(old, difference.old_ino)
            after = find_side(new, difference.new_ino)
            if params.style == "names":
                yield Output(_name_status(difference))
            elif params.style == "patch":
                yield Output(render(difference, before, after))
            else:
                yield Progress(len(changes), 0, "files", "comparing")
            if params.has_changes:
                has_counts = params.style == "stat"
                changes.append(_change(difference, before, after, has_counts=has_counts))
    return Result(is_different=is_different, changes=tuple(changes))


def _compare(old: Tree, new: Tree) -> Generator[Step, Item | None, list[Difference]]:
    steps = diff_steps(old, new)
    return (yield from tell(steps, lambda done: Progress(done, 0, "files", "comparing")))


def _roots(context: Context, params: Params) -> tuple[RootId, RootId]:
    """Return the trees that are meant, of which the caller may read everything."""
    store = context.store
    target = resolve(store, params.old)
    context.require_content(target.agent, target.root)
    if params.new is not None:
        other = resolve(store, params.new)
        context.require_content(other.agent, other.root)
        return target.root, other.root
    snapshot = target.snapshot
    if snapshot is None or not store.has_root(snapshot.base):
        raise BadReferenceError(f"{params.old!r} is no snapshot: name a second tree to compare")
    context.require_content(target.agent, snapshot.base)
    return snapshot.base, snapshot.root


def _name_status(difference: Difference) -> bytes:
    paths = [difference.path]
    if difference.old_path is not None:
        paths.insert(0, difference.old_path)
    quoted = [quote_path(path) or b"." for path in paths]
    return b"\t".join([difference.status.encode(), *quoted]) + b"\n"


def _change(
    difference: Difference, before: Side | None, after: Side | None, *, has_counts: bool
) -> Change:
    old_path = difference.old_path
    change = Change(
        status=difference.status,
        path=path_text(difference.path) or ".",
        old_path=None if old_path is None else path_text(old_path),
        what=what_differs(before, after),
        old_mode=_mode(before),
        new_mode=_mode(after),
        old_size=_size(before),
        new_size=_size(after),
    )
    if not has_counts:
        return change
    added, removed = count_lines(before, after)
    is_file = any(side is not None and stat.S_ISREG(side.inode.mode) for side in (before, after))
    is_binary = is_file and not has_lines(before, after)
    return msgspec.structs.replace(change, added=added, removed=removed, is_binary=is_binary)


def _mode(side: Side | None) -> str | None:
    return None if side is None else f"{side.inode.mode:06o}"


def _size(side: Side | None) -> int:
    return side.inode.size if side is not None and stat.S_ISREG(side.inode.mode) else 0

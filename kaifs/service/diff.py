"""Compares two trees."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import msgspec

from kaifs.base.errors import BadReferenceError
from kaifs.base.types import RootId
from kaifs.service.context import Context
from kaifs.service.patch import count_lines, is_binary, load_side, render
from kaifs.service.reference import resolve
from kaifs.service.steps import Item, Output, Step
from kaifs.service.text import path_text, quote_path
from kaifs.tree.diff import Difference, diff
from kaifs.tree.tree import Tree


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to compare, and how to tell it."""

    old: str
    new: str | None = None
    """None: *old* is a snapshot, which is compared with what it was made from."""
    style: Literal["names", "stat", "patch"] = "names"
    """`names` and `patch` output text; `stat` counts lines in the result."""


class Change(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One path at which the trees differ."""

    status: str
    """A added, D deleted, M modified, R renamed, T type changed."""
    path: str
    old_path: str | None = None
    """R only: where it was."""
    added: int = 0
    """Lines; counted for `stat` only, as are the next four."""
    removed: int = 0
    is_binary: bool = False
    old_size: int = 0
    new_size: int = 0


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
    changes = []
    with context.frozen(old_root) as old, context.frozen(new_root) as new:
        for difference in diff(old, new):
            if params.style == "names":
                yield Output(_name_status(difference))
            elif params.style == "patch":
                yield Output(_patch(old, new, difference))
            changes.append(_change(old, new, difference, has_counts=params.style == "stat"))
    return Result(is_different=bool(changes), changes=tuple(changes))


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


def _patch(old: Tree, new: Tree, difference: Difference) -> bytes:
    before, after = load_side(old, difference.old_ino), load_side(new, difference.new_ino)
    if before is not None and after is not None and difference.status == "T":
        # As git does: one object goes, another comes.
        return render(difference, before, None) + render(difference, None, after)
    return render(difference, before, after)


def _change(old: Tree, new: Tree, difference: Difference, *, has_counts: bool) -> Change:
    change = Change(
        status=difference.status,
        path=path_text(difference.path) or ".",
        old_path=None if difference.old_path is None else path_text(difference.old_path),
    )
    if not has_counts:
        return change
    before, after = load_side(old, difference.old_ino), load_side(new, difference.new_ino)
    added, removed = count_lines(before, after)
    return msgspec.structs.replace(
        change,
        added=added,
        removed=removed,
        is_binary=is_binary(before, after),
        old_size=0 if before is None else before.inode.size,
        new_size=0 if after is None else after.inode.size,
    )

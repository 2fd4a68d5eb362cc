"""Merging a snapshot and its agent's current, and telling why it cannot be done."""

from __future__ import annotations

from kaifs.base.errors import MergeConflictError, SnapshotStateError
from kaifs.meta.records import SnapshotRecord
from kaifs.service.context import Context
from kaifs.service.text import path_text
from kaifs.tree.merge import Conflict, merge
from kaifs.tree.tree import Tree


def merge_trees(
    context: Context, snapshot: SnapshotRecord, ours: Tree, theirs: Tree, sides: tuple[str, str]
) -> Tree:
    """Return *ours* with what changed in *theirs* since *snapshot* was made. O(changes).

    Args:
        context: The store.
        snapshot: Names the tree that both began with.
        ours: Its inode numbers stay. Must not change meanwhile.
        theirs: Must not change meanwhile.
        sides: What to call the two in a message.

    Returns:
        A tree of nobody yet, still being built.

    Raises:
        MergeConflictError: the changes exclude each other; nothing was made.
        SnapshotStateError: the tree that both began with is gone.
    """
    store = context.store
    if not store.has_root(snapshot.base):
        raise SnapshotStateError(f"{snapshot.name}: what it was made from is gone")
    base = context.forest.tree(snapshot.base)
    merged = merge(context.forest, base, ours, theirs, store.clock.now_ns())
    if merged.tree is None:
        told = [_tell(conflict, sides) for conflict in merged.conflicts]
        more = "" if len(told) == 1 else f" and {len(told) - 1} more"
        raise MergeConflictError(f"{snapshot.name}: {told[0]}{more}", conflicts=told)
    return merged.tree


def _tell(conflict: Conflict, sides: tuple[str, str]) -> str:
    """Return one line: the kind, the path, and where it is on a side if that differs."""
    elsewhere = [
        f"{path_text(path)} in {side}"
        for side, path in zip(sides, (conflict.ours, conflict.theirs), strict=True)
        if path is not None
    ]
    where = f" ({', '.join(elsewhere)})" if elsewhere else ""
    return f"{conflict.kind}: {path_text(conflict.path) or '.'}{where}"

"""Whether a tree is still what its tests have seen.

A result of tests holds for one state of a snapshot's tree, of which a clone is
kept. As long as both have one top node nothing has changed, which is O(1) to
tell; else what differs is looked at, because reading a file may set its atime,
and sealing may store the same bytes in other blocks.
"""

from __future__ import annotations

from msgspec.structs import replace

from kaifs.base.types import RootId
from kaifs.meta import keys
from kaifs.meta.records import INODE, InodeRecord, SnapshotRecord
from kaifs.store.differing import differing
from kaifs.store.registry import READY, TEST_FAILED, TEST_PASSED
from kaifs.store.store import Store
from kaifs.tree.diff import same_content
from kaifs.tree.tree import Tree


def is_unchanged(store: Store, old: RootId, new: RootId) -> bool:
    """Return whether two trees of one lineage are the same but for atimes. O(changes)."""
    if not (store.has_root(old) and store.has_root(new)):
        return False
    before, after = Tree(store, store.root(old)), Tree(store, store.root(new))
    if before.root.top == after.root.top:
        return True
    # Orphans are no part of what tests have seen: nothing leads to them.
    orphans = {*before.orphans(), *after.orphans()}
    for key, left, right in differing(store.nodes, before.root.top, after.root.top):
        ino, kind, _ = keys.split_key(key)
        if ino in orphans or ino == keys.NO_INO:
            continue
        if kind == keys.EXTENT:
            value = after.btree.get(keys.inode_key(ino))
            if value is None or not same_content(before, ino, after, ino):
                return False
        elif kind != keys.INODE or not _is_lasting(left, right):
            return False
    return True


def _is_lasting(left: bytes | None, right: bytes | None) -> bool:
    if left is None or right is None:
        return False
    return _lasting(INODE.decode(left)) == _lasting(INODE.decode(right))


def _lasting(inode: InodeRecord) -> InodeRecord:
    """Return what counts of *inode*: neither when it was read nor how its bytes are stored."""
    return replace(inode, atime_ns=0, sha256=b"", allocated=0)


def shown_status(store: Store, snapshot: SnapshotRecord) -> str:
    """Return a snapshot's state: ready again if its tree changed since the tests."""
    has_result = snapshot.status in (TEST_PASSED, TEST_FAILED)
    if has_result and not is_unchanged(store, snapshot.tested, snapshot.root):
        return READY
    return snapshot.status

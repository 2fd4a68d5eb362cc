"""Many changes of one tree at once: each node is visited, copied and encoded once.

Beside `tree.btree:BTree`, which makes one change at a time. Both leave the same
kind of tree; which keys share a node may differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate, repeat
from operator import add
from typing import Final, cast

from kaifs.base.types import Generation, NodeId
from kaifs.meta.node import MAX_BYTES, MAX_KEYS, Branch, Leaf
from kaifs.store.nodes import Nodes
from kaifs.store.roots import Root

FILL_KEYS: Final = MAX_KEYS * 7 // 8
FILL_BYTES: Final = MAX_BYTES * 7 // 8
"""How full a node is made, so that the next change does not split it."""

_Pieces = list[tuple[bytes, NodeId]]


def apply(nodes: Nodes, root: Root, changes: Mapping[bytes, bytes | None]) -> None:
    """Put and delete keys of the tree of *root*; None deletes, also what is not there.

    O(c · log n) for c changes, with a small factor where they lie close together.
    """
    if not changes:
        return
    root.dirty = True
    root.changed_in = nodes.taking
    work = _Work(nodes, root.generation, changes)
    pieces = work.rebuild(root.top, 0, len(work.keys))
    if not pieces:
        pieces = [(b"", nodes.new_leaf(root.generation, [], []).node_id)]
    while len(pieces) > 1:
        pieces = work.branches(pieces, None)
    top = nodes.get(pieces[0][1])
    while isinstance(top, Branch) and len(top.children) == 1:
        below = nodes.get(top.children[0])
        if top.generation == root.generation:
            nodes.drop(top)
        top = below
    root.top = top.node_id


class _Work:
    """One batch of changes, sorted."""

    def __init__(
        self, nodes: Nodes, generation: Generation, changes: Mapping[bytes, bytes | None]
    ) -> None:
        self._nodes = nodes
        self._generation = generation
        self._changes = changes
        self.keys = sorted(changes)

    def rebuild(self, node_id: NodeId, start: int, stop: int) -> _Pieces:
        """Apply the changes [start, stop) below a node.

        Returns:
            What takes its place: nodes of its level with their lower bounds, perhaps none.
            The first bound is the caller's to know.
        """
        node = self._nodes.get(node_id)
        if isinstance(node, Leaf):
            return self._leaves(node, start, stop)
        children: _Pieces = []
        bounds, below = node.keys, node.children
        last = len(below) - 1
        for index, child in enumerate(below):
            end = stop if index == last else bisect_left(self.keys, bounds[index + 1], start, stop)
            if end == start:
                children.append((bounds[index], child))
                continue
            pieces = self.rebuild(child, start, end)
            start = end
            if pieces:
                # The first bound of a branch is never looked at, so it may be too great.
                bound = bounds[index] if index else min(bounds[0], pieces[0][0])
                children.append((bound, pieces[0][1]))
                children += pieces[1:]
        return self.branches(children, node)

    def _leaves(self, leaf: Leaf, start: int, stop: int) -> _Pieces:
        changes = self._changes
        keys = self.keys[start:stop]
        values = list(map(changes.__getitem__, keys))
        # Few keys go into many, or into few: no sorting anew.
        for key, value in zip(leaf.keys, leaf.values, strict=True):
            if key not in changes:
                index = bisect_left(keys, key)
                keys.insert(index, key)
                values.insert(index, value)
        if None in values:
            keys = [key for key, value in zip(keys, values, strict=True) if value is not None]
            values = [value for value in values if value is not None]
        return self._filled(leaf, keys, cast("list[bytes]", values))

    def _filled(self, leaf: Leaf, keys: list[bytes], values: list[bytes]) -> _Pieces:
        """Return leaves with *keys* and *values*; the first takes the place of *leaf*."""
        pieces: _Pieces = []
        old: Leaf | None = leaf
        for begin, end in _cuts(keys, values):
            part = self._leaf(old, keys[begin:end], values[begin:end])
            pieces.append((keys[begin], part.node_id))
            old = None
        if old is not None:
            self._drop(leaf)
        return pieces

    def _leaf(self, old: Leaf | None, keys: list[bytes], values: list[bytes]) -> Leaf:
        if old is None or old.generation != self._generation:
            return self._nodes.new_leaf(self._generation, keys, values)
        old.keys, old.values = keys, values
        old.weight = sum(map(len, keys)) + sum(map(len, values))
        self._nodes.touch(old)
        return old

    def branches(self, children: _Pieces, old: Branch | None) -> _Pieces:
        """Return branches over *children* with their bounds; the first takes *old*'s place."""
        pieces: _Pieces = []
        whole = old
        bounds = [bound for bound, _ in children]
        below = [child for _, child in children]
        for begin, end in _cuts(bounds, None):
            part = self._branch(old, bounds[begin:end], below[begin:end])
            pieces.append((bounds[begin], part.node_id))
            old = None
        if whole is not None and old is not None:
            self._drop(whole)
        return pieces

    def _branch(self, old: Branch | None, keys: list[bytes], children: list[NodeId]) -> Branch:
        if old is None or old.generation != self._generation:
            return self._nodes.new_branch(self._generation, keys, children)
        old.keys, old.children = keys, children
        old.weight = sum(map(len, keys)) + 8 * len(children)
        self._nodes.touch(old)
        return old

    def _drop(self, node: Leaf | Branch) -> None:
        if node.generation == self._generation:
            self._nodes.drop(node)


def _cuts(keys: list[bytes], values: list[bytes] | None) -> Iterator[tuple[int, int]]:
    """Yield the runs of keys that make one node each: one if all fit into one, else filled ones.

    Without values they are those of a branch, whose children weigh 8 each.
    """
    count = len(keys)
    # ends[i] is what the first i keys weigh, with what belongs to them.
    weights = map(add, map(len, keys), repeat(8) if values is None else map(len, values))
    ends = list(accumulate(weights, initial=0))
    if count <= MAX_KEYS and ends[-1] <= MAX_BYTES:
        if count:
            yield 0, count
        return
    begin = 0
    while begin < count:
        end = min(begin + FILL_KEYS, count)
        while end - begin > 1 and ends[end] - ends[begin] > FILL_BYTES:
            end = begin + (end - begin) // 2
        yield begin, end
        begin = end

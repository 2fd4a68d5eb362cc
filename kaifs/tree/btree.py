"""The persistent B+tree: sorted bytes to bytes, copied where it changes.

A node whose generation is the root's own is changed in place; any other is
copied first, with all nodes above it. So a clone costs nothing until one of
the two changes, and then one node for each level.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from kaifs.base.types import NodeId
from kaifs.meta.node import MAX_BYTES, MAX_KEYS, MIN_KEYS, Branch, Leaf, is_leaf
from kaifs.store.nodes import Nodes
from kaifs.store.roots import Root

_Path = list[tuple[Branch, int]]

V = TypeVar("V")

_UNKNOWN: Final[Any] = object()
"""What is kept of a key of which nothing is."""
DECODED_MAX: Final = 128
"""Decoded values kept for one tree: the directories and files at work, some 50 KB."""


class BTree:
    """The B+tree of one root."""

    __slots__ = ("_cached", "_decoded", "_decoded_top", "_nodes", "_root")

    def __init__(self, nodes: Nodes, root: Root) -> None:
        self._nodes = nodes
        self._cached = nodes.cached
        self._root = root
        self._decoded: dict[bytes, Any] = {}
        self._decoded_top = root.top
        """The top node when the first of `_decoded` was kept: with another one nothing of it counts,
        for whole trees are changed by giving a root another top."""

    # --- reading -----------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """Return the value at *key*, None if there is none. O(log n)."""
        leaf = self._leaf(key)
        keys = leaf.keys
        index = bisect_left(keys, key)
        if index < len(keys) and keys[index] == key:
            return leaf.values[index]
        return None

    def _leaf(self, key: bytes) -> Leaf:
        """Return the leaf that has *key*, if it is anywhere.

        Every request comes here, mostly more than once: so what `Nodes.get` does is written out,
        and a type asked for in the shortest way.
        """
        nodes, cached = self._nodes, self._cached
        node_id, visits = self._root.top, 1
        node = cached.get(node_id) or nodes.load(node_id)
        node.used = True
        while node.__class__ is Branch:
            index = bisect_right(node.keys, key) - 1
            node_id = node.children[index if index > 0 else 0]
            node = cached.get(node_id) or nodes.load(node_id)
            node.used = True
            visits += 1
        nodes.visits += visits
        return node  # type: ignore[return-value]  # what is no branch is a leaf

    def get_decoded(self, key: bytes, decode: Callable[[bytes], V]) -> V | None:
        """Return what *decode* makes of the value at *key*, None if there is none.

        The last few are kept, also that there is none. So a key must always be decoded in the
        same way, to what never changes.
        """
        if self._decoded_top != self._root.top:
            self._decoded.clear()
            self._decoded_top = self._root.top
        found: V | None = self._decoded.get(key, _UNKNOWN)
        if found is _UNKNOWN:
            value = self.get(key)
            found = None if value is None else decode(value)
            self._keep(key, found)
        return found

    def put_decoded(self, key: bytes, value: bytes, decoded: object) -> None:
        """Set the value at *key*, and keep what it is decoded to."""
        self.put(key, value)
        if self._decoded_top == self._root.top:
            self._keep(key, decoded)

    def _keep(self, key: bytes, decoded: object) -> None:
        if len(self._decoded) >= DECODED_MAX:
            self._decoded.clear()
        self._decoded[key] = decoded

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value for each key in [start, stop), in order.

        The tree must not change while this runs; take a list if it may.
        """
        node, path = self._descend(start)
        index = bisect_left(node.keys, start)
        while True:
            keys, values = node.keys, node.values
            last = len(keys) if not keys or keys[-1] < stop else bisect_left(keys, stop)
            for position in range(index, last):
                yield keys[position], values[position]
            if last < len(keys):
                return
            following = self._next_leaf(path)
            if following is None:
                return
            node, index = following, 0

    def _next_leaf(self, path: _Path) -> Leaf | None:
        while path:
            branch, index = path.pop()
            if index + 1 < len(branch.children):
                path.append((branch, index + 1))
                node = self._nodes.get(branch.children[index + 1])
                while not is_leaf(node):
                    assert isinstance(node, Branch)
                    path.append((node, 0))
                    node = self._nodes.get(node.children[0])
                return node
        return None

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the greatest key that is not greater than *key*, and its value."""
        get = self._nodes.get
        node, path = self._descend(key)
        index = bisect_right(node.keys, key) - 1
        if index >= 0:
            return node.keys[index], node.values[index]
        # A bound may be smaller than every key that is left below it.
        while path:
            branch, index = path.pop()
            if index > 0:
                last = get(branch.children[index - 1])
                while not is_leaf(last):
                    assert isinstance(last, Branch)
                    last = get(last.children[-1])
                return last.keys[-1], last.values[-1]
        return None

    # --- changing ----------------------------------------------------------------------

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value at *key*. O(log n)."""
        self._decoded.pop(key, None)
        leaf = self._writable_leaf(key)
        keys = leaf.keys
        index = bisect_left(keys, key)
        if index < len(keys) and keys[index] == key:
            leaf.weight += len(value) - len(leaf.values[index])
            leaf.values[index] = value
        else:
            keys.insert(index, key)
            leaf.values.insert(index, value)
            leaf.weight += len(key) + len(value)
        log = self._root.log
        if log is not None:
            log.put(key, value)
        if len(keys) > MAX_KEYS or leaf.weight > MAX_BYTES:
            self._split(leaf, self._descend(key)[1], at_end=index == len(keys) - 1)

    def delete(self, key: bytes) -> bool:
        """Delete *key*. Return whether it was there. O(log n)."""
        if self.get(key) is None:
            return False
        self.discard(key)
        return True

    def discard(self, key: bytes) -> None:
        """Delete *key* if it is there, which mostly it should be: nodes are copied in any case."""
        self._decoded.pop(key, None)
        leaf = self._writable_leaf(key)
        keys = leaf.keys
        index = bisect_left(keys, key)
        if index >= len(keys) or keys[index] != key:
            return
        leaf.weight -= len(key) + len(leaf.values[index])
        del keys[index]
        del leaf.values[index]
        log = self._root.log
        if log is not None:
            log.put(key, None)
        if len(keys) < MIN_KEYS:
            self._shrink(leaf, self._descend(key)[1])

    def take(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """Delete every key in [start, stop), and return them with their values, in order."""
        taken: list[tuple[bytes, bytes]] = []
        following: bytes | None = start
        while following is not None:
            taken += self._take_from_leaf(following, stop)
            # Mostly one leaf has them all.
            following = next((key for key, _ in self.scan(following, stop)), None)
        return taken

    def _take_from_leaf(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        leaf = self._writable_leaf(start)
        keys, values = leaf.keys, leaf.values
        first, last = bisect_left(keys, start), bisect_left(keys, stop)
        taken = list(zip(keys[first:last], values[first:last], strict=True))
        del keys[first:last]
        del values[first:last]
        log = self._root.log
        for key, value in taken:
            self._decoded.pop(key, None)
            leaf.weight -= len(key) + len(value)
            if log is not None:
                log.put(key, None)
        if taken and len(keys) < MIN_KEYS:
            self._shrink(leaf, self._descend(start)[1])
        return taken

    def _writable_leaf(self, key: bytes) -> Leaf:
        """Return the leaf that has *key*, or is to have it; it and all above it are the root's own."""
        nodes, cached, root = self._nodes, self._cached, self._root
        root.dirty = True
        root.changed_in = nodes.taking
        generation, node_id, visits = root.generation, root.top, 1
        node = cached.get(node_id) or nodes.load(node_id)
        node.used = True
        if node.generation != generation:
            node = nodes.copy(node, generation)
            root.top = node.node_id
        while node.__class__ is Branch:
            index = bisect_right(node.keys, key) - 1
            if index < 0:
                index = 0
            node_id = node.children[index]
            child = cached.get(node_id) or nodes.load(node_id)
            child.used = True
            visits += 1
            if child.generation != generation:
                child = nodes.copy(child, generation)
                node.children[index] = child.node_id
                nodes.touch(node)
            node = child
        nodes.visits += visits
        if not node.dirty:
            nodes.touch(node)
        return node  # type: ignore[return-value]  # what is no branch is a leaf

    def _descend(self, key: bytes) -> tuple[Leaf, _Path]:
        """Return the leaf that has *key*, and the branches above, with the place of the next in each."""
        get = self._nodes.get
        path: _Path = []
        node = get(self._root.top)
        while not is_leaf(node):
            assert isinstance(node, Branch)
            index = max(bisect_right(node.keys, key) - 1, 0)
            path.append((node, index))
            node = get(node.children[index])
        return node, path

    def _writable(self, node_id: NodeId) -> Leaf | Branch:
        node = self._nodes.get(node_id)
        if node.generation == self._root.generation:
            return node
        return self._nodes.copy(node, self._root.generation)

    def _split(self, node: Leaf | Branch, path: _Path, *, at_end: bool) -> None:
        """Split nodes from *node* up until none is overfull."""
        nodes, generation = self._nodes, self._root.generation
        while node.is_overfull:
            # Growing keys are the common case (an import): leave full nodes behind them.
            middle = len(node.keys) - 1 if at_end else len(node.keys) // 2
            right: Leaf | Branch
            if isinstance(node, Leaf):
                right = nodes.new_leaf(generation, node.keys[middle:], node.values[middle:])
                del node.values[middle:]
            else:
                right = nodes.new_branch(generation, node.keys[middle:], node.children[middle:])
                del node.children[middle:]
            bound = node.keys[middle]
            del node.keys[middle:]
            node.weight -= right.weight
            nodes.touch(node)
            if path:
                parent, index = path.pop()
            else:
                parent = nodes.new_branch(generation, [node.keys[0]], [node.node_id])
                self._root.top, index = parent.node_id, 0
            parent.keys.insert(index + 1, bound)
            parent.children.insert(index + 1, right.node_id)
            parent.weight += len(bound) + 8
            nodes.touch(parent)
            at_end = at_end and index + 2 == len(parent.children)
            if isinstance(node, Leaf) and isinstance(right, Leaf):
                self._split_heavy(right, parent, index + 1)
                self._split_heavy(node, parent, index)
            node = parent

    def _split_heavy(self, leaf: Leaf, parent: Branch, index: int) -> None:
        """Split the child at *index* on: with values near MAX_BYTES a half can be too heavy."""
        if leaf.is_overfull:
            middle = len(leaf.keys) // 2
            right = self._nodes.new_leaf(
                self._root.generation, leaf.keys[middle:], leaf.values[middle:]
            )
            parent.keys.insert(index + 1, right.keys[0])
            parent.children.insert(index + 1, right.node_id)
            parent.weight += len(right.keys[0]) + 8
            del leaf.keys[middle:]
            del leaf.values[middle:]
            leaf.weight -= right.weight
            self._split_heavy(right, parent, index + 1)
            self._split_heavy(leaf, parent, index)

    def _shrink(self, node: Leaf | Branch, path: _Path) -> None:
        """Merge nodes from *node* up while they are small and fit into a neighbour."""
        nodes = self._nodes
        while path:
            parent, index = path.pop()
            if node.keys:
                merged = self._merge(parent, index) or (
                    index > 0 and self._merge(parent, index - 1)
                )
                if not merged:
                    break
            else:
                parent.weight -= len(parent.keys[index]) + 8
                del parent.keys[index]
                del parent.children[index]
                nodes.touch(parent)
                nodes.drop(node)
            node = parent
            if len(node.keys) >= MIN_KEYS:
                break
        self._drop_idle_tops()

    def _merge(self, parent: Branch, index: int) -> bool:
        """Move the child after *index* into the child at *index*, if both fit in one node."""
        if index + 1 >= len(parent.children):
            return False
        nodes = self._nodes
        left = nodes.get(parent.children[index])
        right = nodes.get(parent.children[index + 1])
        if len(left.keys) + len(right.keys) > MAX_KEYS * 3 // 4:
            return False
        if left.weight + right.weight > MAX_BYTES * 3 // 4:
            return False
        left = self._writable(left.node_id)
        parent.children[index] = left.node_id
        bound = parent.keys[index + 1]
        weight = right.weight
        if isinstance(left, Branch):
            assert isinstance(right, Branch)
            # The first bound of a branch is never looked at, so it may be too great.
            left.keys.append(bound)
            left.keys += right.keys[1:]
            left.children += right.children
            weight += len(bound) - len(right.keys[0])
        else:
            assert isinstance(right, Leaf)
            left.keys += right.keys
            left.values += right.values
        left.weight += weight
        nodes.touch(left)
        parent.weight -= len(bound) + 8
        del parent.keys[index + 1]
        del parent.children[index + 1]
        nodes.touch(parent)
        if right.generation == self._root.generation:
            nodes.drop(right)
        return True

    def _drop_idle_tops(self) -> None:
        nodes, root = self._nodes, self._root
        top = nodes.get(root.top)
        while isinstance(top, Branch) and len(top.children) == 1:
            root.top = top.children[0]
            if top.generation == root.generation:
                nodes.drop(top)
            top = nodes.get(root.top)

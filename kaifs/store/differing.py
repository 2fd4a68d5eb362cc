"""Where two trees differ, at the cost of what differs."""

from __future__ import annotations

from collections.abc import Iterator

from kaifs.base.types import NodeId
from kaifs.meta.node import Branch, Leaf
from kaifs.store.nodes import Nodes


def differing(
    nodes: Nodes, old: NodeId, new: NodeId
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield key, old value and new value where two trees differ, in order of keys.

    What both trees share is skipped without being read: O(changes · log n) nodes
    are. The trees must not change while this runs.
    """
    left, right = _Cursor(nodes, old), _Cursor(nodes, new)
    while not (left.is_at_end and right.is_at_end):
        if _skip_shared(left, right):
            continue
        if left.is_unopened or right.is_unopened:
            for cursor in (left, right):
                if cursor.is_unopened:
                    cursor.open()
            continue
        a, b = left.item(), right.item()
        if b is None or (a is not None and a[0] < b[0]):
            assert a is not None
            yield a[0], a[1], None
            left.advance()
        elif a is None or b[0] < a[0]:
            yield b[0], None, b[1]
            right.advance()
        else:
            if a[1] != b[1]:
                yield a[0], a[1], b[1]
            left.advance()
            right.advance()


def items(nodes: Nodes, top: NodeId) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key and value of a tree, in order. It must not change while this runs."""
    node = nodes.get(top)
    if isinstance(node, Branch):
        for child in node.children:
            yield from items(nodes, child)
    else:
        yield from zip(node.keys, node.values, strict=True)


def _skip_shared(left: _Cursor, right: _Cursor) -> bool:
    """Move both past the largest subtree that begins at both and is one node."""
    theirs = right.beginning_here()
    if not theirs:
        return False
    shared = set(left.beginning_here()).intersection(theirs)
    if not shared:
        return False
    # The list begins with the smallest subtree.
    largest = next(node for node in reversed(theirs) if node in shared)
    left.skip(largest)
    right.skip(largest)
    return True


class _Cursor:
    """A place in a tree: at a key of an opened leaf, or before a node not yet opened."""

    def __init__(self, nodes: Nodes, top: NodeId) -> None:
        self._nodes = nodes
        self._stack: list[tuple[list[NodeId], int]] = [([top], 0)]
        self._leaf: Leaf | None = None
        self._index = 0

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return not self._stack

    @property
    def is_unopened(self) -> bool:
        """Whether the place is before a node not yet opened."""
        return self._leaf is None and bool(self._stack)

    def item(self) -> tuple[bytes, bytes] | None:
        """Return the key and value here; None at the end."""
        if self._leaf is None:
            return None
        return self._leaf.keys[self._index], self._leaf.values[self._index]

    def advance(self) -> None:
        """Go past the key here."""
        self._index += 1
        assert self._leaf is not None
        if self._index >= len(self._leaf.keys):
            self._pass()

    def open(self) -> None:
        """Look into the node here."""
        children, index = self._stack[-1]
        node = self._nodes.get(children[index])
        if isinstance(node, Branch):
            self._stack.append((node.children, 0))
        elif node.keys:
            self._leaf, self._index = node, 0
        else:
            self._pass()

    def beginning_here(self) -> list[NodeId]:
        """Return the nodes that begin exactly here, the smallest first."""
        found: list[NodeId] = []
        if self._leaf is None or self._index == 0:
            for children, index in reversed(self._stack):
                found.append(children[index])
                if index > 0:
                    break
        return found

    def skip(self, node_id: NodeId) -> None:
        """Go past the whole of *node_id*, one of `beginning_here()`."""
        while True:
            children, index = self._stack[-1]
            if children[index] == node_id:
                break
            self._stack.pop()
        self._pass()

    def _pass(self) -> None:
        self._leaf = None
        while self._stack:
            children, index = self._stack.pop()
            if index + 1 < len(children):
                self._stack.append((children, index + 1))
                return

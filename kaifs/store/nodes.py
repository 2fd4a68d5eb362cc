"""Nodes of all trees, decoded and cached within a byte budget.

A node belongs to the root whose generation it has; only that root changes it
in place. Everything else is shared and never changes.
"""

from __future__ import annotations

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import Generation, NodeId
from kaifs.meta.database import Table
from kaifs.meta.node import Branch, Leaf, decode_node, encode_node
from kaifs.store.pending import Pending


def node_key(node_id: NodeId) -> bytes:
    """Return the key of a node in NODES."""
    return node_id.to_bytes(8, "big")


class Nodes:
    """The node cache. A dirty node stays in it until it is encoded for a commit."""

    def __init__(self, pending: Pending, next_node: int, cache_bytes: int) -> None:
        self._pending = pending
        self._cache_bytes = cache_bytes
        self.cached: dict[NodeId, Leaf | Branch] = {}
        """For who looks a node up before calling `get`, and then does what `get` does."""
        self._dirty: dict[NodeId, Leaf | Branch] = {}
        self._memory = 0
        self._shrink_at = cache_bytes
        self.next_node = next_node
        self._first_of_epoch = next_node
        self.taking = 1
        """Number of the commit that takes what changes now."""
        self.visits = 0
        """Nodes asked for since the store was opened; what a test of O(1) counts."""
        self.sweeps = 0
        """How often the cache looked for something to drop."""

    @property
    def is_dirty(self) -> bool:
        """Whether a node was changed since the last commit was taken."""
        return bool(self._dirty)

    @property
    def dirty_count(self) -> int:
        """Nodes that the next commit must write."""
        return len(self._dirty)

    @property
    def cached_bytes(self) -> int:
        """Memory that the nodes in the cache take, roughly."""
        return sum(node.memory for node in self.cached.values())

    def get(self, node_id: NodeId) -> Leaf | Branch:
        """Return a node.

        Raises:
            StoreDamagedError: it is missing or damaged.
        """
        self.visits += 1
        node = self.cached.get(node_id) or self.load(node_id)
        node.used = True
        return node

    def load(self, node_id: NodeId) -> Leaf | Branch:
        """Return a node that is not in the cache, and keep it there.

        Raises:
            StoreDamagedError: it is missing or damaged.
        """
        node = self.peek(node_id)
        self._add(node)
        return node

    def peek(self, node_id: NodeId) -> Leaf | Branch:
        """Return a node without keeping it in the cache.

        Raises:
            StoreDamagedError: it is missing or damaged.
        """
        node = self.cached.get(node_id)
        if node is not None:
            return node
        record = self._pending.get(Table.NODES, node_key(node_id))
        if record is None:
            raise StoreDamagedError(f"node {node_id} is missing")
        return decode_node(node_id, record)

    def new_leaf(self, generation: Generation, keys: list[bytes], values: list[bytes]) -> Leaf:
        """Return a new, dirty leaf."""
        leaf = Leaf(self._next_id(), generation, keys, values)
        self._add(leaf)
        self.touch(leaf)
        return leaf

    def new_branch(
        self, generation: Generation, keys: list[bytes], children: list[NodeId]
    ) -> Branch:
        """Return a new, dirty branch."""
        branch = Branch(self._next_id(), generation, keys, children)
        self._add(branch)
        self.touch(branch)
        return branch

    def copy(self, node: Leaf | Branch, generation: Generation) -> Leaf | Branch:
        """Return a new, dirty node with the content of *node*."""
        copied = node.copy(self._next_id(), generation)
        self._add(copied)
        self.touch(copied)
        return copied

    def touch(self, node: Leaf | Branch) -> None:
        """Note that *node* was changed."""
        if not node.dirty:
            node.dirty = True
            self._dirty[node.node_id] = node
            # Whoever changes it may have held it while the cache dropped it.
            self.cached[node.node_id] = node

    def drop(self, node: Leaf | Branch) -> None:
        """Delete a node that only its own root ever named."""
        node_id = node.node_id
        self.cached.pop(node_id, None)
        self._dirty.pop(node_id, None)
        if node_id < self._first_of_epoch:
            self._pending.delete(Table.NODES, node_key(node_id))

    def forget(self, node_id: NodeId) -> None:
        """Delete a node that no root names any more."""
        self.cached.pop(node_id, None)
        self._pending.delete(Table.NODES, node_key(node_id))

    def encode_dirty(self) -> None:
        """Hand every dirty node to the running epoch as a record."""
        for node_id, node in self._dirty.items():
            self._pending.put(Table.NODES, node_key(node_id), encode_node(node))
            node.dirty = False
            # It was counted when it came, and has grown since. What is counted twice makes
            # the next sweep come early, and that counts anew.
            self._memory += node.memory
        self._dirty.clear()
        self._shrink_at = self._cache_bytes
        if self._memory > self._shrink_at:
            self._shrink()
        self._first_of_epoch = self.next_node
        self.taking += 1

    def abandon(self, next_node: int) -> None:
        """Forget every node; the next one made is *next_node*."""
        self.cached.clear()
        self._dirty.clear()
        self._memory = 0
        self._shrink_at = self._cache_bytes
        self.next_node = self._first_of_epoch = next_node

    def _next_id(self) -> NodeId:
        node_id = NodeId(self.next_node)
        self.next_node += 1
        return node_id

    def _add(self, node: Leaf | Branch) -> None:
        self.cached[node.node_id] = node
        self._memory += node.memory
        if self._memory > self._shrink_at:
            self._shrink()

    def _shrink(self) -> None:
        self.sweeps += 1
        # Second chance: a clean node goes unless it was asked for since the last time.
        # Nodes grow without being counted, so the sum is made anew here.
        goal = self._cache_bytes * 3 // 4
        memory = self.cached_bytes
        for node_id in list(self.cached):
            if memory <= goal:
                break
            node = self.cached[node_id]
            if node.dirty:
                continue
            if node.used:
                node.used = False
                # Behind the others in the order of the next sweep.
                del self.cached[node_id]
                self.cached[node_id] = node
                continue
            del self.cached[node_id]
            memory -= node.memory
        self._memory = memory
        # Dirty nodes stay, however many: do not look at all of them for each one more.
        self._shrink_at = max(self._cache_bytes, memory + self._cache_bytes // 4)

"""Which nodes the kernel knows: lookup counts, and their sum for each root.

Each reply that names a node adds one to its count; FORGET takes away. A node
that the kernel does not know cannot be open, so an unlinked inode may be
reaped then, and a superseded root may go when its last node is forgotten.
"""

from kaifs.base.types import INO_BITS, KernelNode, RootId


class KnownNodes:
    """Lookup counts of one connection. One dict entry for each known node."""

    def __init__(self) -> None:
        self._lookups: dict[KernelNode, int] = {}
        self._nodes_of_root: dict[RootId, int] = {}

    def __contains__(self, node: KernelNode) -> bool:
        return node in self._lookups

    def __len__(self) -> int:
        return len(self._lookups)

    def has_root(self, root: RootId) -> bool:
        """Return whether the kernel knows any node of *root*."""
        return root in self._nodes_of_root

    def remember(self, node: KernelNode) -> None:
        """Count one reply that named *node*."""
        count = self._lookups.get(node, 0)
        self._lookups[node] = count + 1
        if not count:
            root = RootId(node >> INO_BITS)
            self._nodes_of_root[root] = self._nodes_of_root.get(root, 0) + 1

    def forget(self, node: KernelNode, lookups: int) -> bool:
        """Take *lookups* off the count of *node*; return whether it is now unknown."""
        count = self._lookups.get(node)
        if count is None:
            return False
        if count > lookups:
            self._lookups[node] = count - lookups
            return False
        del self._lookups[node]
        root = RootId(node >> INO_BITS)
        nodes = self._nodes_of_root[root] - 1
        if nodes:
            self._nodes_of_root[root] = nodes
        else:
            del self._nodes_of_root[root]
        return True

    def nodes_of(self, root: RootId) -> list[KernelNode]:
        """Return every known node of *root*."""
        return [node for node in self._lookups if node >> INO_BITS == root]

    def nodes(self) -> list[KernelNode]:
        """Return every known node."""
        return list(self._lookups)

"""Which nodes the kernel knows: lookup counts, and their sum for each root.

Each reply that names a node adds one to its count; FORGET takes away. A node
that the kernel does not know cannot be open, so an unlinked inode may be
reaped then, and a superseded root may go when its last node is forgotten.

The counts die with the server. Whoever takes a connection over must take it that
the kernel knows whatever there was at that moment, for as long as it lasts.
"""

from kaifs.base.types import INO_BITS, MAX_INO, Ino, KernelNode, RootId


class KnownNodes:
    """Lookup counts of one connection. One dict entry for each known node."""

    def __init__(self) -> None:
        self._lookups: dict[KernelNode, int] = {}
        self._nodes_of_root: dict[RootId, int] = {}
        self._next_root = RootId(0)
        self._next_inos: dict[RootId, Ino] = {}

    def inherit(self, next_root: RootId, next_inos: dict[RootId, Ino]) -> None:
        """Take it that the kernel knows everything that there is now.

        Args:
            next_root: Smaller than the id of every root that comes later.
            next_inos: Of the trees that can change, the smallest number that an inode which comes
                later can have.
        """
        self._next_root = next_root
        self._next_inos = next_inos

    def disown(self) -> None:
        """Count only what was counted here: the connection is gone."""
        self._next_root = RootId(0)
        self._next_inos.clear()

    def is_inherited(self, node: KernelNode) -> bool:
        """Return whether the kernel may know *node* from a server that is no more."""
        if not self._next_root:
            return False
        root = RootId(node >> INO_BITS)
        if root >= self._next_root:
            return False
        stop = self._next_inos.get(root)
        return stop is None or node & MAX_INO < stop

    def has_inherited(self, root: RootId) -> bool:
        """Return whether the kernel may know nodes of *root* from a server that is no more."""
        return root < self._next_root

    def __contains__(self, node: KernelNode) -> bool:
        return node in self._lookups or self.is_inherited(node)

    def __len__(self) -> int:
        return len(self._lookups)

    def has_root(self, root: RootId) -> bool:
        """Return whether the kernel knows any node of *root*."""
        return root in self._nodes_of_root or root < self._next_root

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
        return not self.is_inherited(node)

    def nodes_of(self, root: RootId) -> list[KernelNode]:
        """Return every node of *root* that was counted here."""
        return [node for node in self._lookups if node >> INO_BITS == root]

    def nodes(self) -> list[KernelNode]:
        """Return every node that was counted here."""
        return list(self._lookups)

"""Which nodes the kernel knows: lookup counts, and their sum for each root.

Each reply that names a node adds one to its count; FORGET takes away. A node
that the kernel does not know cannot be open, so an unlinked inode may be
reaped then, and a superseded root may go when its last node is forgotten.

The counts die with the server, unless that ends on purpose and passes them on. Whoever takes a
connection over without them must take it that the kernel knows whatever there was at that
moment, for as long as it lasts.
"""

from array import array
from collections.abc import Iterable
from typing import Final

import msgspec

from kaifs.base.types import INO_BITS, MAX_INO, Ino, KernelNode, RootId

_PAGE_BITS: Final = 7
_PAGE_NODES: Final = 1 << _PAGE_BITS
"""Neighbouring nodes whose counts are kept together: a folder's files, most often."""
_IN_PAGE: Final = _PAGE_NODES - 1
_USED: Final = _PAGE_NODES
"""Place in a page of the number of its nodes that are known."""
_ROOT_BITS: Final = INO_BITS - _PAGE_BITS
_EMPTY: Final = bytes(8 * (_PAGE_NODES + 1))


class Known(msgspec.Struct, frozen=True, array_like=True):
    """`KnownNodes` as another process is told of it."""

    pages: dict[int, bytes]
    pages_of_root: dict[int, int]
    next_root: int
    next_inos: dict[int, int]


class KnownNodes:
    """Lookup counts of one connection: 10 bytes for each known node, where inode numbers are dense.

    An entry of a dict would take 130.
    """

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._pages_of_root: dict[RootId, int] = {}
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

    def told(self) -> Known:
        """Return everything, to be passed on."""
        return Known(
            {number: page.tobytes() for number, page in self._pages.items()},
            {int(root): count for root, count in self._pages_of_root.items()},
            self._next_root,
            {int(root): int(ino) for root, ino in self._next_inos.items()},
        )

    def adopt(self, known: Known) -> None:
        """Go on with what another process has counted to its end."""
        self._pages = {number: array("Q", page) for number, page in known.pages.items()}
        self._pages_of_root = {RootId(root): count for root, count in known.pages_of_root.items()}
        self._next_root = RootId(known.next_root)
        self._next_inos = {RootId(root): Ino(ino) for root, ino in known.next_inos.items()}

    @property
    def is_exact(self) -> bool:
        """Whether every node that the kernel knows has been counted."""
        return not self._next_root

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
        page = self._pages.get(node >> _PAGE_BITS)
        return (page is not None and page[node & _IN_PAGE] > 0) or self.is_inherited(node)

    def __len__(self) -> int:
        return sum(page[_USED] for page in self._pages.values())

    def has_root(self, root: RootId) -> bool:
        """Return whether the kernel knows any node of *root*."""
        return root in self._pages_of_root or root < self._next_root

    def remember(self, node: KernelNode) -> None:
        """Count one reply that named *node*."""
        page = self._pages.get(node >> _PAGE_BITS)
        if page is None:
            page = self._add_page(node)
        place = node & _IN_PAGE
        if not page[place]:
            page[_USED] += 1
        page[place] += 1

    def remember_all(self, nodes: Iterable[KernelNode]) -> None:
        """Count one reply that named all *nodes*."""
        pages = self._pages
        for node in nodes:
            page = pages.get(node >> _PAGE_BITS)
            place = node & _IN_PAGE
            if page is not None and page[place]:
                page[place] += 1
            else:
                self.remember(node)

    def _add_page(self, node: KernelNode) -> "array[int]":
        page = self._pages[node >> _PAGE_BITS] = array("Q", _EMPTY)
        root = RootId(node >> INO_BITS)
        self._pages_of_root[root] = self._pages_of_root.get(root, 0) + 1
        return page

    def forget(self, node: KernelNode, lookups: int) -> bool:
        """Take *lookups* off the count of *node*; return whether it is now unknown."""
        page = self._pages.get(node >> _PAGE_BITS)
        place = node & _IN_PAGE
        if page is None or not page[place]:
            return False
        if page[place] > lookups:
            page[place] -= lookups
            return False
        page[place] = 0
        page[_USED] -= 1
        if not page[_USED]:
            self._remove_page(node)
        return not self.is_inherited(node)

    def _remove_page(self, node: KernelNode) -> None:
        del self._pages[node >> _PAGE_BITS]
        root = RootId(node >> INO_BITS)
        pages = self._pages_of_root[root] - 1
        if pages:
            self._pages_of_root[root] = pages
        else:
            del self._pages_of_root[root]

    def nodes_of(self, root: RootId) -> list[KernelNode]:
        """Return every node of *root* that was counted here."""
        return [
            node
            for number in self._pages
            if number >> _ROOT_BITS == root
            for node in self._nodes_in(number)
        ]

    def nodes(self) -> list[KernelNode]:
        """Return every node that was counted here."""
        return [node for number in self._pages for node in self._nodes_in(number)]

    def _nodes_in(self, number: int) -> list[KernelNode]:
        first = number << _PAGE_BITS
        counts = self._pages[number][:_USED]
        return [KernelNode(first + place) for place, count in enumerate(counts) if count]

"""Nodes for files that another connection changes.

With the writeback cache the kernel takes size and times of a regular file from the
server once, when it gets to know the node; from then on they are its own. So a file
that something else changes cannot stay the same node: whoever read it would get the
new bytes cut to the old size, and whoever appended would write in the middle. It gets
a new one each time it is looked up and has changed. What is open stays open on the
node that it had. Source: fuse_get_cache_mask() in fs/fuse/inode.c of Linux.
"""

import secrets
from typing import Final, NamedTuple

import msgspec

from kaifs.base.types import INO_BITS, KernelNode, RootId
from kaifs.meta.records import InodeRecord
from kaifs.views.numbers import Kind, virtual_node

_NUMBERS: Final = 1 << 32


class ToldAliases(msgspec.Struct, frozen=True, array_like=True):
    """`Aliases` as another process is told of them."""

    next_number: int
    aliases: dict[int, tuple[int, tuple[int, int, int], bool]]
    """Fields of `_Alias`, by node."""
    nodes: dict[int, int]
    outdated: list[int]


class _Alias(NamedTuple):
    node: KernelNode
    stamp: tuple[int, int, int]
    """Size, mtime and ctime that the kernel was told."""
    is_final: bool
    """Whether only this connection changes the file from now on."""


class Aliases:
    """The aliases of one connection. One entry for each that the kernel knows."""

    def __init__(self) -> None:
        # So that a successor does not use the numbers of a server that is no more.
        self._next = secrets.randbelow(_NUMBERS)
        self._aliases: dict[KernelNode, _Alias] = {}
        self._nodes: dict[KernelNode, KernelNode] = {}
        self._outdated: set[KernelNode] = set()

    def told(self) -> ToldAliases:
        """Return everything, to be passed on."""
        return ToldAliases(
            self._next,
            {
                int(node): (int(alias.node), alias.stamp, alias.is_final)
                for node, alias in self._aliases.items()
            },
            {int(alias): int(node) for alias, node in self._nodes.items()},
            list(self._outdated),
        )

    def adopt(self, told: ToldAliases) -> None:
        """Go on with what another process has told at its end."""
        self._next = told.next_number
        self._aliases = {
            KernelNode(node): _Alias(KernelNode(alias), stamp, is_final)
            for node, (alias, stamp, is_final) in told.aliases.items()
        }
        self._nodes = {KernelNode(alias): KernelNode(node) for alias, node in told.nodes.items()}
        self._outdated = set(map(KernelNode, told.outdated))

    def begin(self, known: list[KernelNode]) -> None:
        """Take it that something else changes a view of which the kernel knows the nodes *known*."""
        self._outdated.update(known)

    def shown(self, node: KernelNode, inode: InodeRecord, *, is_foreign: bool) -> KernelNode:
        """Return what the kernel is to call the regular file *node* now.

        Args:
            node: Of a view that something else changes or has changed.
            inode: The file.
            is_foreign: Whether something else may change it, still.
        """
        alias = self._aliases.get(node)
        if alias is None and not is_foreign and node not in self._outdated:
            return node
        stamp = inode.size, inode.mtime_ns, inode.ctime_ns
        if alias is not None and (alias.is_final or alias.stamp == stamp):
            if alias.is_final == (not is_foreign):
                return alias.node
            if not is_foreign:
                self._aliases[node] = alias._replace(is_final=True)
                return alias.node
        self._next = (self._next + 1) % _NUMBERS
        made = virtual_node(Kind.ALIAS, self._next)
        self._aliases[node] = _Alias(made, stamp, not is_foreign)
        self._nodes[made] = node
        return made

    def meant(self, alias: KernelNode) -> KernelNode | None:
        """Return the node that *alias* stands for; None if it is none of this server's."""
        return self._nodes.get(alias)

    def forget_node(self, node: KernelNode) -> None:
        """Take it that the kernel knows *node* no more, by whatever name."""
        self._outdated.discard(node)

    def forget(self, alias: KernelNode) -> KernelNode | None:
        """Drop *alias*, which the kernel does not know any more; return what it stood for."""
        node = self._nodes.pop(alias, None)
        if node is not None and (found := self._aliases.get(node)) and found.node == alias:
            del self._aliases[node]
        return node

    def of_root(self, root: RootId) -> list[KernelNode]:
        """Return the aliases of files of *root*."""
        return [alias for alias, node in self._nodes.items() if node >> INO_BITS == root]

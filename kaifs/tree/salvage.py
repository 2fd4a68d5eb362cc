"""Makes a whole tree of what can be read of a damaged one.

Everything that its nodes still say is taken together and made consistent, as
e2fsck(8) does: names decide what there is, counts follow from names, and what has
lost its name is put into `lost+found`, called by its number. Nothing that can be
read is left out; the one thing that goes is what contradicts something better
founded.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from kaifs.base.errors import KaifsError
from kaifs.base.types import NAME_MAX, TOP_INO, Ino, NodeId
from kaifs.meta import keys
from kaifs.meta.node import Branch
from kaifs.meta.records import (
    INODE,
    Extent,
    InodeRecord,
    decode_dentry,
    decode_extent,
    encode_dentry,
    encode_dir_index,
    encode_extent,
)
from kaifs.store.roots import Root
from kaifs.store.store import Store
from kaifs.tree.btree import BTree
from kaifs.tree.fsck import KNOWN_TYPES

LOST_AND_FOUND: Final = b"lost+found"
"""The name that file systems use; see e2fsck(8)."""
_LARGEST_SEQ: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What came of it."""

    lost_nodes: int
    """Nodes that could not be read; what they held is gone."""
    found: int
    """Inodes that had lost their names and are in `lost+found` now."""


def salvage(store: Store, root: Root, now_ns: int) -> Salvaged:
    """Give *root* a whole tree made of what can be read of its own. O(tree).

    Its nodes are new; who shares the old ones keeps them.
    """
    reader = _Reader(store, root)
    pieces = reader.read()
    tree = _Draft(store, pieces, now_ns)
    items = tree.finish()
    generation = store.new_generation()
    root.generation = generation
    root.top = store.nodes.new_leaf(generation, [], []).node_id
    btree = BTree(store.nodes, root)
    for key in sorted(items):
        btree.put(key, items[key])
    root.inodes, root.size = tree.inode_count, tree.size
    root.next_ino = max(root.next_ino, tree.next_ino)
    root.dirty = True
    if store.has_root(root.root_id) and not root.is_passing:
        store.finish_root(root.root_id)
    return Salvaged(reader.lost_nodes, tree.found)


@dataclass(slots=True)
class _Piece:
    """What is said of one inode."""

    inode: InodeRecord | None = None
    names: dict[tuple[Ino, bytes], int] = field(default_factory=dict)
    """Its names, with the position of each, -1 if it has none."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    extents: list[Extent] = field(default_factory=list)
    is_orphan: bool = False


class _Reader:
    """Reads every key that can be had, whatever the shape of the nodes."""

    def __init__(self, store: Store, root: Root) -> None:
        self._store = store
        self._root = root
        self._pieces: defaultdict[Ino, _Piece] = defaultdict(_Piece)
        self._dentries: dict[tuple[Ino, bytes], tuple[Ino, int]] = {}
        self._links: dict[tuple[Ino, bytes], Ino] = {}
        self.lost_nodes = 0

    def read(self) -> dict[Ino, _Piece]:
        """Return what is said of each inode that there is."""
        for key, value in self._items():
            try:
                self._take(key, value)
            except (KaifsError, ValueError, IndexError, ArithmeticError):
                # A key or a value that is none: what it stood for cannot be known.
                continue
        for name, ino in self._links.items():
            # The directory comes first: a name that only the inode knows may be an old one,
            # and still is better than none.
            self._dentries.setdefault(name, (ino, -1))
        for name, (child, seq) in self._dentries.items():
            self._pieces[child].names[name] = seq
        return {ino: piece for ino, piece in self._pieces.items() if piece.inode is not None}

    def _items(self) -> Iterator[tuple[bytes, bytes]]:
        seen: set[NodeId] = set()
        waiting = [self._root.top]
        while waiting:
            node_id = waiting.pop()
            if node_id in seen:
                continue
            seen.add(node_id)
            try:
                node = self._store.nodes.peek(node_id)
            except KaifsError:
                self.lost_nodes += 1
                continue
            if isinstance(node, Branch):
                waiting.extend(reversed(node.children))
            else:
                yield from zip(node.keys, node.values, strict=False)

    def _take(self, key: bytes, value: bytes) -> None:
        ino, kind, rest = keys.split_key(key)
        if kind == keys.ORPHAN:
            self._pieces[Ino(keys.number_at_end(key))].is_orphan = True
            return
        piece = self._pieces[ino]
        if kind == keys.INODE:
            inode = INODE.decode(value)
            if stat.S_IFMT(inode.mode) in KNOWN_TYPES and piece.inode is None:
                piece.inode = inode
        elif kind == keys.XATTR:
            piece.xattrs.setdefault(rest, value)
        elif kind == keys.EXTENT:
            piece.extents.append(decode_extent(keys.number_at_end(key), value))
        elif kind == keys.DENTRY:
            child, seq, _ = decode_dentry(value)
            self._dentries.setdefault((ino, rest), (child, seq))
        elif kind == keys.LINK:
            self._links.setdefault((Ino(int.from_bytes(rest[:8], "big")), rest[8:]), ino)


class _Draft:
    """A file system on its way to being consistent."""

    def __init__(self, store: Store, pieces: dict[Ino, _Piece], now_ns: int) -> None:
        self._store = store
        self._pieces = pieces
        self._now_ns = now_ns
        self.next_ino = Ino(max(pieces, default=TOP_INO) + 1)
        self.found = 0
        self.inode_count = 0
        self.size = 0
        self._entries: defaultdict[Ino, dict[bytes, Ino]] = defaultdict(dict)
        self._names: defaultdict[Ino, list[tuple[Ino, bytes]]] = defaultdict(list)
        self._parents: dict[Ino, Ino] = {}

    def finish(self) -> dict[bytes, bytes]:
        """Return every key of the tree."""
        self._need_top()
        for ino in sorted(self._pieces):
            for parent, name in self._usable_names(ino):
                self._enter(parent, name, ino)
        self._find_lost()
        items: dict[bytes, bytes] = {}
        for ino in sorted(self._pieces):
            items.update(self._items_of(ino))
        return items

    def _need_top(self) -> None:
        top = self._pieces.setdefault(TOP_INO, _Piece())
        if top.inode is None or not stat.S_ISDIR(top.inode.mode):
            top.inode = self._new_directory(0o755)
        top.names.clear()
        top.is_orphan = False

    def _new_directory(self, mode: int) -> InodeRecord:
        now = self._now_ns
        return InodeRecord(stat.S_IFDIR | mode, 0, 0, 2, 0, 0, now, now, now, now, 0, 1, b"")

    def _usable_names(self, ino: Ino) -> list[tuple[Ino, bytes]]:
        """Return the names that *ino* may have. A directory has one at most."""
        piece = self._pieces[ino]
        usable = [
            (parent, name)
            for parent, name in sorted(piece.names, key=lambda one: (piece.names[one] < 0, one))
            if self._is_directory(parent) and parent != ino and _is_name(name)
        ]
        return usable[:1] if self._is_directory(ino) else usable

    def _is_directory(self, ino: Ino) -> bool:
        piece = self._pieces.get(ino)
        return piece is not None and piece.inode is not None and stat.S_ISDIR(piece.inode.mode)

    def _enter(self, parent: Ino, name: bytes, ino: Ino) -> None:
        if self._entries[parent].setdefault(name, ino) == ino:
            self._names[ino].append((parent, name))
            if self._is_directory(ino):
                self._parents[ino] = parent

    def _leave(self, ino: Ino) -> None:
        for parent, name in self._names.pop(ino, []):
            del self._entries[parent][name]
        self._parents.pop(ino, None)

    def _find_lost(self) -> None:
        """Give a name to what no name leads to, and drop what had none when it was last open."""
        for ino in sorted(self._pieces):
            if ino == TOP_INO or self._is_reached(ino):
                continue
            if self._pieces[ino].is_orphan and not self._names[ino]:
                del self._pieces[ino]
                continue
            # A directory that leads to itself is cut where it is met first.
            self._leave(ino)
            folder = self._lost_and_found()
            self._enter(folder, b"#%d" % ino, ino)
            self.found += 1

    def _is_reached(self, ino: Ino) -> bool:
        if not self._is_directory(ino):
            return bool(self._names[ino])
        seen: set[Ino] = set()
        while ino != TOP_INO:
            if ino in seen or ino not in self._parents:
                return False
            seen.add(ino)
            ino = self._parents[ino]
        return True

    def _lost_and_found(self) -> Ino:
        name = LOST_AND_FOUND
        while (ino := self._entries[TOP_INO].get(name)) is not None:
            if self._is_directory(ino):
                return ino
            name += b"+"
        ino = self.next_ino
        self.next_ino = Ino(ino + 1)
        self._pieces[ino] = _Piece(self._new_directory(0o700))
        self._enter(TOP_INO, name, ino)
        return ino

    # --- one inode -----------------------------------------------------------------------

    def _items_of(self, ino: Ino) -> Iterator[tuple[bytes, bytes]]:
        piece = self._pieces[ino]
        inode = piece.inode
        assert inode is not None
        names = self._names[ino]
        if stat.S_ISDIR(inode.mode):
            subdirectories = sum(map(self._is_directory, self._entries[ino].values()))
            inode = replace(inode, nlink=2 + subdirectories, size=len(self._entries[ino]))
            inode = replace(inode, allocated=0, next_seq=max(inode.next_seq, 1))
            positions, next_seq = self._positions(ino, inode.next_seq)
            inode = replace(inode, next_seq=next_seq)
            yield from self._entry_items(ino, positions)
        else:
            inode = replace(inode, nlink=len(names))
            inode, extents = self._content(inode, piece.extents)
            for extent in extents:
                yield keys.extent_key(ino, extent.offset), encode_extent(extent)
        for parent, name in names:
            yield keys.link_key(ino, parent, name), b""
        for name, value in piece.xattrs.items():
            yield keys.xattr_key(ino, name), value
        yield keys.inode_key(ino), INODE.encode(inode)
        self.inode_count += 1
        self.size += inode.size if stat.S_ISREG(inode.mode) else 0

    def _positions(self, ino: Ino, next_seq: int) -> tuple[dict[bytes, int], int]:
        """Return a position for each entry, those that they had where that can be."""
        positions: dict[bytes, int] = {}
        taken: set[int] = set()
        for name, child in self._entries[ino].items():
            seq = self._pieces[child].names.get((ino, name), -1)
            if 0 < seq < _LARGEST_SEQ and seq not in taken:
                positions[name] = seq
                taken.add(seq)
        if not 0 < next_seq < _LARGEST_SEQ:
            next_seq = 1
        next_seq = max([next_seq, *(seq + 1 for seq in taken)])
        for name in sorted(self._entries[ino].keys() - positions.keys()):
            positions[name] = next_seq
            next_seq += 1
        return positions, next_seq

    def _entry_items(self, ino: Ino, positions: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
        for name, child in self._entries[ino].items():
            inode = self._pieces[child].inode
            assert inode is not None
            kind, seq = stat.S_IFMT(inode.mode) >> 12, positions[name]
            yield keys.dentry_key(ino, name), encode_dentry(child, seq, kind)
            yield keys.dir_index_key(ino, seq), encode_dir_index(child, kind, name)

    def _content(
        self, inode: InodeRecord, extents: list[Extent]
    ) -> tuple[InodeRecord, list[Extent]]:
        """Return extents that do not overlap and lie in their blocks, and the inode with them."""
        if not (stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode)):
            return replace(inode, size=0, allocated=0, sha256=b""), []
        whole: list[Extent] = []
        for extent in sorted(extents, key=lambda one: one.offset):
            start = whole[-1].stop if whole else 0
            stop = min(extent.stop, extent.offset + self._room(extent))
            if max(extent.offset, start) < stop:
                whole.append(extent.cut(max(extent.offset, start), stop))
        stop = whole[-1].stop if whole else 0
        covered = sum(extent.length for extent in whole)
        # Bytes that are there are shown, even if the inode's size does not know them.
        is_link = stat.S_ISLNK(inode.mode)
        size = covered if is_link else max(inode.size, stop)
        sha256 = inode.sha256 if (size, whole) == (inode.size, extents) else b""
        return replace(
            inode, size=size, allocated=inode.allocated if is_link else covered, sha256=sha256
        ), whole

    def _room(self, extent: Extent) -> int:
        """Return how many bytes the block of *extent* has for it. A missing block is left alone."""
        if not extent.block:
            return extent.length
        try:
            record = self._store.payload.find_record(extent.block)
        except KaifsError:
            record = None
        if record is None:
            return extent.length
        return max(record.size - extent.block_offset, 0)


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= NAME_MAX and name not in (b".", b"..") and not {0, 47} & set(name)

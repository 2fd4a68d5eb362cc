"""Reading a tree as the disk has it: every node, every block, past all caches.

A tree is looked at in two ways. Its *fingerprint* is a SHA-256 over its nodes and
over where its blocks are: who knows that of an earlier look knows whether
anything of the tree's description is another. Its *files* are read from their
blocks, each block against its checksum and each file against its SHA-256.

Trees share nodes and blocks. A node that was looked at is not looked at again,
a file that consists of the same blocks is not read again, and of two trees of
one lineage only what differs is looked at in the second.

The store must have no node that is not committed; sealed trees do not change.
Reading is handed out as `Batch`es that may run on another thread.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kaifs.base.clock import exact_now_ns
from kaifs.base.digest import Sha256, checksum, sha256
from kaifs.base.errors import ChecksumMismatchError, KaifsError, StoreDamagedError
from kaifs.base.types import TOP_INO, BlockId, Ino, NodeId, SegmentId
from kaifs.blocks.compression import decode
from kaifs.blocks.segments import RECORD_HEADER_SIZE, segment_name
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.node import Branch, Leaf, decode_node
from kaifs.meta.records import (
    BLOCK,
    INODE,
    BlockRecord,
    Extent,
    InodeRecord,
    SegmentState,
    decode_dentry,
    decode_extent,
    encode_extent,
    extent_block,
)
from kaifs.store.differing import differing
from kaifs.store.nodes import Nodes, node_key
from kaifs.store.payload import block_key
from kaifs.store.roots import Root
from kaifs.store.store import SEGMENT_FOLDER, Store
from kaifs.tree.btree import BTree
from kaifs.tree.content import Content
from kaifs.tree.tree import Tree

NODE_CACHE: Final = 16 << 20
"""Bytes of decoded nodes that are kept while trees are looked at."""
BATCH_SIZE: Final = 8 << 20
"""Bytes of payload that one batch reads, about; some 6 ms."""
BATCH_FILES: Final = 512
STEP: Final = 64
"""Nodes looked at between two yields."""
PRINTS_KEPT: Final = 1 << 20
"""Fingerprints of nodes that are kept, 150 bytes each."""
SEEN_BLOCKS_MAX: Final = 1 << 24
"""A store with more blocks is not kept track of: 8 bytes each."""
TICK_NS: Final = 20_000_000
"""A file's times are as coarse as the kernel's tick: a change so short after another one may not
show. Source: CONFIG_HZ is 100 at least."""

_ZEROS: Final = bytes(1 << 20)
_EXTENT_AT: Final = keys.PREFIX_SIZE - 1


@dataclass(frozen=True, slots=True)
class LostNode:
    """A node that cannot be read, and what was below it."""

    low: Ino
    """Smallest inode number of which something may be lost."""
    high: Ino | None
    """Greatest one; None: no bound."""
    text: str

    def covers(self, ino: Ino) -> bool:
        """Return whether something of *ino* may be lost."""
        return self.low <= ino and (self.high is None or ino <= self.high)


@dataclass(slots=True)
class StoredFile:
    """One regular file and where its bytes are."""

    ino: Ino
    inode: InodeRecord
    extents: list[Extent]


class ColdReader:
    """Reads trees of one store past its caches. Close it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._prints: dict[NodeId, bytes] = {}
        self.blocks = BlockReader(store)

    def close(self) -> None:
        """Let the segments' files go."""
        self.blocks.close()

    def tree(self, root: Root) -> Tree:
        """Return the tree of *root* with a node cache of its own, empty at first."""
        nodes = Nodes(self.store.pending, self.store.nodes.next_node, NODE_CACHE)
        tree = Tree(self.store, root)
        tree.btree = BTree(nodes, root)
        tree.content = Content(tree.btree, self.store.payload, root)
        return tree

    def fingerprint(self, top: NodeId) -> Generator[int, None, bytes]:
        """Return the fingerprint of the tree below *top*; empty if something cannot be read.

        Yields the nodes looked at.
        """
        if len(self._prints) > PRINTS_KEPT:
            self._prints.clear()
        looked_at = 0
        stack: list[tuple[NodeId, bytes, list[NodeId]]] = [(top, b"", [])]
        while stack:
            node_id, record, children = stack.pop()
            if node_id in self._prints:
                continue
            if not record:
                looked_at += 1
                if looked_at % STEP == 0:
                    yield STEP
                record, children = self._open(node_id)
                if not record:
                    self._prints[node_id] = b""
                    continue
                if children:
                    stack.append((node_id, record, children))
                    stack += [(child, b"", []) for child in children]
                    continue
            below = [self._prints[child] for child in children]
            digest = sha256(record)
            for part in below:
                digest.update(part)
            self._prints[node_id] = digest.digest() if all(below) else b""
        yield looked_at % STEP
        return self._prints[top]

    def _open(self, node_id: NodeId) -> tuple[bytes, list[NodeId]]:
        """Return what a node says of itself, and its children; nothing if it is lost."""
        try:
            record = self._record(Table.NODES, node_key(node_id))
            node = decode_node(node_id, record)
            if not isinstance(node, Leaf):
                return record, list(node.children)
            blocks = [
                self._record(Table.BLOCKS, block_key(block))
                for key, value in zip(node.keys, node.values, strict=True)
                if key[_EXTENT_AT] == keys.EXTENT and (block := extent_block(value))
            ]
        except StoreDamagedError:
            return b"", []
        return b"".join([record, *blocks]), []

    def _record(self, table: Table, key: bytes) -> bytes:
        record = self.store.pending.get(table, key)
        if record is None:
            raise StoreDamagedError(f"{table} {key.hex()} is missing")
        return record

    def inodes(self, tree: Tree) -> Iterator[StoredFile | LostNode]:
        """Yield every inode of *tree* with its extents, and every node that cannot be read.

        An inode part of which is lost is not told.
        """
        found: StoredFile | None = None
        for piece in self._leaves(tree):
            if isinstance(piece, LostNode):
                if found is not None and not piece.covers(found.ino):
                    yield found
                found = None
                yield piece
                continue
            for key, value in zip(piece.keys, piece.values, strict=True):
                kind = key[_EXTENT_AT]
                if kind == keys.INODE:
                    if found is not None:
                        yield found
                    found = StoredFile(keys.split_key(key)[0], INODE.decode(value), [])
                elif kind == keys.EXTENT and found is not None:
                    found.extents.append(decode_extent(keys.number_at_end(key), value))
        if found is not None:
            yield found

    def _leaves(self, tree: Tree) -> Iterator[Leaf | LostNode]:
        nodes = Nodes(self.store.pending, self.store.nodes.next_node, NODE_CACHE)
        stack: list[tuple[NodeId, bytes, bytes | None]] = [(tree.root.top, b"", None)]
        while stack:
            node_id, low, high = stack.pop()
            try:
                node = nodes.peek(node_id)
            except StoreDamagedError as error:
                yield LostNode(_ino(low), None if high is None else _ino(high), error.subject)
                continue
            if isinstance(node, Leaf):
                yield node
                continue
            lows = [low, *node.keys[1:]]
            highs: list[bytes | None] = [*node.keys[1:], high]
            stack += reversed(list(zip(node.children, lows, highs, strict=True)))

    def changed(self, old: Tree, new: Tree) -> dict[Ino, set[int]]:
        """Return each inode of which some key differs, with the kinds of those keys.

        Raises:
            StoreDamagedError: a node cannot be read.
        """
        nodes = Nodes(self.store.pending, self.store.nodes.next_node, NODE_CACHE)
        found: dict[Ino, set[int]] = {}
        for key, _, _ in differing(nodes, old.root.top, new.root.top):
            ino, kind, _ = keys.split_key(key)
            if ino != keys.NO_INO:
                found.setdefault(ino, set()).add(kind)
        return found

    def load(self, tree: Tree, inos: Iterable[Ino]) -> Iterator[StoredFile]:
        """Yield those of *inos* that *tree* has.

        Raises:
            StoreDamagedError: a node cannot be read.
        """
        for ino in inos:
            value = tree.btree.get(keys.inode_key(ino))
            if value is not None:
                yield StoredFile(ino, INODE.decode(value), tree.content.extents(ino))

    def differing_copies(self, tree: Tree) -> Iterator[Ino]:
        """Yield the inodes that the two copies of the index describe differently. O(nodes)."""
        stack = [tree.root.top]
        while stack:
            node_id = stack.pop()
            try:
                found = self.store.database.copies(Table.NODES, node_key(node_id))
                nodes = [decode_node(node_id, record) for record in found]
            except StoreDamagedError:
                continue
            if nodes and not isinstance(nodes[0], Leaf):
                stack += nodes[0].children
            if len(nodes) == 2 and found[0] != found[1]:
                yield from _differing_inos(nodes[0], nodes[1])

    def lost_paths(self, tree: Tree, lost: list[LostNode]) -> list[bytes]:
        """Return the paths, as far as they can be told, of what nodes that are lost were about."""
        found = []
        for piece in self._leaves(tree):
            if isinstance(piece, LostNode):
                continue
            for key, value in zip(piece.keys, piece.values, strict=True):
                if key[_EXTENT_AT] != keys.DENTRY:
                    continue
                child = decode_dentry(value)[0]
                if any(node.covers(child) for node in lost):
                    parent = keys.split_key(key)[0]
                    found.append(_path(tree, parent, key[keys.PREFIX_SIZE :]))
        return sorted(found)


def _differing_inos(left: Leaf | Branch, right: Leaf | Branch) -> Iterator[Ino]:
    if not isinstance(left, Leaf) or not isinstance(right, Leaf):
        return
    one, other = (set(zip(node.keys, node.values, strict=True)) for node in (left, right))
    yield from dict.fromkeys(keys.split_key(key)[0] for key, _ in one ^ other)


def _path(tree: Tree, parent: Ino, name: bytes) -> bytes:
    try:
        above = tree.paths(parent)
    except KaifsError:
        above = []
    if not above:
        return b".../" + name
    return above[0] + b"/" + name if above[0] else name


def _ino(key: bytes) -> Ino:
    return Ino(int.from_bytes(key[:8].ljust(8, b"\0"), "big"))


def segment_state(store: Store, segment: SegmentId) -> SegmentState | None:
    """Return what a segment's file is now, None if that cannot be told or is too young to count."""
    try:
        status = os.stat(store.path / SEGMENT_FOLDER / segment_name(segment), follow_symlinks=False)
    except OSError:
        return None
    if status.st_ctime_ns > exact_now_ns() - TICK_NS:
        return None
    return SegmentState(
        segment, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def settling_ns(store: Store) -> int:
    """Return how long it is until no segment's file is too young to count, ns; 0 if none is."""
    now_ns = exact_now_ns()
    youngest = 0
    with os.scandir(store.path / SEGMENT_FOLDER) as files:
        for file in files:
            youngest = max(youngest, file.stat(follow_symlinks=False).st_ctime_ns)
    return min(max(youngest + TICK_NS + 1 - now_ns, 0), 2 * TICK_NS)


class BlockReader:
    """Reads blocks from the segments' files by descriptors of its own. For one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder: Path = store.path / SEGMENT_FOLDER
        self._files: dict[SegmentId, int] = {}
        self._buffer = bytearray(1 << 20)

    def close(self) -> None:
        """Close the files."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def read(self, record: BlockRecord) -> bytes | memoryview:
        """Return the payload that *record* leads to, verified. It is good until the next read.

        Raises:
            ChecksumMismatchError: it is damaged, or cannot be read.
        """
        where = f"block in segment {record.segment} at {record.offset}"
        size = record.stored_size
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        try:
            fd = self._open(record.segment)
            count = os.preadv(fd, [view], record.offset + RECORD_HEADER_SIZE)
        except OSError as error:
            raise ChecksumMismatchError(f"{where}: {error.strerror}") from error
        if count < size:
            raise ChecksumMismatchError(f"{where} is cut off")
        payload = decode(record.codec, view, record.size)
        if len(payload) != record.size or checksum(payload) != record.checksum:
            raise ChecksumMismatchError(f"{where} is damaged")
        return payload

    def _open(self, segment: SegmentId) -> int:
        fd = self._files.get(segment)
        if fd is None:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = self._files[segment] = os.open(self._folder / segment_name(segment), flags)
        return fd


Located = tuple[Extent, BlockRecord | None]
"""An extent, and where its block is; None: it is inline."""


@dataclass(slots=True)
class _Reading:
    """One file that is being read."""

    file: StoredFile
    pieces: list[Located]
    first: int = 0
    """The block by which the file is remembered, 0 if by none."""
    mark: int = 0
    """As what it is remembered."""
    digest: Sha256 = field(default_factory=sha256)
    position: int = 0
    problem: str = ""


@dataclass(slots=True)
class Batch:
    """Some reading, to be run on any thread, before the generator that yielded it goes on."""

    size: int
    """Bytes of the files."""
    _reader: BlockReader
    _parts: list[tuple[_Reading, int, int]]

    def run(self) -> None:
        """Read."""
        for reading, start, stop in self._parts:
            if not reading.problem:
                try:
                    self._read(reading, reading.pieces[start:stop])
                    if stop == len(reading.pieces):
                        _finish(reading)
                except ChecksumMismatchError as error:
                    reading.problem = error.subject

    def _read(self, reading: _Reading, pieces: list[Located]) -> None:
        for extent, record in pieces:
            _hash_zeros(reading.digest, extent.offset - reading.position)
            if record is None:
                reading.digest.update(extent.inline)
            else:
                payload = self._reader.read(record)
                if extent.length != len(payload):
                    start = extent.block_offset
                    payload = memoryview(payload)[start : start + extent.length]
                    if len(payload) != extent.length:
                        raise ChecksumMismatchError("it reaches past its block")
                reading.digest.update(payload)
            reading.position = extent.stop


def _finish(reading: _Reading) -> None:
    inode = reading.file.inode
    _hash_zeros(reading.digest, inode.size - reading.position)
    if reading.position > inode.size:
        raise ChecksumMismatchError("its content reaches past its end")
    # Of a tree that is not sealed it may not be known.
    if inode.sha256 and reading.digest.digest() != inode.sha256:
        raise ChecksumMismatchError("its content does not have its SHA-256")


def _hash_zeros(digest: Sha256, count: int) -> None:
    if count < 0:
        raise ChecksumMismatchError("its extents overlap")
    while count > 0:
        step = min(count, len(_ZEROS))
        digest.update(memoryview(_ZEROS)[:step])
        count -= step


class ContentCheck:
    """Reads files and compares them with their SHA-256; what was read once is not read again."""

    def __init__(self, reader: ColdReader) -> None:
        self._store = reader.store
        self._reader = reader.blocks
        count = self._store.payload.next_block
        self._seen: array[int] | None = None
        if count < SEEN_BLOCKS_MAX:
            self._seen = array("q", bytes(8 * count))
        self.read_bytes = 0

    def check(
        self,
        files: Iterable[StoredFile | None],
        is_wanted: Callable[[list[Located]], bool] = lambda pieces: True,
    ) -> Generator[Batch | None, None, dict[Ino, str]]:
        """Return what is wrong with which of *files*. Yields what is to be run; None lets others run.

        Args:
            files: Regular files; None where others may run.
            is_wanted: Tells by where its blocks are whether a file is to be read.
        """
        problems: dict[Ino, str] = {}
        parts: list[tuple[_Reading, int, int]] = []
        size = 0
        for file in files:
            if file is None:
                yield None
                continue
            try:
                pieces = self._locate(file)
            except KaifsError as error:
                problems[file.ino] = error.subject
                continue
            if not is_wanted(pieces):
                continue
            first, mark = self._mark(file)
            if first and self._seen is not None and self._seen[first] == mark:
                continue
            reading = _Reading(file, pieces, first, mark)
            start = 0
            for index, (extent, _) in enumerate(pieces):
                size += extent.length
                if size >= BATCH_SIZE:
                    parts.append((reading, start, index + 1))
                    start = index + 1
                    yield from self._run(parts, size, problems)
                    parts, size = [], 0
            if start < len(pieces) or not pieces:
                parts.append((reading, start, len(pieces)))
            if len(parts) >= BATCH_FILES:
                yield from self._run(parts, size, problems)
                parts, size = [], 0
        yield from self._run(parts, size, problems)
        return problems

    def _run(
        self, parts: list[tuple[_Reading, int, int]], size: int, problems: dict[Ino, str]
    ) -> Generator[Batch, None, None]:
        if not parts:
            return
        self.read_bytes += size
        yield Batch(size, self._reader, parts)
        for reading, _, stop in parts:
            if stop != len(reading.pieces) and not reading.problem:
                continue
            if reading.problem and reading.file.ino not in problems:
                # A block that gc has moved meanwhile is elsewhere by now: look again.
                yield from self._look_again(reading, problems)
            elif reading.first and self._seen is not None and not reading.problem:
                self._seen[reading.first] = reading.mark

    def _look_again(
        self, reading: _Reading, problems: dict[Ino, str]
    ) -> Generator[Batch, None, None]:
        try:
            pieces = self._locate(reading.file)
        except KaifsError as error:
            problems[reading.file.ino] = error.subject
            return
        if pieces != reading.pieces:
            again = _Reading(reading.file, pieces)
            yield Batch(0, self._reader, [(again, 0, len(pieces))])
            reading.problem = again.problem
        if reading.problem:
            problems[reading.file.ino] = reading.problem

    def _locate(self, file: StoredFile) -> list[Located]:
        """Return where the bytes of *file* are.

        Raises:
            ChecksumMismatchError, StoreDamagedError: the index does not have a block.
        """
        located: list[Located] = []
        for extent in file.extents:
            record = None
            if extent.block:
                value = self._store.pending.get(Table.BLOCKS, block_key(extent.block))
                if value is None:
                    raise ChecksumMismatchError(f"block {extent.block} is missing")
                record = BLOCK.decode(value)
            located.append((extent, record))
        return located

    def _mark(self, file: StoredFile) -> tuple[int, int]:
        """Return the block by which *file* is remembered, 0 if by none, and as what."""
        first = next((extent.block for extent in file.extents if extent.block), BlockId(0))
        if self._seen is None or not 0 < first < len(self._seen) or not file.inode.sha256:
            return 0, 0
        parts = [file.inode.sha256, b"%d" % file.inode.size]
        for extent in file.extents:
            parts += (b"%d:" % extent.offset, encode_extent(extent))
        # Of bytes, so it is keyed anew in every process (PYTHONHASHSEED): nobody can make two
        # files alike.
        return first, hash(b"".join(parts)) or 1


def misplaced_entries(tree: Tree, ino: Ino) -> list[bytes]:
    """Return the names in directory *ino* of directories that are elsewhere too.

    A directory has one name, and the top none: else a walk would never end.

    Raises:
        StoreDamagedError: a node cannot be read.
    """
    return [
        entry.name
        for entry in tree.sorted_entries(ino)
        if entry.type == stat.S_IFDIR
        and (entry.ino == TOP_INO or tree.links(entry.ino) != [(ino, entry.name)])
    ]

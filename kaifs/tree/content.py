"""Content: which blocks hold which bytes of one file.

A file's bytes are a sorted run of extents that never overlap and never reach
past its size. A gap between two extents is a hole and reads as zero bytes.
Splitting an extent shares its block; it never copies payload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kaifs.base.types import FILE_SIZE_MAX, BlockId, Ino
from kaifs.blocks.chunking import CHUNK_MAX, INLINE_MAX
from kaifs.meta import keys
from kaifs.meta.records import Extent, decode_extent, encode_extent, extent_length
from kaifs.store.payload import Payload
from kaifs.store.roots import Root
from kaifs.tree.btree import BTree

_NO_BLOCK: Final = BlockId(0)


class Content:
    """The extents of all files of one tree. Sizes and times are the caller's to keep."""

    __slots__ = ("_btree", "_payload", "_root")

    def __init__(self, btree: BTree, payload: Payload, root: Root) -> None:
        self._btree = btree
        self._payload = payload
        self._root = root

    def extents(self, ino: Ino, start: int = 0, stop: int = FILE_SIZE_MAX) -> list[Extent]:
        """Return the extents that hold a byte of [start, stop), in order."""
        found: list[Extent] = []
        first = keys.extent_key(ino, start)
        before = self._btree.floor(first) if start else None
        if before is not None and before[0][: keys.PREFIX_SIZE] == first[: keys.PREFIX_SIZE]:
            offset = keys.number_at_end(before[0])
            if offset < start and offset + extent_length(before[1]) > start:
                found.append(decode_extent(offset, before[1]))
        for key, value in self._btree.scan(first, keys.extent_key(ino, stop)):
            found.append(decode_extent(keys.number_at_end(key), value))
        return found

    def load(self, extent: Extent, *, wait: bool = True) -> bytes:
        """Return the bytes of one extent; *wait* for the disk or not.

        Raises:
            ChecksumMismatchError: its block is damaged.
            ColdBlockError: as `Payload.read`.
        """
        if not extent.block:
            return extent.inline
        payload = self._payload.read(extent.block, wait=wait)
        if extent.length == len(payload):
            return payload
        return payload[extent.block_offset : extent.block_offset + extent.length]

    def read(self, ino: Ino, start: int, stop: int, *, wait: bool = True) -> bytes:
        """Return file bytes [start, stop), which must lie inside the file; holes are zeros.

        Raises:
            ChecksumMismatchError: a block is damaged.
            ColdBlockError: as `Payload.read`, unless it is to *wait*.
        """
        pieces: list[bytes] = []
        position = start
        for extent in self.extents(ino, start, stop):
            if extent.offset > position:
                pieces.append(bytes(extent.offset - position))
                position = extent.offset
            payload = self.load(extent, wait=wait)
            skip = position - extent.offset
            take = min(extent.stop, stop) - position
            pieces.append(payload if take == len(payload) else payload[skip : skip + take])
            position += take
        if position < stop:
            pieces.append(bytes(stop - position))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def fetcher(self, ino: Ino, start: int, stop: int) -> Callable[[], None]:
        """Return what brings file bytes [start, stop) into memory, as `Payload.fetcher`."""
        extents = self.extents(ino, start, stop)
        return self._payload.fetcher(extent.block for extent in extents if extent.block)

    def write(self, ino: Ino, offset: int, payload: bytes | memoryview, size: int) -> int:
        """Put *payload* at *offset*. Return by how many bytes the covered part grew.

        Args:
            ino: The file.
            offset: Position of the first byte.
            payload: What to write. It is not kept.
            size: The file's size: no extent reaches past it.

        Raises:
            NoSpaceError: the disk is full; the file is as it was.
        """
        length = len(payload)
        if length <= CHUNK_MAX:
            new = [self._stored(offset, payload)]
        else:
            new = [
                self._stored(offset + start, payload[start : start + CHUNK_MAX])
                for start in range(0, length, CHUNK_MAX)
            ]
        for extent in new:
            self._root.charge(self.own_size(extent))
        grown = length
        if offset < size:
            grown -= self.punch(ino, offset, offset + length)
        if offset and not new[0].block:
            new[0] = self._join_inline(ino, new[0])
        for extent in new:
            self.put_extent(ino, extent)
        return grown

    def _stored(self, offset: int, payload: bytes | memoryview) -> Extent:
        if len(payload) <= INLINE_MAX:
            return Extent(offset, len(payload), _NO_BLOCK, 0, bytes(payload))
        return Extent(offset, len(payload), self._payload.put(payload))

    def _join_inline(self, ino: Ino, extent: Extent) -> Extent:
        # Many small appends would otherwise leave an extent each.
        before = self._btree.floor(keys.extent_key(ino, extent.offset - 1))
        if before is None or not before[0].startswith(keys.prefix(ino, keys.EXTENT)):
            return extent
        left = decode_extent(keys.number_at_end(before[0]), before[1])
        if left.block or left.stop != extent.offset or left.length + extent.length > INLINE_MAX:
            return extent
        joined = left.inline + extent.inline
        return Extent(left.offset, len(joined), _NO_BLOCK, 0, joined)

    def own_size(self, extent: Extent) -> int:
        """Return how many of an extent's bytes this tree does not share with what it was cloned of.

        A block that deduplication found takes no room. Inline bytes always do.
        """
        shared = 0 < extent.block < self._root.first_block
        return 0 if shared else extent.length

    def put_extent(self, ino: Ino, extent: Extent) -> None:
        """Insert *extent* where the file has a hole, or over the extent that begins there."""
        self._btree.put(keys.extent_key(ino, extent.offset), encode_extent(extent))

    def punch(self, ino: Ino, start: int, stop: int) -> int:
        """Turn file bytes [start, stop) into a hole. Return how many of them were covered.

        At most one extent more than before is left: a hole inside an extent
        leaves a head and a tail that share its block.
        """
        covered = 0
        for extent in self.extents(ino, start, stop):
            left, right = max(extent.offset, start), min(extent.stop, stop)
            covered += right - left
            self._root.charge(-self.own_size(extent.cut(left, right)))
            if extent.offset < start:
                self.put_extent(ino, extent.cut(extent.offset, start))
            else:
                self._btree.delete(keys.extent_key(ino, extent.offset))
            if extent.stop > stop:
                self.put_extent(ino, extent.cut(stop, extent.stop))
        return covered

    def put_range(self, ino: Ino, start: int, stop: int, extents: list[Extent]) -> int:
        """Let file bytes [start, stop) be *extents*, holes between. Return the growth as `write`."""
        self._root.charge(sum(map(self.own_size, extents)))
        grown = sum(extent.length for extent in extents) - self.punch(ino, start, stop)
        for extent in extents:
            self.put_extent(ino, extent)
        return grown

    def replace(self, ino: Ino, extents: list[Extent]) -> None:
        """Let the file consist of *extents* alone."""
        old = self.extents(ino)
        self._root.charge(sum(map(self.own_size, extents)) - sum(map(self.own_size, old)))
        keep = {extent.offset: extent for extent in extents}
        for extent in old:
            if extent.offset not in keep:
                self._btree.delete(keys.extent_key(ino, extent.offset))
        known = {extent.offset: extent for extent in old}
        for extent in extents:
            if known.get(extent.offset) != extent:
                self.put_extent(ino, extent)


def moved(extent: Extent, distance: int) -> Extent:
    """Return *extent* for a place in a file that is *distance* bytes further on."""
    return Extent(
        extent.offset + distance, extent.length, extent.block, extent.block_offset, extent.inline
    )

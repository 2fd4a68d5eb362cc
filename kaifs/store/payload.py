"""Blocks by id: deduplicated when written, verified when read.

The index leads from the xxh3-128 of a payload to the blocks that have it. That
hash is not collision-resistant and agents are not trusted, so a hit counts
only after the old block's checksum was verified and its bytes were compared.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import perf_counter_ns
from typing import Final, Protocol

from kaifs.base.digest import checksum
from kaifs.base.errors import ChecksumMismatchError, NoSpaceError, StoreIOError
from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks.compression import Compressor, decode
from kaifs.blocks.segments import RecordHeader, Segments, TailRecord, record_size
from kaifs.meta.database import Table
from kaifs.meta.records import BLOCK, BlockRecord
from kaifs.store.pending import Pending

_RECORD_CACHE = 16384

PATIENCE_NS: Final = 200_000
"""How long a read that should not wait does: most disks answer in that time, and a thread that
waits instead costs as much."""
PATIENCE_BYTES: Final = 1 << 17
"""Larger blocks take longer."""


class ColdBlockError(Exception):
    """A block must come from the disk, and who asked does not wait."""


class Counters(Protocol):
    """Where new ids come from."""

    block: int
    segment: int


def block_key(block: BlockId) -> bytes:
    """Return the key of a block in BLOCKS."""
    return block.to_bytes(8, "big")


def split_ids(value: bytes | None) -> list[BlockId]:
    """Return the block ids in a record of DIGESTS: 8 bytes big-endian each."""
    ids = value or b""
    return [BlockId(int.from_bytes(ids[i : i + 8], "big")) for i in range(0, len(ids), 8)]


class Payload:
    """The block store: segments, the index of blocks, a cache of verified payloads."""

    def __init__(
        self,
        pending: Pending,
        segments: Segments,
        counters: Counters,
        compressor: Compressor,
        live: dict[SegmentId, int],
        cache_bytes: int,
    ) -> None:
        self._pending = pending
        self._segments = segments
        self._counters = counters
        self._compressor = compressor
        self._cache_bytes = cache_bytes
        self._cached = 0
        self._cache: OrderedDict[BlockId, bytes] = OrderedDict()
        self._records: dict[BlockId, BlockRecord] = {}
        self.live = live
        """Bytes of each segment that records of blocks in the index take up."""
        self.is_full = False
        """Whether new blocks are refused, though the disk may have a little room."""
        self.shifts = 0
        """How often an old block was put elsewhere, or forgotten."""
        self.revived: set[BlockId] | None = None
        """While gc runs: the old blocks that were named anew."""

    @property
    def cached_bytes(self) -> int:
        """Bytes of verified payload that are kept in memory."""
        return self._cached

    def put(self, payload: bytes | memoryview) -> BlockId:
        """Return a block with exactly these bytes, an old one if there is one. They are not kept.

        Raises:
            NoSpaceError: the disk is full.
        """
        digest = checksum(payload)
        ids = split_ids(self._pending.get(Table.DIGESTS, digest))
        if ids:
            # A memoryview is compared byte by byte, in a hundred times the time.
            payload = bytes(payload)
        damaged = []
        for block in ids:
            try:
                same = self.read(block) == payload
            except (ChecksumMismatchError, StoreIOError):
                # Never lean on a damaged block; what comes next is written anew.
                damaged.append(block)
                continue
            if same:
                if self.revived is not None:
                    self.revived.add(block)
                return block
        block = self._append(payload, digest)
        healthy = [old for old in ids if old not in damaged]
        # Healthy blocks first, so that a damaged one is not read on every hit.
        index = b"".join(map(block_key, [*healthy, block, *damaged]))
        self._pending.put(Table.DIGESTS, digest, index)
        return block

    def _append(self, payload: bytes | memoryview, digest: bytes) -> BlockId:
        if self.is_full:
            raise NoSpaceError("what room is left is for what frees some")
        codec, stored = self._compressor.encode(payload)
        block = BlockId(self._counters.block)
        header = RecordHeader(block, codec, len(stored), len(payload), digest)
        segment, offset = self._append_record(header, stored)
        self._counters.block += 1
        self._set_record(
            block, BlockRecord(segment, offset, len(stored), len(payload), codec, digest)
        )
        return block

    def _start_if_full(self) -> None:
        if self._segments.needs_new:
            fresh = SegmentId(self._counters.segment)
            self._counters.segment += 1
            self._segments.start(fresh)
            self.live[fresh] = 0

    def append_journal(self, sequence: int, record: bytes) -> None:
        """Append a journal record to the segment that blocks are appended to.

        Raises:
            NoSpaceError: the disk is full.
            StoreIOError: the system refuses.
        """
        self._start_if_full()
        self._segments.append_journal(sequence, record)

    def adopt(self, blocks: list[tuple[SegmentId, TailRecord]]) -> None:
        """Take blocks into the index that are in segments past what was committed, ids growing."""
        ids = self._pending.get_many(Table.DIGESTS, [found.checksum for _, found in blocks])
        records, digests, live = dict[bytes, bytes](), dict[bytes, bytes](), self.live
        for segment, found in blocks:
            digest = found.checksum
            key = found.number.to_bytes(8, "big")
            place = (segment, found.offset, found.stored_size, found.size, found.codec, digest)
            # As BlockRecord(*place) is encoded, in half the time.
            records[key] = BLOCK.encode(place)
            ids[digest] = digests[digest] = ids[digest] + key if digest in ids else key
            live[segment] += found.stop - found.offset
        if blocks:
            self._counters.block = blocks[-1][1].number + 1
        self._pending.put_many(Table.BLOCKS, records)
        self._pending.put_many(Table.DIGESTS, digests)

    def _append_record(
        self, header: RecordHeader, stored: bytes | memoryview
    ) -> tuple[SegmentId, int]:
        self._start_if_full()
        segment, offset = self._segments.append(header, stored)
        self.live[segment] += record_size(header.stored_size)
        return segment, offset

    def _set_record(self, block: BlockId, record: BlockRecord) -> None:
        self._pending.put(Table.BLOCKS, block_key(block), BLOCK.encode(record))
        self._remember(block, record)

    def _remember(self, block: BlockId, record: BlockRecord) -> None:
        if len(self._records) >= _RECORD_CACHE:
            self._records.clear()
        self._records[block] = record

    def record(self, block: BlockId) -> BlockRecord:
        """Return where *block* is.

        Raises:
            ChecksumMismatchError: the index does not have it.
        """
        record = self.find_record(block)
        if record is None:
            raise ChecksumMismatchError(f"block {block} is missing")
        return record

    def find_record(self, block: BlockId) -> BlockRecord | None:
        """Return where *block* is, None if the index does not have it."""
        record = self._records.get(block)
        if record is None:
            value = self._pending.get(Table.BLOCKS, block_key(block))
            if value is not None:
                record = BLOCK.decode(value)
                self._remember(block, record)
        return record

    @property
    def next_block(self) -> int:
        """The id that the next new block gets."""
        return self._counters.block

    def read(self, block: BlockId, *, wait: bool = True) -> bytes:
        """Return the payload of *block*, verified; *wait* for the disk or not.

        Raises:
            ChecksumMismatchError: it is missing or damaged.
            ColdBlockError: it is on a disk that takes its time. See `fetcher`.
        """
        payload = self._cache.get(block)
        if payload is not None:
            self._cache.move_to_end(block)
            return payload
        record = self.record(block)
        if not (wait or self._comes_soon(record)):
            raise ColdBlockError
        payload = self.read_stored(record)
        self._cache[block] = payload
        self._cached += len(payload)
        while self._cached > self._cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._cached -= len(dropped)
        return payload

    def read_stored(self, record: BlockRecord) -> bytes:
        """Return the payload that *record* leads to, from the disk, verified.

        Raises:
            ChecksumMismatchError: it is damaged.
        """
        stored = self._segments.read_stored(record.segment, record.offset, record.stored_size)
        payload = decode(record.codec, stored, record.size)
        if len(payload) != record.size or checksum(payload) != record.checksum:
            raise ChecksumMismatchError(
                f"block in segment {record.segment} at {record.offset} is damaged"
            )
        return payload

    def _comes_soon(self, record: BlockRecord) -> bool:
        """Return whether a block is in memory, or gets there while one can wait for it."""
        place = record.segment, record.offset, record.stored_size
        if self._segments.is_cached(*place):
            return True
        if record.stored_size > PATIENCE_BYTES:
            return False
        until = perf_counter_ns() + PATIENCE_NS
        while perf_counter_ns() < until:
            os.sched_yield()
            if self._segments.is_cached(*place):
                return True
        return False

    def fetcher(self, blocks: Iterable[BlockId]) -> Callable[[], None]:
        """Return what brings the stored bytes of *blocks* into memory, as `Device.fetcher`.

        Raises:
            ChecksumMismatchError: the index does not have one of them.
        """
        cold = (self.record(block) for block in blocks if block not in self._cache)
        return self._segments.fetcher(
            (record.segment, record.offset, record.stored_size) for record in cold
        )

    def move(self, block: BlockId) -> bool:
        """Append a copy of *block* and let the index lead there. For gc.

        Returns:
            Whether it could be moved: a damaged block stays where it is.
        """
        record = self.record(block)
        try:
            self.read_stored(record)
            stored = self._segments.read_stored(record.segment, record.offset, record.stored_size)
        except (ChecksumMismatchError, StoreIOError):
            return False
        header = RecordHeader(block, record.codec, record.stored_size, record.size, record.checksum)
        segment, offset = self._append_record(header, stored)
        self.shifts += 1
        self.live[record.segment] -= record_size(record.stored_size)
        self._set_record(
            block,
            BlockRecord(
                segment, offset, record.stored_size, record.size, record.codec, record.checksum
            ),
        )
        return True

    def heal(self, block: BlockId) -> bool:
        """Append *block* anew with the payload of one that has its checksum.

        There is one where the same bytes were written again after the damage was met (see
        `put`). A checksum is no proof of equality: what a version seals is proven by its
        SHA-256, when it is verified.

        Returns:
            Whether there was one.

        Raises:
            NoSpaceError, StoreIOError: the disk refuses.
        """
        damaged = self.record(block)
        payload = self._cache.get(block) or self._find_twin(block, damaged.checksum)
        if payload is None:
            return False
        codec, stored = self._compressor.encode(payload)
        header = RecordHeader(block, codec, len(stored), len(payload), damaged.checksum)
        segment, offset = self._append_record(header, stored)
        self.shifts += 1
        self.live[damaged.segment] -= record_size(damaged.stored_size)
        record = BlockRecord(segment, offset, len(stored), len(payload), codec, damaged.checksum)
        self._set_record(block, record)
        return True

    def _find_twin(self, block: BlockId, digest: bytes) -> bytes | None:
        for other in split_ids(self._pending.get(Table.DIGESTS, digest)):
            if other != block:
                with suppress(ChecksumMismatchError, StoreIOError):
                    return self.read_stored(self.record(other))
        return None

    def forget(self, block: BlockId) -> int:
        """Delete *block* from the index. Return the bytes that this frees in its segment."""
        record = self.record(block)
        self._records.pop(block, None)
        cached = self._cache.pop(block, None)
        if cached is not None:
            self._cached -= len(cached)
        self._pending.delete(Table.BLOCKS, block_key(block))
        ids = split_ids(self._pending.get(Table.DIGESTS, record.checksum))
        rest = [other for other in ids if other != block]
        if rest:
            self._pending.put(Table.DIGESTS, record.checksum, b"".join(map(block_key, rest)))
        elif ids:
            self._pending.delete(Table.DIGESTS, record.checksum)
        self.shifts += 1
        freed = record_size(record.stored_size)
        self.live[record.segment] -= freed
        return freed

    def abandon(self) -> None:
        """Forget every cached block and record."""
        self._cache.clear()
        self._cached = 0
        self._records.clear()

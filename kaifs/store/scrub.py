"""Reads everything that the index leads to, and mends what an identical copy can mend.

Segments are read from front to back in large pieces, as a disk likes it. A block
whose bytes are not what its checksum says is read from another block with the
same payload, if there is one, and appended anew; a record of the index that is
damaged in one copy is taken from the other. What has no copy is named, and left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

from kaifs.base.errors import ChecksumMismatchError, StoreDamagedError, StoreIOError
from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks.segments import RECORD_BLOCK
from kaifs.meta.database import Table
from kaifs.meta.records import BLOCK, BlockRecord
from kaifs.store.store import Store

STEP_SIZE: Final = 4 << 20
"""Bytes read between two yields."""
STEP_RECORDS: Final = 500
"""Records of the index checked between two yields."""


@dataclass(slots=True)
class Scrubbed:
    """What a scrub has found so far."""

    size: int = 0
    """Bytes read."""
    total: int = 0
    """Bytes to be read."""
    damaged: list[BlockId] = field(default_factory=list)
    """Blocks whose payload is nowhere else."""
    healed: list[BlockId] = field(default_factory=list)
    """Blocks that were appended anew from an identical one."""
    healed_records: int = 0
    """Records of the index that were taken from its other copy."""
    is_mirror_remade: bool = False
    """Whether the mirror of the index was damaged and has been written anew."""
    lost_records: list[str] = field(default_factory=list)
    """Records of the index that are damaged in both copies."""


def scrub(store: Store) -> Generator[Scrubbed, None, Scrubbed]:
    """Read everything; yields how far it is. Others may change the store between the steps.

    What is written meanwhile need not be read. What was healed is durable with the
    next commit.

    Raises:
        NoSpaceError, StoreIOError: the disk refuses.
    """
    found = Scrubbed(total=sum(store.segments.sizes.values()))
    yield from _scrub_index(store, found)
    for segment, size in sorted(store.segments.sizes.items()):
        if segment in store.segments.sizes:
            yield from _scrub_segment(store, segment, size, found)
    return found


def _scrub_index(store: Store, found: Scrubbed) -> Iterator[Scrubbed]:
    database = store.database
    for table in Table:
        keys = database.keys(table)
        for start in range(0, len(keys), STEP_RECORDS):
            for key in keys[start : start + STEP_RECORDS]:
                if not database.fault(table, key):
                    continue
                try:
                    # What is had from the mirror goes back with the next commit.
                    database.get(table, key)
                    found.healed_records += 1
                except StoreDamagedError:
                    found.lost_records.append(f"{table} {key.hex()}")
            yield found
    if database.mirror_fault():
        database.remake_mirror()
        found.is_mirror_remade = True
    yield found


def _scrub_segment(
    store: Store, segment: SegmentId, size: int, found: Scrubbed
) -> Iterator[Scrubbed]:
    unread = 0
    for offset, stop, block in _records(store, segment, size):
        record = store.payload.find_record(block)
        if record is not None and (record.segment, record.offset) == (segment, offset):
            _scrub_block(store, block, record, found)
        unread += stop - offset
        if unread >= STEP_SIZE:
            found.size += unread
            unread = 0
            yield found
    found.size += unread
    yield found


def _records(store: Store, segment: SegmentId, size: int) -> Iterator[tuple[int, int, BlockId]]:
    """Yield begin, end and block of each record of a segment that the index may name."""
    offset = 0
    try:
        for offset, header in store.segments.scan(segment, size):
            if header.kind == RECORD_BLOCK:
                yield offset, offset + header.stored_size, header.block
    except (ChecksumMismatchError, StoreDamagedError):
        # A damaged header hides what follows: the index knows where that is.
        for block, record in list(_blocks_in(store, segment)):
            if record.offset > offset:
                yield record.offset, record.offset + record.stored_size, block


def _blocks_in(store: Store, segment: SegmentId) -> Iterator[tuple[BlockId, BlockRecord]]:
    for key in store.pending.keys(Table.BLOCKS):
        value = store.pending.get(Table.BLOCKS, key)
        if value is not None:
            record = BLOCK.decode(value)
            if record.segment == segment:
                yield BlockId(int.from_bytes(key, "big")), record


def _scrub_block(store: Store, block: BlockId, record: BlockRecord, found: Scrubbed) -> None:
    try:
        store.payload.read_stored(record)
    except (ChecksumMismatchError, StoreIOError):
        if store.payload.heal(block):
            found.healed.append(block)
        else:
            found.damaged.append(block)

"""Reads everything that the index leads to, and mends what an identical copy can mend.

Segments are read from front to back in large pieces, as a disk likes it, by whoever
runs this: `Read` says what. A block whose bytes are not what its checksum says is read
from another block with the same payload, if there is one, and appended anew; a record
of the index that is damaged in one copy is taken from the other. What has no copy is
named, and left.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from kaifs.base.errors import ChecksumMismatchError, StoreDamagedError, StoreIOError
from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks.patrol import Seen, patrol
from kaifs.blocks.segments import SEGMENT_HEADER_SIZE, segment_name
from kaifs.meta.database import Table
from kaifs.meta.records import BLOCK, SCRUB, BlockRecord, ScrubRecord, ScrubTally
from kaifs.store.store import SEGMENT_FOLDER, Store

SCRUB_KEY: Final = b"scrub"
FROM_START: Final = SegmentId(0)
STEP_RECORDS: Final = 250
"""Records of the index checked between two yields; some 1 ms."""


@dataclass(slots=True)
class Scrubbed:
    """What a scrub has found so far."""

    size: int = 0
    """Bytes read."""
    total: int = 0
    """Bytes to be read."""
    segment: SegmentId = FROM_START
    """All segments before this one have been read; 0: nor has all of the index."""
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

    @property
    def tally(self) -> ScrubTally:
        """It in numbers."""
        return ScrubTally(
            self.size,
            len(self.healed) + self.healed_records,
            len(self.damaged) + len(self.lost_records),
        )


@dataclass(slots=True)
class Read:
    """A part of a segment that is to be read before the scrub goes on. By any thread, or process."""

    path: Path
    start: int
    stop: int
    seen: Seen | None = None
    """What was seen there. Whoever has read it sets this."""

    def run(self) -> None:
        """Read it here."""
        self.seen = patrol(self.path, self.start, self.stop)


@dataclass(slots=True)
class CheckMirror:
    """The mirror of the index is to be read before the scrub goes on. By any thread."""

    store: Store
    is_remade: bool = False

    def run(self) -> None:
        """Read it, and write it anew if it is damaged."""
        if self.store.database.mirror_fault():
            self.store.database.remake_mirror()
            self.is_remade = True


ScrubStep: TypeAlias = Scrubbed | Read | CheckMirror
_Steps: TypeAlias = Generator[ScrubStep, None, None]


def find_scrub(store: Store) -> ScrubRecord:
    """Return what is known of scrubs of the store: nothing, if that is damaged."""
    try:
        record = store.pending.get(Table.META, SCRUB_KEY)
        return ScrubRecord() if record is None else SCRUB.decode(record)
    except StoreDamagedError:
        return ScrubRecord()


def put_scrub(store: Store, record: ScrubRecord) -> None:
    """Remember what is known of scrubs of the store, from the next epoch on."""
    store.pending.put(Table.META, SCRUB_KEY, SCRUB.encode(record))


def scrub(store: Store, start: SegmentId = FROM_START) -> Generator[ScrubStep, None, Scrubbed]:
    """Read everything; yields how far it is. Others may change the store between the steps.

    What is written meanwhile need not be read. What was healed is durable with the
    next commit.

    Args:
        store: What to read.
        start: Where a scrub that was interrupted was, `Scrubbed.segment`.

    Raises:
        NoSpaceError, StoreIOError: the disk refuses.
    """
    segments = sorted(one for one in store.segments.sizes.items() if one[0] >= start)
    found = Scrubbed(total=sum(size for _, size in segments), segment=start)
    if not start:
        yield from _scrub_index(store, found)
    for segment, size in segments:
        found.segment = segment
        yield found
        yield from _scrub_segment(store, segment, size, found)
    return found


def _scrub_index(store: Store, found: Scrubbed) -> _Steps:
    database = store.database
    for table in Table:
        start = b""
        while keys := database.scan(table, start, STEP_RECORDS):
            for key in keys:
                if not database.fault(table, key):
                    continue
                try:
                    # What is had from the mirror goes back with the next commit.
                    database.get(table, key)
                    found.healed_records += 1
                except StoreDamagedError:
                    found.lost_records.append(f"{table} {key.hex()}")
            start = keys[-1] + b"\0"
            yield found
    mirror = CheckMirror(store)
    yield mirror
    found.is_mirror_remade = mirror.is_remade


def _scrub_segment(store: Store, segment: SegmentId, size: int, found: Scrubbed) -> _Steps:
    path = store.path / SEGMENT_FOLDER / segment_name(segment)
    offset = SEGMENT_HEADER_SIZE
    while offset < size and segment in store.segments.sizes:
        part = Read(path, offset, size)
        yield part
        assert part.seen is not None, "who runs a scrub reads what it asks for"
        for place, block in part.seen.damaged:
            _check_block(store, segment, place, BlockId(block), found)
        found.size += part.seen.stop - offset
        offset = part.seen.stop
        if part.seen.is_blind:
            # What follows cannot be found there: the index knows where it is.
            yield from _scrub_rest(store, segment, offset, found)
            found.size += size - offset
            offset = size
        yield found


def _scrub_rest(store: Store, segment: SegmentId, offset: int, found: Scrubbed) -> _Steps:
    """Check the blocks of *segment* from *offset* on one by one."""
    start = b""
    while keys := store.database.scan(Table.BLOCKS, start, STEP_RECORDS):
        for key in keys:
            value = store.pending.get(Table.BLOCKS, key)
            record = None if value is None else BLOCK.decode(value)
            if record is not None and record.segment == segment and record.offset >= offset:
                _scrub_block(store, BlockId(int.from_bytes(key, "big")), record, found)
        start = keys[-1] + b"\0"
        yield found


def _check_block(
    store: Store, segment: SegmentId, offset: int, block: BlockId, found: Scrubbed
) -> None:
    """Mend a block if what is damaged there is what the index leads to."""
    record = store.payload.find_record(block)
    if record is not None and (record.segment, record.offset) == (segment, offset):
        _scrub_block(store, block, record, found)


def _scrub_block(store: Store, block: BlockId, record: BlockRecord, found: Scrubbed) -> None:
    try:
        store.payload.read_stored(record)
    except (ChecksumMismatchError, StoreIOError):
        if store.payload.heal(block):
            found.healed.append(block)
        else:
            found.damaged.append(block)

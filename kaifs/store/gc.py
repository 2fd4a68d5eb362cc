"""Freeing what no root reaches: mark, sweep, compact.

Marking reads frozen trees: the roots are frozen first, so whatever changes
meanwhile changes copies. Node and block ids only grow, so what is made while
gc runs is told by its id; a block that a dedup hit names anew is remembered.
A segment is deleted only after the commit that names none of its blocks.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass

from kaifs.base.errors import ChecksumMismatchError, NoSpaceError, StoreIOError
from kaifs.base.types import BlockId, NodeId, SegmentId
from kaifs.blocks.segments import RECORD_BLOCK, SEGMENT_HEADER_SIZE, RecordHeader
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.node import Leaf
from kaifs.meta.records import extent_block
from kaifs.store.store import Store

STEP = 64
"""Nodes or records handled between two yields: 1 to 2 ms, in which nobody else is served."""
LEAST_LIVE = 0.5
"""A segment of which a smaller part is alive is compacted."""


@dataclass(slots=True)
class Freed:
    """What gc has done so far."""

    marked: int = 0
    """Nodes found alive."""
    nodes: int = 0
    blocks: int = 0
    segments: int = 0
    size: int = 0
    """Bytes of segments given back to the disk, less what was copied."""
    moved: int = 0
    """Bytes copied out of segments that were mostly dead."""


@dataclass(frozen=True, slots=True)
class CommitWanted:
    """Yielded where whoever runs gc must commit before it goes on."""


GcStep = Freed | CommitWanted


class Marks:
    """A set of ids as one bit each."""

    def __init__(self, stop: int) -> None:
        """Hold ids below *stop*."""
        self._bits = bytearray(stop // 8 + 1)

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] >> (number & 7) & 1)

    def add(self, number: int) -> bool:
        """Add an id. Return whether it is new."""
        byte, bit = number >> 3, 1 << (number & 7)
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        return True


def collect(store: Store, *, compact_below: float = LEAST_LIVE) -> Generator[GcStep, None, Freed]:
    """Free what no root reaches. Yields between small steps; others may change the store then.

    Interrupted at any point it has freed some, or nothing,
    and lost nothing.

    Raises:
        StoreDamagedError: a node is missing or damaged; nothing is freed then,
            for what hangs below it cannot be known.
    """
    roots = store.begin_gc()
    try:
        tops = [store.root(root).top for root in roots]
        node_stop, block_stop = store.nodes.next_node, store.payload.next_block
        yield CommitWanted()
        freed = Freed()
        nodes, blocks = Marks(node_stop), Marks(block_stop)
        yield from _mark(store, tops, nodes, blocks, freed)
        yield from _sweep_nodes(store, nodes, node_stop, freed)
        yield from _sweep_blocks(store, blocks, block_stop, freed)
        yield CommitWanted()
        yield from _compact(store, compact_below, freed)
        yield CommitWanted()
    finally:
        store.end_gc()
    return freed


def _mark(
    store: Store, tops: list[NodeId], nodes: Marks, blocks: Marks, freed: Freed
) -> Generator[GcStep, None, None]:
    stack = list(tops)
    while stack:
        node_id = stack.pop()
        if not nodes.add(node_id):
            continue
        freed.marked += 1
        node = store.nodes.peek(node_id)
        if isinstance(node, Leaf):
            for key, value in zip(node.keys, node.values, strict=True):
                if key[keys.PREFIX_SIZE - 1] == keys.EXTENT:
                    block = extent_block(value)
                    if block:
                        blocks.add(block)
        else:
            stack += node.children
        if freed.marked % STEP == 0:
            yield freed


def _sweep_nodes(
    store: Store, nodes: Marks, stop: int, freed: Freed
) -> Generator[GcStep, None, None]:
    for ids in _stored_ids(store, Table.NODES, stop):
        for node_id in ids:
            if node_id not in nodes:
                store.nodes.forget(NodeId(node_id))
                freed.nodes += 1
        yield freed


def _sweep_blocks(
    store: Store, blocks: Marks, stop: int, freed: Freed
) -> Generator[GcStep, None, None]:
    payload = store.payload
    assert payload.revived is not None
    for ids in _stored_ids(store, Table.BLOCKS, stop):
        for block in ids:
            if block not in blocks and block not in payload.revived:
                payload.forget(BlockId(block))
                freed.blocks += 1
        yield freed


def _stored_ids(store: Store, table: Table, stop: int) -> Generator[list[int], None, None]:
    start = b""
    while found := store.database.scan(table, start, STEP):
        yield [number for key in found if (number := int.from_bytes(key, "big")) < stop]
        start = found[-1] + b"\0"


def _compact(store: Store, compact_below: float, freed: Freed) -> Generator[GcStep, None, None]:
    """Give up segments without a live block, then those with few, whose blocks are copied.

    On a full disk the first make room for the copies of the second, as far as it goes.
    """
    payload, segments = store.payload, store.segments
    mostly_dead = []
    for segment, size in sorted(segments.sizes.items()):
        live = payload.live[segment]
        used = size - SEGMENT_HEADER_SIZE
        if used and live / used >= compact_below:
            continue
        if segment == segments.active:
            segments.retire_active()
        if live:
            mostly_dead.append((segment, size))
        else:
            _give_up(store, segment, size, freed)
            yield freed
    if freed.segments and mostly_dead:
        yield CommitWanted()
    with suppress(NoSpaceError):
        for segment, size in mostly_dead:
            before = freed.moved
            yield from _empty(store, segment, size, freed)
            if payload.live[segment] == 0:
                _give_up(store, segment, size - (freed.moved - before), freed)
            # On a full disk there is room for the copies of one segment.
            yield CommitWanted() if payload.is_full else freed


def _give_up(store: Store, segment: SegmentId, size: int, freed: Freed) -> None:
    store.doom_segment(segment)
    freed.segments += 1
    freed.size += size


def _empty(
    store: Store, segment: SegmentId, size: int, freed: Freed
) -> Generator[GcStep, None, None]:
    payload = store.payload
    for count, (offset, header) in enumerate(_readable(store, segment, size)):
        if count % STEP == STEP - 1:
            yield freed
        if header.kind != RECORD_BLOCK:
            # A journal record that an epoch has long made obsolete.
            continue
        record = payload.find_record(header.block)
        here = record is not None and (record.segment, record.offset) == (segment, offset)
        if here and store.move_block(header.block):
            freed.moved += header.stored_size
            yield freed


def _readable(
    store: Store, segment: SegmentId, size: int
) -> Generator[tuple[int, RecordHeader], None, None]:
    # What follows a damaged header cannot be found: the segment stays, and fsck tells why.
    with suppress(ChecksumMismatchError, StoreIOError):
        yield from store.segments.scan(segment, size)


def collect_now(store: Store, *, compact_below: float = LEAST_LIVE) -> Freed:
    """Run `collect` to its end, with its commits.

    Raises:
        StoreDamagedError: as `collect`.
    """
    steps = collect(store, compact_below=compact_below)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            freed: Freed = end.value
            return freed
        if isinstance(step, CommitWanted):
            store.commit()

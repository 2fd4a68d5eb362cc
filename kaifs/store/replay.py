"""Replay: from the last epoch to the last thing that was acknowledged.

What lies in the segments past the last epoch is read once, in the order in which
it was appended. Blocks go into the index; journal records are gathered, the last
value of each key, and applied in bulk. Then one epoch is committed, and only after
that is cut off what is no whole record or comes after one. A process that dies at
any point of this leaves what it found, and the next one begins again.

A block or a record whose checksum is wrong ends the replay, as does a sequence
number or a block id that is missing: what comes after it may rest on what is lost.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from kaifs.base.errors import ChecksumMismatchError, FormatError, StoreDamagedError
from kaifs.base.types import Ino, RootId, SegmentId
from kaifs.blocks.segments import RECORD_BLOCK, RECORD_JOURNAL, TailRecord
from kaifs.meta.database import Table
from kaifs.store import bulk
from kaifs.store.journal import (
    JOURNALED,
    SEQUENCE_STEP,
    Cloned,
    Dropped,
    JournalRecord,
    Made,
    Puts,
    Recorded,
    RootSet,
    Unfinished,
    decode_journal,
)
from kaifs.store.registry import root_key

if TYPE_CHECKING:
    from kaifs.store.roots import Root
    from kaifs.store.store import Store

GATHERED_MAX: Final = 500_000
"""Keys and values gathered before they are applied: what bounds the memory of a replay."""
NODES_MAX: Final = 50_000
"""Changed nodes in memory before an epoch is committed in the middle of a replay."""
BLOCKS_MAX: Final = 250_000
"""Blocks taken into the index before an epoch is committed, likewise."""


@dataclass(slots=True)
class Recovery:
    """What was found past the last epoch when a store was opened."""

    records: int = 0
    """Journal records that were replayed."""
    blocks: int = 0
    """Blocks that were taken into the index."""
    cut: int = 0
    """Bytes that were cut off."""
    reason: str = ""
    """Why what was cut off did not count; empty if it was not asked for."""


class Replay:
    """One replay, on a store that is being opened."""

    def __init__(self, store: Store, sequence: int) -> None:
        """Expect *sequence* as the number of the first record."""
        self._store = store
        self.sequence = sequence
        self.found = Recovery()
        self._last: JournalRecord | None = None
        self._puts: dict[int, _Gathered] = {}
        """Changes of trees that are not applied yet, by root id."""
        self._gathered = 0
        self._new: list[tuple[SegmentId, TailRecord]] = []
        """Blocks since the last journal record. Nothing that was acknowledged names them yet."""
        self._next_block = store.payload.next_block
        """The first block that has not been met."""
        self._adopted: list[tuple[SegmentId, TailRecord]] = []
        """Blocks before the last journal record."""
        self._stops: dict[SegmentId, int] = {}
        """Where the last journal record ends, and the segments before its own."""
        self._passed: dict[SegmentId, int] = {}
        """Where segments end that were read since."""
        self._indexed = 0
        """Blocks taken into the index since the last commit."""
        self._damage: StoreDamagedError | None = None

    def run(self, tails: list[SegmentId]) -> None:
        """Replay what is in *tails*. In the end `segments.sizes` says how much of them counts.

        Raises:
            StoreDamagedError: what the records change is not as they say. Nothing is cut off then.
            StoreIOError: the disk cannot be read; likewise.
        """
        # Millions of objects come here and stay: looking for cycles among them again and again
        # would take a tenth of the time. There are none.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            self._read(tails)
        finally:
            if was_enabled:
                gc.enable()

    def _read(self, tails: list[SegmentId]) -> None:
        try:
            for segment in tails:
                self._segment(segment)
        except (ChecksumMismatchError, FormatError, StoreDamagedError) as error:
            if self._damage is not None:
                raise
            self.found.reason = error.subject
        self._settle()

    def _segment(self, segment: SegmentId) -> None:
        new = self._new
        stop = 0
        for found in self._store.segments.tail(segment):
            stop = found.stop
            if found.kind == RECORD_BLOCK:
                # A smaller id is a copy that gc made; the original is in the index.
                if found.number == self._next_block:
                    self._next_block += 1
                    new.append((segment, found))
            elif found.kind == RECORD_JOURNAL:
                record = self._verified(segment, found)
                if new:
                    self._adopted += new
                    new.clear()
                if self._passed:
                    self._stops |= self._passed
                    self._passed.clear()
                self._stops[segment] = stop
                self._take(record)
        if stop:
            # Counts if a journal record follows in another segment.
            self._passed[segment] = stop

    def _verified(self, segment: SegmentId, found: TailRecord) -> JournalRecord:
        """Return the journal record that *found* is, having checked what it rests on.

        Raises:
            StoreDamagedError: it is not the next one, or something is missing before it.
        """
        if found.number != self.sequence:
            text = f"segment {segment}: journal record {found.number}, not {self.sequence}"
            raise StoreDamagedError(text)
        record = decode_journal(found.stored)
        if record.epoch > self._store.epoch:
            raise StoreDamagedError(f"segment {segment}: journal of epoch {record.epoch}")
        if record.block != self._next_block:
            raise StoreDamagedError(f"segment {segment}: block {self._next_block} is missing")
        return record

    def _take(self, record: JournalRecord) -> None:
        puts = self._puts
        try:
            for step in record.steps:
                if type(step) is Puts:
                    entry = puts.get(step.root)
                    if entry is None:
                        entry = puts[step.root] = _Gathered(self._store.root(RootId(step.root)))
                    entry.pairs += step.pairs
                    entry.last = step
                    self._gathered += len(step.pairs)
                else:
                    self._apply_rare(step)
        except StoreDamagedError as error:
            self._damage = error
            raise
        self.sequence += 1
        self._last = record
        if record.answer is not None:
            self._store.answer = record.answer
        if self._gathered > GATHERED_MAX or len(self._adopted) > BLOCKS_MAX:
            self._settle()
            if self._store.nodes.dirty_count > NODES_MAX or self._indexed > BLOCKS_MAX:
                self._indexed = 0
                self._store.commit()

    def _settle(self) -> None:
        """Let the store be what the records so far have made it."""
        store = self._store
        for segment, stop in self._stops.items():
            store.reach_segment(segment, stop)
        self._stops.clear()
        store.payload.adopt(self._adopted)
        self.found.blocks += len(self._adopted)
        self._indexed += len(self._adopted)
        self._adopted.clear()
        try:
            for root_id in list(self._puts):
                self._apply_to(root_id)
        except StoreDamagedError as error:
            self._damage = error
            raise
        self._gathered = 0
        if self._last is not None:
            last = self._last
            store.raise_counters(root=last.root, slot=last.slot, agent=last.agent)
        self.found.records += self.sequence - store.sequence
        store.sequence = self.sequence

    def _apply_rare(self, step: object) -> None:
        store = self._store
        match step:
            case Made(root):
                self._puts.pop(root, None)
                store.remake_root(RootId(root))
            case Cloned(root, source):
                self._apply_to(source)
                self._puts.pop(root, None)
                store.reclone_root(RootId(root), store.root(RootId(source)))
            case Dropped(root):
                self._puts.pop(root, None)
                store.drop_root(RootId(root))
            case Recorded(table, key, value):
                if table not in JOURNALED:
                    raise StoreDamagedError(f"a journal record of table {table!r}")
                if value is None:
                    store.pending.delete(Table(table), key)
                else:
                    store.pending.put(Table(table), key, value)
            case Unfinished(root, is_listed):
                if is_listed:
                    store.pending.put(Table.UNFINISHED, root_key(RootId(root)), b"")
                else:
                    store.pending.delete(Table.UNFINISHED, root_key(RootId(root)))
            case RootSet(record):
                # Last of all: its fields are those after every change in the record.
                self._apply_to(record.root_id)
                store.reset_root(record)

    def _apply_to(self, root_id: int) -> None:
        gathered = self._puts.pop(root_id, None)
        if gathered is not None and gathered.last is not None:
            root, last = gathered.root, gathered.last
            # A value stands behind each key, so no key is None.
            keys = cast("list[bytes]", gathered.pairs[::2])
            changes = dict(zip(keys, gathered.pairs[1::2], strict=True))
            bulk.apply(self._store.nodes, root, changes)
            root.next_ino, root.inodes = Ino(last.next_ino), last.inodes
            root.size, root.own = last.size, last.own
            root.dirty = True


class _Gathered:
    """What is to be applied to the tree of one root."""

    __slots__ = ("last", "pairs", "root")

    def __init__(self, root: Root) -> None:
        self.root = root
        self.pairs: list[bytes | None] = []
        """Key, value, key, value …; of a key that is there twice the last value counts."""
        self.last: Puts | None = None


def after_cut(sequence: int) -> int:
    """Return the sequence number to go on with after a tail was cut off."""
    return (sequence // SEQUENCE_STEP + 1) * SEQUENCE_STEP

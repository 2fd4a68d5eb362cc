"""A store: everything under one folder, changed in epochs.

What is changed is in memory until a commit: first the segments are synced,
then one LMDB transaction names what is new. With a journal, whatever was flushed
to it since is in the segments, too. Whatever happens, the next open finds the
state of the last commit, and of the last record in the journal.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.base.clock import Clock, SystemClock
from kaifs.base.errors import (
    AccessDeniedError,
    KaifsError,
    NoSpaceError,
    StoreBusyError,
    StoreDamagedError,
    StoreIOError,
    StoreNotEmptyError,
)
from kaifs.base.types import BlockId, RootId, SegmentId
from kaifs.blocks.chunking import CHUNK_MAX
from kaifs.blocks.compression import Compressor
from kaifs.blocks.device import Device, FileDevice
from kaifs.blocks.segments import RECORD_JOURNAL, SEGMENT_HEADER_SIZE, Segments
from kaifs.linux.files import FileLock, LockHeld, fsync_directory
from kaifs.meta.database import MAP_SIZE, Table
from kaifs.meta.index import Index
from kaifs.meta.records import (
    COUNTERS,
    ROOT,
    SEGMENT,
    Answer,
    CounterRecord,
    RootState,
    SegmentRecord,
)
from kaifs.store.journal import Journal
from kaifs.store.nodes import Nodes
from kaifs.store.payload import Payload
from kaifs.store.pending import Batch, Pending
from kaifs.store.registry import Registry, root_key
from kaifs.store.replay import Recovery, Replay, after_cut
from kaifs.store.spare import Spare, share_of_disk
from kaifs.store.superblock import Superblock, read_superblock

LOCK_NAME: Final = "lock"
INDEX_FOLDER: Final = "index"
SEGMENT_FOLDER: Final = "segments"
RUN_FOLDER: Final = "run"
"""The daemon's socket and logs; nothing of value."""
SEGMENT_SIZE: Final = 64 << 20
"""Bytes after which a segment is full."""
_FOLDERS: Final = (INDEX_FOLDER, SEGMENT_FOLDER, RUN_FOLDER)
COUNTERS_KEY: Final = b"counters"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How this process uses a store. Nothing here is kept in it."""

    zstd_level: int | None = None
    """Compress new blocks with zstd at this level; None stores them as they are."""
    node_cache: int = 64 << 20
    """Bytes of decoded nodes kept in memory."""
    block_cache: int = 32 << 20
    """Bytes of verified payload kept in memory."""
    map_size: int = MAP_SIZE
    segment_size: int = SEGMENT_SIZE
    journal: bool = False
    """Keep a journal. For a process that acknowledges changes one by one; one that does a single
    thing and commits it, or nothing of it, needs none."""
    check_later: bool = False
    """Leave the check of a large index to `check_index`. For a process that is replaced if it dies."""
    accept_loss: bool = False
    """Open a store also where segments or counters that were committed are gone. For repair."""


@dataclass(slots=True)
class _Ids:
    """The next block and segment id."""

    block: int
    segment: int


@dataclass(frozen=True, slots=True)
class Commit:
    """One epoch on its way to the disk."""

    segments: frozenset[SegmentId]
    sizes: dict[SegmentId, int]
    batch: Batch
    doomed: tuple[SegmentId, ...]
    """Segments to delete once the batch is on disk."""
    number: int
    """Counts commits since the store was opened."""
    sequence: int
    """Of the first journal record after it."""


@dataclass(frozen=True, slots=True)
class Sync:
    """The journal on its way to the disk."""

    segments: frozenset[SegmentId]
    sizes: dict[SegmentId, int]


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes that a store takes."""

    segments: int
    """All of the segments."""
    live: int
    """Records in the segments that the index knows."""
    index: int
    """LMDB's pages in use, free ones included."""

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return self.segments + self.index


class Store(Registry):
    """An open store. For one thread, except for `write_commit` and `write_sync`."""

    def __init__(
        self,
        path: Path,
        superblock: Superblock,
        lock: FileLock,
        clock: Clock,
        options: StoreOptions,
        database: Index,
        segments: Segments,
    ) -> None:
        """Use what `create` or `open` has found; not for others to call."""
        super().__init__()
        self.path = path
        self.clock = clock
        self.superblock = superblock
        self._lock = lock
        self._accepts_loss = options.accept_loss
        self.database = database
        self.pending = Pending(self.database)
        self.segments = segments
        self._doomed: list[SegmentId] = []
        self._syncing: frozenset[SegmentId] = frozenset()
        self._emptied: list[SegmentId] = []
        """Segments to delete once the sync that is running has ended."""
        self.journal = None
        # What gc copies out of one segment before it can give that up: half of it at most.
        self._spare = Spare(path / RUN_FOLDER, segments.segment_size // 2 + CHUNK_MAX)
        self.recovery = Recovery()
        """What was found past the last epoch when the store was opened."""
        counters = self._load_counters()
        self._ids = _Ids(counters.block, counters.segment)
        self.nodes = Nodes(self.pending, counters.node, options.node_cache)
        self.payload = Payload(
            self.pending,
            self.segments,
            self._ids,
            Compressor(options.zstd_level),
            {},
            options.block_cache,
        )
        self._committed = self._committed_segments(), self.sequence
        """Where the tail of the last epoch begins: sizes of segments, number of the first record."""
        self._recover(goes_on=options.journal)
        if options.journal:
            self._start_journal()

    # --- opening and closing -----------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        clock: Clock | None = None,
        options: StoreOptions | None = None,
        device: Device | None = None,
    ) -> Store:
        """Make a store in the folder *path*, which is made if need be, and open it.

        Raises:
            StoreNotEmptyError: something is there already.
            NoSpaceError: the disk is full; the folder is empty again.
            StoreIOError: the system refuses.
        """
        clock = clock or SystemClock()
        options = options or StoreOptions()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise StoreNotEmptyError(str(path))
            path.chmod(0o700)
            try:
                _write_new_store(path, clock, options)
            except BaseException:
                # So that it can be tried again.
                for folder in _FOLDERS:
                    shutil.rmtree(path / folder, ignore_errors=True)
                raise
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreNotEmptyError(f"{path} is no folder") from error
        except OSError as error:
            raise _failure(path, error) from error
        return cls.open(path, clock=clock, options=options, device=device)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        clock: Clock | None = None,
        options: StoreOptions | None = None,
        wait_s: float = 10.0,
        lock_fd: int | None = None,
        device: Device | None = None,
    ) -> Store:
        """Open the store in *path* as the only process that has it.

        Args:
            path: The store's folder.
            clock: Where the time comes from; the system's clock if None.
            options: How to use it.
            wait_s: Seconds to wait for another process to let it go.
            lock_fd: An inherited descriptor that holds the lock already.
            device: What holds the segments, if not the store's own folder.

        Raises:
            StoreNotFoundError: there is none.
            StoreBusyError: another process has it.
            AccessDeniedError: it is closed to the caller.
            FormatError: it needs a newer kaifs.
            StoreDamagedError: it cannot be opened as it is.
            StoreIOError: the system refuses.
        """
        superblock = read_superblock(path)
        lock = FileLock(path / LOCK_NAME)
        try:
            if lock_fd is not None:
                lock.adopt(lock_fd)
            else:
                lock.acquire(wait_s, " ".join(sys.argv)[:200])
        except LockHeld as error:
            raise StoreBusyError(f"{path}: {error.owner_text}") from error
        except PermissionError as error:
            raise AccessDeniedError(str(path)) from error
        except OSError as error:
            raise _failure(path, error) from error
        options = options or StoreOptions()
        with ExitStack() as opened:
            opened.callback(lock.release)
            database = Index(
                path / INDEX_FOLDER, map_size=options.map_size, check_later=options.check_later
            )
            opened.callback(database.close)
            segments = Segments(
                device or FileDevice(path / SEGMENT_FOLDER),
                superblock.uuid,
                segment_size=min(options.segment_size, share_of_disk(path)),
            )
            opened.callback(segments.close)
            store = cls(path, superblock, lock, clock or SystemClock(), options, database, segments)
            opened.pop_all()
        return store

    def check_index(self) -> None:
        """Check the index if that was put off when the store was opened. Reads all; on any thread.

        Raises:
            StoreDamagedError: it has changed since it was closed. Nothing can be committed any more;
                the next opening mends it.
        """
        self.database.check()

    def close(self, *, commit: bool = True) -> None:
        """Commit if asked to, and let the store go."""
        try:
            if commit and self.is_dirty:
                self.commit()
        finally:
            if self.journal is not None:
                self._spare.release()
            self.segments.close()
            self.database.close()
            self._lock.release()

    @property
    def uuid(self) -> str:
        """The store's identity as 32 hex digits."""
        return self.superblock.uuid.hex()

    @property
    def next_segment(self) -> int:
        """The id that the next segment gets."""
        return self._ids.segment

    @property
    def lock_fd(self) -> int:
        """The descriptor that holds the store's lock."""
        return self._lock.fd

    def _load_counters(self) -> CounterRecord:
        counters = self._read_counters()
        if counters.uuid != self.superblock.uuid:
            raise StoreDamagedError(f"{self.path}: index is of another store")
        self.epoch = counters.epoch
        self.next_generation = counters.generation
        self.next_root = counters.root
        self.next_slot = counters.slot
        self.next_agent = counters.agent
        self.sequence = counters.journal
        self.answer = counters.answer
        """What was answered last, or was going to be, to a request that changed something."""
        return counters

    def _read_counters(self) -> CounterRecord:
        try:
            value = self.pending.get(Table.META, COUNTERS_KEY)
            if value is not None:
                return COUNTERS.decode(value)
        except StoreDamagedError:
            if not self._accepts_loss:
                raise
        if not self._accepts_loss:
            raise StoreDamagedError(f"{self.path}: index has no counters")
        return _first_counters(self.superblock.uuid)

    def _recover(self, *, goes_on: bool) -> None:
        """Replay what was acknowledged after the last epoch, and cut off the rest.

        Args:
            goes_on: Go on with the journal that was found, if all of it counts. What was replayed
                then gets on disk with the next epoch, and nobody waits for that now.
        """
        tails = self.segments.tails(self._committed[0], SegmentId(self._ids.segment))
        if tails:
            replay = Replay(self, self.sequence)
            replay.run(tails)
            self.recovery = replay.found
            goes_on = goes_on and not self.recovery.reason and not self.segments.excess()
            if not goes_on and (self.recovery.records or self.recovery.reason):
                self.sequence = after_cut(replay.sequence)
            if not goes_on and self.recovery.records:
                # Before anything is cut off: a process that dies here replays again.
                self.commit()
        self.recovery.cut = self._cut_segments(self.segments.sizes)
        if self.recovery.reason and not self.recovery.records:
            # Also on a full disk the store opens; then the next commit makes the number durable.
            with suppress(NoSpaceError):
                self.commit()
        if not goes_on or not self.recovery.records:
            self._committed = dict(self.segments.sizes), self.sequence

    def reach_segment(self, segment: SegmentId, stop: int) -> None:
        """For replay: let *segment* count up to *stop*."""
        self.segments.extend(segment, stop)
        self.payload.live.setdefault(segment, 0)
        self._ids.segment = max(self._ids.segment, segment + 1)

    def _committed_segments(self) -> dict[SegmentId, int]:
        committed: dict[SegmentId, int] = {}
        self.payload.live.clear()
        segments = {
            SegmentId(int.from_bytes(key, "big")) for key in self.pending.keys(Table.SEGMENTS)
        }
        if self._accepts_loss:
            # A file that the index has forgotten would be deleted otherwise.
            segments |= {one for one in self.segments.files() if one < self._ids.segment}
        for segment in sorted(segments):
            record = self._read_segment(segment)
            if record is not None:
                committed[segment] = record.size
                self.payload.live[segment] = record.live
        return committed

    def _read_segment(self, segment: SegmentId) -> SegmentRecord | None:
        """Return what was committed of *segment*, or as much of that as there is, if that will do."""
        key = segment.to_bytes(8, "big")
        if not self._accepts_loss:
            value = self.pending.get(Table.SEGMENTS, key)
            assert value is not None
            return SEGMENT.decode(value)
        size = self.segments.find_size(segment)
        if size is None:
            self.pending.delete(Table.SEGMENTS, key)
            return None
        try:
            # Nothing, or what cannot be decoded: the file's own size has to do.
            record = SEGMENT.decode(self.pending.get(Table.SEGMENTS, key) or b"")
        except StoreDamagedError:
            return SegmentRecord(size, 0)
        return SegmentRecord(min(size, record.size), record.live)

    def _cut_segments(self, committed: dict[SegmentId, int]) -> int:
        return self.segments.recover(committed, SegmentId(max(committed, default=0)))

    # --- journal -----------------------------------------------------------------------

    def _start_journal(self) -> None:
        self.payload.is_full = not self._spare.keep()
        self.journal = Journal(self._append_journal, self._journal_head)
        self.pending.log = self.journal.add
        for root in self._roots.values():
            if root.state is not RootState.BUILDING:
                self.journal.follow(root)

    def flush_journal(self, answer: tuple[int, int, bytes] | None = None) -> None:
        """Let what has changed survive the death of the process, as one. Without a journal: nothing.

        To be called before a change is acknowledged to whoever asked for it.

        Args:
            answer: How it is going to be acknowledged, as an `Answer`. If something has changed,
                `answer` is that from here on, also after the death of the process.

        Raises:
            NoSpaceError: the disk is full. What changed is seen, and goes with the next record
                or epoch, whole; it must not be acknowledged.
            StoreIOError: the system refuses; likewise.
        """
        if self.journal is not None and self.journal.is_due:
            if answer is None:
                self.journal.flush()
            else:
                # In this order: a commit must not name an answer whose change is not in it.
                kept = Answer(*answer)
                self.journal.flush(kept)
                self.answer = kept

    def prepare_sync(self) -> Sync:
        """Take what has been flushed to the journal. One sync at a time, beside a commit if need be."""
        sync = Sync(self.segments.unsynced(), dict(self.segments.sizes))
        self._syncing = sync.segments
        return sync

    def write_sync(self, sync: Sync) -> None:
        """Put what was flushed to the journal on disk. Blocks for the disk; any thread may call it.

        Raises:
            NoSpaceError: the disk is full.
            StoreIOError: the system refuses.
        """
        self.segments.sync(sync.segments)

    def end_sync(self, sync: Sync, *, is_durable: bool) -> None:
        """Note that a sync is on disk, or could not get there."""
        self._syncing = frozenset()
        if is_durable:
            self.segments.forget_unsynced(sync.segments, sync.sizes)
        for segment in self._emptied:
            self.segments.remove(segment)
        self._emptied.clear()

    def _append_journal(self, record: bytes) -> None:
        try:
            self.payload.append_journal(self.sequence, record)
        except NoSpaceError:
            if not self._use_spare():
                raise
            self.payload.append_journal(self.sequence, record)
        self.sequence += 1

    def check_tail(self) -> None:
        """Check that the segments lead from the last epoch to what was flushed since. Reads the tail.

        Raises:
            ChecksumMismatchError: a record cannot be read.
            StoreDamagedError: one is missing, or a segment is not what it was.
            FormatError: likewise.
        """
        sizes, expected = self._committed
        for segment in sorted(self.segments.sizes):
            if self.segments.sizes[segment] == sizes.get(segment):
                continue
            stop = 0
            for found in self.segments.tail(segment, sizes.get(segment, SEGMENT_HEADER_SIZE)):
                stop = found.stop
                if found.kind == RECORD_JOURNAL:
                    if found.number != expected:
                        raise StoreDamagedError(f"segment {segment}: record {expected} is missing")
                    expected += 1
            if stop != self.segments.sizes[segment]:
                raise StoreDamagedError(f"segment {segment}: ends at {stop}")
        if expected != self.sequence:
            raise StoreDamagedError(f"journal ends before record {expected}")

    # --- a full disk -------------------------------------------------------------------

    def check_room(self) -> None:
        """Check that the disk has room for more. For what takes some, before it changes anything.

        Raises:
            NoSpaceError: it has only what was kept for freeing some.
        """
        if self.payload.is_full:
            self._refill_spare()
            if self.payload.is_full:
                raise NoSpaceError(str(self.path))

    def move_block(self, block: BlockId) -> bool:
        """Copy *block* for gc, with the kept room if there is no other. As `Payload.move`.

        Raises:
            NoSpaceError: there is none at all.
        """
        try:
            return self.payload.move(block)
        except NoSpaceError:
            if not self._use_spare():
                raise
            return self.payload.move(block)

    def _use_spare(self) -> bool:
        """Give the kept room to what must be written. Return whether there was some. Any thread."""
        if not self._spare.release():
            return False
        self.payload.is_full = True
        return True

    def _refill_spare(self) -> None:
        if self.journal is not None and self.payload.is_full:
            self.payload.is_full = not self._spare.keep()

    def _journal_head(self) -> tuple[int, ...]:
        return self.epoch, self._ids.block, self.next_root, self.next_slot, self.next_agent

    # --- epochs ------------------------------------------------------------------------

    @property
    def is_dirty(self) -> bool:
        """Whether something changed since the last commit was taken."""
        return (
            self.nodes.is_dirty
            or not self.pending.is_empty
            or bool(self._doomed)
            or any(root.dirty for root in self._roots.values())
        )

    def prepare_commit(self) -> Commit:
        """Take everything that changed as one epoch. One commit at a time.

        No await between this and the last change that belongs to the epoch: what
        was half done by an interrupted function would be in it.
        """
        if self.journal is not None:
            # What lies before the sizes below is replayed without this epoch, and what lies
            # behind them on top of it.
            try:
                self.flush_journal()
            except KaifsError as error:
                self.journal.hold(error)
        number = self.nodes.taking
        self.nodes.encode_dirty()
        for root in self._roots.values():
            if root.dirty:
                record = ROOT.encode(root.record())
                self.pending.put(Table.ROOTS, root_key(root.root_id), record)
                root.dirty = False
        segments = self.segments.unsynced()
        sizes = dict(self.segments.sizes)
        doomed = tuple(self._doomed)
        self._doomed.clear()
        for segment, size in sizes.items():
            if segment not in doomed:
                record = SEGMENT.encode(SegmentRecord(size, self.payload.live.get(segment, 0)))
                key = segment.to_bytes(8, "big")
                if self.pending.get(Table.SEGMENTS, key) != record:
                    self.pending.put(Table.SEGMENTS, key, record)
        for segment in doomed:
            self.pending.delete(Table.SEGMENTS, segment.to_bytes(8, "big"))
        counters = self._counters(self.epoch + 1)
        self.pending.put(Table.META, COUNTERS_KEY, COUNTERS.encode(counters))
        batch = self.pending.take()
        return Commit(segments - set(doomed), sizes, batch, doomed, number, self.sequence)

    def write_commit(self, commit: Commit) -> None:
        """Put an epoch on disk. Blocks for the disk; any thread may call it.

        Raises:
            NoSpaceError: the disk is full.
            StoreIOError: the system refuses.
        """
        # Blocks are synced before the LMDB commit that names them (I4). The other order
        # leaves, after power loss, a root that points at bytes never written.
        self.segments.sync(commit.segments)
        try:
            self.database.write(commit.batch)
        except NoSpaceError:
            if not self._use_spare():
                raise
            self.database.write(commit.batch)

    def finish_commit(self, commit: Commit) -> None:
        """Note that an epoch is on disk."""
        self.pending.written()
        self.epoch += 1
        self.saved = commit.number
        self._committed = commit.sizes, commit.sequence
        if self.journal is not None:
            self.journal.release(is_durable=True)
        self.segments.forget_unsynced(commit.segments, commit.sizes)
        for segment in commit.doomed:
            self.payload.live.pop(segment, None)
            if segment in self._syncing:
                # Another thread has its descriptor.
                self.segments.forget(segment)
                self._emptied.append(segment)
            else:
                self.segments.remove(segment)
        self._refill_spare()

    def fail_commit(self, commit: Commit) -> None:
        """Note that an epoch did not get on disk: it is part of the next one."""
        self.pending.failed()
        self._doomed.extend(commit.doomed)
        if self.journal is not None:
            self.journal.release(is_durable=False)

    def commit(self) -> None:
        """Make everything that changed durable. Blocks for the disk.

        Raises:
            NoSpaceError: the disk is full; nothing was changed, nothing is lost.
            StoreIOError: the system refuses.
        """
        commit = self.prepare_commit()
        try:
            self.write_commit(commit)
        except BaseException:
            self.fail_commit(commit)
            raise
        self.finish_commit(commit)

    def abandon(self) -> None:
        """Forget everything since the last commit. Not with a journal, which has promised it."""
        assert self.journal is None, "what is in a journal is not forgotten"
        self.pending.abandon()
        self._roots.clear()
        self._agent_names.clear()
        self._doomed.clear()
        counters = self._load_counters()
        self._ids.block, self._ids.segment = counters.block, counters.segment
        self.nodes.abandon(counters.node)
        self.payload.abandon()
        self._cut_segments(self._committed_segments())

    def _counters(self, epoch: int) -> CounterRecord:
        return CounterRecord(
            self.superblock.uuid,
            epoch,
            self.next_generation,
            self.nodes.next_node,
            self._ids.block,
            self.next_root,
            self._ids.segment,
            self.next_slot,
            self.next_agent,
            self.sequence,
            self.answer,
        )

    def raise_counters(self, **least: int) -> list[str]:
        """Raise each counter to at least what is given by name. Return those that were behind."""
        places: dict[str, tuple[object, str]] = {
            "agent": (self, "next_agent"),
            "root": (self, "next_root"),
            "generation": (self, "next_generation"),
            "slot": (self, "next_slot"),
            "node": (self.nodes, "next_node"),
            "block": (self._ids, "block"),
            "segment": (self._ids, "segment"),
        }
        behind = [name for name, value in least.items() if getattr(*places[name]) < value]
        for name in behind:
            setattr(*places[name], least[name])
        return behind

    # --- what it takes -----------------------------------------------------------------

    def space(self) -> Space:
        """Return what the store takes on disk."""
        return Space(
            sum(self.segments.sizes.values()),
            sum(self.payload.live.values()),
            self.database.file_size(),
        )

    def begin_gc(self) -> list[RootId]:
        """Freeze every root, so that their trees as they are now never change.

        Returns:
            All roots. What is reachable from them, and what is made from now on,
            is alive.
        """
        self._least_generation = self.new_generation()
        for root in list(self._roots.values()):
            self.freeze_root(root)
        self.payload.revived = set()
        return self.root_ids()

    def doom_segment(self, segment: SegmentId) -> None:
        """Delete a segment, which no block is in any more, once the next commit is on disk."""
        self._doomed.append(segment)

    def end_gc(self) -> None:
        """Dedup hits need not be remembered any more."""
        self.payload.revived = None


def _first_counters(uuid: bytes) -> CounterRecord:
    return CounterRecord(uuid, 0, 1, 1, 1, 1, 1, 1, 1, 1)


def _write_new_store(path: Path, clock: Clock, options: StoreOptions) -> None:
    for folder in _FOLDERS:
        (path / folder).mkdir(mode=0o700)
    superblock = Superblock(secrets.token_bytes(16), clock.now_ns())
    counters = _first_counters(superblock.uuid)
    database = Index(path / INDEX_FOLDER, map_size=options.map_size, create=True)
    try:
        database.write({Table.META: {COUNTERS_KEY: COUNTERS.encode(counters)}})
    finally:
        database.close()
    fsync_directory(path / INDEX_FOLDER)
    # The superblock comes last: with it the folder is a store.
    superblock.write(path)


def _failure(path: Path, error: OSError) -> KaifsError:
    text = f"{path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(text)
    return StoreIOError(text)

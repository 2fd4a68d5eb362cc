"""The index in two copies: an LMDB environment, and a log of its commits as the mirror.

Payload without the index is bytes without names, so the index is what a store
cannot do without; btrfs keeps its metadata twice for that reason (mkfs.btrfs(8),
DUP). Every commit is written to the main copy, synced, and then to the mirror. A
record whose checksum is wrong is taken from the mirror, and put right by the next
commit.

LMDB itself trusts its pages: a flipped bit in one can make it read beyond the map.
So when the index is closed, what both files are is written down (`closed`), and
checked before LMDB gets to see them. A copy that has changed since, while the other
has not, is made anew from that. The note goes, durably, before the first change: a
process that was killed leaves none, and then LMDB's own rules hold.

With a large index that check would take longer than a mount may. Whoever can open the
index again can put it off, to `check`. Until then nothing is written, so nothing stays
of what was read off a copy that has changed.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from kaifs.base.digest import checksum_of_pieces
from kaifs.base.errors import KaifsError, StoreDamagedError, StoreIOError
from kaifs.linux.files import fsync_directory, read_file
from kaifs.meta.database import MAP_SIZE, Changes, Database, Table
from kaifs.meta.mirror import Mirror
from kaifs.meta.records import protect, unprotect

log = logging.getLogger(__name__)

INDEX_FILE: Final = "data.mdb"
MIRROR_FILE: Final = "mirror.log"
CLOSED_NAME: Final = "closed"
_RESTORE_FOLDER: Final = "restore.tmp"
NOTED_MAX: Final = 1 << 30
"""A file of more bytes is not checked: that would take too long."""
CHECKED_MAX: Final = 16 << 20
"""Bytes of both files up to which the check is not put off: 3 ms in memory, 30 ms from a disk."""
MIRROR_KEY: Final = b"mirror"
"""Key in META of the number of the last commit, 8 bytes big-endian: the mirror must have it."""
SLACK: Final = 4 << 20
"""The mirror is written anew when it has twice the bytes of a new one, and so many more."""
RETRY_COMMITS: Final = 16
"""A mirror that could not be written is made anew every so many commits, or at the next opening."""
_DUMPED: Final = 2000
"""Records that are read at once to be written to a new mirror."""
_RESTORED: Final = 64 << 20
"""Bytes of records that are written at once to a new main copy."""


class ClosedRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What the files of the index were when it was closed: xxh3-128 of each."""

    main: bytes
    mirror: bytes
    is_refuted: bool = False
    """Whether a check that was put off has found something else: it is not put off again."""


class Index:
    """An open index. Reads on one thread, `write` on any."""

    def __init__(
        self,
        folder: Path,
        *,
        map_size: int = MAP_SIZE,
        create: bool = False,
        check_later: bool = False,
    ) -> None:
        """Open the index in *folder*; a damaged copy is replaced by the other one.

        Args:
            folder: Where it is.
            map_size: Bytes of address space first reserved.
            create: Make it.
            check_later: Whether the check of a large index may be left to `check`.

        Raises:
            NoSpaceError: the disk is full.
            StoreIOError: the system refuses.
            StoreDamagedError: neither copy can be used.
        """
        self._folder = folder
        self._map_size = map_size
        self._writing = threading.Lock()
        self._is_noted = False
        """Whether `closed` says what the files are."""
        self._healed: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in Table}
        """Records that the main copy has lost, as the mirror has them."""
        self._lost: dict[tuple[Table, bytes], StoreDamagedError] = {}
        """Records that both have lost."""
        self._noted_files: ClosedRecord | None = None
        """What the files are to be, if that is still to be checked."""
        self._mirror: Mirror | None
        if check_later and self._opens_unchecked():
            return
        if not create:
            self._check_files()
        self._main = self._open_main(create=create)
        try:
            self._mirror = self._open_mirror(create=create)
        except BaseException:
            self._main.close()
            raise

    def close(self) -> None:
        """Close the index, and note what its files are."""
        is_mirrored = not self._is_noted and self._is_mirrored()
        self._main.close()
        if self._mirror is not None:
            self._mirror.close()
        if is_mirrored:
            # A note that cannot be written is one that is not there.
            with suppress(OSError):
                self._note_files()

    # --- reading -----------------------------------------------------------------------

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the record at *key*, None if there is none.

        Raises:
            StoreDamagedError: its checksum is wrong in both copies.
        """
        try:
            return self._main.get(table, key)
        except StoreDamagedError as error:
            return self._get_mirrored(table, key, error)

    def get_many(self, table: Table, keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the records that there are at *keys*.

        Raises:
            StoreDamagedError: the checksum of one is wrong in both copies.
        """
        try:
            return self._main.get_many(table, keys)
        except StoreDamagedError:
            found = {key: self.get(table, key) for key in keys}
            return {key: record for key, record in found.items() if record is not None}

    def scan(self, table: Table, start: bytes = b"", limit: int | None = None) -> list[bytes]:
        """Return up to *limit* keys from *start* on, in order, without their records."""
        try:
            return self._main.scan(table, start, limit)
        except StoreDamagedError as error:
            keys = self._mirrored_keys(table, error)
            return [key for key in keys if key >= start][:limit]

    def keys_with_prefix(self, table: Table, prefix: bytes) -> list[bytes]:
        """Return all keys that begin with *prefix*, in order."""
        try:
            return self._main.keys_with_prefix(table, prefix)
        except StoreDamagedError as error:
            return [key for key in self._mirrored_keys(table, error) if key.startswith(prefix)]

    def count(self, table: Table) -> int:
        """Return the number of records in *table*."""
        return self._main.count(table)

    def file_size(self) -> int:
        """Return the bytes in use by both copies."""
        mirror = 0 if self._mirror is None else self._mirror.size
        return self._main.file_size() + mirror

    def engine_version(self) -> str:
        """Return the version of the LMDB engine, such as `0.9.36`."""
        return self._main.engine_version()

    def copies(self, table: Table, key: bytes) -> list[bytes]:
        """Return the records at *key* that are sound, that of the main copy first.

        Reads all of the mirror.
        """
        found: list[bytes | None] = []
        with self._writing:
            with suppress(StoreDamagedError):
                found.append(self._main.get(table, key))
            if self._mirror is not None:
                with suppress(StoreDamagedError):
                    found.append(self._mirror.find(table, key))
        return [record for record in found if record is not None]

    def fault(self, table: Table, key: bytes) -> str:
        """Return what is wrong with the record at *key* in the main copy, nothing if it is sound."""
        try:
            self._main.get(table, key)
        except StoreDamagedError as error:
            return error.subject
        return ""

    def mirror_fault(self) -> str:
        """Return what is wrong with the mirror, nothing if it is sound. Reads all of it.

        One that could not be written, on a disk that was full, is not wrong: it is made anew.
        """
        with self._writing:
            return "" if self._mirror is None else self._mirror.fault()

    def keys(self, table: Table) -> list[bytes]:
        """Return every key that one copy has in *table* or both have, in order.

        The mirror is only asked if the main copy cannot tell.
        """
        try:
            return self._main.scan(table)
        except StoreDamagedError as error:
            return self._mirrored_keys(table, error)

    def _get_mirrored(self, table: Table, key: bytes, damage: StoreDamagedError) -> bytes | None:
        healed = self._healed[table]
        if key in healed:
            return healed[key]
        if (table, key) in self._lost:
            raise self._lost[table, key]
        with self._writing, self._sound_mirror(damage) as mirror:
            try:
                record = mirror.find(table, key)
            except StoreDamagedError:
                record = None
            if record is None:
                # A mirror that was made after the damage does not have it either.
                self._lost[table, key] = damage
                raise damage
            # The next commit puts it back.
            healed[key] = record
        return record

    def _mirrored_keys(self, table: Table, damage: StoreDamagedError) -> list[bytes]:
        with self._writing, self._sound_mirror(damage) as mirror:
            return sorted(mirror.records(table))

    @contextmanager
    def _sound_mirror(self, damage: StoreDamagedError) -> Iterator[Mirror]:
        """Lend the mirror if it has all that the main copy has. With `_writing` held.

        A commit is written to one copy after the other: only between two of them are both
        the same.
        """
        if self._mirror is None or not self._is_mirrored():
            raise damage
        try:
            yield self._mirror
        except StoreDamagedError:
            raise damage from None
        log.warning("index_damaged", extra={"error": str(damage), "from": "mirror"})

    def _is_mirrored(self) -> bool:
        try:
            return self._mirror is not None and self._mirror.sequence == self._sequence()
        except StoreDamagedError:
            return False

    def _sequence(self) -> int:
        return int.from_bytes(self._main.get(Table.META, MIRROR_KEY) or b"", "big")

    # --- writing -----------------------------------------------------------------------

    def write(self, changes: Changes) -> None:
        """Apply *changes* in one transaction that is on disk when this returns.

        Blocks for the disk.

        Raises:
            NoSpaceError: the disk is full; nothing was changed.
            StoreIOError: the system refuses; nothing was changed.
            StoreDamagedError: as `check`.
        """
        with self._writing:
            self._check_what_is_open()
            self._forget_files()
            sequence = self._next_sequence()
            number = {MIRROR_KEY: sequence.to_bytes(8, "big")}
            changes = {**changes, Table.META: {**changes.get(Table.META, {}), **number}}
            self._main.write(self._with_healed(changes))
            self._append(sequence, changes)

    def _next_sequence(self) -> int:
        try:
            return self._sequence() + 1
        except StoreDamagedError:
            return (0 if self._mirror is None else self._mirror.sequence) + 1

    def _append(self, sequence: int, changes: Changes) -> None:
        try:
            if self._mirror is not None:
                self._mirror.append(sequence, changes)
                if self._mirror.size > 2 * self._mirror.fresh_size + SLACK:
                    self._make_mirror()
            elif sequence % RETRY_COMMITS == 0:
                self._make_mirror()
        except KaifsError as error:
            # What was asked for is done.
            log.warning("mirror_failed", extra={"error": str(error)})
            if self._mirror is not None:
                self._mirror.close()
                self._mirror = None

    def _with_healed(self, changes: Changes) -> Changes:
        for table, records in changes.items() if self._lost else ():
            for key in records:
                self._lost.pop((table, key), None)
        if not any(self._healed.values()):
            return changes
        merged = {
            table: {**self._healed[table], **changes.get(table, {})} for table in self._healed
        }
        for records in self._healed.values():
            records.clear()
        return merged

    def remake_mirror(self) -> None:
        """Write the mirror anew from the main copy. Blocks for the disk.

        Raises:
            NoSpaceError, StoreIOError: the system refuses.
        """
        with self._writing:
            self._check_what_is_open()
            self._forget_files()
            self._make_mirror()

    def _make_mirror(self) -> None:
        made = Mirror.make(self._folder / MIRROR_FILE, self._sequence(), self._dump())
        if self._mirror is not None:
            self._mirror.close()
        self._mirror = made

    def _dump(self) -> Iterator[Changes]:
        """Yield all that the main copy has."""
        for table in Table:
            start = b""
            while keys := self._main.scan(table, start, _DUMPED):
                try:
                    records: dict[bytes, bytes | None] = {**self._main.get_many(table, keys)}
                except StoreDamagedError:
                    records = dict(self._sound_records(table, keys))
                yield {table: records}
                start = keys[-1] + b"\0"

    def _sound_records(self, table: Table, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for key in keys:
            with suppress(StoreDamagedError):
                record = self._main.get(table, key)
                if record is not None:
                    yield key, record

    def check(self) -> None:
        """Check the files, if that was put off. Reads all of them; on any thread.

        Raises:
            StoreDamagedError: the main copy has changed since it was closed. Nothing is written any
                more; who opens the index again gets a sound one.
        """
        with self._writing:
            self._check_what_is_open()

    def _check_what_is_open(self) -> None:
        noted = self._noted_files
        if noted is None:
            return
        is_main, is_mirror = self._are_as(noted)
        if is_mirror and not is_main:
            with suppress(OSError):
                self._write_note(ClosedRecord(noted.main, noted.mirror, is_refuted=True))
            raise StoreDamagedError("index has changed since it was closed")
        self._noted_files = None
        if is_main and not is_mirror:
            self._forget_files()
            self._make_mirror()
            _tell_replaced(MIRROR_FILE)

    # --- the files ---------------------------------------------------------------------

    def _open_main(self, *, create: bool) -> Database:
        if not self._folder.is_dir():
            raise StoreIOError(f"index: {self._folder} is no folder")
        if not create and not (self._folder / INDEX_FILE).exists():
            self._restore("it is missing")
        try:
            return Database(self._folder, map_size=self._map_size, create=create)
        except StoreDamagedError as error:
            if create:
                raise
            self._restore(str(error))
            return Database(self._folder, map_size=self._map_size)

    def _open_mirror(self, *, create: bool) -> Mirror:
        path = self._folder / MIRROR_FILE
        if not create:
            try:
                mirror = Mirror(path)
            except StoreDamagedError as error:
                log.warning("mirror_lost", extra={"error": str(error)})
            else:
                if mirror.sequence == self._sequence():
                    return mirror
                # The process ended between the two writes of a commit.
                mirror.close()
        self._is_noted = False
        return Mirror.make(path, self._sequence(), self._dump())

    def _restore(self, why: str) -> None:
        """Make the main copy anew from the mirror, if that can be read.

        Raises:
            StoreDamagedError: it cannot; the main copy is what it was.
            NoSpaceError, StoreIOError: the system refuses; as above.
        """
        mirror = Mirror(self._folder / MIRROR_FILE)
        fresh = self._folder / _RESTORE_FOLDER
        try:
            with suppress(FileNotFoundError):
                shutil.rmtree(fresh)
            fresh.mkdir(mode=0o700)
            target = Database(fresh, map_size=self._map_size, create=True)
            try:
                _copy_all(mirror, target)
            finally:
                target.close()
            os.rename(fresh / INDEX_FILE, self._folder / INDEX_FILE)
            fsync_directory(self._folder)
        except OSError as error:
            raise StoreIOError(str(error)) from error
        finally:
            mirror.close()
            shutil.rmtree(fresh, ignore_errors=True)
        _tell_replaced(INDEX_FILE, why)

    def _opens_unchecked(self) -> bool:
        """Open both copies if they are large, and look as if they had been closed."""
        noted = self._noted()
        if noted is None or noted.is_refuted or self._size() <= CHECKED_MAX:
            return False
        with ExitStack() as opened, suppress(StoreDamagedError):
            self._main = Database(self._folder, map_size=self._map_size)
            opened.callback(self._main.close)
            self._mirror = Mirror(self._folder / MIRROR_FILE)
            opened.callback(self._mirror.close)
            if self._mirror.sequence == self._sequence():
                opened.pop_all()
                self._is_noted, self._noted_files = True, noted
                return True
        return False

    def _check_files(self) -> None:
        """Replace a copy that has changed since it was closed, if the other has not."""
        noted = self._noted()
        if noted is None:
            return
        is_main, is_mirror = self._are_as(noted)
        self._is_noted = is_main and is_mirror
        if is_mirror and not is_main:
            self._restore("changed since it was closed")
        elif is_main and not is_mirror:
            # `_open_mirror` makes it anew.
            with suppress(OSError):
                (self._folder / MIRROR_FILE).unlink()
            _tell_replaced(MIRROR_FILE)

    def _are_as(self, noted: ClosedRecord) -> tuple[bool, bool]:
        """Return whether the main copy and the mirror are what they were when they were closed."""
        return (
            _checksum(self._folder / INDEX_FILE) == noted.main,
            _checksum(self._folder / MIRROR_FILE) == noted.mirror,
        )

    def _size(self) -> int:
        size = 0
        for name in (INDEX_FILE, MIRROR_FILE):
            with suppress(OSError):
                size += (self._folder / name).stat().st_size
        return size

    def _noted(self) -> ClosedRecord | None:
        try:
            raw = read_file(self._folder / CLOSED_NAME, 1024)
            return msgspec.msgpack.decode(unprotect(raw, CLOSED_NAME), type=ClosedRecord)
        except (OSError, StoreDamagedError, msgspec.MsgspecError):
            return None

    def _note_files(self) -> None:
        main, mirror = (_checksum(self._folder / name) for name in (INDEX_FILE, MIRROR_FILE))
        if not main or not mirror:
            return
        self._write_note(ClosedRecord(main, mirror))
        self._is_noted = True

    def _write_note(self, record: ClosedRecord) -> None:
        path = self._folder / CLOSED_NAME
        fresh = path.with_suffix(".tmp")
        # Not synced: a note that power loss has cut is none.
        fresh.write_bytes(protect(msgspec.msgpack.encode(record)))
        fresh.replace(path)

    def _forget_files(self) -> None:
        """Before the first change: what `closed` says will not be so any more."""
        if not self._is_noted and not (self._folder / CLOSED_NAME).exists():
            return
        try:
            (self._folder / CLOSED_NAME).unlink(missing_ok=True)
            fsync_directory(self._folder)
        except OSError as error:
            raise StoreIOError(str(error)) from error
        self._is_noted = False


def _tell_replaced(copy: str, why: str = "changed since it was closed") -> None:
    log.warning("index_replaced", extra={"copy": copy, "why": why})


def _copy_all(mirror: Mirror, target: Database) -> None:
    """Write all that *mirror* has to the empty *target*."""
    pending: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in Table}
    size = 0
    for records in mirror.commits():
        for name, changed in records.items():
            pending[Table(name)].update(changed)
            size += sum(len(key) + len(record or b"") for key, record in changed.items())
        if size > _RESTORED:
            target.write(pending)
            size = 0
            for written in pending.values():
                written.clear()
    target.write(pending)


def _checksum(path: Path) -> bytes:
    """Return the xxh3-128 of a file; nothing if there is none, or it is too large to be noted."""
    try:
        with path.open("rb") as file:
            if not 0 < os.fstat(file.fileno()).st_size <= NOTED_MAX:
                return b""
            # Read, not mapped: mapped pages would count as this process's memory.
            return checksum_of_pieces(iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return b""

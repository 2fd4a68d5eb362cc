"""The index in two copies, as btrfs keeps its metadata (mkfs.btrfs(8), DUP).

Payload without the index is bytes without names, so the index is what a store
cannot do without. Every commit is written to the main copy, synced, and then to
the mirror. A record whose checksum is wrong in one copy is taken from the other,
and put right by the next commit.

LMDB itself trusts its pages: a flipped bit in one can make it read beyond the map.
So when the index is closed, what both files are is written down (`closed`), and
checked before LMDB gets to see them. A copy that has changed since, while the other
has not, is replaced. The note goes, durably, before the first change: a process that
was killed leaves none, and then LMDB's own rules hold.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from kaifs.base.digest import checksum
from kaifs.base.errors import KaifsError, StoreDamagedError, StoreIOError
from kaifs.linux.files import fsync_directory, read_file
from kaifs.meta.database import MAP_SIZE, Changes, Database, Table
from kaifs.meta.records import protect, unprotect

log = logging.getLogger(__name__)

INDEX_FILE: Final = "data.mdb"
MIRROR_FOLDER: Final = "mirror"
CLOSED_NAME: Final = "closed"
COPY_NAME: Final = "copy.tmp"
NOTED_MAX: Final = 1 << 30
"""An index of more bytes is not checked when it is opened: that would take too long."""
COUNTERS_KEY: Final = b"counters"
"""Key in META of the record that every commit changes."""

R = TypeVar("R")


class ClosedRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What the files of the index were when it was closed: xxh3-128 of each."""

    main: bytes
    mirror: bytes


class Index:
    """An open index. Reads on one thread, `write` on any."""

    def __init__(self, folder: Path, *, map_size: int = MAP_SIZE, create: bool = False) -> None:
        """Open the index in *folder*; a damaged copy is replaced by the other one.

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
        self._is_mirror_usable = True
        """Whether every commit went to the mirror, too."""
        self._damaged: dict[Table, dict[bytes, bytes | None]] = {table: {} for table in Table}
        """Records that the main copy has lost, as the mirror has them."""
        try:
            if create:
                self._mirror_folder.mkdir(mode=0o700)
            else:
                self._mirror_folder.mkdir(mode=0o700, exist_ok=True)
                self._check_files()
        except OSError as error:
            raise StoreIOError(str(error)) from error
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
            return self._from_mirror(lambda mirror: self._take(mirror, table, key), error)

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
            return self._from_mirror(lambda mirror: mirror.scan(table, start, limit), error)

    def keys_with_prefix(self, table: Table, prefix: bytes) -> list[bytes]:
        """Return all keys that begin with *prefix*, in order."""
        try:
            return self._main.keys_with_prefix(table, prefix)
        except StoreDamagedError as error:
            return self._from_mirror(lambda mirror: mirror.keys_with_prefix(table, prefix), error)

    def count(self, table: Table) -> int:
        """Return the number of records in *table*."""
        return self._main.count(table)

    def file_size(self) -> int:
        """Return the bytes in use by the pages of both copies."""
        return self._main.file_size() + self._mirror.file_size()

    def engine_version(self) -> str:
        """Return the version of the LMDB engine, such as `0.9.36`."""
        return self._main.engine_version()

    def copies(self, table: Table, key: bytes) -> list[bytes]:
        """Return the records at *key* that are sound, that of the main copy first."""
        found = []
        with self._writing:
            for copy in (self._main, self._mirror):
                with suppress(StoreDamagedError):
                    record = copy.get(table, key)
                    if record is not None:
                        found.append(record)
        return found

    def faults(self, table: Table, key: bytes) -> list[str]:
        """Return what is wrong with the record at *key* in one copy or both, a line each.

        Nothing is read from the other copy here. O(1); waits for a commit under way.
        """
        with self._writing:
            return list(self._faults_in_copies(table, key))

    def _faults_in_copies(self, table: Table, key: bytes) -> Iterator[str]:
        found: list[bytes | None] = []
        for name, copy in (("main copy", self._main), ("mirror", self._mirror)):
            try:
                found.append(copy.get(table, key))
            except StoreDamagedError as error:
                yield f"{name}: {error.subject}"
        if len(found) == 2 and found[0] != found[1]:
            yield "main copy and mirror differ"

    def faults_in_counts(self, table: Table) -> list[str]:
        """Return a line if the copies have different numbers of records in *table*."""
        with self._writing:
            main, mirror = self._main.count(table), self._mirror.count(table)
        return (
            [] if main == mirror else [f"{main} records in the main copy, {mirror} in the mirror"]
        )

    def keys_of_both(self, table: Table) -> list[bytes]:
        """Return every key that one copy has in *table* or both have, in order."""
        found: set[bytes] = set()
        for copy in (self._main, self._mirror):
            with suppress(StoreDamagedError):
                found.update(copy.scan(table))
        return sorted(found)

    def heal(self, table: Table, key: bytes) -> bool:
        """Write the record at *key* that one copy has sound to the other. Return whether it could.

        Where both are sound and differ, the main copy is right. Blocks for the disk.

        Raises:
            NoSpaceError, StoreIOError: the system refuses.
        """
        with self._writing:
            for source, target in ((self._main, self._mirror), (self._mirror, self._main)):
                try:
                    record = source.get(table, key)
                except StoreDamagedError:
                    continue
                self._forget_files()
                target.write({table: {key: record}})
                return True
        return False

    def _from_mirror(self, read: Callable[[Database], R], damage: StoreDamagedError) -> R:
        # A commit is written to one copy after the other: only between two of them are both
        # the same.
        with self._writing:
            if not self._is_mirrored():
                raise damage
            found = read(self._mirror)
        log.warning("index_damaged", extra={"error": str(damage), "from": "mirror"})
        return found

    def _take(self, mirror: Database, table: Table, key: bytes) -> bytes | None:
        """Return a record of the mirror, and let the next commit put it back."""
        record = mirror.get(table, key)
        self._damaged[table][key] = record
        return record

    def _is_mirrored(self) -> bool:
        try:
            counters = self._main.get(Table.META, COUNTERS_KEY)
            return self._is_mirror_usable and counters == self._mirror.get(Table.META, COUNTERS_KEY)
        except StoreDamagedError:
            return False

    # --- writing -----------------------------------------------------------------------

    def write(self, changes: Changes) -> None:
        """Apply *changes* in one transaction that is on disk when this returns.

        Blocks for the disk.

        Raises:
            NoSpaceError: the disk is full; nothing was changed.
            StoreIOError: the system refuses; nothing was changed.
        """
        with self._writing:
            self._forget_files()
            self._main.write(self._with_healed(changes))
            if self._is_mirror_usable:
                try:
                    self._mirror.write(changes)
                except KaifsError as error:
                    # What was asked for is done. It stays behind from now on, and the next
                    # opening makes it anew.
                    self._is_mirror_usable = False
                    log.warning("mirror_failed", extra={"error": str(error)})

    def _with_healed(self, changes: Changes) -> Changes:
        if not any(self._damaged.values()):
            return changes
        healed = {
            table: {**self._damaged[table], **changes.get(table, {})} for table in self._damaged
        }
        for records in self._damaged.values():
            records.clear()
        return healed

    # --- the files ---------------------------------------------------------------------

    @property
    def _mirror_folder(self) -> Path:
        return self._folder / MIRROR_FOLDER

    def _open_main(self, *, create: bool) -> Database:
        mirror = self._mirror_folder / INDEX_FILE
        if not create and mirror.exists() and not (self._folder / INDEX_FILE).exists():
            self._replace(self._folder, mirror, "it is missing")
        try:
            return Database(self._folder, map_size=self._map_size, create=create)
        except StoreDamagedError as error:
            if not mirror.exists():
                raise
            self._replace(self._folder, mirror, str(error))
            return Database(self._folder, map_size=self._map_size)

    def _open_mirror(self, *, create: bool) -> Database:
        if not create:
            try:
                self._mirror = Database(self._mirror_folder, map_size=self._map_size)
            except (StoreDamagedError, StoreIOError):
                log.warning("mirror_lost", extra={"folder": str(self._mirror_folder)})
            else:
                if self._is_mirrored():
                    return self._mirror
                # The process ended between the two writes of a commit.
                self._mirror.close()
            self._make_mirror()
        return Database(self._mirror_folder, map_size=self._map_size, create=create)

    def _make_mirror(self) -> None:
        self._is_noted = False
        fresh = self._folder / COPY_NAME
        try:
            self._main.copy(fresh)
            _put_in_place(fresh, self._mirror_folder)
        except OSError as error:
            raise StoreIOError(str(error)) from error

    def _replace(self, folder: Path, source: Path, why: str) -> None:
        """Replace the copy in *folder* by the file *source*."""
        log.warning("index_replaced", extra={"folder": str(folder), "by": str(source), "why": why})
        fresh = self._folder / COPY_NAME
        try:
            with source.open("rb") as payload, fresh.open("wb") as target:
                while piece := payload.read(1 << 20):
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
            _put_in_place(fresh, folder)
        except OSError as error:
            raise StoreIOError(str(error)) from error

    def _check_files(self) -> None:
        """Replace a copy that has changed since it was closed, if the other has not."""
        noted = self._noted()
        if noted is None:
            return
        main, mirror = self._folder / INDEX_FILE, self._mirror_folder / INDEX_FILE
        is_main, is_mirror = _checksum(main) == noted.main, _checksum(mirror) == noted.mirror
        self._is_noted = is_main and is_mirror
        if is_mirror and not is_main:
            self._replace(self._folder, mirror, "changed since it was closed")
        elif is_main and not is_mirror:
            self._replace(self._mirror_folder, main, "changed since it was closed")

    def _noted(self) -> ClosedRecord | None:
        try:
            raw = read_file(self._folder / CLOSED_NAME, 1024)
            return msgspec.msgpack.decode(unprotect(raw, CLOSED_NAME), type=ClosedRecord)
        except (OSError, StoreDamagedError, msgspec.MsgspecError):
            return None

    def _note_files(self) -> None:
        sums = [_checksum(folder / INDEX_FILE) for folder in (self._folder, self._mirror_folder)]
        if not all(sums):
            return
        path = self._folder / CLOSED_NAME
        fresh = path.with_suffix(".tmp")
        # Not synced: a note that power loss has cut is none.
        fresh.write_bytes(protect(msgspec.msgpack.encode(ClosedRecord(*sums))))
        fresh.replace(path)
        self._is_noted = True

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


def _put_in_place(fresh: Path, folder: Path) -> None:
    os.rename(fresh, folder / INDEX_FILE)
    fsync_directory(folder)


def _checksum(path: Path) -> bytes:
    """Return the xxh3-128 of a file; nothing if there is none, or it is too large to be noted."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= NOTED_MAX:
                return b""
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as payload:
                return checksum(memoryview(payload))
    except OSError:
        return b""

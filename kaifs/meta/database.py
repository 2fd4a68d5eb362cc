"""An LMDB environment: tables, short reads, one atomic synced write for each commit.

Every value is stored behind its xxh3-64, because LMDB does not notice a
flipped byte. No read transaction outlives the call that opened it: one open
reader makes the file grow with every commit.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from itertools import islice, takewhile
from pathlib import Path
from typing import Final

import lmdb

from kaifs.base.digest import record_checksum
from kaifs.base.errors import NoSpaceError, StoreDamagedError, StoreIOError
from kaifs.meta.records import unprotect

LMDB_ENGINE: Final = 0
"""Major version of the engine. 0.9 is what the format is made with; py-lmdb also ships 1.0."""
MAP_SIZE: Final = 64 << 30
"""Bytes of address space first reserved. The file itself grows only as it is used."""
FULL: Final = 1 << 20
"""A disk with fewer free bytes is called full when LMDB cannot write to it."""
_FULL_CODES: Final = (errno.ENOSPC, errno.EDQUOT)


class Table(StrEnum):
    """The tables. Their names in LMDB are these."""

    META = "meta"
    NODES = "nodes"
    BLOCKS = "blocks"
    DIGESTS = "digests"
    SEGMENTS = "segments"
    ROOTS = "roots"
    AGENTS = "agents"
    VERSIONS = "versions"
    SNAPSHOTS = "snapshots"
    OUTPUTS = "outputs"
    UNFINISHED = "unfinished"
    QUARANTINE = "quarantine"
    VERIFIED = "verified"


_LATER: Final = frozenset({Table.QUARANTINE, Table.VERIFIED})
"""Tables that a store made before there were such has not: opening it makes them."""

Changes = Mapping[Table, Mapping[bytes, bytes | None]]
"""For each table, keys with their new record; None deletes."""


class Database:
    """One open copy of the index. Not across fork.

    What LMDB finds wrong with its pages is a `StoreDamagedError`, in every method.
    """

    def __init__(self, folder: Path, *, map_size: int = MAP_SIZE, create: bool = False) -> None:
        """Open the environment in *folder*.

        Raises:
            NoSpaceError: the disk is full.
            StoreIOError: the system refuses.
            StoreDamagedError: LMDB does not accept the files.
        """
        self._folder = folder
        self._map_size = map_size
        # Commits are written by another thread than reads are made by. LMDB must not move its
        # map while a read is under way (mdb_env_set_mapsize).
        self._mapping = threading.Lock()
        try:
            self._env = lmdb.Environment(
                str(folder),
                map_size=map_size,
                max_dbs=len(Table) + 4,
                create=create,
                mode=0o600,
                # Pages are read at random; read-ahead would only waste memory.
                readahead=False,
                max_spare_txns=4,
                lib_version=LMDB_ENGINE,
            )
            try:
                self._tables = {
                    table: self._env.open_db(table.value.encode(), create=create or table in _LATER)
                    for table in Table
                }
            except BaseException:
                self._env.close()
                raise
        except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
            raise StoreDamagedError(f"index: {error}") from error
        except (lmdb.NotFoundError, lmdb.ReadonlyError) as error:
            raise StoreDamagedError(f"index lacks a table: {error}") from error
        except (lmdb.Error, OSError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the record at *key*, None if there is none.

        Raises:
            StoreDamagedError: its checksum is wrong.
        """
        # Written out, and not with _reading: a generator would cost as much as the read.
        with self._mapping:
            try:
                with self._env.begin(buffers=True) as txn:
                    value = txn.get(key, db=self._tables[table])
                    if value is None:
                        return None
                    return unprotect(value, f"{table} {key.hex()}")
            except lmdb.Error as error:
                raise StoreDamagedError(f"index: {error}") from error

    def get_many(self, table: Table, keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the records that there are at *keys*.

        Raises:
            StoreDamagedError: the checksum of one is wrong.
        """
        with self._reading() as txn, txn.cursor(self._tables[table]) as cursor:
            found = cursor.getmulti(sorted(keys))
            return {
                bytes(key): unprotect(value, f"{table} {bytes(key).hex()}") for key, value in found
            }

    def scan(self, table: Table, start: bytes = b"", limit: int | None = None) -> list[bytes]:
        """Return up to *limit* keys from *start* on, in order, without their records."""
        with self._reading() as txn, txn.cursor(self._tables[table]) as cursor:
            if not cursor.set_range(start):
                return []
            return [bytes(key) for key in islice(cursor.iternext(values=False), limit)]

    def keys_with_prefix(self, table: Table, prefix: bytes) -> list[bytes]:
        """Return all keys that begin with *prefix*, in order."""
        with self._reading() as txn, txn.cursor(self._tables[table]) as cursor:
            if not cursor.set_range(prefix):
                return []
            keys = map(bytes, cursor.iternext(values=False))
            return list(takewhile(lambda key: key.startswith(prefix), keys))

    def count(self, table: Table) -> int:
        """Return the number of records in *table*."""
        with self._reading() as txn:
            return txn.stat(self._tables[table])["entries"]

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        with self._mapping:
            try:
                with self._env.begin(buffers=True) as txn:
                    yield txn
            except lmdb.Error as error:
                raise StoreDamagedError(f"index: {error}") from error

    def write(self, changes: Changes) -> None:
        """Apply *changes* in one transaction that is on disk when this returns.

        Blocks for the disk. A map that is full is doubled and the whole
        transaction made again.

        Raises:
            NoSpaceError: the disk is full; nothing was changed.
            StoreIOError: the system refuses; nothing was changed.
        """
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for table, records in changes.items():
                        with txn.cursor(self._tables[table]) as cursor:
                            _apply(cursor, records)
            except lmdb.MapFullError:
                with self._mapping:
                    self._map_size *= 2
                    self._env.set_mapsize(self._map_size)
            except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError) as error:
                raise StoreDamagedError(f"index: {error}") from error
            except lmdb.Error as error:
                raise self._failure(error) from error
            else:
                return

    def _failure(self, error: lmdb.Error | OSError) -> NoSpaceError | StoreIOError:
        # Where the disk fills up in the middle of a write, LMDB says EIO: mdb_page_flush,
        # "Short write, filesystem full?".
        is_full = any(os.strerror(code) in str(error) for code in _FULL_CODES)
        with suppress(OSError):
            disk = os.statvfs(self._folder)
            is_full = is_full or disk.f_bavail * disk.f_frsize < FULL
        return NoSpaceError(str(error)) if is_full else StoreIOError(str(error))

    def file_size(self) -> int:
        """Return the bytes in use by the environment's pages."""
        return (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]

    def engine_version(self) -> str:
        """Return the version of the LMDB engine, such as `0.9.36`."""
        return ".".join(map(str, self._env.lib_version()))


def _apply(cursor: lmdb.Cursor, records: Mapping[bytes, bytes | None]) -> None:
    gone = [key for key, record in records.items() if record is None]
    for key in sorted(gone):
        if cursor.set_key(key):
            cursor.delete()
    cursor.putmulti(
        [
            (key, record_checksum(record) + record)  # as `protect`, without the call
            for key in sorted(records)
            if (record := records[key]) is not None
        ]
    )

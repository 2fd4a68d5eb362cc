"""Records that the running epoch has changed, over those that LMDB has.

While a commit is being written, what it holds is still read from memory, so
the thread that changes things and the thread that writes never share a
transaction.
"""

from __future__ import annotations

from collections.abc import Callable

from kaifs.meta.database import Table
from kaifs.meta.index import Index
from kaifs.store.journal import JOURNALED, RECORD

Batch = dict[Table, dict[bytes, bytes | None]]


class Pending:
    """A table-by-table view: running epoch, then the commit in flight, then LMDB."""

    def __init__(self, database: Index) -> None:
        self._database = database
        self._running: Batch = {table: {} for table in Table}
        self._in_flight: Batch | None = None
        self.log: Callable[..., None] | None = None
        """Takes in each change of a table that is journaled; None: there is no journal."""

    @property
    def is_empty(self) -> bool:
        """Whether the running epoch has changed nothing."""
        return not any(self._running.values())

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the record at *key*, None if there is none."""
        running = self._running[table]
        if key in running:
            return running[key]
        if self._in_flight is not None and key in self._in_flight[table]:
            return self._in_flight[table][key]
        return self._database.get(table, key)

    def get_many(self, table: Table, keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the records that there are at *keys*."""
        found: dict[bytes, bytes | None] = dict(self._database.get_many(table, keys))
        for batch in (self._in_flight, self._running):
            records = {} if batch is None else batch[table]
            if records:
                found.update((key, records[key]) for key in keys if key in records)
        return {key: record for key, record in found.items() if record is not None}

    def put(self, table: Table, key: bytes, record: bytes) -> None:
        """Set the record at *key*."""
        self._running[table][key] = record
        if self.log is not None and table in JOURNALED:
            self.log(RECORD, table.value, key, record)

    def put_many(self, table: Table, records: dict[bytes, bytes]) -> None:
        """Set many records of a table that is not journaled."""
        assert table not in JOURNALED, "each change of a journaled table is logged by itself"
        self._running[table].update(records)

    def delete(self, table: Table, key: bytes) -> None:
        """Delete the record at *key*, if there is one."""
        self._running[table][key] = None
        if self.log is not None and table in JOURNALED:
            self.log(RECORD, table.value, key, None)

    def keys(self, table: Table, prefix: bytes = b"") -> list[bytes]:
        """Return all keys that begin with *prefix*, in order."""
        found = set(self._database.keys_with_prefix(table, prefix))
        for batch in (self._in_flight, self._running):
            for key, record in batch[table].items() if batch is not None else ():
                if key.startswith(prefix):
                    if record is None:
                        found.discard(key)
                    else:
                        found.add(key)
        return sorted(found)

    def unwritten(self, table: Table) -> list[bytes]:
        """Return the keys of records that differ from those in LMDB, or may."""
        batches = (self._in_flight, self._running)
        return [key for batch in batches if batch is not None for key in batch[table]]

    def take(self) -> Batch:
        """Begin a commit: return what it must write. One at a time."""
        assert self._in_flight is None, "a commit is in flight already"
        self._in_flight = self._running
        self._running = {table: {} for table in Table}
        return self._in_flight

    def written(self) -> None:
        """The commit in flight is on disk."""
        self._in_flight = None

    def failed(self) -> None:
        """The commit in flight is not on disk: its records are the running epoch's again."""
        if self._in_flight is not None:
            for table, records in self._in_flight.items():
                self._running[table] = records | self._running[table]
            self._in_flight = None

    def abandon(self) -> None:
        """Forget what the running epoch changed."""
        assert self._in_flight is None, "a commit is in flight"
        self._running = {table: {} for table in Table}

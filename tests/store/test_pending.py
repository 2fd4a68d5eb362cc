"""The running epoch lies over the commit in flight, and both over LMDB."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kaifs.meta.database import Table
from kaifs.meta.index import Index
from kaifs.store.pending import Batch, Pending

TABLE = Table.NODES


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Index]:
    database = Index(tmp_path, map_size=1 << 20, create=True)
    yield database
    database.close()


def test_a_change_is_seen_at_once_and_a_deletion_too(database: Index) -> None:
    database.write({TABLE: {b"old": b"1", b"gone": b"1"}})
    pending = Pending(database)
    assert pending.is_empty

    pending.put(TABLE, b"new", b"2")
    pending.delete(TABLE, b"gone")

    assert not pending.is_empty
    assert pending.get(TABLE, b"old") == b"1"
    assert pending.get(TABLE, b"new") == b"2"
    assert pending.get(TABLE, b"gone") is None
    assert pending.keys(TABLE) == [b"new", b"old"]


keys = st.sampled_from([b"a", b"ab", b"b", b"c"])


class PendingMachine(RuleBasedStateMachine):
    """Whatever becomes of commits, what is read is what was put last and not abandoned."""

    database: Index
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.pending = Pending(self.database)
        self.batch: Batch | None = None
        self.count = 0
        for key in self.database.scan(TABLE):
            self.database.write({TABLE: {key: None}})
        self.model: dict[bytes, bytes] = {}
        self.committed: dict[bytes, bytes] = {}

    @rule(key=keys)
    def put(self, key: bytes) -> None:
        self.count += 1
        self.model[key] = b"%d" % self.count
        self.pending.put(TABLE, key, self.model[key])

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        self.model.pop(key, None)
        self.pending.delete(TABLE, key)

    @precondition(lambda self: self.batch is None)
    @rule()
    def take(self) -> None:
        self.batch = self.pending.take()
        self.taken = dict(self.model)

    @precondition(lambda self: self.batch is not None)
    @rule()
    def succeed(self) -> None:
        assert self.batch is not None
        self.database.write(self.batch)
        self.pending.written()
        self.batch = None
        self.committed = self.taken

    @rule()
    def fail(self) -> None:
        self.pending.failed()
        self.batch = None

    @precondition(lambda self: self.batch is None)
    @rule()
    def abandon(self) -> None:
        self.pending.abandon()
        self.model = dict(self.committed)

    @invariant()
    def agrees(self) -> None:
        assert self.pending.keys(TABLE) == sorted(self.model)
        assert self.pending.keys(TABLE, b"a") == sorted(k for k in self.model if k[:1] == b"a")
        for key in (b"a", b"ab", b"b", b"c"):
            assert self.pending.get(TABLE, key) == self.model.get(key)


def test_pending_agrees_with_a_dict(database: Index) -> None:
    machine = type("Machine", (PendingMachine,), {"database": database})

    run_state_machine_as_test(machine)

"""The journal: what changed since the last epoch, one record for each thing acknowledged.

It is physical: a record holds keys of trees with their new values, and records
of the registry, never an operation that would have to be done again. So replay
needs no rules of a file system, and doing it twice does no harm: values are
absolute. What happened to whole roots (made, cloned, dropped) stands between
the keys in the order in which it happened.

A root that is being built is not in the journal. What was built becomes known to
it when the root gets another state: by itself if an epoch has all of it, else key
by key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from kaifs.base.errors import KaifsError, StoreDamagedError
from kaifs.base.types import RootId
from kaifs.meta.database import Table
from kaifs.meta.records import Answer, RootRecord
from kaifs.store.roots import Root

PUTS: Final = 0
MADE: Final = 1
CLONED: Final = 2
DROPPED: Final = 3
RECORD: Final = 4
UNFINISHED: Final = 5
ROOT: Final = 6
"""Tags of steps."""

JOURNALED: Final = frozenset(
    set(Table)
    - {Table.META, Table.NODES, Table.BLOCKS, Table.DIGESTS, Table.SEGMENTS}
    - {Table.ROOTS, Table.UNFINISHED}
)
"""Tables whose records are in the journal as they are. The others follow from the rest of it."""

SEQUENCE_STEP: Final = 1 << 32
"""Sequence numbers go on at the next multiple after a tail was cut off. So what was cut, should
power loss bring it back, is never taken for what comes next."""


class Puts(msgspec.Struct, array_like=True, frozen=True, tag=PUTS, gc=False):
    """Keys of a root's tree have other values, and fields of the root that go with them."""

    root: int
    next_ino: int
    inodes: int
    size: int
    own: int
    pairs: list[bytes | None]
    """Key, value, key, value …; the value None: the key is gone."""


class Made(msgspec.Struct, array_like=True, frozen=True, tag=MADE, gc=False):
    """There is a root with an empty tree, being built."""

    root: int


class Cloned(msgspec.Struct, array_like=True, frozen=True, tag=CLONED, gc=False):
    """A root has the tree that another one has at this moment; if it is new, it is being built."""

    root: int
    source: int


class Dropped(msgspec.Struct, array_like=True, frozen=True, tag=DROPPED, gc=False):
    """A root is gone."""

    root: int


class Recorded(msgspec.Struct, array_like=True, frozen=True, tag=RECORD, gc=False):
    """A record of a table is another one; None: it is gone."""

    table: str
    key: bytes
    value: bytes | None


class Unfinished(msgspec.Struct, array_like=True, frozen=True, tag=UNFINISHED, gc=False):
    """A root must, or need not any more, be looked after when the store is opened."""

    root: int
    is_listed: bool


class RootSet(msgspec.Struct, array_like=True, frozen=True, tag=ROOT, gc=False):
    """All fields of a root; its top and generation do not count."""

    record: RootRecord


Step: TypeAlias = Puts | Made | Cloned | Dropped | Recorded | Unfinished | RootSet


class JournalRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What changed at once."""

    epoch: int
    """The last epoch that was known to be on disk."""
    block: int
    root: int
    slot: int
    agent: int
    """Counters, as in META."""
    steps: list[Step]
    answer: Answer | None = None
    """The reply to the request that made the change; None: no request of the kernel did."""


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(JournalRecord)


def decode_journal(stored: bytes | memoryview) -> JournalRecord:
    """Return the record that *stored* encodes.

    Raises:
        StoreDamagedError: it is none.
    """
    try:
        return _decoder.decode(stored)
    except msgspec.MsgspecError as error:
        raise StoreDamagedError(f"unreadable journal record: {error}") from error


class Journal:
    """Collects what changes, and writes it as one record when it is to be acknowledged."""

    def __init__(
        self,
        append: Callable[[bytes], None],
        counters: Callable[[], tuple[int, ...]],
    ) -> None:
        """Write records by *append*, each with the epoch and the *counters* in front."""
        self._append = append
        self._counters = counters
        self._steps: list[tuple[Any, ...]] = []
        self._logged: list[Root] = []
        """Roots in whose logs is something that is in no step yet."""
        self._touched: dict[RootId, Root] = {}
        self._held: _Held | None = None

    def follow(self, root: Root) -> None:
        """Take in every change of the tree of *root* from now on."""
        root.log = RootLog(root, self._logged)

    def touch(self, root: Root) -> None:
        """Note that fields of *root* itself have changed."""
        if root.log is not None:
            self._touched[root.root_id] = root

    def add(self, *step: Any) -> None:
        """Take in one step: its tag and its fields."""
        if self._logged:
            self._gather()
        self._steps.append(step)

    def _gather(self) -> None:
        """Make steps of what is in the logs of roots."""
        for root in self._logged:
            counts = (root.next_ino, root.inodes, root.size, root.own)
            assert root.log is not None
            self._steps.append((PUTS, root.root_id, *counts, root.log))
            root.log = RootLog(root, self._logged)
        self._logged.clear()

    def drop(self, root_id: RootId, *, was_built: bool) -> None:
        """Note that a root is gone. *was_built*: nothing of it but a clone is in the journal."""
        self._touched.pop(root_id, None)
        if was_built and self._is_only_cloned(root_id):
            # Lent to a reader and given back: nothing happened.
            self._steps[:] = [step for step in self._steps if step[1] != root_id]
        else:
            self.add(DROPPED, root_id)

    def _is_only_cloned(self, root_id: RootId) -> bool:
        cloned = [step for step in self._steps if step[0] == CLONED]
        return any(step[1] == root_id for step in cloned) and not any(
            step[2] == root_id for step in cloned
        )

    @property
    def is_due(self) -> bool:
        """Whether something has changed since the last record."""
        return bool(self._logged or self._steps or self._touched)

    def flush(self, answer: Answer | None = None) -> None:
        """Write what has changed as one record. Nothing is written if nothing has.

        Args:
            answer: What is going to be answered to who asked for it.

        Raises:
            NoSpaceError: the disk is full. What changed goes with a later record.
            StoreIOError: the system refuses; likewise.
        """
        if not self.is_due:
            return
        if self._held is not None:
            raise self._held.error
        self._gather()
        roots = [(ROOT, root.record()) for root in self._touched.values()]
        self._append(_encode((*self._counters(), self._steps + roots, answer)))
        self._steps.clear()
        self._touched.clear()

    # --- an epoch is taken --------------------------------------------------------------

    def hold(self, error: KaifsError) -> None:
        """Let the epoch that is taken now hold what could not be written because of *error*.

        Until it is known whether that epoch gets on disk, nothing can be written:
        replay would miss what is held.
        """
        self._gather()
        self._held = _Held(error, self._steps.copy(), self._touched.copy())
        self._steps.clear()
        self._touched.clear()

    def release(self, *, is_durable: bool) -> None:
        """The epoch that was taken last is on disk, or is not."""
        held, self._held = self._held, None
        if held is not None and not is_durable:
            self._steps[:0] = held.steps
            self._touched = held.touched | self._touched


class RootLog(list[bytes | None]):
    """Keys and values of one root's tree, in turn, as they change."""

    __slots__ = ("_logged", "_root")

    def __init__(self, root: Root, logged: list[Root]) -> None:
        super().__init__()
        self._root = root
        self._logged = logged

    def put(self, key: bytes, value: bytes | None) -> None:
        """Note the new value of a key; None: it is gone."""
        if not self:
            self._logged.append(self._root)
        self += (key, value)


@dataclass(frozen=True, slots=True)
class _Held:
    error: KaifsError
    steps: list[tuple[Any, ...]]
    touched: dict[RootId, Root]

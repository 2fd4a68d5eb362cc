"""Roots as the running process changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kaifs.base.types import NO_NODE, BlockId, Generation, Ino, NodeId, RootId, Slot
from kaifs.meta.records import RootKind, RootRecord, RootState

if TYPE_CHECKING:
    from kaifs.store.journal import RootLog

# Every request asks: looking a member up costs as much as a short function.
_WRITABLE: Final = (RootState.WRITABLE, RootState.BUILDING)


class Root:
    """A root in memory: the mutable form of `RootRecord`."""

    __slots__ = (
        "agent_id",
        "base",
        "base_in",
        "changed_in",
        "changes",
        "dirty",
        "first_block",
        "first_ino",
        "generation",
        "inodes",
        "is_listed",
        "kind",
        "lineage",
        "log",
        "name",
        "next_ino",
        "own",
        "root_id",
        "size",
        "slot",
        "state",
        "top",
    )

    def __init__(self, record: RootRecord) -> None:
        self.set(record)
        self.dirty = False
        """Differs from the record that was last handed to a commit."""
        self.changes = 0
        """Counts the changes of the tree since the root was loaded."""
        self.changed_in = 0
        """Number of the commit that takes, or took, the last change of the tree."""
        self.is_listed = False
        """Whether the journal says already that the root must be looked after."""
        self.log: RootLog | None = None
        """Takes in each change of the tree for the journal; None: it is not journaled."""
        self.base: NodeId = NO_NODE
        """Of a root that is being built: the top of the tree that the journal knows it with."""
        self.base_in = 0
        """The commit before which that was so."""

    def set(self, record: RootRecord) -> None:
        """Take over all fields of *record*."""
        self.root_id: RootId = record.root_id
        self.top: NodeId = record.top
        self.generation: Generation = record.generation
        self.next_ino: Ino = record.next_ino
        self.state: RootState = record.state
        self.kind: RootKind = record.kind
        self.agent_id: int = record.agent_id
        self.name: str = record.name
        self.slot: Slot = record.slot
        self.lineage: RootId = record.lineage
        self.inodes: int = record.inodes
        self.size: int = record.size
        self.own: int = record.own
        self.first_ino: Ino = record.first_ino
        self.first_block: BlockId = record.first_block
        self.dirty = True

    @property
    def is_writable(self) -> bool:
        """Whether the tree may change."""
        return self.state in _WRITABLE

    @property
    def is_passing(self) -> bool:
        """Whether the root goes away when the store is opened again, if nobody looks after it."""
        return self.state in (RootState.BUILDING, RootState.SUPERSEDED)

    def charge(self, delta: int) -> None:
        """Count *delta* bytes more, or less, that this tree takes beside what it was cloned from."""
        self.own = max(self.own + delta, 0)

    def record(self) -> RootRecord:
        """Return the root as it is kept."""
        return RootRecord(
            self.root_id,
            self.top,
            self.generation,
            self.next_ino,
            self.state,
            self.kind,
            self.agent_id,
            self.name,
            self.slot,
            self.lineage,
            self.inodes,
            self.size,
            self.own,
            self.first_ino,
            self.first_block,
        )

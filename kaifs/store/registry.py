"""Which agents, versions, snapshots and roots there are.

Everything here is records of the running epoch: a change is seen at once and
is durable with the next commit, all of it or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from kaifs.base.clock import Clock
from kaifs.base.errors import (
    AgentExistsError,
    AgentNotFoundError,
    BadNameError,
    InvalidVersionError,
    NoSpaceError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    StoreDamagedError,
    VersionExistsError,
)
from kaifs.base.label import parse_label
from kaifs.base.types import (
    MAX_ROOT_ID,
    MAX_SLOT,
    NO_NODE,
    BlockId,
    Generation,
    Ino,
    RootId,
    Slot,
)
from kaifs.blocks.compression import Compressor, decode
from kaifs.meta.database import Table
from kaifs.meta.records import (
    AGENT,
    OUTPUT,
    QUARANTINE,
    ROOT,
    SNAPSHOT,
    VERIFIED,
    VERSION,
    AgentRecord,
    OutputRecord,
    QuarantineRecord,
    RootKind,
    RootRecord,
    RootState,
    SnapshotRecord,
    VerifiedRecord,
    VersionRecord,
)
from kaifs.store.changes import (
    AgentAdded,
    AgentRemoved,
    Change,
    HeadSwitched,
    SnapshotAdded,
    SnapshotRemoved,
    SnapshotRenamed,
    VersionAdded,
    VersionQuarantined,
    VersionReleased,
    VersionRemoved,
    VersionSigned,
)
from kaifs.store.differing import differing, items
from kaifs.store.journal import CLONED, MADE, UNFINISHED, Journal
from kaifs.store.nodes import Nodes
from kaifs.store.payload import Payload
from kaifs.store.pending import Pending
from kaifs.store.roots import Root

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
NO_ROOT: Final = RootId(0)
NO_SLOT: Final = Slot(0)

READY: Final = "ready"
TESTING: Final = "testing"
TEST_PASSED: Final = "test_passed"
TEST_FAILED: Final = "test_failed"
TEST_ERROR: Final = "test_error"
"""States of a snapshot. Source: specification, IsolatedSnapshot."""

OUTPUT_LEVEL: Final = 3
"""zstd level of kept output: 4 to 10 times smaller at over 200 MB/s."""


def check_agent_name(name: str) -> None:
    """Check that an agent may have this name.

    Raises:
        BadNameError: it may not.
    """
    if not _NAME.fullmatch(name) or name.startswith("s-"):
        raise BadNameError(repr(name))


def check_snapshot_name(name: str) -> None:
    """Check that a snapshot may have this name.

    Raises:
        BadNameError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise BadNameError(repr(name))


def root_key(root: RootId) -> bytes:
    """Return the key of a root in ROOTS and UNFINISHED."""
    return root.to_bytes(8, "big")


def _owned(agent_id: int, name: str = "") -> bytes:
    return agent_id.to_bytes(8, "big") + name.encode()


class Registry:
    """Agents, versions, snapshots and roots. Part of `Store`."""

    clock: Clock
    nodes: Nodes
    payload: Payload
    pending: Pending
    next_root: int
    next_slot: int
    next_agent: int
    next_generation: int
    journal: Journal | None

    def __init__(self) -> None:
        self.saved = 0
        """Number of the last commit that is on disk, counted from when the store was opened."""
        self._roots: dict[RootId, Root] = {}
        self._agent_names: dict[int, str] = {}
        self._least_generation = Generation(0)
        self.agents_changed_ns = 0
        """When this process last added or removed an agent, ns since 1970; 0 if it has not."""
        self.on_change: Callable[[Change], None] = lambda change: None

    # --- agents ------------------------------------------------------------------------

    def agents(self) -> list[AgentRecord]:
        """Return all agents, sorted by name."""
        found = []
        for key in self.pending.keys(Table.AGENTS):
            # One unreadable record must not hide the others: fsck tells it (I2).
            with suppress(StoreDamagedError):
                agent = self.find_agent(key.decode())
                if agent is not None:
                    found.append(agent)
        return found

    def find_agent(self, name: str) -> AgentRecord | None:
        """Return the agent called *name*, None if there is none."""
        value = self.pending.get(Table.AGENTS, name.encode()) if _NAME.fullmatch(name) else None
        if value is None:
            return None
        agent = AGENT.decode(value)
        self._agent_names[agent.agent_id] = name
        return agent

    def get_agent(self, name: str) -> AgentRecord:
        """Return the agent called *name*.

        Raises:
            AgentNotFoundError: there is none.
        """
        agent = self.find_agent(name)
        if agent is None:
            raise AgentNotFoundError(name)
        return agent

    def agent_by_id(self, agent_id: int) -> AgentRecord | None:
        """Return the agent with this id, None if there is none."""
        name = self._agent_names.get(agent_id)
        agent = self.find_agent(name) if name is not None else None
        if agent is None or agent.agent_id != agent_id:
            agent = next((one for one in self.agents() if one.agent_id == agent_id), None)
        return agent

    def add_agent(
        self, name: str, uid: int, gid: int, head: Root, mode: int = 0o755
    ) -> AgentRecord:
        """Add an agent whose current is the tree of *head*, a root of nobody yet.

        Raises:
            BadNameError: no agent may be called that.
            AgentExistsError: one is already.
        """
        check_agent_name(name)
        if self.find_agent(name) is not None:
            raise AgentExistsError(name)
        now_ns = self.clock.now_ns()
        agent_id = self.next_agent
        self.next_agent += 1
        agent = AgentRecord(agent_id, name, head.root_id, "", uid, gid, mode, now_ns, now_ns)
        self.own_root(head, RootKind.HEAD, agent_id, "", self.new_slot())
        self.set_root_state(head, RootState.WRITABLE)
        self.put_agent(agent)
        self.agents_changed_ns = now_ns
        self.on_change(AgentAdded(agent_id, name))
        return agent

    def put_agent(self, agent: AgentRecord) -> None:
        """Set an agent's record."""
        self.pending.put(Table.AGENTS, agent.name.encode(), AGENT.encode(agent))
        self._agent_names[agent.agent_id] = agent.name

    def remove_agent(self, name: str) -> None:
        """Take away an agent that has neither versions nor snapshots, with its current.

        Its tree stays readable for those who have it open.
        """
        agent = self.get_agent(name)
        self._retire(agent.head)
        if agent.superseded:
            self._retire(agent.superseded)
        self.pending.delete(Table.AGENTS, name.encode())
        self._agent_names.pop(agent.agent_id, None)
        self.agents_changed_ns = self.clock.now_ns()
        self.on_change(AgentRemoved(agent.agent_id, name))

    def _note_change_of(self, agent_id: int) -> AgentRecord | None:
        agent = self.agent_by_id(agent_id)
        if agent is not None:
            agent = replace(agent, changed_ns=self.clock.now_ns())
            self.put_agent(agent)
        return agent

    def switch_head(self, agent: AgentRecord, head: Root, version: str) -> AgentRecord:
        """Let *agent*'s current show the tree of *head* from now on.

        The old head keeps its slot and becomes superseded: readable, and gone
        once nobody knows it. Inode numbers go on from the larger of the two, so
        that none is used twice in the head's slot.
        """
        old = self.root(agent.head)
        self.own_root(head, RootKind.HEAD, agent.agent_id, "", old.slot)
        head.next_ino = Ino(max(head.next_ino, old.next_ino))
        self.set_root_state(head, RootState.WRITABLE)
        changed = replace(agent, head=head.root_id, version=version, changed_ns=self.clock.now_ns())
        self.put_agent(changed)
        self.on_change(HeadSwitched(agent.agent_id, old.root_id, head.root_id))
        return changed

    # --- versions ----------------------------------------------------------------------

    def versions(self, agent_id: int) -> list[VersionRecord]:
        """Return an agent's versions by growing precedence."""
        return self.readable_versions(agent_id)[0]

    def unreadable_versions(self, agent_id: int) -> list[str]:
        """Return the labels of an agent's versions whose records are damaged."""
        return self.readable_versions(agent_id)[1]

    def readable_versions(self, agent_id: int) -> tuple[list[VersionRecord], list[str]]:
        """Return an agent's versions by growing precedence, and the labels of unreadable ones.

        One unreadable record does not hide the others.
        """
        found, unreadable = [], []
        for key in self.pending.keys(Table.VERSIONS, _owned(agent_id)):
            label = key[8:].decode()
            try:
                version = self.find_version(agent_id, label)
            except StoreDamagedError:
                unreadable.append(label)
                continue
            if version is not None:
                found.append(version)
        return sorted(found, key=lambda version: parse_label(version.label).order), unreadable

    def labels(self, agent_id: int) -> set[str]:
        """Return the labels that an agent's versions have, unreadable and quarantined ones too."""
        prefix = _owned(agent_id)
        return {
            key[8:].decode()
            for table in (Table.VERSIONS, Table.QUARANTINE)
            for key in self.pending.keys(table, prefix)
        }

    def count_versions(self, agent_id: int) -> int:
        """Return how many versions an agent has."""
        return len(self.pending.keys(Table.VERSIONS, _owned(agent_id)))

    def find_version(self, agent_id: int, label: str) -> VersionRecord | None:
        """Return an agent's version, None if there is none with that label.

        Raises:
            StoreDamagedError: its record is unreadable.
        """
        if len(label) > 255 or not label:
            return None
        value = self.pending.get(Table.VERSIONS, _owned(agent_id, label))
        return None if value is None else VERSION.decode(value)

    def get_version(self, agent: AgentRecord, label: str) -> VersionRecord:
        """Return the version *label* of *agent*.

        Raises:
            InvalidVersionError: there is none, it is in quarantine, or its record is damaged.
        """
        name = f"{agent.name}@{label}"
        try:
            version = self.find_version(agent.agent_id, label)
        except StoreDamagedError as error:
            advice = f"'kaifs verify {name}' sets it aside"
            raise InvalidVersionError(f"{name}: its record is unreadable: {advice}") from error
        if version is None:
            self.check_not_quarantined(agent, label)
            raise InvalidVersionError(name)
        return version

    def check_new_label(self, agent: AgentRecord, label: str) -> None:
        """Check that *agent* can have a new version called *label*.

        Raises:
            BadLabelError: it is no label.
            VersionExistsError: it is taken, or differs only in build metadata.
        """
        core = parse_label(label).core
        for table in (Table.VERSIONS, Table.QUARANTINE):
            for key in self.pending.keys(table, _owned(agent.agent_id, core)):
                taken = key[8:].decode()
                if taken.partition("+")[0] == core:
                    where = " (in quarantine)" if table is Table.QUARANTINE else ""
                    raise VersionExistsError(f"{agent.name}@{taken}{where}")

    def add_version(self, version: VersionRecord) -> None:
        """Add a version; its root, of which every digest is known, is sealed from here on."""
        root = self.root(version.root)
        self.set_root_state(root, RootState.SEALED)
        self.own_root(root, RootKind.VERSION, version.agent_id, version.label, self.new_slot())
        key = _owned(version.agent_id, version.label)
        self.pending.put(Table.VERSIONS, key, VERSION.encode(version))
        self._note_change_of(version.agent_id)
        self.on_change(VersionAdded(version.agent_id, version.label))

    def sign_version(self, version: VersionRecord, signature: bytes) -> VersionRecord:
        """Let *signature* be that of *version*, in place of the one that it has."""
        signed = replace(
            version,
            signature=signature,
            signatures=version.signatures + 1,
            signed_ns=self.clock.now_ns(),
        )
        key = _owned(version.agent_id, version.label)
        self.pending.put(Table.VERSIONS, key, VERSION.encode(signed))
        self._note_change_of(version.agent_id)
        self.on_change(VersionSigned(version.agent_id, version.label))
        return signed

    def remove_version(self, agent_id: int, label: str) -> None:
        """Take a version away; its tree stays readable for those who have it open."""
        version = self.find_version(agent_id, label)
        if version is not None:
            self.pending.delete(Table.VERSIONS, _owned(agent_id, label))
            self._retire(version.root)
            self._note_change_of(agent_id)
            self.on_change(VersionRemoved(agent_id, label))

    # --- quarantine --------------------------------------------------------------------

    def quarantined(self, agent_id: int) -> list[QuarantineRecord]:
        """Return an agent's versions in quarantine, by label."""
        found = []
        for key in self.pending.keys(Table.QUARANTINE, _owned(agent_id)):
            with suppress(StoreDamagedError):
                record = self.find_quarantined(agent_id, key[8:].decode())
                if record is not None:
                    found.append(record)
        return found

    def find_quarantined(self, agent_id: int, label: str) -> QuarantineRecord | None:
        """Return what is in quarantine as *label*, None if nothing is."""
        if len(label) > 255 or not label:
            return None
        value = self.pending.get(Table.QUARANTINE, _owned(agent_id, label))
        return None if value is None else QUARANTINE.decode(value)

    def check_not_quarantined(self, agent: AgentRecord, label: str) -> None:
        """Check that the version *label* of *agent*, if there is one, is not in quarantine.

        Raises:
            InvalidVersionError: it is.
        """
        record = self.find_quarantined(agent.agent_id, label)
        if record is not None:
            name = f"{agent.name}@{label}"
            raise InvalidVersionError(
                f"{name} is in quarantine: {record.reason}; 'kaifs quarantine release {name}' "
                "gives it back if it verifies again",
                quarantined=name,
                reason=record.reason,
            )

    def quarantine_version(
        self, agent: AgentRecord, label: str, reason: str, found: tuple[str, ...] = ()
    ) -> QuarantineRecord:
        """Set the version *label* aside, which must be there; its record may be unreadable.

        Its tree keeps its root and its slot, so that who has a file of it open gets errors and
        nobody else's file.
        """
        key = _owned(agent.agent_id, label)
        try:
            version = self.find_version(agent.agent_id, label)
        except StoreDamagedError:
            version = None
            root = self._root_of_version(agent.agent_id, label)
        else:
            assert version is not None, "there is such a version"
            root = self.find_root(version.root)
        if root is not None:
            self.own_root(root, RootKind.QUARANTINED, agent.agent_id, label, root.slot)
        record = QuarantineRecord(
            agent_id=agent.agent_id,
            label=label,
            root=NO_ROOT if root is None else root.root_id,
            version=b"" if version is None else VERSION.encode(version),
            reason=reason,
            quarantined_ns=self.clock.now_ns(),
            path=f"{agent.name}/@versions/{label}",
            found=found,
        )
        self.pending.put(Table.QUARANTINE, key, QUARANTINE.encode(record))
        self.pending.delete(Table.VERSIONS, key)
        self._note_change_of(agent.agent_id)
        self.on_change(VersionQuarantined(agent.agent_id, label, record.root))
        return record

    def release_version(self, record: QuarantineRecord) -> VersionRecord:
        """Show the version that *record* set aside again, as it was. It must be readable."""
        version = VERSION.decode(record.version)
        root = self.root(version.root)
        self.own_root(root, RootKind.VERSION, record.agent_id, record.label, root.slot)
        key = _owned(record.agent_id, record.label)
        self.pending.put(Table.VERSIONS, key, record.version)
        self._end_quarantine(record)
        self.on_change(VersionAdded(record.agent_id, record.label))
        return version

    def remove_quarantined(self, record: QuarantineRecord) -> None:
        """Take a version in quarantine away for good."""
        self._retire(record.root)
        self._end_quarantine(record)

    def _end_quarantine(self, record: QuarantineRecord) -> None:
        self.pending.delete(Table.QUARANTINE, _owned(record.agent_id, record.label))
        self._note_change_of(record.agent_id)
        self.on_change(VersionReleased(record.agent_id, record.label, record.root))

    def find_root(self, root_id: RootId) -> Root | None:
        """Return a root, None if there is none or its record is unreadable."""
        with suppress(StoreDamagedError):
            return self.root(root_id)
        return None

    def _root_of_version(self, agent_id: int, label: str) -> Root | None:
        """Return the root that says that it is the version's, by looking at all. O(roots)."""
        for root_id in self.root_ids():
            root = self.find_root(root_id)
            if root is not None and (root.kind, root.agent_id, root.name) == (
                RootKind.VERSION,
                agent_id,
                label,
            ):
                return root
        return None

    # --- verified ----------------------------------------------------------------------

    def find_verified(self, root_id: RootId) -> VerifiedRecord | None:
        """Return what the version with *root_id* was when it last verified, None if it never did.

        A memo that is unreadable is none.
        """
        with suppress(StoreDamagedError):
            value = self.pending.get(Table.VERIFIED, root_key(root_id))
            return None if value is None else VERIFIED.decode(value)
        return None

    def put_verified(self, root_id: RootId, record: VerifiedRecord) -> None:
        """Remember that the version with *root_id* verified."""
        self.pending.put(Table.VERIFIED, root_key(root_id), VERIFIED.encode(record))

    def forget_verified(self, root_id: RootId) -> None:
        """Forget what the version with *root_id* was when it last verified."""
        self.pending.delete(Table.VERIFIED, root_key(root_id))

    # --- snapshots ---------------------------------------------------------------------

    def snapshots(self, agent_id: int) -> list[SnapshotRecord]:
        """Return an agent's snapshots, sorted by name."""
        found = []
        for key in self.pending.keys(Table.SNAPSHOTS, _owned(agent_id)):
            with suppress(StoreDamagedError):
                snapshot = self.find_snapshot(agent_id, key[8:].decode())
                if snapshot is not None:
                    found.append(snapshot)
        return found

    def find_snapshot(self, agent_id: int, name: str) -> SnapshotRecord | None:
        """Return an agent's snapshot, None if there is none with that name."""
        if not _NAME.fullmatch(name):
            return None
        value = self.pending.get(Table.SNAPSHOTS, _owned(agent_id, name))
        return None if value is None else SNAPSHOT.decode(value)

    def get_snapshot(self, agent: AgentRecord, name: str) -> SnapshotRecord:
        """Return the snapshot *name* of *agent*.

        Raises:
            SnapshotNotFoundError: there is none.
        """
        snapshot = self.find_snapshot(agent.agent_id, name)
        if snapshot is None:
            raise SnapshotNotFoundError(f"{agent.name}/@snapshots/{name}")
        return snapshot

    def check_new_snapshot(self, agent: AgentRecord, name: str) -> None:
        """Check that *agent* can have a new snapshot called *name*.

        Raises:
            BadNameError: no snapshot may be called that.
            SnapshotExistsError: one is already.
        """
        check_snapshot_name(name)
        if self.find_snapshot(agent.agent_id, name) is not None:
            raise SnapshotExistsError(f"{agent.name}/@snapshots/{name}")

    def add_snapshot(self, snapshot: SnapshotRecord) -> None:
        """Add a snapshot; its root becomes writable, or sealed if it is read-only."""
        root = self.root(snapshot.root)
        slot = self.new_slot()
        self.own_root(root, RootKind.SNAPSHOT, snapshot.agent_id, snapshot.name, slot)
        sealed = RootState.SEALED if snapshot.read_only else RootState.WRITABLE
        self.set_root_state(root, sealed)
        self.put_snapshot(snapshot)
        self._note_change_of(snapshot.agent_id)
        self.on_change(SnapshotAdded(snapshot.agent_id, snapshot.name))

    def put_snapshot(self, snapshot: SnapshotRecord) -> None:
        """Set a snapshot's record."""
        key = _owned(snapshot.agent_id, snapshot.name)
        self.pending.put(Table.SNAPSHOTS, key, SNAPSHOT.encode(snapshot))

    def rename_snapshot(self, snapshot: SnapshotRecord, name: str) -> SnapshotRecord:
        """Give a snapshot another name, which must be free."""
        self.pending.delete(Table.SNAPSHOTS, _owned(snapshot.agent_id, snapshot.name))
        renamed = replace(snapshot, name=name)
        self.put_snapshot(renamed)
        root = self.root(snapshot.root)
        self.own_root(root, RootKind.SNAPSHOT, snapshot.agent_id, name, root.slot)
        self._note_change_of(snapshot.agent_id)
        self.on_change(SnapshotRenamed(snapshot.agent_id, snapshot.name, name))
        return renamed

    def remove_snapshot(self, agent_id: int, name: str) -> None:
        """Take a snapshot away; its tree stays readable for those who have it open."""
        snapshot = self.find_snapshot(agent_id, name)
        if snapshot is not None:
            self.pending.delete(Table.SNAPSHOTS, _owned(agent_id, name))
            self._retire(snapshot.root)
            for kept in (snapshot.base, snapshot.tested):
                if self.has_root(kept) and self.root(kept).kind is RootKind.NONE:
                    self.drop_root(kept)
            self.pending.delete(Table.OUTPUTS, root_key(snapshot.root))
            self._note_change_of(agent_id)
            self.on_change(SnapshotRemoved(agent_id, name))

    def put_output(self, root_id: RootId, output: bytes) -> None:
        """Keep what the last tests in the snapshot of *root_id* wrote, in place of the one before."""
        codec, stored = Compressor(OUTPUT_LEVEL).encode(output)
        record = OutputRecord(codec, len(output), bytes(stored))
        self.pending.put(Table.OUTPUTS, root_key(root_id), OUTPUT.encode(record))

    def find_output(self, root_id: RootId) -> bytes | None:
        """Return what the last tests in the snapshot of *root_id* wrote, None if none is kept."""
        value = self.pending.get(Table.OUTPUTS, root_key(root_id))
        if value is None:
            return None
        record = OUTPUT.decode(value)
        return decode(record.codec, record.stored, record.size)

    def recover_snapshot(self, root: Root) -> None:
        """Finish what a process left when it died: tests that ran, a commit that was all but done.

        For whoever opens a store; other roots than those of snapshots are left alone.
        """
        agent = self.agent_by_id(root.agent_id) if root.kind is RootKind.SNAPSHOT else None
        snapshot = None if agent is None else self.find_snapshot(agent.agent_id, root.name)
        if snapshot is None or snapshot.root != root.root_id:
            return
        if snapshot.committed:
            self.remove_snapshot(snapshot.agent_id, snapshot.name)
        elif snapshot.status == TESTING:
            self.put_snapshot(replace(snapshot, status=TEST_ERROR))

    # --- roots -------------------------------------------------------------------------

    def has_root(self, root_id: RootId) -> bool:
        """Whether the root exists."""
        if root_id in self._roots:
            return True
        return self.pending.get(Table.ROOTS, root_key(root_id)) is not None

    def root(self, root_id: RootId) -> Root:
        """Return a root.

        Raises:
            StoreDamagedError: it does not exist.
        """
        root = self._roots.get(root_id)
        if root is None:
            value = self.pending.get(Table.ROOTS, root_key(root_id))
            if value is None:
                raise StoreDamagedError(f"root {root_id} is missing")
            root = Root(ROOT.decode(value))
            if root.is_writable and root.generation < self._least_generation:
                root.generation = self.new_generation()
                root.dirty = True
            if self.journal is not None and root.state is not RootState.BUILDING:
                self.journal.follow(root)
            self._roots[root_id] = root
        return root

    def root_ids(self) -> list[RootId]:
        """Return the ids of all roots, growing."""
        stored = {RootId(int.from_bytes(key, "big")) for key in self.pending.keys(Table.ROOTS)}
        return sorted(stored | set(self._roots))

    def new_root(self, lineage: RootId | None = None) -> Root:
        """Return a new root with an empty B+tree, of nobody and still being built."""
        root_id = self._next_root_id()
        return self._add_root(Root(self._empty_root(root_id, lineage)))

    def _empty_root(self, root_id: RootId, lineage: RootId | None) -> RootRecord:
        generation = self.new_generation()
        leaf = self.nodes.new_leaf(generation, [], [])
        return RootRecord(
            root_id,
            leaf.node_id,
            generation,
            Ino(1),
            RootState.BUILDING,
            RootKind.NONE,
            0,
            "",
            NO_SLOT,
            root_id if lineage is None else lineage,
            0,
            0,
            0,
            Ino(1),
            BlockId(self.payload.next_block),
        )

    def clone_root(self, source: Root) -> Root:
        """Return a new root that shares every node with *source*, of nobody and still built.

        O(1): no node is read or written. What either changes later, it copies.
        """
        clone = self._clone_as(self._next_root_id(), source)
        if self.journal is not None and self._is_known(source):
            self.journal.add(CLONED, clone.root_id, source.root_id)
            clone.base, clone.base_in = source.top, self.nodes.taking
        return clone

    def _clone_as(self, root_id: RootId, source: Root) -> Root:
        record = replace(
            source.record(),
            root_id=root_id,
            generation=self.new_generation(),
            state=RootState.BUILDING,
            kind=RootKind.NONE,
            agent_id=0,
            name="",
            slot=NO_SLOT,
            own=0,
            first_ino=source.next_ino,
            first_block=BlockId(self.payload.next_block),
        )
        self.freeze_root(source)
        return self._add_root(Root(record))

    def freeze_root(self, root: Root) -> None:
        """Make *root* copy every node that it has so far before it changes it."""
        if root.is_writable:
            root.generation = self.new_generation()
            root.dirty = True

    def adopt_nodes(self, root: Root, other: Root) -> None:
        """Let *root* show the tree of *other*, which has the same content, and share its nodes."""
        if self.journal is not None:
            if self._is_known(other):
                self.journal.add(CLONED, root.root_id, other.root_id)
                root.base, root.base_in = other.top, self.nodes.taking
            elif root.log is not None:
                for key, _, value in differing(self.nodes, root.top, other.top):
                    root.log.put(key, value)
            self.journal.touch(root)
        root.changed_in = self.nodes.taking
        root.top = other.top
        root.inodes, root.size = other.inodes, other.size
        self.freeze_root(root)
        self.freeze_root(other)

    def own_root(self, root: Root, kind: RootKind, agent_id: int, name: str, slot: Slot) -> None:
        """Say which directory of the mount shows *root*."""
        root.kind, root.agent_id, root.name, root.slot = kind, agent_id, name, slot
        root.dirty = True
        if self.journal is not None:
            self.journal.touch(root)

    def set_root_state(self, root: Root, state: RootState) -> None:
        """Set what may happen to the tree of *root*."""
        was_writable, was_passing = root.is_writable, root.is_passing
        root.state = state
        root.dirty = True
        if self.journal is not None:
            if root.log is None and state is not RootState.BUILDING:
                self._publish(root)
            self.journal.touch(root)
        if not was_writable:
            # Clones made while it could not change share its nodes.
            self.freeze_root(root)
        if root.is_passing or was_passing:
            self._list_unfinished(root.root_id, root.is_passing)

    def _is_known(self, root: Root) -> bool:
        """Return whether the journal, on top of the last epoch, leads to the tree of *root*."""
        return root.log is not None or root.changed_in <= self.saved

    def wants_commit(self, root: Root) -> bool:
        """Return whether *root*, which is being built, should be in an epoch before it shows.

        If it is not, its whole tree goes into the journal when it does.
        """
        return self.journal is not None and not self._is_known(root) and not self._has_base(root)

    def _has_base(self, root: Root) -> bool:
        # An epoch that was taken since may have any state in between, and replay begin with it.
        return root.base != NO_NODE and root.base_in == self.nodes.taking

    def _publish(self, root: Root) -> None:
        """Put the tree of a root that was being built into the journal, if no epoch has it."""
        assert self.journal is not None
        is_known = self._is_known(root)
        self.journal.follow(root)
        if is_known:
            return
        assert root.log is not None
        if self._has_base(root):
            for key, _, value in differing(self.nodes, root.base, root.top):
                root.log.put(key, value)
        else:
            self.journal.add(MADE, root.root_id)
            for key, value in items(self.nodes, root.top):
                root.log.put(key, value)

    def _list_unfinished(self, root_id: RootId, is_listed: bool) -> None:
        if is_listed:
            self.pending.put(Table.UNFINISHED, root_key(root_id), b"")
        else:
            self.pending.delete(Table.UNFINISHED, root_key(root_id))
        root = self._roots.get(root_id)
        if self.journal is not None and (root is None or root.log is not None):
            self.journal.add(UNFINISHED, root_id, is_listed)
            if root is not None:
                root.is_listed = is_listed

    def note_unfinished(self, root: Root) -> None:
        """Remember that *root* must be looked after when the store is opened again.

        It has inodes without a name, or is a head whose backup is due.
        """
        if not root.is_listed:
            self._list_unfinished(root.root_id, is_listed=True)

    def unfinished_roots(self) -> list[RootId]:
        """Return the roots that somebody must look after when the store is opened."""
        return [RootId(int.from_bytes(key, "big")) for key in self.pending.keys(Table.UNFINISHED)]

    def finish_root(self, root_id: RootId) -> None:
        """Note that nobody needs to look after the root any more."""
        self._list_unfinished(root_id, is_listed=False)

    def drop_root(self, root_id: RootId) -> None:
        """Delete a root. What only it reached is freed by gc."""
        root = self._roots.pop(root_id, None)
        key = root_key(root_id)
        self.pending.delete(Table.ROOTS, key)
        self.pending.delete(Table.UNFINISHED, key)
        if self.find_verified(root_id) is not None:
            self.forget_verified(root_id)
        if self.journal is not None:
            self.journal.drop(root_id, was_built=root is not None and root.log is None)
            if root is not None:
                root.log = None

    # For replay: roots as the journal names them.

    def remake_root(self, root_id: RootId) -> None:
        """Let the root have an empty tree, and be built; it is made if need be."""
        self._roots.pop(root_id, None)
        self._add_root(Root(self._empty_root(root_id, None)))

    def reclone_root(self, root_id: RootId, source: Root) -> None:
        """Let the root have the tree of *source*; if there is none, it is made, to be built."""
        if self.has_root(root_id):
            self.adopt_nodes(self.root(root_id), source)
        else:
            self._clone_as(root_id, source)

    def reset_root(self, record: RootRecord) -> None:
        """Set the fields of a root; its tree stays what it is."""
        root = self.root(record.root_id)
        was_writable = root.is_writable
        root.set(replace(record, top=root.top, generation=root.generation))
        if not was_writable:
            self.freeze_root(root)

    def _retire(self, root_id: RootId) -> None:
        root = self.find_root(root_id)
        if root is not None:
            self.set_root_state(root, RootState.SUPERSEDED)

    def slot_of(self, root_id: RootId) -> Slot:
        """Return the slot in which a root is shown."""
        return self.root(root_id).slot

    def new_slot(self) -> Slot:
        """Return a slot that was never used.

        Raises:
            NoSpaceError: all are used up.
        """
        if self.next_slot > MAX_SLOT:
            raise NoSpaceError("every slot for st_ino is used up")
        self.next_slot += 1
        return Slot(self.next_slot - 1)

    def new_generation(self) -> Generation:
        """Return a generation that no node has."""
        self.next_generation += 1
        return Generation(self.next_generation - 1)

    def _next_root_id(self) -> RootId:
        if self.next_root > MAX_ROOT_ID:
            raise NoSpaceError("every root id is used up")
        self.next_root += 1
        return RootId(self.next_root - 1)

    def _add_root(self, root: Root) -> Root:
        assert root.top != NO_NODE
        self._roots[root.root_id] = root
        root.changed_in = self.nodes.taking
        self.set_root_state(root, RootState.BUILDING)
        return root

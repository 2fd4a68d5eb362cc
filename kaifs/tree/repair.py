"""Mends a store: what can be derived is derived again, the rest is contained.

For whoever has the store alone: nothing of it is mounted. Each round mends what
`kaifs.tree.fsck` has found, makes it durable, and checks again. A sealed tree is
never changed: what is wrong inside one stays, and `verify` is what names the
version and sets it aside.
"""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from kaifs.base.errors import (
    BadLabelError,
    BadNameError,
    ChecksumMismatchError,
    KaifsError,
    StoreDamagedError,
)
from kaifs.base.label import parse_label
from kaifs.base.types import BlockId, NodeId, RootId, SegmentId, Slot
from kaifs.blocks.segments import (
    RECORD_BLOCK,
    SEGMENT_HEADER_SIZE,
    RecordHeader,
    record_size,
)
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.node import decode_node
from kaifs.meta.records import (
    AGENT,
    BLOCK,
    INODE,
    QUARANTINE,
    ROOT,
    SNAPSHOT,
    VERSION,
    AgentRecord,
    BlockRecord,
    QuarantineRecord,
    RootKind,
    RootState,
    SnapshotRecord,
)
from kaifs.store.payload import block_key
from kaifs.store.registry import NO_ROOT, check_agent_name, check_snapshot_name
from kaifs.store.roots import Root
from kaifs.store.store import Store
from kaifs.tree.btree import BTree
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import Finding, check_steps
from kaifs.tree.salvage import salvage

ROUNDS: Final = 5
"""How often to mend and check again; what is still found then stays."""
LOST_AGENT: Final = "lost-and-found"
"""The agent that gets trees of which nothing says whose they are."""
_TREE_NUMBERS: Final = frozenset({3, 5, 6, 7, 8, 9, 10, 11, 12, 18})


@dataclass(slots=True)
class Repaired:
    """What was done."""

    done: list[str] = field(default_factory=list)
    """A line for each thing that was mended."""
    left: list[Finding] = field(default_factory=list)
    """What cannot be mended."""


def repair_steps(store: Store) -> Generator[int, None, Repaired]:
    """Mend *store*; yields how many things were checked so far. Commits what it has mended.

    Raises:
        NoSpaceError, StoreIOError: the disk refuses; what was mended before is durable.
    """
    repaired = Repaired()
    before: set[str] = set()
    for _ in range(ROUNDS):
        repaired.left = yield from check_steps(store)
        found = {str(finding) for finding in repaired.left}
        if not found or found == before:
            break
        before = found
        _Round(store, repaired).mend()
        store.commit()
    return repaired


class _Round:
    """Mends what one check has found. Later steps lean on the earlier ones."""

    def __init__(self, store: Store, repaired: Repaired) -> None:
        self._store = store
        self._forest = Forest(store)
        self._findings = repaired.left
        self._done = repaired.done
        self._numbers = {finding.number for finding in repaired.left}

    def mend(self) -> None:
        """Do what can be done."""
        if 2 in self._numbers:
            self._mend_records()
        self._mend_counters()
        if self._numbers & {2, 4, 14, 15}:
            self._mend_blocks()
        if self._numbers & {2, 13, 16, 19, 20, 21}:
            self._mend_registry()
        self._mend_trees()
        if 22 in self._numbers:
            # The commit that follows has all of it.
            self._note("journal: begins anew after this epoch")

    def _note(self, text: str) -> None:
        self._done.append(text)

    # --- I2: records -----------------------------------------------------------------------

    def _mend_records(self) -> None:
        """Heal each record from the other copy of the index; set aside what no copy has."""
        database = self._store.database
        decoders = {
            Table.NODES: lambda record: decode_node(NodeId(0), record),
            Table.BLOCKS: BLOCK.decode,
            Table.ROOTS: ROOT.decode,
            Table.AGENTS: AGENT.decode,
            Table.VERSIONS: VERSION.decode,
            Table.SNAPSHOTS: SNAPSHOT.decode,
            Table.QUARANTINE: QUARANTINE.decode,
        }
        lost: dict[Table, dict[bytes, bytes | None]] = {}
        for table in Table:
            for key in database.keys(table):
                what = f"{table} {key.hex()}"
                fault = database.fault(table, key)
                try:
                    record = database.get(table, key)
                    if record is not None and table in decoders:
                        decoders[table](record)
                    if fault:
                        self._note(f"{what}: healed from the mirror")
                except StoreDamagedError as error:
                    lost.setdefault(table, {})[key] = None
                    self._note(f"{what}: removed, {error.subject}")
        # With it goes what was had from the mirror.
        database.write(lost)
        if database.mirror_fault():
            database.remake_mirror()
            self._note("mirror of the index: written anew")
        # What is in memory was read before.
        self._store.abandon()

    # --- I1: counters ------------------------------------------------------------------------

    def _mend_counters(self) -> None:
        store = self._store
        roots = [store.root(root_id) for root_id in store.root_ids()]
        behind = store.raise_counters(
            agent=_after(agent.agent_id for agent in self._agents()),
            root=_after(root.root_id for root in roots),
            generation=_after(root.generation for root in roots),
            slot=_after(root.slot for root in roots),
            node=_after(self._numbers_in(Table.NODES)),
            block=_after(self._numbers_in(Table.BLOCKS)),
            segment=_after(store.segments.sizes),
        )
        for name in behind:
            self._note(f"counter of {name}s: raised above every one in use")

    def _numbers_in(self, table: Table) -> list[int]:
        return [int.from_bytes(key, "big") for key in self._store.pending.keys(table)]

    def _agents(self) -> list[AgentRecord]:
        return [AGENT.decode(value) for _, value in self._records(Table.AGENTS)]

    def _records(self, table: Table) -> list[tuple[bytes, bytes]]:
        pending = self._store.pending
        return [(key, pending.get(table, key) or b"") for key in pending.keys(table)]

    # --- I4, I14, I15: payload ---------------------------------------------------------------

    def _mend_blocks(self) -> None:
        """Let the index lead to every block that a segment has, and count what is alive."""
        store, pending = self._store, self._store.pending
        self._mend_headers()
        places = self._scan_segments()
        known: dict[BlockId, BlockRecord] = {}
        for key, value in self._records(Table.BLOCKS):
            block = BlockId(int.from_bytes(key, "big"))
            record = BLOCK.decode(value)
            if record not in places.get(block, []) and block in places:
                record = places[block][-1]
                pending.put(Table.BLOCKS, key, BLOCK.encode(record))
                self._note(f"block {block}: found in segment {record.segment}")
            if block not in places and self._is_outside(record):
                pending.delete(Table.BLOCKS, key)
                self._note(f"block {block}: is lost with segment {record.segment}")
            else:
                known[block] = record
        # Among them are some that gc has freed: it will do so again.
        for block in sorted(places.keys() - known.keys()) if 4 in self._numbers else ():
            known[block] = places[block][-1]
            pending.put(Table.BLOCKS, block_key(block), BLOCK.encode(known[block]))
            self._note(f"block {block}: found in segment {known[block].segment}")
        digests: dict[bytes, list[BlockId]] = {}
        for block in sorted(known):
            digests.setdefault(known[block].checksum, []).append(block)
        self._set_digests({key: b"".join(map(block_key, ids)) for key, ids in digests.items()})
        self._count_live(known)
        store.payload.abandon()

    def _is_outside(self, record: BlockRecord) -> bool:
        size = self._store.segments.sizes.get(record.segment, 0)
        return record.offset + record_size(record.stored_size) > size

    def _mend_headers(self) -> None:
        """Write the headers of records anew whose payload is what the index says."""
        segments, payload = self._store.segments, self._store.payload
        for key, value in self._records(Table.BLOCKS):
            block, record = BlockId(int.from_bytes(key, "big")), BLOCK.decode(value)
            header = RecordHeader(
                block, record.codec, record.stored_size, record.size, record.checksum
            )
            try:
                if segments.read_header(record.segment, record.offset) == header:
                    continue
            except (ChecksumMismatchError, StoreDamagedError):
                pass
            with suppress(KaifsError):
                if record.segment in segments.sizes:
                    payload.read_stored(record)
                    segments.write_record_header(record.segment, record.offset, header)
                    self._note(f"block {block}: header of its record written anew")

    def _scan_segments(self) -> dict[BlockId, list[BlockRecord]]:
        """Return where the segments have each block, the newest place last."""
        places: dict[BlockId, list[BlockRecord]] = {}
        segments = self._store.segments
        for segment in sorted(segments.sizes):
            try:
                segments.check_header(segment)
            except KaifsError:
                segments.write_header(segment)
                self._note(f"segment {segment}: header written anew")
            for offset, header in self._headers(segment):
                if header.kind != RECORD_BLOCK:
                    continue
                record = BlockRecord(
                    segment,
                    offset,
                    header.stored_size,
                    header.size,
                    header.codec,
                    header.checksum,
                )
                if not self._is_outside(record):
                    places.setdefault(header.block, []).append(record)
        return places

    def _headers(self, segment: SegmentId) -> Iterable[tuple[int, RecordHeader]]:
        """Yield the records of a segment; beyond a damaged header those that the index knows."""
        segments = self._store.segments
        offset = SEGMENT_HEADER_SIZE
        try:
            for offset, header in segments.scan(segment, segments.sizes[segment]):
                yield offset, header
        except (ChecksumMismatchError, StoreDamagedError):
            for _, value in self._records(Table.BLOCKS):
                record = BLOCK.decode(value)
                if record.segment == segment and record.offset > offset:
                    try:
                        yield record.offset, segments.read_header(segment, record.offset)
                    except (ChecksumMismatchError, StoreDamagedError):
                        continue

    def _set_digests(self, wanted: dict[bytes, bytes]) -> None:
        pending = self._store.pending
        found = dict(self._records(Table.DIGESTS))
        # Which of several ids comes first is a matter of health, not of truth.
        changed = {
            key
            for key in found.keys() | wanted.keys()
            if _ids(found.get(key, b"")) != _ids(wanted.get(key, b""))
        }
        for key in changed:
            if key in wanted:
                pending.put(Table.DIGESTS, key, wanted[key])
            else:
                pending.delete(Table.DIGESTS, key)
        if changed:
            self._note(f"index of checksums: {len(changed)} made anew")

    def _count_live(self, known: dict[BlockId, BlockRecord]) -> None:
        live = dict.fromkeys(self._store.segments.sizes, 0)
        for record in known.values():
            if record.segment in live:
                live[record.segment] += record_size(record.stored_size)
        for segment, size in live.items():
            if self._store.payload.live.get(segment) != size:
                self._store.payload.live[segment] = size
                self._note(f"segment {segment}: live bytes counted anew")

    # --- I13, I16, I19: registry ---------------------------------------------------------------

    def _mend_registry(self) -> None:
        store = self._store
        owned: set[RootId] = set()
        for agent in self._agents():
            owned |= {self._mend_agent(agent), agent.superseded}
        agents = {agent.agent_id for agent in self._agents()}
        for key, value in self._records(Table.VERSIONS):
            version = VERSION.decode(value)
            root = store.root(version.root) if store.has_root(version.root) else None
            reason = ""
            if version.agent_id not in agents:
                reason = f"there is no agent {version.agent_id}"
            elif root is None:
                reason = "its tree is missing"
            elif version.root in owned or not _is_label(version.label):
                reason = "it cannot be a version"
            if reason or root is None:
                store.pending.delete(Table.VERSIONS, key)
                self._note(f"version {version.label}: its record is removed, {reason}")
                continue
            owned.add(version.root)
            self._own(root, RootKind.VERSION, version.agent_id, version.label)
            if root.state is not RootState.SEALED:
                store.set_root_state(root, RootState.SEALED)
                self._note(f"version {version.label}: its tree is sealed again")
        for key, value in self._records(Table.SNAPSHOTS):
            owned |= self._mend_snapshot(key, SNAPSHOT.decode(value), agents, owned)
        for key, value in self._records(Table.QUARANTINE):
            owned.add(self._mend_quarantined(key, QUARANTINE.decode(value), agents, owned))
        self._adopt_lost(owned - {NO_ROOT})
        self._drop_memos()
        self._mend_slots()
        self._mend_unfinished()

    def _mend_agent(self, agent: AgentRecord) -> RootId:
        store = self._store
        try:
            check_agent_name(agent.name)
        except BadNameError:
            named = replace(agent, name=f"lost-agent-{agent.agent_id}")
            store.pending.delete(Table.AGENTS, agent.name.encode())
            self._note(f"agent {agent.name!r}: is called {named.name} now")
            agent = named
            store.put_agent(agent)
        if not store.has_root(agent.head):
            base = store.find_version(agent.agent_id, agent.version)
            if base is not None and store.has_root(base.root):
                head = self._forest.clone(self._forest.tree(base.root)).root
                text = f"current is {base.label} again"
            else:
                head = self._forest.new_tree(0o755, agent.uid, agent.gid).root
                agent = replace(agent, version="")
                text = "current is empty"
            agent = replace(agent, head=head.root_id)
            store.put_agent(agent)
            self._note(f"agent {agent.name}: its tree was missing, {text}")
        root = store.root(agent.head)
        self._own(root, RootKind.HEAD, agent.agent_id, "")
        self._make_writable(root, f"agent {agent.name}")
        return root.root_id

    def _mend_snapshot(
        self, key: bytes, snapshot: SnapshotRecord, agents: set[int], owned: set[RootId]
    ) -> set[RootId]:
        """Return the roots that the snapshot names when it is in order, none if it is gone."""
        store = self._store
        if snapshot.agent_id not in agents or not store.has_root(snapshot.root):
            store.pending.delete(Table.SNAPSHOTS, key)
            self._note(f"snapshot {snapshot.name}: its record is removed, its tree is missing")
            return set()
        try:
            check_snapshot_name(snapshot.name)
        except BadNameError:
            store.pending.delete(Table.SNAPSHOTS, key)
            name = f"lost-snapshot-{snapshot.root}"
            self._note(f"snapshot {snapshot.name!r}: is called {name} now")
            snapshot = replace(snapshot, name=name)
        if snapshot.root in owned:
            clone = self._forest.clone(self._forest.tree(snapshot.root)).root
            snapshot = replace(snapshot, root=clone.root_id)
            self._note(f"snapshot {snapshot.name}: has a tree of its own now")
        if not store.has_root(snapshot.base):
            snapshot = replace(snapshot, base=snapshot.root)
        if not store.has_root(snapshot.tested):
            snapshot = replace(snapshot, tested=NO_ROOT, evidence=b"")
        root = store.root(snapshot.root)
        self._own(root, RootKind.SNAPSHOT, snapshot.agent_id, snapshot.name)
        if root.state not in (RootState.WRITABLE, RootState.SEALED):
            self._make_writable(root, f"snapshot {snapshot.name}")
        store.put_snapshot(snapshot)
        return {snapshot.root, snapshot.base, snapshot.tested}

    def _mend_quarantined(
        self, key: bytes, aside: QuarantineRecord, agents: set[int], owned: set[RootId]
    ) -> RootId:
        """Return the root that is in quarantine, or none."""
        store = self._store
        reason = ""
        if aside.agent_id not in agents:
            reason = f"there is no agent {aside.agent_id}"
        elif store.pending.get(Table.VERSIONS, key) is not None:
            reason = "there is a version with that label"
        elif aside.root in owned:
            reason = "its tree is another's"
        elif aside.root and not store.has_root(aside.root):
            reason = "its tree is missing"
        if reason:
            store.pending.delete(Table.QUARANTINE, key)
            self._note(f"quarantined {aside.label}: its record is removed, {reason}")
            return NO_ROOT
        if aside.root:
            root = store.root(aside.root)
            self._own(root, RootKind.QUARANTINED, aside.agent_id, aside.label)
            if root.state is not RootState.SEALED:
                store.set_root_state(root, RootState.SEALED)
                self._note(f"quarantined {aside.label}: its tree is sealed again")
        return aside.root

    def _drop_memos(self) -> None:
        store = self._store
        for key, _ in self._records(Table.VERIFIED):
            root_id = RootId(int.from_bytes(key, "big"))
            root = store.root(root_id) if store.has_root(root_id) else None
            if root is None or root.kind not in (RootKind.VERSION, RootKind.QUARANTINED):
                store.pending.delete(Table.VERIFIED, key)
                self._note(f"root {root_id}: what it was when it verified is forgotten")

    def _own(self, root: Root, kind: RootKind, agent_id: int, name: str) -> None:
        if (root.kind, root.agent_id, root.name) != (kind, agent_id, name):
            slot = root.slot or self._store.new_slot()
            self._store.own_root(root, kind, agent_id, name, slot)
            self._note(f"root {root.root_id}: says again whose it is")

    def _make_writable(self, root: Root, what: str) -> None:
        if root.state is not RootState.WRITABLE:
            was_built = root.state is RootState.BUILDING
            self._store.set_root_state(root, RootState.WRITABLE)
            if not was_built:
                self._note(f"{what}: its tree is writable again")

    def _adopt_lost(self, owned: set[RootId]) -> None:
        """Make a snapshot of each tree that nothing names and that is not going away anyway."""
        store = self._store
        for root_id in store.root_ids():
            root = store.root(root_id)
            if root_id in owned or root.is_passing:
                continue
            agent = store.agent_by_id(root.agent_id) or self._lost_agent()
            name = f"lost-root-{root_id}"
            store.own_root(root, RootKind.SNAPSHOT, agent.agent_id, name, store.new_slot())
            store.put_snapshot(
                SnapshotRecord(
                    agent.agent_id,
                    name,
                    root_id,
                    root_id,
                    "",
                    "ready",
                    root.state is RootState.SEALED,
                    agent.uid,
                    agent.gid,
                    store.clock.now_ns(),
                )
            )
            self._note(f"root {root_id}: nothing named it, it is {agent.name}/@snapshots/{name}")

    def _lost_agent(self) -> AgentRecord:
        store = self._store
        found = store.find_agent(LOST_AGENT)
        if found is not None:
            return found
        return store.add_agent(LOST_AGENT, 0, 0, self._forest.new_tree(0o700, 0, 0).root)

    def _mend_slots(self) -> None:
        store = self._store
        slots: set[Slot] = set()
        for root_id in store.root_ids():
            root = store.root(root_id)
            if root.is_passing or not root.slot:
                continue
            if root.slot in slots:
                root.slot = store.new_slot()
                root.dirty = True
                self._note(f"root {root_id}: has a slot of its own now")
            slots.add(root.slot)

    def _mend_unfinished(self) -> None:
        store = self._store
        listed = set(store.unfinished_roots())
        for root_id in store.root_ids():
            root = store.root(root_id)
            if root.is_passing and root_id not in listed:
                store.note_unfinished(root)
                self._note(f"root {root_id}: is listed as unfinished")

    # --- I3, I5 to I12, I18: trees ----------------------------------------------------------------

    def _mend_trees(self) -> None:
        store = self._store
        hurt = {finding.root for finding in self._findings if finding.number in _TREE_NUMBERS}
        for finding in self._findings:
            if finding.number == 16 and finding.root:
                store.note_unfinished(store.root(finding.root))
                self._note(f"root {finding.root}: is listed as unfinished")
        for root_id in sorted(hurt - {NO_ROOT}):
            if not store.has_root(root_id):
                continue
            root = store.root(root_id)
            if not root.is_writable:
                self._mend_counts(root)
                continue
            came = salvage(store, root, store.clock.now_ns())
            text = f"root {root_id}: its tree is made anew"
            if came.found:
                text += f", {came.found} inodes without a name are in lost+found"
            if came.lost_nodes:
                text += f", {came.lost_nodes} nodes were unreadable"
            self._note(text)

    def _mend_counts(self, root: Root) -> None:
        """Count anew what a sealed tree has: the counts are beside the tree, not in it."""
        numbers = {one.number for one in self._findings if one.root == root.root_id}
        if numbers != {12}:
            return
        inodes = size = 0
        for key, value in BTree(self._store.nodes, root).scan(b"", b"\xff" * 9):
            _, kind, _ = keys.split_key(key)
            if kind == keys.INODE:
                inode = INODE.decode(value)
                inodes += 1
                size += inode.size if stat.S_ISREG(inode.mode) else 0
        root.inodes, root.size, root.dirty = inodes, size, True
        self._note(f"root {root.root_id}: its inodes and bytes are counted anew")


def _after(used: Iterable[int]) -> int:
    return max(used, default=0) + 1


def _ids(value: bytes) -> list[bytes]:
    return sorted(value[start : start + 8] for start in range(0, len(value), 8))


def _is_label(text: str) -> bool:
    try:
        parse_label(text)
    except BadLabelError:
        return False
    return True

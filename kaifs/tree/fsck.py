"""The numbered invariants of a store, and the checker of each.

docs/INVARIANTS.md explains them; a finding names the one that is broken. The
first tree of a lineage is checked whole, each later one where it differs from
one that was checked: O(first + changes). Payload is not read: that is `verify`.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, TypeVar

from kaifs.base.digest import SHA256_SIZE
from kaifs.base.errors import (
    BadLabelError,
    BadNameError,
    ChecksumMismatchError,
    FormatError,
    KaifsError,
    StoreDamagedError,
)
from kaifs.base.label import parse_label
from kaifs.base.types import NO_NODE, TOP_INO, BlockId, Ino, NodeId, RootId, SegmentId
from kaifs.blocks.segments import record_size
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.node import MAX_BYTES, MAX_KEYS, Branch, Leaf, decode_node
from kaifs.meta.records import (
    AGENT,
    BLOCK,
    COUNTERS,
    INODE,
    QUARANTINE,
    ROOT,
    SEGMENT,
    SNAPSHOT,
    VERIFIED,
    VERSION,
    BlockRecord,
    InodeRecord,
    RootKind,
    RootState,
    decode_dentry,
    decode_extent,
    encode_dir_index,
)
from kaifs.store.differing import differing
from kaifs.store.payload import block_key, split_ids
from kaifs.store.registry import NO_ROOT, check_agent_name, check_snapshot_name
from kaifs.store.roots import Root
from kaifs.store.store import COUNTERS_KEY, Store
from kaifs.tree.btree import BTree

T = TypeVar("T")

INVARIANTS: Final = {
    1: "every id in use is smaller than the counter that gives the next one",
    2: "every record has its checksum and can be decoded",
    3: "every node that a root reaches exists, and is not of a later generation",
    4: "every block that an extent names is in the index, inside the committed part of a segment",
    5: "keys of a B+tree ascend within their bounds, leaves are equally deep, no node is overfull",
    6: "dentries, directory positions and links say the same, and lead to inodes that exist",
    7: "nlink counts names, a directory's 2 and its subdirectories; its size counts its entries",
    8: "extents do not overlap, lie inside their block, and end at or before the file's size",
    9: "an inode's allocated bytes are those of its extents",
    10: "inode numbers and directory positions are smaller than the next ones",
    11: "an inode without a name is listed as an orphan, and only in a tree that can change",
    12: "a root counts its inodes and the bytes of its regular files",
    13: "agents, versions and snapshots name roots of their own, in the right state and slot",
    14: "the digest index leads to every block, and to blocks with that checksum only",
    15: "segments have their header and their committed size, and count their live bytes",
    16: "what must be looked after when the store is opened is listed as unfinished",
    17: "every regular file of a version has its SHA-256",
    18: "the top is a directory, every key belongs to an inode, every inode has a known type",
    19: "names and labels are valid, and no two labels differ in build metadata only",
    20: "a version in quarantine has its label alone, and its tree is set aside with it",
    21: "what is remembered of a verification is of a version that is there",
    22: "the journal leads from the last epoch to everything that was flushed since",
}

STEP: Final = 1000
"""Things checked between two yields."""
BLOCK_STEP: Final = 50
"""The same for blocks, each of which may be a read from the disk."""
ATTEMPTS: Final = 3
"""How often blocks are counted in steps, until none of them moves meanwhile."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant."""

    number: int
    """Which one: a key of `INVARIANTS`."""
    subject: str
    """Where: a record, a root, an inode."""
    text: str
    """What is wrong."""
    root: RootId = NO_ROOT
    """Whose tree it is in; 0 if it is in none."""

    def __str__(self) -> str:
        return f"I{self.number} {self.subject}: {self.text}"


def check(store: Store) -> list[Finding]:
    """Return everything that is wrong with an open store. Changes nothing that counts."""
    return _result(check_steps(store))


def _result(steps: Generator[int, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def check_steps(store: Store) -> Generator[int, None, list[Finding]]:
    """Check *store* in small steps; yields how many things were checked so far.

    Others may change the store between the steps: what is checked are clones.
    """
    return (yield from _Check(store).run())


class _Check:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._findings: list[Finding] = []
        self._checked = 0
        self._heights: dict[NodeId, int] = {}
        """Of the nodes that were checked: levels below each."""
        self._blocks = _Blocks(0)
        self._block_stop = 0
        """Blocks from here on were written since the blocks were looked at."""
        self._due: set[RootId] = set()

    def _find(self, number: int, subject: str, text: str, root: RootId = NO_ROOT) -> None:
        self._findings.append(Finding(number, subject, text, root))

    def _step(self) -> Iterator[int]:
        self._checked += 1
        if self._checked % STEP == 0:
            yield self._checked

    def run(self) -> Generator[int, None, list[Finding]]:
        """Check everything."""
        if not (yield from self._check_records()):
            # Checks that lean on records would only stumble over the same ones.
            return self._findings
        yield from self._check_digests()
        yield from self._check_blocks()
        self._check_tail()
        yield self._checked
        self._check_registry()
        if not any(finding.number == 1 for finding in self._findings):
            # Clones made with ids that are in use already would do harm.
            yield from self._check_trees()
        return self._findings

    # --- records -----------------------------------------------------------------------

    def _check_records(self) -> Generator[int, None, bool]:
        """Return whether every record can be read, from one copy of the index or the other."""
        is_readable = True
        database = self._store.database
        decoders: dict[Table, Callable[[bytes], object]] = {
            Table.NODES: partial(decode_node, NodeId(0)),
            Table.BLOCKS: BLOCK.decode,
            Table.SEGMENTS: SEGMENT.decode,
            Table.ROOTS: ROOT.decode,
            Table.AGENTS: AGENT.decode,
            Table.VERSIONS: VERSION.decode,
            Table.SNAPSHOTS: SNAPSHOT.decode,
            Table.QUARANTINE: QUARANTINE.decode,
            Table.VERIFIED: VERIFIED.decode,
        }
        for table in Table:
            decode = decoders.get(table)
            start = b""
            while found := database.scan(table, start, STEP):
                for key in found:
                    if fault := database.fault(table, key):
                        self._find(2, f"{table} {key.hex()}", f"main copy: {fault}")
                    try:
                        record = database.get(table, key)
                        if record is not None and decode is not None:
                            decode(record)
                        elif record is not None and (table, key) == (Table.META, COUNTERS_KEY):
                            COUNTERS.decode(record)
                    except StoreDamagedError as error:
                        is_readable = False
                        self._find(2, f"{table} {key.hex()}", error.subject)
                    self._checked += 1
                start = found[-1] + b"\0"
                yield self._checked
        if fault := database.mirror_fault():
            self._find(2, "mirror", fault)
        return is_readable

    # --- payload -----------------------------------------------------------------------

    def _records(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        for key in self._store.pending.keys(table):
            value = self._store.pending.get(table, key)
            assert value is not None, "no step since the keys were listed"
            yield key, value

    def _check_digests(self) -> Iterator[int]:
        pending, database = self._store.pending, self._store.database
        # First what a commit may put behind the scan.
        for key in pending.unwritten(Table.DIGESTS):
            self._check_digest(key)
        start = b""
        while found := database.scan(Table.DIGESTS, start, STEP):
            for key in found:
                self._check_digest(key)
            start = found[-1] + b"\0"
            yield self._checked

    def _check_digest(self, key: bytes) -> None:
        for block in split_ids(self._store.pending.get(Table.DIGESTS, key)):
            record = self._block(block)
            if record is None:
                self._find(14, f"digest {key.hex()}", f"block {block} is not in the index")
            elif record.checksum != key:
                self._find(14, f"digest {key.hex()}", f"block {block} has another checksum")

    def _block(self, block: BlockId) -> BlockRecord | None:
        value = self._store.pending.get(Table.BLOCKS, block_key(block))
        return None if value is None else BLOCK.decode(value)

    def _check_blocks(self) -> Iterator[int]:
        """Check each block, and that segments count the bytes of all."""
        payload = self._store.payload
        stop = self._block_stop = payload.next_block
        blocks = self._blocks = _Blocks(stop)
        for number in range(1, stop):
            block = BlockId(number)
            record = self._block(block)
            if record is not None:
                blocks.add(block, record)
                self._check_block(block, record)
            if number % BLOCK_STEP == 0:
                self._checked += BLOCK_STEP
                yield self._checked
        strays = self._store.database.scan(Table.BLOCKS, block_key(BlockId(payload.next_block)))
        if strays:
            self._find(
                1,
                f"block {int.from_bytes(strays[-1], 'big')}",
                "the counter of blocks is behind it",
            )
        for _ in range(ATTEMPTS):
            shifts = payload.shifts
            live = yield from self._live_bytes(stop)
            if payload.shifts == shifts:
                break
        else:
            # Without a step in between.
            live = _result(self._live_bytes(stop))
        # Nor here: what was written meanwhile.
        for number in range(stop, payload.next_block):
            self._count_live(live, self._block(BlockId(number)))
        for key in strays:
            self._count_live(live, self._block(BlockId(int.from_bytes(key, "big"))))
        self._check_segments(live)

    def _live_bytes(self, stop: int) -> Generator[int, None, dict[SegmentId, int]]:
        """Return what blocks below *stop* take in each segment, by the index."""
        live = dict.fromkeys(self._store.segments.sizes, 0)
        for number in range(1, stop):
            self._count_live(live, self._block(BlockId(number)))
            if number % STEP == 0:
                yield self._checked
        return live

    def _count_live(self, live: dict[SegmentId, int], record: BlockRecord | None) -> None:
        if record is not None and self._is_inside(record):
            live[record.segment] = live.get(record.segment, 0) + record_size(record.stored_size)

    def _is_inside(self, record: BlockRecord) -> bool:
        size = self._store.segments.sizes.get(record.segment)
        return size is not None and record.offset + record_size(record.stored_size) <= size

    def _check_block(self, block: BlockId, record: BlockRecord) -> None:
        """Check that a block is where the index has it, and that it can be found by its digest."""
        digest = self._store.pending.get(Table.DIGESTS, record.checksum)
        if block not in split_ids(digest):
            self._find(14, f"block {block}", "no digest leads to it")
        if not self._is_inside(record):
            self._find(4, f"block {block}", f"lies outside segment {record.segment}")
            return
        try:
            header = self._store.segments.read_header(record.segment, record.offset)
        except (ChecksumMismatchError, StoreDamagedError) as error:
            self._find(4, f"block {block}", error.subject)
            return
        if (header.block, header.checksum) != (block, record.checksum):
            self._find(4, f"block {block}", "the segment has another block there")

    def _check_segments(self, live: dict[SegmentId, int]) -> None:
        store = self._store
        for segment, size in store.segments.sizes.items():
            try:
                store.segments.check_header(segment)
            except (StoreDamagedError, FormatError) as error:
                self._find(15, f"segment {segment}", error.subject)
            alive = live.get(segment, 0)
            if alive != store.payload.live.get(segment):
                text = f"{alive} bytes are alive, not {store.payload.live.get(segment)}"
                self._find(15, f"segment {segment} of {size} bytes", text)
            if segment >= store.next_segment:
                self._find(1, f"segment {segment}", "the counter of segments is behind it")

    def _check_tail(self) -> None:
        try:
            self._store.check_tail()
        except (ChecksumMismatchError, StoreDamagedError, FormatError) as error:
            self._find(22, "journal", error.subject)

    # --- registry ----------------------------------------------------------------------

    def _check_registry(self) -> None:
        # From the records, not by name: a bad name is not found by it.
        owned: dict[RootId, str] = {}
        names: dict[int, str] = {}
        for _, value in self._records(Table.AGENTS):
            agent = AGENT.decode(value)
            subject = f"agent {agent.name}"
            names[agent.agent_id] = agent.name
            self._check_name(subject, agent.name, agent=True)
            self._own(owned, subject, agent.head, RootKind.HEAD, agent.agent_id, "")
            if agent.agent_id >= self._store.next_agent:
                self._find(1, subject, "the counter of agents is behind it")
            if agent.superseded:
                # Its backup is due: a head that still has the slot, but is shown no more.
                owned[agent.superseded] = subject
                self._due.add(agent.superseded)
        self._check_versions(owned, names)
        self._check_quarantine(owned, names)
        self._check_verified()
        for _, value in self._records(Table.SNAPSHOTS):
            snapshot = SNAPSHOT.decode(value)
            where = f"snapshot {names.get(snapshot.agent_id)}/@snapshots/{snapshot.name}"
            if snapshot.agent_id not in names:
                self._find(13, where, f"there is no agent {snapshot.agent_id}")
            self._check_name(where, snapshot.name, agent=False)
            kind = RootKind.SNAPSHOT
            self._own(owned, where, snapshot.root, kind, snapshot.agent_id, snapshot.name)
            owned.setdefault(snapshot.base, where)
            owned.setdefault(snapshot.tested, where)
        self._check_roots(owned)

    def _check_versions(self, owned: dict[RootId, str], names: dict[int, str]) -> None:
        labels: dict[tuple[int, str], str] = {}
        for _, value in self._records(Table.VERSIONS):
            version = VERSION.decode(value)
            where = f"version {names.get(version.agent_id)}@{version.label}"
            if version.agent_id not in names:
                self._find(13, where, f"there is no agent {version.agent_id}")
            try:
                core = version.agent_id, parse_label(version.label).core
            except BadLabelError:
                self._find(19, where, "no valid label")
            else:
                if core in labels:
                    self._find(19, where, f"differs from {labels[core]} in build metadata only")
                labels[core] = version.label
            kind = RootKind.VERSION
            self._own(owned, where, version.root, kind, version.agent_id, version.label)

    def _check_quarantine(self, owned: dict[RootId, str], names: dict[int, str]) -> None:
        for key, value in self._records(Table.QUARANTINE):
            record = QUARANTINE.decode(value)
            where = f"quarantined {names.get(record.agent_id)}@{record.label}"
            if record.agent_id not in names:
                self._find(20, where, f"there is no agent {record.agent_id}")
            if self._store.pending.get(Table.VERSIONS, key) is not None:
                self._find(20, where, "there is a version with that label")
            if record.version and VERSION.decode(record.version).root != record.root:
                self._find(20, where, f"root {record.root} is not that of its version")
            if not record.root:
                continue
            if record.root in owned:
                self._find(20, where, f"root {record.root} is also that of {owned[record.root]}")
            owned[record.root] = where
            root = self._store.root(record.root) if self._store.has_root(record.root) else None
            expected = (RootKind.QUARANTINED, RootState.SEALED, record.agent_id, record.label)
            if root is None or (root.kind, root.state, root.agent_id, root.name) != expected:
                self._find(20, where, f"root {record.root} is missing, or not set aside")

    def _check_verified(self) -> None:
        for key, _ in self._records(Table.VERIFIED):
            root_id = RootId(int.from_bytes(key, "big"))
            root = self._store.root(root_id) if self._store.has_root(root_id) else None
            if root is None or root.kind not in (RootKind.VERSION, RootKind.QUARANTINED):
                self._find(21, f"verified root {root_id}", "no version has it")

    def _check_name(self, subject: str, name: str, *, agent: bool) -> None:
        try:
            check_agent_name(name) if agent else check_snapshot_name(name)
        except BadNameError:
            self._find(19, subject, "no valid name")

    def _own(
        self,
        owned: dict[RootId, str],
        subject: str,
        root_id: RootId,
        kind: RootKind,
        agent_id: int,
        name: str,
    ) -> None:
        if root_id in owned:
            self._find(13, subject, f"root {root_id} is also that of {owned[root_id]}")
        owned[root_id] = subject
        if not self._store.has_root(root_id):
            self._find(13, subject, f"root {root_id} is missing")
            return
        root = self._store.root(root_id)
        if (root.kind, root.agent_id, root.name) != (kind, agent_id, name):
            self._find(13, subject, f"root {root_id} says that it is another's")
        allowed = {
            RootKind.HEAD: (RootState.WRITABLE,),
            RootKind.VERSION: (RootState.SEALED,),
            RootKind.SNAPSHOT: (RootState.WRITABLE, RootState.SEALED),
        }
        if root.state not in allowed[kind]:
            self._find(13, subject, f"root {root_id} is {root.state.name.lower()}")

    def _check_roots(self, owned: dict[RootId, str]) -> None:
        store = self._store
        slots: dict[int, RootId] = {}
        unfinished = set(store.unfinished_roots())
        for root_id in store.root_ids():
            root = store.root(root_id)
            subject = f"root {root_id}"
            passing = root.is_passing
            if passing and root_id not in unfinished:
                self._find(16, subject, f"{root.state.name.lower()}, but not listed")
            if not passing and root_id not in owned:
                self._find(13, subject, "nothing names it")
            if root.slot and not passing and root_id not in self._due:
                if root.slot in slots:
                    self._find(13, subject, f"has the slot of root {slots[root.slot]}")
                slots[root.slot] = root_id
            if root.generation >= store.next_generation:
                self._find(1, subject, "the counter of generations is behind it")
            if root.slot >= store.next_slot:
                self._find(1, subject, "the counter of slots is behind it")
            if root_id >= store.next_root:
                self._find(1, subject, "the counter of roots is behind it")

    # --- trees -------------------------------------------------------------------------

    def _check_trees(self) -> Iterator[int]:
        store = self._store
        checked: dict[RootId, _TreeCheck] = {}
        clones: list[RootId] = []
        try:
            for root_id in store.root_ids():
                if not store.has_root(root_id):
                    continue
                root = store.root(root_id)
                frozen = root
                if root.is_writable:
                    frozen = store.clone_root(root)
                    clones.append(frozen.root_id)
                try:
                    yield from self._check_nodes(root_id, frozen)
                    base = checked.get(root.lineage)
                    tree = _TreeCheck(
                        self._find, self._blocks, self._block_stop, store, root_id, root, frozen
                    )
                    for _ in tree.check_against(base):
                        yield from self._step()
                except KaifsError as error:
                    self._find(3, f"root {root_id}", error.subject, root_id)
                else:
                    checked[root.lineage] = tree
        finally:
            for clone in clones:
                store.drop_root(clone)

    def _check_nodes(self, root_id: RootId, root: Root) -> Iterator[int]:
        """Check the shape of the nodes that no other root has shown yet."""
        subject = f"root {root_id}"
        depths: set[int] = set()
        # Of each node the first one below it: the nodes themselves are most of what a store has.
        seen: dict[NodeId, NodeId] = {}
        stack: list[tuple[NodeId, bytes, bytes | None, int]] = [(root.top, b"", None, 0)]
        while stack:
            node_id, low, high, depth = stack.pop()
            if node_id in self._heights:
                depths.add(depth + self._heights[node_id])
                continue
            where = f"node {node_id}"
            if node_id in seen:
                self._find(5, where, f"is twice in {subject}", root_id)
                continue
            node = self._store.nodes.peek(node_id)
            seen[node_id] = NO_NODE if isinstance(node, Leaf) else node.children[0]
            yield from self._step()
            if node_id >= self._store.nodes.next_node:
                self._find(1, where, "the counter of nodes is behind it")
            if node.generation > root.generation:
                self._find(3, where, f"is of a later generation than {subject}", root_id)
            self._check_keys(root_id, node, low, high)
            if isinstance(node, Leaf):
                depths.add(depth)
                if not node.keys and node_id != root.top:
                    self._find(5, where, "is an empty leaf", root_id)
                continue
            bounds: list[bytes | None] = [*node.keys[1:], high]
            for index, child in enumerate(node.children):
                lower = low if index == 0 else node.keys[index]
                stack.append((child, lower, bounds[index], depth + 1))
        if len(depths) > 1:
            self._find(5, subject, f"leaves are {sorted(depths)} deep", root_id)
        # A node is seen before those below it.
        for node_id, first in reversed(seen.items()):
            self._heights[node_id] = self._heights.get(first, 0) + 1 if first else 0

    def _check_keys(
        self, root_id: RootId, node: Leaf | Branch, low: bytes, high: bytes | None
    ) -> None:
        where = f"node {node.node_id}"
        # The first key of a branch bounds nothing and may be anything.
        own = node.keys if isinstance(node, Leaf) else node.keys[1:]
        if any(left >= right for left, right in pairwise(own)):
            self._find(5, where, "keys do not ascend", root_id)
        if own and (own[0] < low or (high is not None and own[-1] >= high)):
            self._find(5, where, "a key is outside the bounds", root_id)
        if len(node.keys) > MAX_KEYS or (node.weight > MAX_BYTES and len(node.keys) > 1):
            self._find(5, where, f"{len(node.keys)} keys, {node.weight} bytes", root_id)


class _Blocks:
    """What trees must know of every block, by id, in an array: 8 bytes each.

    Ids are dense but for what gc has freed.
    """

    def __init__(self, stop: int) -> None:
        """Have room for ids below *stop*."""
        self._sizes = array("q", [-1]) * stop

    def add(self, block: BlockId, record: BlockRecord) -> None:
        """Take in a block."""
        self._sizes[block] = record.size

    def size(self, block: BlockId) -> int | None:
        """Return the bytes of a block's payload, None if the index does not have it."""
        size = self._sizes[block] if block < len(self._sizes) else -1
        return None if size < 0 else size


class _TreeCheck:
    """Checks the file system in one tree."""

    def __init__(
        self,
        find: Callable[[int, str, str, RootId], None],
        blocks: _Blocks,
        block_stop: int,
        store: Store,
        root_id: RootId,
        root: Root,
        frozen: Root,
    ) -> None:
        self._report = find
        self._blocks = blocks
        self._block_stop = block_stop
        self._store = store
        self._root_id = root_id
        self._root = root
        self._frozen = frozen
        self._btree = BTree(store.nodes, frozen)
        self._without_digest: set[Ino] = set()
        """Regular files whose SHA-256 is not known."""

    def _find(self, number: int, ino: Ino | None, text: str) -> None:
        subject = f"root {self._root_id}"
        if ino is not None:
            subject += f" inode {ino}"
        self._report(number, subject, text, self._root_id)

    def check_against(self, base: _TreeCheck | None) -> Iterator[None]:
        """Check what differs from *base*, a finished check of the same lineage, or everything."""
        inodes = size = 0
        if base is None:
            changed: Iterator[Ino] = self._all_inos()
            old = None
        else:
            old, top = base._btree, base._frozen.top
            pairs = differing(self._store.nodes, top, self._frozen.top)
            changed = iter(dict.fromkeys(_concerned(key) for key, _, _ in pairs))
            inodes, size = base._frozen.inodes, base._frozen.size
            self._without_digest |= base._without_digest
        for ino in changed:
            yield
            before = None if old is None else _inode(old, ino)
            after = _inode(self._btree, ino)
            inodes += (after is not None) - (before is not None)
            size += _file_size(after) - _file_size(before)
            self._without_digest.discard(ino)
            if after is None:
                self._check_absent(ino)
            else:
                self._check_inode(ino, after)
            if old is not None:
                self._check_lost_links(ino, old)
        self._check_whole(inodes, size)

    def _check_whole(self, inodes: int, size: int) -> None:
        """Check what holds for the tree, whichever part of it was looked at."""
        self._check_orphan_list()
        if self._root.kind is RootKind.VERSION:
            for ino in sorted(self._without_digest):
                self._find(17, ino, "SHA-256 is missing")
        last = self._btree.floor(keys.inode_key(Ino(1 << 63)))
        if last is not None and keys.split_key(last[0])[0] >= self._frozen.next_ino:
            ino = keys.split_key(last[0])[0]
            self._find(10, ino, f"the next one is {self._frozen.next_ino}")
        if (inodes, size) != (self._frozen.inodes, self._frozen.size):
            counted = f"{self._frozen.inodes} inodes and {self._frozen.size} bytes"
            self._find(12, None, f"{inodes} inodes and {size} bytes, not {counted}")
        top = _inode(self._btree, TOP_INO)
        if top is None or not stat.S_ISDIR(top.mode):
            self._find(18, TOP_INO, "the top is no directory")

    def _all_inos(self) -> Iterator[Ino]:
        last = keys.NO_INO
        for key, _ in self._btree.scan(keys.inode_key(TOP_INO), b"\xff" * 9):
            ino, _, _ = keys.split_key(key)
            if ino != last:
                last = ino
                yield ino

    def _check_absent(self, ino: Ino) -> None:
        for _ in self._btree.scan(keys.inode_key(ino), keys.inode_key(Ino(ino + 1))):
            self._find(18, ino, "has keys but no inode")
            break

    def _check_lost_links(self, ino: Ino, old: BTree) -> None:
        """Check that the entries of names that *ino* has no more are gone too."""
        for parent, name in _links(old, ino):
            value = self._btree.get(keys.dentry_key(parent, name))
            still_leads_here = value is not None and decode_dentry(value)[0] == ino
            if still_leads_here and self._btree.get(keys.link_key(ino, parent, name)) is None:
                self._find(6, parent, f"entry {name!r}: inode {ino} does not know that name")

    def _check_inode(self, ino: Ino, inode: InodeRecord) -> None:
        if stat.S_IFMT(inode.mode) not in KNOWN_TYPES:
            self._find(18, ino, f"mode {inode.mode:o} has no known type")
        if stat.S_ISREG(inode.mode) and len(inode.sha256) != SHA256_SIZE:
            self._without_digest.add(ino)
        subdirectories = self._check_entries(ino, inode)
        self._check_links(ino, inode, subdirectories)
        self._check_extents(ino, inode)

    def _check_entries(self, ino: Ino, inode: InodeRecord) -> int:
        dentries = list(self._btree.scan(*_range(ino, keys.DENTRY)))
        positions = dict(self._btree.scan(*_range(ino, keys.DIR_INDEX)))
        if not stat.S_ISDIR(inode.mode):
            if dentries or positions:
                self._find(18, ino, "has entries, but is no directory")
            return 0
        subdirectories = 0
        for key, value in dentries:
            name = key[keys.PREFIX_SIZE :]
            child, seq, kind = decode_dentry(value)
            if seq >= inode.next_seq:
                self._find(10, ino, f"position {seq} of {name!r}, the next one is {inode.next_seq}")
            if positions.pop(keys.dir_index_key(ino, seq), b"") != encode_dir_index(
                child, kind, name
            ):
                self._find(6, ino, f"entry {name!r} has no position {seq}")
            target = _inode(self._btree, child)
            if target is None:
                self._find(6, ino, f"entry {name!r} leads to inode {child}, which is missing")
                continue
            if stat.S_IFMT(target.mode) >> 12 != kind:
                self._find(6, ino, f"entry {name!r} has the wrong type")
            if self._btree.get(keys.link_key(child, ino, name)) is None:
                self._find(6, ino, f"entry {name!r}: inode {child} does not know that name")
            subdirectories += stat.S_ISDIR(target.mode)
        for key in positions:
            self._find(6, ino, f"position {keys.number_at_end(key)} has no entry")
        if inode.size != len(dentries):
            self._find(7, ino, f"size {inode.size}, but {len(dentries)} entries")
        return subdirectories

    def _check_links(self, ino: Ino, inode: InodeRecord, subdirectories: int) -> None:
        links = _links(self._btree, ino)
        for parent, name in links:
            value = self._btree.get(keys.dentry_key(parent, name))
            if value is None or decode_dentry(value)[0] != ino:
                self._find(6, ino, f"is not {name!r} in inode {parent}")
            elif decode_dentry(value)[2] != stat.S_IFMT(inode.mode) >> 12:
                self._find(6, ino, f"entry {name!r} in inode {parent} has the wrong type")
        is_orphan = self._btree.get(keys.orphan_key(ino)) is not None
        if is_orphan != (inode.nlink == 0):
            self._find(11, ino, f"nlink {inode.nlink}, listed as an orphan: {is_orphan}")
        if stat.S_ISDIR(inode.mode):
            names = 0 if ino == TOP_INO or is_orphan else 1
            expected = 0 if is_orphan else 2 + subdirectories
            if len(links) != names or inode.nlink != expected:
                self._find(7, ino, f"directory has {len(links)} names, nlink {inode.nlink}")
        elif inode.nlink != len(links):
            self._find(7, ino, f"nlink {inode.nlink}, but {len(links)} names")

    def _check_extents(self, ino: Ino, inode: InodeRecord) -> None:
        stop = allocated = 0
        for key, value in self._btree.scan(*_range(ino, keys.EXTENT)):
            extent = decode_extent(keys.number_at_end(key), value)
            where = f"extent at {extent.offset}"
            if extent.offset < stop or extent.length < 1:
                self._find(8, ino, f"{where} overlaps the one before, or is empty")
            stop = max(stop, extent.stop)
            allocated += extent.length
            if extent.block:
                size = self._blocks.size(extent.block)
                if size is None:
                    if extent.block < self._block_stop:
                        self._find(4, ino, f"{where}: block {extent.block} is missing")
                elif extent.block_offset + extent.length > size:
                    self._find(8, ino, f"{where} reaches past block {extent.block}")
        has_content = stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode)
        if stop and (not has_content or stop > inode.size):
            self._find(8, ino, f"extents end at {stop}, the file at {inode.size}")
        if stat.S_ISREG(inode.mode) and allocated != inode.allocated:
            self._find(9, ino, f"{allocated} bytes are covered, not {inode.allocated}")
        if stat.S_ISLNK(inode.mode) and allocated != inode.size:
            self._find(9, ino, f"target has {allocated} bytes, not {inode.size}")

    def _check_orphan_list(self) -> None:
        orphans = list(self._btree.scan(*_range(keys.NO_INO, keys.ORPHAN)))
        for key, _ in orphans:
            ino = Ino(keys.number_at_end(key))
            inode = _inode(self._btree, ino)
            if inode is None or inode.nlink:
                self._find(11, ino, "is listed as an orphan, but is none")
            elif self._root.state is RootState.SEALED:
                self._find(11, ino, "is an orphan in a sealed tree")
        if orphans and self._root_id not in self._store.unfinished_roots():
            self._find(16, None, "has orphans, but is not listed")


KNOWN_TYPES: Final = frozenset(
    {
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    }
)


def _range(ino: Ino, kind: int) -> tuple[bytes, bytes]:
    return keys.prefix(ino, kind), keys.prefix(ino, kind + 1)


def _concerned(key: bytes) -> Ino:
    """Return the inode that *key* says something of."""
    ino, _, _ = keys.split_key(key)
    return Ino(keys.number_at_end(key)) if ino == keys.NO_INO else ino


def _inode(btree: BTree, ino: Ino) -> InodeRecord | None:
    value = btree.get(keys.inode_key(ino))
    return None if value is None else INODE.decode(value)


def _file_size(inode: InodeRecord | None) -> int:
    return inode.size if inode is not None and stat.S_ISREG(inode.mode) else 0


def _links(btree: BTree, ino: Ino) -> list[tuple[Ino, bytes]]:
    found = []
    for key, _ in btree.scan(*_range(ino, keys.LINK)):
        rest = key[keys.PREFIX_SIZE :]
        found.append((Ino(int.from_bytes(rest[:8], "big")), rest[8:]))
    return found

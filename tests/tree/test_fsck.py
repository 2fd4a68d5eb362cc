"""For each invariant a store in which exactly that one is broken, and the checker that sees it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from kaifs.base.types import TOP_INO, BlockId, Generation, Ino, RootId
from kaifs.blocks.segments import record_size
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.node import MAX_BYTES, MAX_KEYS, Branch, Leaf
from kaifs.meta.records import (
    QUARANTINE,
    SNAPSHOT,
    VERSION,
    BlockRecord,
    Extent,
    QuarantineRecord,
    RootState,
    SnapshotRecord,
    VerifiedRecord,
    encode_dentry,
    encode_dir_index,
    encode_extent,
)
from kaifs.store.nodes import node_key
from kaifs.store.payload import block_key
from kaifs.store.store import INDEX_FOLDER, SEGMENT_FOLDER, StoreOptions
from kaifs.tree.fsck import INVARIANTS, Finding, check, check_steps
from kaifs.tree.seal import SealedTree
from kaifs.tree.tree import Tree
from tests.tree.grove import Grove, planted

PAYLOAD = b"some payload " * 400
SYMLINK_KIND = stat.S_IFLNK >> 12


class Patient:
    """A healthy store with something of everything, and one of its trees to be hurt."""

    def __init__(self, path: Path, *, whole: bool) -> None:
        self.grove = grove = Grove(path)
        self.store = grove.store
        grove.put(b"d/e/file", PAYLOAD)
        for number in range(400):
            grove.put(b"many/file %d" % number, b"%d" % number)
        current = grove.current
        linked = grove.put(b"inline", b"inline")
        current.link(linked, current.resolve(b"d"), b"link", grove.now_ns)
        current.symlink(TOP_INO, b"symlink", b"target", 0, 0, grove.now_ns)
        current.make(TOP_INO, b"fifo", stat.S_IFIFO | 0o600, 0, 0, grove.now_ns)
        current.setxattr(TOP_INO, b"user.a", b"value", grove.now_ns)
        grove.seal("1.0.0")
        grove.snapshot("s")
        grove.put(b"later", b"x" * 5000)
        # The first tree of a lineage is checked whole, each later one where it differs.
        root = current.root if whole else self.store.root(self.snapshot.root)
        self.tree = grove.forest.tree(root.root_id)
        self.orphan = grove.put(b"gone", b"gone", self.tree)
        self.tree.unlink(TOP_INO, b"gone", grove.now_ns)
        self.store.commit()

    @property
    def snapshot(self) -> SnapshotRecord:
        return self.store.get_snapshot(self.grove.agent, "s")

    @property
    def version(self) -> Tree:
        return self.grove.version("1.0.0")

    def put_aside(self, aside: QuarantineRecord) -> None:
        self.store.pending.put(Table.QUARANTINE, _aside_key(aside), QUARANTINE.encode(aside))

    @property
    def file(self) -> Ino:
        return self.tree.resolve(b"d/e/file")

    @property
    def block(self) -> BlockId:
        return self.tree.content.extents(self.file)[0].block

    @property
    def block_record(self) -> BlockRecord:
        return self.store.payload.record(self.block)

    @property
    def segment(self) -> Path:
        return next((self.grove.path / SEGMENT_FOLDER).iterdir())

    def put(self, key: bytes, value: bytes) -> None:
        self.tree.btree.put(key, value)

    def delete(self, key: bytes) -> None:
        assert self.tree.btree.delete(key)

    def change(self, path: bytes, **fields: object) -> None:
        ino = self.tree.resolve(path)
        self.tree.put_inode(ino, replace(self.tree.inode(ino), **fields))

    def entry(self, path: bytes) -> tuple[Ino, Ino, int]:
        """Return directory, inode number and position of an entry."""
        above, _, name = path.rpartition(b"/")
        parent = self.tree.resolve(above)
        found = next(one for one in self.tree.sorted_entries(parent) if one.name == name)
        return parent, found.ino, found.seq

    def overwrite(self, path: Path, position: int, payload: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(position)
            file.write(payload)

    def positions(self) -> tuple[Branch, list[int]]:
        """Return the top, and which of its leaves hold directory positions only.

        They are this tree's own. Nothing asks for such a key by its value, so that
        a leaf may be hurt without a key being lost.
        """
        many = self.tree.resolve(b"many")
        for entry in list(self.tree.entries(many)):
            key = keys.dir_index_key(many, entry.seq)
            self.put(key, encode_dir_index(entry.ino, entry.type >> 12, entry.name))
        top = self.store.nodes.get(self.tree.root.top)
        assert isinstance(top, Branch)
        leaves = [self.store.nodes.get(child) for child in top.children]
        return top, [
            index
            for index, leaf in enumerate(leaves)
            if {keys.split_key(key)[1] for key in leaf.keys} == {keys.DIR_INDEX}
        ]

    def leaf(self) -> Leaf:
        """Return a leaf of directory positions."""
        top, indexes = self.positions()
        leaf = self.store.nodes.get(top.children[indexes[0]])
        assert isinstance(leaf, Leaf)
        return leaf


Hurt = Callable[[Patient], None]
BREAKS: list[tuple[int, Hurt]] = []


def breaks(number: int) -> Callable[[Hurt], Hurt]:
    """Note that the function breaks the invariant *number* and no other."""

    def note(hurt: Hurt) -> Hurt:
        BREAKS.append((number, hurt))
        return hurt

    return note


# --- I1, I2, I3 ------------------------------------------------------------------------------


@breaks(1)
def next_root_is_used(patient: Patient) -> None:
    patient.store.next_root = max(patient.store.root_ids())


@breaks(1)
def next_generation_is_used(patient: Patient) -> None:
    roots = map(patient.store.root, patient.store.root_ids())
    patient.store.next_generation = max(root.generation for root in roots)


@breaks(1)
def next_slot_is_used(patient: Patient) -> None:
    patient.store.next_slot = 1


@breaks(1)
def next_agent_is_used(patient: Patient) -> None:
    patient.store.next_agent = patient.grove.agent.agent_id


@breaks(1)
def next_block_is_used(patient: Patient) -> None:
    patient.store._ids.block = patient.block


@breaks(1)
def next_segment_is_used(patient: Patient) -> None:
    patient.store._ids.segment = 1


@breaks(1)
def next_node_is_used(patient: Patient) -> None:
    patient.store.nodes.next_node = patient.tree.root.top


@breaks(2)
def a_byte_of_a_record_is_flipped(patient: Patient) -> None:
    path = patient.grove.path / INDEX_FOLDER / "data.mdb"
    record = patient.store.database.get(Table.AGENTS, b"a")
    assert record is not None
    patient.overwrite(path, path.read_bytes().index(record) + 1, b"\xc1")


@breaks(2)
def a_record_is_none(patient: Patient) -> None:
    patient.store.database.write({Table.ROOTS: {bytes(8): b"no root"}})


@breaks(2)
def a_node_is_none(patient: Patient) -> None:
    patient.store.database.write({Table.NODES: {bytes(8): b"no node"}})


@breaks(3)
def a_node_is_missing(patient: Patient) -> None:
    top, indexes = patient.positions()
    node_id = top.children[indexes[0]]
    patient.store.commit()
    patient.store.database.write({Table.NODES: {node_key(node_id): None}})
    patient.store.nodes.forget(node_id)


@breaks(3)
def a_node_is_of_a_later_generation(patient: Patient) -> None:
    patient.leaf().generation = Generation(1 << 40)


# --- I4, I14, I15: payload -------------------------------------------------------------------


@breaks(4)
def a_block_is_missing(patient: Patient) -> None:
    patient.store.payload.forget(patient.block)


@breaks(4)
def a_block_lies_outside(patient: Patient) -> None:
    record = patient.block_record
    patient.store.payload._set_record(patient.block, replace(record, offset=1 << 40))
    patient.store.payload.live[record.segment] -= record_size(record.stored_size)


@breaks(4)
def a_block_lies_where_another_is(patient: Patient) -> None:
    payload = patient.store.payload
    other = payload.record(payload.put(PAYLOAD[::-1]))
    payload._set_record(patient.block, replace(patient.block_record, offset=other.offset))


@breaks(4)
def a_record_header_is_damaged(patient: Patient) -> None:
    patient.overwrite(patient.segment, patient.block_record.offset, b"\0")


@breaks(14)
def a_digest_leads_to_no_block(patient: Patient) -> None:
    patient.store.pending.put(Table.DIGESTS, bytes(16), block_key(BlockId(999)))


@breaks(14)
def a_digest_leads_to_another_block(patient: Patient) -> None:
    patient.store.pending.put(Table.DIGESTS, bytes(16), block_key(patient.block))


@breaks(14)
def no_digest_leads_to_a_block(patient: Patient) -> None:
    patient.store.pending.delete(Table.DIGESTS, patient.block_record.checksum)


@breaks(15)
def a_segment_header_is_damaged(patient: Patient) -> None:
    patient.overwrite(patient.segment, 20, b"\xff\xff")


@breaks(15)
def live_bytes_are_miscounted(patient: Patient) -> None:
    patient.store.payload.live[patient.block_record.segment] += 8


# --- I5: shape -------------------------------------------------------------------------------


@breaks(5)
def keys_do_not_ascend(patient: Patient) -> None:
    leaf = patient.leaf()
    leaf.keys[4:6] = leaf.keys[5:3:-1]
    leaf.values[4:6] = leaf.values[5:3:-1]


@breaks(5)
def a_key_is_outside_its_bounds(patient: Patient) -> None:
    top, indexes = patient.positions()
    before = patient.store.nodes.get(top.children[indexes[1] - 1])
    top.keys[indexes[1]] = before.keys[-1]


@breaks(5)
def a_node_is_too_heavy(patient: Patient) -> None:
    patient.leaf().weight += MAX_BYTES


@breaks(5)
def a_node_has_too_many_keys(patient: Patient) -> None:
    top, indexes = patient.positions()
    leaves = [patient.store.nodes.get(top.children[index]) for index in indexes]
    rows = [leaf for leaf in leaves if isinstance(leaf, Leaf)]
    merged = patient.store.nodes.new_leaf(
        patient.tree.root.generation,
        [key for leaf in rows for key in leaf.keys],
        [value for leaf in rows for value in leaf.values],
    )
    assert len(merged.keys) > MAX_KEYS
    merged.weight = 1
    top.children[indexes[0] : indexes[-1] + 1] = [merged.node_id]
    del top.keys[indexes[0] + 1 : indexes[-1] + 1]


@breaks(5)
def a_leaf_is_empty(patient: Patient) -> None:
    top, _ = patient.positions()
    empty = patient.store.nodes.new_leaf(patient.tree.root.generation, [], [])
    top.keys.append(b"\xff" * 9)
    top.children.append(empty.node_id)


@breaks(5)
def leaves_are_not_equally_deep(patient: Patient) -> None:
    top, _ = patient.positions()
    between = patient.store.nodes.new_branch(
        patient.tree.root.generation, [top.keys[0]], [top.children[0]]
    )
    top.children[0] = between.node_id


@breaks(5)
def a_node_is_in_the_tree_twice(patient: Patient) -> None:
    top, indexes = patient.positions()
    top.keys.insert(indexes[0] + 1, top.keys[indexes[0]])
    top.children.insert(indexes[0] + 1, top.children[indexes[0]])


# --- I6, I7: names ---------------------------------------------------------------------------


@breaks(6)
def an_entry_leads_to_an_inode_that_never_was(patient: Patient) -> None:
    ino = patient.grove.put(b"victim", b"", patient.tree)
    patient.delete(keys.inode_key(ino))
    patient.delete(keys.link_key(ino, TOP_INO, b"victim"))
    patient.tree.root.inodes -= 1


@breaks(6)
def an_inode_is_gone_and_its_directory_does_not_know(patient: Patient) -> None:
    parent, ino, _ = patient.entry(b"many/file 7")
    patient.delete(keys.inode_key(ino))
    patient.delete(keys.extent_key(ino, 0))
    patient.delete(keys.link_key(ino, parent, b"file 7"))
    patient.tree.root.inodes -= 1
    patient.tree.root.size -= 1


@breaks(6)
def an_inode_does_not_know_a_name_of_its_own(patient: Patient) -> None:
    parent, ino, _ = patient.entry(b"d/link")
    patient.delete(keys.link_key(ino, parent, b"link"))
    patient.change(b"inline", nlink=1)


@breaks(6)
def an_inode_knows_a_name_that_is_not_there(patient: Patient) -> None:
    _, ino, _ = patient.entry(b"inline")
    patient.put(keys.link_key(ino, TOP_INO, b"nobody"), b"")
    patient.change(b"inline", nlink=3)


@breaks(6)
def an_entry_has_no_position(patient: Patient) -> None:
    parent, _, seq = patient.entry(b"d/link")
    patient.delete(keys.dir_index_key(parent, seq))


@breaks(6)
def a_position_has_no_entry(patient: Patient) -> None:
    _, ino, _ = patient.entry(b"inline")
    parent = patient.tree.resolve(b"d")
    patient.change(b"d", next_seq=100)
    patient.put(keys.dir_index_key(parent, 77), encode_dir_index(ino, 8, b"nobody"))


@breaks(6)
def an_entry_has_the_wrong_type(patient: Patient) -> None:
    parent, ino, seq = patient.entry(b"fifo")
    patient.put(keys.dentry_key(parent, b"fifo"), encode_dentry(ino, seq, 8))
    patient.put(keys.dir_index_key(parent, seq), encode_dir_index(ino, 8, b"fifo"))


@breaks(6)
def an_inode_has_changed_its_type(patient: Patient) -> None:
    patient.change(b"fifo", mode=stat.S_IFSOCK | 0o600)


@breaks(7)
def a_file_counts_a_name_too_many(patient: Patient) -> None:
    patient.change(b"d/e/file", nlink=2)


@breaks(7)
def a_directory_counts_a_subdirectory_too_many(patient: Patient) -> None:
    patient.change(b"d", nlink=4)


@breaks(7)
def a_directory_counts_an_entry_too_many(patient: Patient) -> None:
    patient.change(b"d", size=9)


# --- I8, I9: extents -------------------------------------------------------------------------


@breaks(8)
def extents_overlap(patient: Patient) -> None:
    patient.put(keys.extent_key(patient.file, 100), b"\0" + b"x" * 10)
    patient.change(b"d/e/file", allocated=len(PAYLOAD) + 10)


@breaks(8)
def an_extent_reaches_past_its_block(patient: Patient) -> None:
    size = len(PAYLOAD) + 1
    patient.put(keys.extent_key(patient.file, 0), encode_extent(Extent(0, size, patient.block)))
    patient.change(b"d/e/file", size=size, allocated=size)
    patient.tree.root.size += 1


@breaks(8)
def extents_reach_past_the_end(patient: Patient) -> None:
    patient.change(b"d/e/file", size=5)
    patient.tree.root.size -= len(PAYLOAD) - 5


@breaks(8)
def a_directory_has_content(patient: Patient) -> None:
    patient.put(keys.extent_key(patient.tree.resolve(b"d"), 0), b"\0x")


@breaks(9)
def allocated_bytes_are_miscounted(patient: Patient) -> None:
    patient.change(b"d/e/file", allocated=7)


@breaks(9)
def a_target_is_shorter_than_its_size(patient: Patient) -> None:
    patient.change(b"symlink", size=10)


# --- I10, I11, I12 ---------------------------------------------------------------------------


@breaks(10)
def the_next_inode_number_is_used(patient: Patient) -> None:
    patient.tree.root.next_ino = patient.orphan


@breaks(10)
def the_next_position_is_used(patient: Patient) -> None:
    patient.change(b"d", next_seq=1)


@breaks(11)
def an_inode_without_a_name_is_not_listed(patient: Patient) -> None:
    patient.delete(keys.orphan_key(patient.orphan))


@breaks(11)
def an_inode_with_a_name_is_listed(patient: Patient) -> None:
    patient.put(keys.orphan_key(patient.file), b"")


@breaks(11)
def an_inode_that_is_not_there_is_listed(patient: Patient) -> None:
    patient.put(keys.orphan_key(Ino(5_000)), b"")


@breaks(11)
def a_sealed_tree_has_an_orphan(patient: Patient) -> None:
    patient.store.set_root_state(patient.version.root, RootState.WRITABLE)
    patient.version.unlink(TOP_INO, b"symlink", patient.grove.now_ns)
    patient.store.set_root_state(patient.version.root, RootState.SEALED)


@breaks(12)
def inodes_are_miscounted(patient: Patient) -> None:
    patient.tree.root.inodes += 1


@breaks(12)
def bytes_are_miscounted(patient: Patient) -> None:
    patient.tree.root.size += 1


# --- I13, I16, I19: the registry -------------------------------------------------------------


@breaks(13)
def a_head_is_superseded(patient: Patient) -> None:
    patient.store.set_root_state(patient.grove.current.root, RootState.SUPERSEDED)


@breaks(13)
def a_version_is_writable(patient: Patient) -> None:
    patient.store.set_root_state(patient.version.root, RootState.WRITABLE)


@breaks(13)
def a_root_says_that_it_is_anothers(patient: Patient) -> None:
    patient.version.root.name = "2.0.0"


@breaks(13)
def a_root_is_missing(patient: Patient) -> None:
    patient.store.drop_root(patient.version.root.root_id)


@breaks(13)
def two_snapshots_share_a_root(patient: Patient) -> None:
    patient.store.put_snapshot(replace(patient.snapshot, name="t"))


@breaks(13)
def nothing_names_a_root(patient: Patient) -> None:
    clone = patient.grove.forest.clone(patient.tree)
    patient.store.set_root_state(clone.root, RootState.WRITABLE)


@breaks(13)
def two_roots_share_a_slot(patient: Patient) -> None:
    patient.version.root.slot = patient.grove.current.root.slot


@breaks(13)
def an_agent_is_gone_and_has_versions(patient: Patient) -> None:
    patient.store.remove_agent("a")


@breaks(16)
def a_root_being_built_is_not_listed(patient: Patient) -> None:
    clone = patient.grove.forest.clone(patient.tree)
    patient.store.finish_root(clone.root.root_id)


@breaks(16)
def a_root_with_orphans_is_not_listed(patient: Patient) -> None:
    patient.store.finish_root(patient.tree.root.root_id)


def relabel(patient: Patient, label: str) -> None:
    agent_id = patient.grove.agent.agent_id
    version = patient.store.get_version(patient.grove.agent, "1.0.0")
    owner = agent_id.to_bytes(8, "big")
    patient.store.pending.delete(Table.VERSIONS, owner + b"1.0.0")
    record = VERSION.encode(replace(version, label=label))
    patient.store.pending.put(Table.VERSIONS, owner + label.encode(), record)
    patient.store.root(version.root).name = label


@breaks(19)
def a_label_is_none(patient: Patient) -> None:
    relabel(patient, "v1")


@breaks(19)
def labels_differ_in_build_metadata_only(patient: Patient) -> None:
    patient.grove.seal("1.0.0+other")


@breaks(19)
def an_agents_name_is_none(patient: Patient) -> None:
    agent = patient.grove.agent
    patient.store.pending.delete(Table.AGENTS, b"a")
    patient.store.put_agent(replace(agent, name=".a"))


@breaks(19)
def a_snapshots_name_is_none(patient: Patient) -> None:
    snapshot = patient.snapshot
    owner = snapshot.agent_id.to_bytes(8, "big")
    patient.store.pending.delete(Table.SNAPSHOTS, owner + b"s")
    record = SNAPSHOT.encode(replace(snapshot, name="@s"))
    patient.store.pending.put(Table.SNAPSHOTS, owner + b"@s", record)
    patient.store.root(snapshot.root).name = "@s"


# --- I20, I21 --------------------------------------------------------------------------------


@breaks(20)
def a_quarantined_label_is_a_versions_too(patient: Patient) -> None:
    agent_id = patient.grove.agent.agent_id
    patient.put_aside(QuarantineRecord(agent_id, "1.0.0", RootId(0), b"", "for a test", 0, "", ()))


@breaks(20)
def a_quarantined_tree_is_not_set_aside(patient: Patient) -> None:
    aside = patient.store.quarantine_version(patient.grove.agent, "1.0.0", "for a test")
    patient.store.root(aside.root).name = "2.0.0"


@breaks(20)
def what_is_in_quarantine_is_of_no_agent(patient: Patient) -> None:
    aside = patient.store.quarantine_version(patient.grove.agent, "1.0.0", "for a test")
    patient.store.pending.delete(Table.QUARANTINE, _aside_key(aside))
    patient.store.root(aside.root).agent_id = 77
    patient.put_aside(replace(aside, agent_id=77))


@breaks(21)
def a_memo_is_of_no_version(patient: Patient) -> None:
    patient.store.put_verified(patient.tree.root.root_id, VerifiedRecord(0, b"", b"", ()))


@breaks(22)
def the_journal_lacks_its_last_record(patient: Patient) -> None:
    patient.store.sequence += 1


def _aside_key(aside: QuarantineRecord) -> bytes:
    return aside.agent_id.to_bytes(8, "big") + aside.label.encode()


# --- I17, I18 --------------------------------------------------------------------------------


@breaks(17)
def a_file_of_a_version_lost_its_digest(patient: Patient) -> None:
    tree = patient.version
    patient.store.set_root_state(tree.root, RootState.WRITABLE)
    ino = tree.resolve(b"inline")
    tree.put_inode(ino, replace(tree.inode(ino), sha256=b""))
    patient.store.set_root_state(tree.root, RootState.SEALED)


@breaks(17)
def a_version_is_sealed_as_current_was(patient: Patient) -> None:
    """It differs in nothing from a tree that was checked before, and that need not have it."""
    clone = patient.grove.forest.clone(patient.grove.current)
    patient.store.set_root_state(clone.root, RootState.SEALED)
    patient.grove.add_version("2.0.0", SealedTree(clone, "", ""))


@breaks(18)
def the_top_is_missing(patient: Patient) -> None:
    patient.delete(keys.inode_key(TOP_INO))
    patient.tree.root.inodes -= 1


@breaks(18)
def an_inode_has_an_unknown_type(patient: Patient) -> None:
    parent, ino, seq = patient.entry(b"fifo")
    patient.change(b"fifo", mode=0o030600)
    patient.put(keys.dentry_key(parent, b"fifo"), encode_dentry(ino, seq, 3))
    patient.put(keys.dir_index_key(parent, seq), encode_dir_index(ino, 3, b"fifo"))


@breaks(18)
def keys_have_no_inode(patient: Patient) -> None:
    patient.tree.root.next_ino = Ino(6_000)
    patient.put(keys.xattr_key(Ino(5_000), b"user.a"), b"")


@breaks(18)
def a_file_has_entries(patient: Patient) -> None:
    patient.put(keys.dir_index_key(patient.file, 1), encode_dir_index(TOP_INO, 8, b"x"))


# --- the checker -----------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["first tree", "later tree"])
def patient(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Patient]:
    patient = Patient(tmp_path / "store", whole=request.param)
    yield patient
    patient.store.close(commit=False)


def test_the_patient_is_healthy_before(patient: Patient) -> None:
    assert check(patient.store) == []


@pytest.mark.parametrize(
    ("number", "hurt"), BREAKS, ids=[f"I{number} {hurt.__name__}" for number, hurt in BREAKS]
)
def test_a_break_of_an_invariant_is_seen_as_that_one(
    patient: Patient, number: int, hurt: Hurt
) -> None:
    hurt(patient)

    findings = [str(finding) for finding in check(patient.store)]

    assert findings
    assert {finding.partition(" ")[0] for finding in findings} == {f"I{number}"}, findings


def test_every_invariant_has_a_break() -> None:
    assert {number for number, _ in BREAKS} == set(INVARIANTS)


def test_checking_changes_nothing(patient: Patient) -> None:
    before = patient.store.root_ids()
    tops = [patient.store.root(root).top for root in before]

    check(patient.store)

    assert patient.store.root_ids() == before
    assert [patient.store.root(root).top for root in before] == tops


def test_a_check_that_is_given_up_leaves_nothing(patient: Patient) -> None:
    before = patient.store.root_ids()
    steps = check_steps(patient.store)
    for _ in range(14):
        next(steps, None)

    steps.close()

    assert patient.store.root_ids() == before


def test_a_tree_may_change_while_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon checks a mount that is in use."""
    monkeypatch.setattr("kaifs.tree.fsck.STEP", 5)
    with planted(tmp_path / "store", StoreOptions(segment_size=20_000)) as grove:
        for number in range(100):
            grove.put(b"d%d/f%d" % (number % 7, number), b"x" * 600)
        count = 0
        for findings in checking(grove):
            count += 1
            grove.put(b"d%d/g%d" % (count % 9, count), b"%d " % count * 900)
            if count % 5 == 0:
                grove.snapshot(f"s{count}")
            if count % 7 == 0:
                grove.seal(f"1.0.{count}")
            if count % 11 == 0:
                grove.rollback(grove.agent.version)
            if count % 3 == 0:
                grove.store.commit()
            assert findings == []
        assert count > 20


@pytest.mark.parametrize("moves", [1, 10_000], ids=["once", "without an end"])
def test_blocks_may_move_while_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """By gc: what was counted before would be missed where it is now."""
    monkeypatch.setattr("kaifs.tree.fsck.STEP", 2)
    monkeypatch.setattr("kaifs.tree.fsck.BLOCK_STEP", 2)
    with planted(tmp_path / "store", StoreOptions(segment_size=20_000)) as grove:
        for number in range(20):
            grove.put(b"f%d" % number, b"%d " % number * 900)
        payload = grove.store.payload
        blocks = [BlockId(number) for number in range(1, payload.next_block)]
        for count, findings in enumerate(checking(grove)):
            if count < moves:
                # Back and forth: to the segment at the end, which grows.
                assert payload.move(blocks[count % len(blocks)])
            assert findings == []
        assert payload.shifts == min(count + 1, moves)


def checking(grove: Grove) -> Iterator[list[str]]:
    """Check in steps; yield before each what was found at the end, so far nothing."""
    steps = check_steps(grove.store)
    try:
        while True:
            yield []
            next(steps)
    except StopIteration as end:
        yield [str(finding) for finding in end.value]


def test_a_finding_says_which_where_and_what() -> None:
    assert str(Finding(7, "root 1 inode 2", "nlink 3")) == "I7 root 1 inode 2: nlink 3"


def test_a_read_only_snapshot_of_what_was_never_sealed_is_healthy(grove: Grove) -> None:
    grove.put(b"f", b"x" * 900)
    grove.snapshot("r", read_only=True)
    grove.put(b"f", b"y" * 900)

    grove.check()


def test_a_root_may_go_while_others_are_checked(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaifs.tree.fsck.STEP", 1)
    grove.put(b"d/f", b"x")
    for moment in range(40):
        root_id = grove.snapshot("s").root.root_id
        for number, findings in enumerate(checking(grove)):
            if number == moment:
                grove.store.remove_snapshot(grove.agent.agent_id, "s")
                grove.forest.drop(root_id)
            assert findings == []
        if grove.store.has_root(root_id):
            break
    else:
        pytest.fail("the check takes more steps than were tried")


def test_a_head_whose_backup_is_due_is_healthy(grove: Grove) -> None:
    """It has the slot of the new head, and nothing shows it."""
    grove.seal("1.0.0")
    grove.put(b"f", b"uncommitted")
    old = grove.agent.head
    clone = grove.forest.clone(grove.version("1.0.0"))
    agent = grove.store.switch_head(grove.agent, clone.root, "1.0.0")
    grove.store.put_agent(replace(agent, superseded=old))

    grove.check()

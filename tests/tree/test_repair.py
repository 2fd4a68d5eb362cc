"""Whatever breaks an invariant is mended, or named and contained."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import ChecksumMismatchError, StoreDamagedError
from kaifs.base.types import TOP_INO
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.records import encode_dentry
from kaifs.store.nodes import node_key
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.fsck import Finding, check
from kaifs.tree.repair import Repaired, repair_steps
from tests.tree.grove import exhaust
from tests.tree.test_fsck import BREAKS, PAYLOAD, Hurt, Patient

UNMENDABLE = {
    # A sealed tree is never changed, and which of two labels should go is not for us to say.
    "a_sealed_tree_has_an_orphan",
    "labels_differ_in_build_metadata_only",
    "a_version_is_sealed_as_current_was",
    "a_file_of_a_version_lost_its_digest",
}


@pytest.fixture(params=[True, False], ids=["first tree", "later tree"])
def patient(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Patient]:
    patient = Patient(tmp_path / "store", whole=request.param)
    yield patient
    patient.store.close(commit=False)


def repair(store: Store) -> Repaired:
    return exhaust(repair_steps(store))


def test_a_healthy_store_is_left_alone(patient: Patient) -> None:
    tops = {root: patient.store.root(root).top for root in patient.store.root_ids()}

    repaired = repair(patient.store)

    assert (repaired.done, repaired.left) == ([], [])
    assert {root: patient.store.root(root).top for root in patient.store.root_ids()} == tops


@pytest.mark.parametrize(
    ("number", "hurt"), BREAKS, ids=[f"I{number} {hurt.__name__}" for number, hurt in BREAKS]
)
def test_what_breaks_an_invariant_is_mended(patient: Patient, number: int, hurt: Hurt) -> None:
    del number
    hurt(patient)

    repaired = repair(patient.store)

    assert repaired.done or hurt.__name__ in UNMENDABLE
    assert bool(repaired.left) == (hurt.__name__ in UNMENDABLE), repaired
    assert {str(one) for one in check(patient.store)} == {str(one) for one in repaired.left}
    patient.grove.reopen(commit=False)
    patient.store = patient.grove.store
    after: list[Finding] = check(patient.store)
    # Opening reaps what nobody holds any more.
    assert {str(one) for one in after} <= {str(one) for one in repaired.left}


# --- salvage ---------------------------------------------------------------------------------


def names(patient: Patient, path: bytes) -> list[bytes]:
    tree = patient.grove.current
    return sorted(entry.name for entry in tree.entries(tree.resolve(path)))


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Patient]:
    """A patient whose current is to be hurt."""
    patient = Patient(tmp_path / "store", whole=True)
    yield patient
    patient.store.close(commit=False)


def test_a_directory_whose_name_is_lost_is_found_again_with_all_below_it(head: Patient) -> None:
    folder = head.tree.resolve(b"d/e")
    above = head.tree.resolve(b"d")
    head.delete(keys.dentry_key(above, b"e"))
    head.delete(keys.link_key(folder, above, b"e"))

    repair(head.store)

    found = b"lost+found/#%d" % folder
    assert names(head, found) == [b"file"]
    tree = head.grove.forest.tree(head.grove.agent.head)
    assert tree.read(tree.resolve(found + b"/file"), 0, len(PAYLOAD)) == PAYLOAD


def test_a_name_that_only_the_inode_knows_counts(head: Patient) -> None:
    head.delete(keys.dentry_key(head.tree.resolve(b"d/e"), b"file"))

    repair(head.store)

    assert names(head, b"d/e") == [b"file"]


def test_a_folder_that_contains_itself_is_cut_off_and_found(head: Patient) -> None:
    above, below = head.tree.resolve(b"d"), head.tree.resolve(b"d/e")
    head.delete(keys.dentry_key(TOP_INO, b"d"))
    head.delete(keys.link_key(above, TOP_INO, b"d"))
    head.put(keys.dentry_key(below, b"loop"), encode_dentry(above, 9_000, stat.S_IFDIR >> 12))
    head.put(keys.link_key(above, below, b"loop"), b"")

    repaired = repair(head.store)

    assert repaired.left == []
    assert names(head, b"lost+found") == [b"#%d" % min(above, below)]


def test_what_is_called_lost_and_found_and_is_no_folder_is_left_alone(head: Patient) -> None:
    ino = head.grove.put(b"lost+found", b"a file")
    lost = head.grove.put(b"lost", b"lost")
    head.delete(keys.dentry_key(TOP_INO, b"lost"))
    head.delete(keys.link_key(lost, TOP_INO, b"lost"))

    repair(head.store)

    tree = head.grove.current
    assert tree.read(ino, 0, 99) == b"a file"
    assert names(head, b"lost+found+") == [b"#%d" % lost]


def test_of_a_tree_with_an_unreadable_leaf_the_rest_is_kept(head: Patient) -> None:
    before = set(names(head, b"many"))
    top, indexes = head.positions()
    node_id = top.children[indexes[0]]
    head.store.commit()
    head.store.database.write({Table.NODES: {node_key(node_id): None}})
    head.store.nodes.forget(node_id)

    repaired = repair(head.store)

    assert repaired.left == []
    assert set(names(head, b"many")) == before, "positions follow from names"
    assert any("unreadable" in line for line in repaired.done)


def test_two_files_of_one_name_are_both_kept(head: Patient) -> None:
    other = head.grove.put(b"other", b"other")
    head.delete(keys.dentry_key(TOP_INO, b"other"))
    head.delete(keys.link_key(other, TOP_INO, b"other"))
    head.put(keys.link_key(other, TOP_INO, b"inline"), b"")

    repair(head.store)

    tree = head.grove.current
    assert tree.read(tree.resolve(b"inline"), 0, 99) == b"inline"
    assert tree.read(tree.resolve(b"lost+found/#%d" % other), 0, 99) == b"other"


def test_bytes_beyond_the_size_of_a_file_are_shown(head: Patient) -> None:
    head.change(b"d/e/file", size=3)

    repair(head.store)

    tree = head.grove.current
    assert tree.read(tree.resolve(b"d/e/file"), 0, 1 << 20) == PAYLOAD


def test_an_agent_whose_current_is_missing_gets_that_of_its_version(head: Patient) -> None:
    head.store.drop_root(head.grove.agent.head)
    head.store.commit()

    repaired = repair(head.store)

    assert repaired.left == []
    assert b"many" in names(head, b"")
    assert b"later" not in names(head, b"")


def test_a_tree_that_nothing_names_becomes_a_snapshot(head: Patient) -> None:
    root = head.snapshot.root
    head.store.pending.delete(Table.SNAPSHOTS, head.grove.agent.agent_id.to_bytes(8, "big") + b"s")

    repaired = repair(head.store)

    assert repaired.left == []
    found = head.store.snapshots(head.grove.agent.agent_id)
    assert root in {snapshot.root for snapshot in found}


# --- stores that cannot be opened as they are -------------------------------------------------


@pytest.mark.parametrize("size", [None, 0, 65, 4000])
def test_a_segment_that_is_missing_or_cut_off_costs_the_files_in_it(
    head: Patient, size: int | None
) -> None:
    """The rest of the store can be used again."""
    segment = head.segment
    head.store.close(commit=False)
    if size is None:
        segment.unlink()
    else:
        os.truncate(segment, size)
    with pytest.raises(StoreDamagedError):
        Store.open(head.grove.path)
    options = StoreOptions(accept_loss=True)
    head.store = Store.open(head.grove.path, clock=head.grove.clock, options=options)

    repaired = repair(head.store)

    assert {finding.number for finding in repaired.left} == {4}
    head.grove.store = head.store
    head.grove.reopen(commit=False)
    head.store = head.grove.store
    tree = head.grove.current
    assert tree.read(tree.resolve(b"many/file 7"), 0, 99) == b"7"
    with pytest.raises(ChecksumMismatchError):
        tree.read(tree.resolve(b"later"), 0, 99)
    head.grove.put(b"new", b"n" * 9000)
    head.grove.reopen()
    head.store = head.grove.store
    tree = head.grove.current
    assert tree.read(tree.resolve(b"new"), 0, 9000) == b"n" * 9000


@pytest.mark.parametrize("table", [Table.META, Table.SEGMENTS, Table.BLOCKS, Table.DIGESTS])
def test_a_table_that_is_gone_from_both_copies_is_made_anew(head: Patient, table: Table) -> None:
    gone = dict.fromkeys(head.store.database.scan(table))
    head.store.database.write({table: gone})
    head.store.close(commit=False)
    options = StoreOptions(accept_loss=True)
    head.store = Store.open(head.grove.path, clock=head.grove.clock, options=options)

    repaired = repair(head.store)

    assert (repaired.left, bool(repaired.done)) == ([], True)
    head.grove.store = head.store
    head.grove.reopen(commit=False)
    head.store = head.grove.store
    tree = head.grove.current
    assert tree.read(tree.resolve(b"d/e/file"), 0, len(PAYLOAD)) == PAYLOAD

"""Agents, versions, snapshots and roots: what exists, under which names, and what is told of it."""

import pytest
from msgspec.structs import replace

from kaifs.base.errors import (
    AgentExistsError,
    AgentNotFoundError,
    BadLabelError,
    BadNameError,
    InvalidVersionError,
    NoSpaceError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    StoreDamagedError,
    VersionExistsError,
)
from kaifs.base.types import MAX_ROOT_ID, MAX_SLOT, TOP_INO, RootId
from kaifs.meta.records import RootKind, RootState
from kaifs.store import registry
from kaifs.store.changes import (
    AgentAdded,
    AgentRemoved,
    Change,
    HeadSwitched,
    SnapshotAdded,
    SnapshotRemoved,
    SnapshotRenamed,
    VersionAdded,
    VersionRemoved,
)
from kaifs.store.registry import check_agent_name, check_snapshot_name
from tests.tree.grove import Grove

GOOD = ["a", "A.b-c_9", "0", "x" * 64]
BAD = ["", ".", "..", ".hidden", "-x", "_x", "a/b", "a b", "a\n", "é", "x" * 65, "@versions"]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_pass(name: str) -> None:
    check_agent_name(name)
    check_snapshot_name(name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(BadNameError):
        check_agent_name(name)
    with pytest.raises(BadNameError):
        check_snapshot_name(name)


def test_only_a_snapshot_may_begin_with_s() -> None:
    """`s-…` is what generated snapshot names look like, so a bare one is never an agent's."""
    check_snapshot_name("s-1")
    with pytest.raises(BadNameError):
        check_agent_name("s-1")


# --- agents ----------------------------------------------------------------------------------


def add_agent(grove: Grove, name: str) -> None:
    grove.store.add_agent(name, 1, 2, grove.forest.new_tree(0o755, 1, 2).root, 0o750)


def test_agents_are_sorted_by_name_and_found_by_name_and_id(grove: Grove) -> None:
    add_agent(grove, "z")
    add_agent(grove, "B")

    agents = grove.store.agents()

    assert [agent.name for agent in agents] == ["B", "a", "z"]
    for agent in agents:
        assert grove.store.find_agent(agent.name) == agent
        assert grove.store.agent_by_id(agent.agent_id) == agent
    assert (agents[0].uid, agents[0].gid, agents[0].mode) == (1, 2, 0o750)


def test_ids_lead_to_agents_also_in_a_new_process(grove: Grove) -> None:
    add_agent(grove, "b")
    wanted = grove.agent
    grove.reopen()

    assert grove.store.agent_by_id(wanted.agent_id) == wanted
    assert grove.store.agent_by_id(77) is None


def test_an_agent_name_is_taken_once(grove: Grove) -> None:
    with pytest.raises(AgentExistsError):
        add_agent(grove, "a")


def test_what_is_no_name_is_no_agent(grove: Grove) -> None:
    assert grove.store.find_agent("..") is None
    with pytest.raises(AgentNotFoundError):
        grove.store.get_agent("nobody")


def test_a_removed_agent_takes_its_current_and_a_due_backup_along(grove: Grove) -> None:
    """What it showed stays readable for those who have it open, until the next start."""
    add_agent(grove, "b")
    store, old = grove.store, grove.agent.head
    clone = grove.forest.clone(grove.current)
    agent = store.switch_head(grove.agent, clone.root, "")
    store.put_agent(replace(agent, superseded=old))

    store.remove_agent("a")

    assert [agent.name for agent in store.agents()] == ["b"]
    assert store.agent_by_id(agent.agent_id) is None
    assert not grove.forest.tree(old).is_writable
    grove.reopen()
    assert not grove.store.has_root(old)
    assert not grove.store.has_root(clone.root.root_id)


def test_agent_ids_are_never_used_again(grove: Grove) -> None:
    first = grove.agent.agent_id
    grove.store.remove_agent("a")
    grove.reopen()

    add_agent(grove, "a")

    assert grove.agent.agent_id > first


# --- versions --------------------------------------------------------------------------------


def test_versions_are_sorted_by_precedence(grove: Grove) -> None:
    labels = ["10.0.0", "2.0.0", "2.0.0-rc.1", "1.0.0+b"]
    for label in labels:
        grove.seal(label)

    versions = grove.store.versions(grove.agent.agent_id)

    assert [version.label for version in versions] == labels[::-1]
    assert grove.store.get_version(grove.agent, "2.0.0") == versions[2]


@pytest.mark.parametrize("label", ["9.9.9", "", "x" * 256])
def test_a_version_that_is_not_there_is_not_found(grove: Grove, label: str) -> None:
    assert grove.store.find_version(grove.agent.agent_id, label) is None
    with pytest.raises(InvalidVersionError):
        grove.store.get_version(grove.agent, label)


def test_a_new_label_must_be_one_and_differ_in_more_than_build_metadata(grove: Grove) -> None:
    grove.seal("1.0.0+linux")
    check = grove.store.check_new_label

    check(grove.agent, "1.0.0-rc.1")
    check(grove.agent, "1.0.1")
    with pytest.raises(BadLabelError):
        check(grove.agent, "v1")
    for taken in ("1.0.0+linux", "1.0.0", "1.0.0+other"):
        with pytest.raises(VersionExistsError, match=r"a@1\.0\.0\+linux"):
            check(grove.agent, taken)


def test_a_release_may_follow_its_pre_release(grove: Grove) -> None:
    grove.seal("1.0.0-rc.1")

    grove.store.check_new_label(grove.agent, "1.0.0")
    grove.store.check_new_label(grove.agent, "1.0.0-rc.10")


def test_a_removed_version_stays_readable_until_the_next_start(grove: Grove) -> None:
    grove.put(b"f", b"kept")
    root = grove.seal("1.0.0").tree.root.root_id
    store = grove.store

    store.remove_version(grove.agent.agent_id, "1.0.0")
    store.remove_version(grove.agent.agent_id, "1.0.0")

    assert store.versions(grove.agent.agent_id) == []
    tree = grove.forest.tree(root)
    assert tree.read(tree.resolve(b"f"), 0, 9) == b"kept"
    assert not tree.is_writable
    grove.reopen()
    assert not grove.store.has_root(root)


# --- snapshots -------------------------------------------------------------------------------


def test_snapshots_are_sorted_by_name(grove: Grove) -> None:
    for name in ("b", "a", "s-1"):
        grove.snapshot(name)

    assert [one.name for one in grove.store.snapshots(grove.agent.agent_id)] == ["a", "b", "s-1"]
    assert grove.store.get_snapshot(grove.agent, "b").name == "b"


def test_a_snapshot_that_is_not_there_is_not_found(grove: Grove) -> None:
    assert grove.store.find_snapshot(grove.agent.agent_id, "..") is None
    with pytest.raises(SnapshotNotFoundError):
        grove.store.get_snapshot(grove.agent, "none")


def test_a_snapshot_name_is_taken_once_for_each_agent(grove: Grove) -> None:
    grove.snapshot("s")

    with pytest.raises(SnapshotExistsError):
        grove.store.check_new_snapshot(grove.agent, "s")
    with pytest.raises(BadNameError):
        grove.store.check_new_snapshot(grove.agent, "")
    grove.store.check_new_snapshot(grove.agent, "other")


def test_a_read_only_snapshot_is_sealed_and_another_is_writable(grove: Grove) -> None:
    assert grove.snapshot("w").is_writable
    assert not grove.snapshot("r", read_only=True).is_writable


def test_a_renamed_snapshot_keeps_root_and_slot(grove: Grove) -> None:
    root = grove.snapshot("old").root
    slot = root.slot

    renamed = grove.store.rename_snapshot(grove.store.get_snapshot(grove.agent, "old"), "new")

    assert grove.store.snapshots(grove.agent.agent_id) == [renamed]
    assert (root.name, root.slot, renamed.root) == ("new", slot, root.root_id)


def test_a_removed_snapshot_is_readable_until_the_next_start_and_its_base_is_gone(
    grove: Grove,
) -> None:
    root = grove.snapshot("s").root
    base = grove.store.get_snapshot(grove.agent, "s").base

    grove.store.remove_snapshot(grove.agent.agent_id, "s")
    grove.store.remove_snapshot(grove.agent.agent_id, "s")

    assert grove.store.snapshots(grove.agent.agent_id) == []
    assert not grove.store.has_root(base)
    assert root.state is RootState.SUPERSEDED
    grove.reopen()
    assert not grove.store.has_root(root.root_id)


def test_a_snapshot_of_a_version_leaves_that_version(grove: Grove) -> None:
    version = grove.seal("1.0.0").tree.root.root_id
    grove.snapshot("s")
    snapshot = grove.store.get_snapshot(grove.agent, "s")
    grove.store.drop_root(snapshot.base)
    grove.store.put_snapshot(replace(snapshot, base=version))

    grove.store.remove_snapshot(grove.agent.agent_id, "s")

    assert grove.store.has_root(version)


def test_changes_of_an_agent_that_is_gone_are_only_forgotten(grove: Grove) -> None:
    grove.snapshot("s")
    agent = grove.agent
    grove.store.remove_agent("a")

    grove.store.remove_snapshot(agent.agent_id, "s")

    assert grove.store.agents() == []


# --- the head --------------------------------------------------------------------------------


def test_a_switched_head_keeps_its_slot_and_uses_no_inode_number_twice(grove: Grove) -> None:
    """`st_ino` is slot and inode number, and programs trust it for as long as they run."""
    grove.seal("1.0.0")
    last = grove.put(b"later")
    slot = grove.store.slot_of(grove.agent.head)

    grove.rollback("1.0.0")

    assert grove.store.slot_of(grove.agent.head) == slot
    assert grove.put(b"new") > last
    assert grove.current.is_writable
    assert grove.agent.version == "1.0.0"


def test_a_version_or_snapshot_that_comes_or_goes_changes_the_agents_time(grove: Grove) -> None:
    times = [grove.agent.changed_ns]
    for step in (
        lambda: grove.seal("1.0.0"),
        lambda: grove.snapshot("s"),
        lambda: grove.store.rename_snapshot(grove.store.get_snapshot(grove.agent, "s"), "t"),
        lambda: grove.store.remove_snapshot(grove.agent.agent_id, "t"),
        lambda: grove.rollback("1.0.0"),
        lambda: grove.store.remove_version(grove.agent.agent_id, "1.0.0"),
    ):
        grove.clock.advance_ns(5)
        step()
        times.append(grove.agent.changed_ns)

    assert times == sorted(set(times))


def test_everything_that_changes_is_told_once(grove: Grove) -> None:
    told: list[Change] = []
    grove.store.on_change = told.append
    agent_id, old = grove.agent.agent_id, grove.agent.head

    grove.seal("1.0.0")
    grove.snapshot("s")
    grove.store.rename_snapshot(grove.store.get_snapshot(grove.agent, "s"), "t")
    grove.store.remove_snapshot(agent_id, "t")
    grove.rollback("1.0.0")
    grove.store.remove_version(agent_id, "1.0.0")
    add_agent(grove, "b")
    other = grove.store.get_agent("b").agent_id
    grove.store.remove_agent("b")

    assert told == [
        VersionAdded(agent_id, "1.0.0"),
        SnapshotAdded(agent_id, "s"),
        SnapshotRenamed(agent_id, "s", "t"),
        SnapshotRemoved(agent_id, "t"),
        HeadSwitched(agent_id, old, grove.agent.head),
        VersionRemoved(agent_id, "1.0.0"),
        AgentAdded(other, "b"),
        AgentRemoved(other, "b"),
    ]


# --- roots -----------------------------------------------------------------------------------


def test_a_new_root_is_being_built_and_listed_as_unfinished(grove: Grove) -> None:
    root = grove.store.new_root()

    assert (root.state, root.kind) == (RootState.BUILDING, RootKind.NONE)
    assert root.lineage == root.root_id
    assert grove.store.unfinished_roots() == [root.root_id]
    grove.store.drop_root(root.root_id)
    assert grove.store.unfinished_roots() == []


def test_a_new_root_can_belong_to_a_lineage(grove: Grove) -> None:
    lineage = grove.current.root.lineage

    root = grove.store.new_root(lineage)

    assert root.lineage == lineage
    grove.store.drop_root(root.root_id)


def test_a_clone_shares_the_top_and_neither_changes_the_other(grove: Grove) -> None:
    grove.put(b"f", b"old")
    clone = grove.forest.clone(grove.current)
    assert clone.root.top == grove.current.root.top

    grove.put(b"f", b"new")
    clone.put_inode(TOP_INO, replace(clone.inode(TOP_INO), uid=7))

    assert clone.read(clone.resolve(b"f"), 0, 9) == b"old"
    assert grove.current.inode(TOP_INO).uid == 0
    grove.forest.drop(clone.root.root_id)


def test_a_root_that_may_change_again_leaves_alone_what_was_cloned_meanwhile(
    grove: Grove,
) -> None:
    """A due backup is sealed from a superseded root that becomes writable for it."""
    grove.put(b"f", b"old")
    root = grove.current.root
    grove.store.set_root_state(root, RootState.SUPERSEDED)
    clone = grove.forest.clone(grove.current)

    grove.store.set_root_state(root, RootState.WRITABLE)
    grove.put(b"f", b"new")

    assert clone.read(clone.resolve(b"f"), 0, 9) == b"old"
    grove.forest.drop(clone.root.root_id)


def test_a_root_that_stays_writable_stays_listed_for_its_orphans(grove: Grove) -> None:
    """A rollback that fails lets the old head be the head again, orphans and all."""
    grove.put(b"f")
    grove.current.unlink(TOP_INO, b"f", grove.now_ns)

    grove.store.set_root_state(grove.current.root, RootState.WRITABLE)
    grove.reopen()

    assert grove.current.orphans() == []


def test_ids_and_slots_are_never_used_again(grove: Grove) -> None:
    root = grove.store.new_root()
    slot = grove.store.new_slot()
    grove.store.drop_root(root.root_id)
    grove.reopen()

    again = grove.store.new_root()

    assert again.root_id > root.root_id
    assert again.generation > root.generation
    assert grove.store.new_slot() > slot
    grove.store.drop_root(again.root_id)


def test_used_up_numbers_are_no_space(grove: Grove) -> None:
    store = grove.store
    before = store.next_root, store.next_slot
    store.next_root, store.next_slot = MAX_ROOT_ID + 1, MAX_SLOT + 1

    with pytest.raises(NoSpaceError, match="root id"):
        store.new_root()
    with pytest.raises(NoSpaceError, match="slot"):
        store.new_slot()

    store.next_root, store.next_slot = before


def test_a_root_that_is_not_there_is_damage(grove: Grove) -> None:
    assert not grove.store.has_root(RootId(99))
    with pytest.raises(StoreDamagedError, match="root 99"):
        grove.store.root(RootId(99))


def test_roots_on_disk_and_roots_in_memory_are_listed_once(grove: Grove) -> None:
    grove.snapshot("s")
    grove.reopen()
    new = grove.store.new_root()

    assert grove.store.root_ids() == sorted(set(grove.store.root_ids()))
    assert len(grove.store.root_ids()) == 4
    assert grove.store.has_root(grove.agent.head)
    grove.store.drop_root(new.root_id)


# --- test results of snapshots ---------------------------------------------------------------


def test_the_output_of_tests_is_kept_until_the_snapshot_goes(grove: Grove) -> None:
    root_id = grove.snapshot("s").root.root_id
    assert grove.store.find_output(root_id) is None

    grove.store.put_output(root_id, b"1 failed\n" * 1000)
    grove.store.put_output(root_id, b"1 passed\n" * 1000)
    grove.reopen()

    assert grove.store.find_output(root_id) == b"1 passed\n" * 1000
    grove.store.remove_snapshot(grove.agent.agent_id, "s")
    assert grove.store.find_output(root_id) is None


def test_a_snapshot_that_was_tested_when_its_process_died_has_an_error(grove: Grove) -> None:
    root = grove.snapshot("s").root
    grove.store.put_snapshot(
        replace(grove.store.get_snapshot(grove.agent, "s"), status=registry.TESTING)
    )

    grove.store.recover_snapshot(root)
    grove.store.recover_snapshot(grove.current.root)

    assert grove.store.get_snapshot(grove.agent, "s").status == registry.TEST_ERROR


def test_a_snapshot_whose_commit_was_all_but_done_goes(grove: Grove) -> None:
    root = grove.snapshot("s").root
    snapshot = grove.store.get_snapshot(grove.agent, "s")
    grove.store.put_snapshot(replace(snapshot, committed="1.0.0"))

    grove.store.recover_snapshot(root)

    assert grove.store.snapshots(grove.agent.agent_id) == []
    grove.store.recover_snapshot(root)

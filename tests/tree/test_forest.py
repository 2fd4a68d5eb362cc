"""Trees are opened once, cloned in O(1), and looked after when a store is opened."""

from __future__ import annotations

from msgspec.structs import replace

from kaifs.base.types import TOP_INO, RootId
from kaifs.meta.database import Table
from kaifs.meta.records import RootState
from kaifs.store.registry import root_key
from tests.tree.grove import Grove, listing


def test_a_tree_is_opened_once(grove: Grove) -> None:
    assert grove.forest.tree(grove.agent.head) is grove.forest.tree(grove.agent.head)


def test_after_abandoning_a_tree_is_another_object(grove: Grove) -> None:
    """The old one would change a root that the store does not know any more."""
    grove.store.commit()
    before = grove.current

    grove.store.abandon()

    assert grove.current is not before
    grove.put(b"f")
    grove.reopen()
    assert grove.current.find(TOP_INO, b"f")


def test_a_clone_is_without_what_processes_hold(grove: Grove) -> None:
    grove.put(b"f", b"x")
    grove.current.unlink(TOP_INO, b"f", grove.now_ns)

    clone = grove.forest.clone(grove.current)

    assert (clone.orphans(), clone.root.inodes, clone.root.size) == ([], 1, 0)
    assert len(grove.current.orphans()) == 1
    grove.forest.drop(clone.root.root_id)


def test_opening_drops_what_was_being_built_and_what_was_superseded(grove: Grove) -> None:
    built = grove.forest.new_tree(0o755, 0, 0).root.root_id
    snapshot = grove.snapshot("s").root.root_id
    grove.store.remove_snapshot(grove.agent.agent_id, "s")
    grove.put(b"f", b"x")
    before = listing(grove.current)

    grove.reopen()

    assert not grove.store.has_root(built)
    assert not grove.store.has_root(snapshot)
    assert grove.store.unfinished_roots() == []
    assert listing(grove.current) == before


def test_opening_reaps_what_no_process_holds_any_more(grove: Grove) -> None:
    grove.put(b"f", b"x")
    grove.current.unlink(TOP_INO, b"f", grove.now_ns)

    grove.reopen()

    assert grove.current.orphans() == []
    assert grove.current.root.inodes == 1
    assert grove.store.unfinished_roots() == []


def test_opening_keeps_a_head_whose_backup_is_due(grove: Grove) -> None:
    """What it had uncommitted is nowhere else until the backup is sealed."""
    grove.seal("1.0.0")
    grove.put(b"f", b"uncommitted")
    old = grove.agent.head
    clone = grove.forest.clone(grove.version("1.0.0"))
    agent = grove.store.switch_head(grove.agent, clone.root, "1.0.0")
    grove.store.put_agent(replace(agent, superseded=old))
    grove.store.set_root_state(grove.store.root(old), RootState.SUPERSEDED)

    grove.reopen()

    tree = grove.forest.tree(old)
    assert tree.read(tree.resolve(b"f"), 0, 99) == b"uncommitted"
    grove.store.put_agent(replace(grove.agent, superseded=RootId(0)))
    grove.reopen()
    assert not grove.store.has_root(old)


def test_a_note_of_a_root_that_is_gone_is_thrown_away(grove: Grove) -> None:
    root_id = grove.store.new_root().root_id
    grove.forest.drop(root_id)
    grove.store.pending.put(Table.UNFINISHED, root_key(root_id), b"")

    grove.forest.recover()

    assert grove.store.unfinished_roots() == []


def test_what_goes_on_elsewhere_is_left_alone(grove: Grove) -> None:
    root_id = grove.store.new_root().root_id

    grove.forest.recover(going_on={root_id})
    assert grove.store.has_root(root_id)

    grove.forest.recover()
    assert not grove.store.has_root(root_id)

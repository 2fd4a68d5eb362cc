"""The node cache may forget what is clean, never what was changed."""

from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import Generation, NodeId
from kaifs.meta.database import Table
from kaifs.meta.index import Index
from kaifs.meta.node import Branch, Leaf
from kaifs.store.nodes import Nodes, node_key
from kaifs.store.pending import Pending

G1 = Generation(1)


class Bench:
    """Nodes over a database of their own."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        self.database = Index(folder, map_size=1 << 20, create=True)
        self.pending = Pending(self.database)
        self.nodes = Nodes(self.pending, 1, cache_bytes)

    def commit(self) -> None:
        self.nodes.encode_dirty()
        self.database.write(self.pending.take())
        self.pending.written()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, 10_000)


def leaf_of(bench: Bench, node_id: NodeId) -> Leaf:
    node = bench.nodes.get(node_id)
    assert isinstance(node, Leaf)
    return node


def test_a_new_node_is_dirty_until_it_is_encoded(bench: Bench) -> None:
    leaf = bench.nodes.new_leaf(G1, [b"k"], [b"v"])
    branch = bench.nodes.new_branch(G1, [b""], [leaf.node_id])
    assert bench.nodes.is_dirty
    assert bench.nodes.dirty_count == 2

    bench.commit()

    assert not bench.nodes.is_dirty
    assert bench.database.count(Table.NODES) == 2
    assert bench.nodes.get(branch.node_id) is branch


def test_a_node_that_is_missing_is_damage(bench: Bench) -> None:
    with pytest.raises(StoreDamagedError, match="node 77 is missing"):
        bench.nodes.get(NodeId(77))


def test_a_node_made_and_dropped_in_one_epoch_never_reaches_the_disk(bench: Bench) -> None:
    leaf = bench.nodes.new_leaf(G1, [], [])

    bench.nodes.drop(leaf)
    bench.commit()

    assert bench.database.count(Table.NODES) == 0


@pytest.mark.parametrize("how", ["drop", "forget"])
def test_a_committed_node_is_deleted_with_the_next_commit(bench: Bench, how: str) -> None:
    leaf = bench.nodes.new_leaf(G1, [], [])
    bench.commit()

    if how == "drop":
        bench.nodes.drop(leaf)
    else:
        bench.nodes.forget(leaf.node_id)

    assert bench.database.get(Table.NODES, node_key(leaf.node_id)) is not None
    bench.commit()
    assert bench.database.get(Table.NODES, node_key(leaf.node_id)) is None


def test_a_copy_has_a_new_id(bench: Bench) -> None:
    leaf = bench.nodes.new_leaf(G1, [b"k"], [b"v"])

    copied = bench.nodes.copy(leaf, Generation(2))

    assert copied.node_id != leaf.node_id
    assert copied.generation == 2


def test_abandoning_forgets_nodes_and_reuses_their_ids(bench: Bench) -> None:
    first = bench.nodes.new_leaf(G1, [b"k"], [b"v"])
    bench.commit()
    bench.nodes.new_leaf(G1, [], [])

    bench.nodes.abandon(first.node_id + 1)

    assert not bench.nodes.is_dirty
    assert bench.nodes.next_node == first.node_id + 1
    assert leaf_of(bench, first.node_id).values == [b"v"]


def test_visits_count_what_is_asked_for(bench: Bench) -> None:
    leaf = bench.nodes.new_leaf(G1, [], [])

    bench.nodes.get(leaf.node_id)
    bench.nodes.get(leaf.node_id)
    bench.nodes.peek(leaf.node_id)

    assert bench.nodes.visits == 2


def test_the_cache_keeps_what_is_used_and_its_budget(bench: Bench) -> None:
    """Second chance: what was asked for since the last sweep stays."""
    often = bench.nodes.new_leaf(G1, [b"often"], [b""])
    for number in range(100):
        bench.nodes.new_leaf(G1, [b"%d" % number], [bytes(500)])
        bench.commit()
        assert bench.nodes.get(often.node_id) is often

    assert bench.nodes.cached_bytes <= 10_000


def test_a_node_that_was_dropped_from_the_cache_while_held_is_changed_for_all(
    tmp_path: Path,
) -> None:
    """A descent holds clean nodes while it loads others; a split may change one of them."""
    bench = Bench(tmp_path, 1)
    held = bench.nodes.new_leaf(G1, [b"k"], [b"old"])
    bench.commit()
    for _ in range(3):
        bench.nodes.new_leaf(G1, [], [])
        bench.nodes.new_leaf(G1, [], [])
        bench.commit()

    held.values[0] = b"new"
    bench.nodes.touch(held)

    assert leaf_of(bench, held.node_id).values == [b"new"]


def test_many_dirty_nodes_are_not_all_looked_at_for_each_one_more(tmp_path: Path) -> None:
    """An epoch may make more nodes than the cache holds; making them stays linear."""
    bench = Bench(tmp_path, 100_000)
    before = bench.nodes.sweeps

    for number in range(3000):
        bench.nodes.new_leaf(G1, [b"%d" % number], [bytes(200)])

    assert bench.nodes.sweeps - before < 100


class NodesMachine(RuleBasedStateMachine):
    """With a tiny budget, nodes agree with a dict of what they hold."""

    folder: Path
    count = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        self.bench = Bench(folder, 2000)
        self.model: dict[NodeId, bytes] = {}
        self.held: list[Leaf | Branch] = []

    def teardown(self) -> None:
        self.bench.database.close()

    @rule(value=st.binary(max_size=300))
    def make(self, value: bytes) -> None:
        leaf = self.bench.nodes.new_leaf(G1, [b"k"], [value])
        self.model[leaf.node_id] = value

    @rule(data=st.data(), value=st.binary(max_size=300))
    def change(self, data: st.DataObject, value: bytes) -> None:
        if self.model:
            node_id = data.draw(st.sampled_from(sorted(self.model)))
            leaf = leaf_of(self.bench, node_id)
            leaf.values[0] = value
            self.bench.nodes.touch(leaf)
            self.model[node_id] = value

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.model:
            node_id = data.draw(st.sampled_from(sorted(self.model)))
            self.bench.nodes.drop(self.bench.nodes.get(node_id))
            del self.model[node_id]

    @rule()
    def commit(self) -> None:
        self.bench.commit()

    @invariant()
    def agrees(self) -> None:
        for node_id, value in self.model.items():
            node = self.bench.nodes.peek(node_id)
            assert isinstance(node, Leaf)
            assert node.values == [value]


def test_nodes_agree_with_a_dict(tmp_path: Path) -> None:
    machine = type("Machine", (NodesMachine,), {"folder": tmp_path})

    run_state_machine_as_test(machine)

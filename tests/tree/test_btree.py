"""The B+tree agrees with a dict, its clones with copies of that dict, and all keep their shape."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kaifs.meta.node import MAX_BYTES, Branch, Leaf
from kaifs.store.differing import differing
from kaifs.store.roots import Root
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.btree import BTree

END = b"\xff" * 300
heavy = [0, 10, 100, 1000, MAX_BYTES // 2, MAX_BYTES, 60_000]


def check_shape(store: Store, root: Root) -> int:
    """Check keys, bounds, weights and depths below *root*; return the number of nodes."""
    depths = set()
    count = 0
    stack: list[tuple[int, bytes, bytes, int]] = [(root.top, b"", END, 0)]
    while stack:
        node_id, low, high, depth = stack.pop()
        node = store.nodes.peek(node_id)  # type: ignore[arg-type]  # a plain int on the stack
        count += 1
        own = node.keys if isinstance(node, Leaf) else node.keys[1:]
        assert own == sorted(set(own))
        assert all(low <= key < high for key in own)
        assert not node.is_overfull
        if isinstance(node, Branch):
            assert node.weight == sum(map(len, node.keys)) + 8 * len(node.children)
            bounds = [low, *node.keys[1:], high]
            for index, child in enumerate(node.children):
                stack.append((child, bounds[index], bounds[index + 1], depth + 1))
        else:
            assert node.weight == sum(map(len, node.keys)) + sum(map(len, node.values))
            assert node.keys or node_id == root.top
            depths.add(depth)
    assert len(depths) == 1
    return count


class BTreeMachine(RuleBasedStateMachine):
    """Puts, deletions, clones and commits under a cache that keeps nothing, against dicts."""

    store: ClassVar[Store]

    def __init__(self) -> None:
        super().__init__()
        self.root = self.store.new_root()
        self.tree = BTree(self.store.nodes, self.root)
        self.model: dict[bytes, bytes] = {}
        self.clones: list[tuple[Root, dict[bytes, bytes]]] = []

    def teardown(self) -> None:
        for root, model in self.clones:
            assert dict(BTree(self.store.nodes, root).scan(b"", END)) == model
            self.check_differing(root, model)
            self.store.drop_root(root.root_id)
        self.store.drop_root(self.root.root_id)
        self.store.commit()

    def check_differing(self, root: Root, model: dict[bytes, bytes]) -> None:
        expected = [
            (key, model.get(key), self.model.get(key))
            for key in sorted(model.keys() | self.model.keys())
            if model.get(key) != self.model.get(key)
        ]
        assert list(differing(self.store.nodes, root.top, self.root.top)) == expected
        backward = [(key, new, old) for key, old, new in expected]
        assert list(differing(self.store.nodes, self.root.top, root.top)) == backward

    @rule(
        start=st.integers(0, 3000),
        count=st.integers(1, 400),
        step=st.sampled_from([1, -1, 7, 991]),
        value=st.sampled_from([1, 20]),
    )
    def put_many(self, start: int, count: int, step: int, value: int) -> None:
        for number in range(count):
            key = ((start + number * step) % 3000).to_bytes(2, "big")
            self.model[key] = bytes([number & 255]) * value
            self.tree.put(key, self.model[key])

    @rule(key=st.integers(0, 3000), size=st.sampled_from(heavy), tail=st.sampled_from([0, 250]))
    def put(self, key: int, size: int, tail: int) -> None:
        name = key.to_bytes(2, "big") + b"t" * tail
        self.model[name] = b"v" * size
        self.tree.put(name, self.model[name])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), size=st.sampled_from(heavy))
    def replace(self, data: st.DataObject, size: int) -> None:
        key = sorted(self.model)[data.draw(st.integers(0, len(self.model) - 1))]
        self.model[key] = b"r" * size
        self.tree.put(key, self.model[key])

    @rule(start=st.integers(0, 3000), count=st.integers(1, 1500), step=st.sampled_from([1, 2, -1]))
    def delete_many(self, start: int, count: int, step: int) -> None:
        for number in range(count):
            key = ((start + number * step) % 3000).to_bytes(2, "big")
            assert self.tree.delete(key) == (self.model.pop(key, None) is not None)

    @rule(start=st.integers(0, 3000), count=st.integers(0, 1500))
    def take(self, start: int, count: int) -> None:
        low, high = start.to_bytes(2, "big"), (start + count).to_bytes(2, "big")
        gone = sorted(one for one in self.model if low <= one < high)
        assert self.tree.take(low, high) == [(one, self.model.pop(one)) for one in gone]

    @rule(key=st.integers(0, 3000))
    def discard(self, key: int) -> None:
        self.tree.discard(key.to_bytes(2, "big"))
        self.model.pop(key.to_bytes(2, "big"), None)

    @rule()
    def delete_all(self) -> None:
        for key in sorted(self.model):
            assert self.tree.delete(key)
        self.model.clear()

    @rule()
    def clone(self) -> None:
        self.clones.append((self.store.clone_root(self.root), dict(self.model)))

    @rule()
    def commit(self) -> None:
        self.store.commit()

    @rule(key=st.integers(0, 3000), other=st.integers(0, 3000))
    def look(self, key: int, other: int) -> None:
        name = key.to_bytes(2, "big")
        low, high = sorted([name, other.to_bytes(2, "big")])
        below = max((one for one in self.model if one <= name), default=None)

        assert self.tree.get(name) == self.model.get(name)
        assert self.tree.floor(name) == (None if below is None else (below, self.model[below]))
        assert list(self.tree.scan(low, high)) == sorted(
            item for item in self.model.items() if low <= item[0] < high
        )

    @invariant()
    def agrees(self) -> None:
        assert list(self.tree.scan(b"", END)) == sorted(self.model.items())
        check_shape(self.store, self.root)


@pytest.mark.parametrize("node_cache", [1, 50_000, 64 << 20])
def test_the_tree_agrees_with_a_dict(tmp_path: Path, node_cache: int) -> None:
    """Whatever the cache keeps: a tree that is larger than memory is the same tree."""
    store = Store.create(tmp_path / "store", options=StoreOptions(node_cache=node_cache))
    run_state_machine_as_test(type("Machine", (BTreeMachine,), {"store": store}))
    store.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", options=StoreOptions(node_cache=1))


@pytest.mark.parametrize("position", range(7))
def test_a_value_that_grows_heavy_splits_until_no_node_is_overfull(
    store: Store, position: int
) -> None:
    root = store.new_root()
    tree = BTree(store.nodes, root)
    for number in range(7):
        tree.put(bytes([number]), bytes(1000))

    tree.put(bytes([position]), bytes(60_000))

    check_shape(store, root)
    assert [key for key, _ in tree.scan(b"", END)] == [bytes([number]) for number in range(7)]


def test_growing_keys_leave_full_nodes_behind(store: Store) -> None:
    """An import adds inodes in order; half-full leaves would make its tree twice as large."""
    root = store.new_root()
    tree = BTree(store.nodes, root)

    for number in range(20_000):
        tree.put(number.to_bytes(4, "big"), b"")

    assert check_shape(store, root) < 20_000 / 128 * 1.1


def test_a_tree_that_shrinks_gives_its_nodes_back(store: Store) -> None:
    root = store.new_root()
    tree = BTree(store.nodes, root)
    keys = [number.to_bytes(4, "big") + b"k" * (number % 7) for number in range(20_000)]
    for key in keys:
        tree.put(key, b"")
    full = check_shape(store, root)

    for number, key in enumerate(keys):
        if number % 50:
            tree.delete(key)

    assert check_shape(store, root) < full / 10


def test_a_change_after_a_clone_copies_one_node_of_each_level(store: Store) -> None:
    root = store.new_root()
    tree = BTree(store.nodes, root)
    for number in range(20_000):
        tree.put(number.to_bytes(4, "big"), b"")
    store.commit()
    store.clone_root(root)

    tree.put((777).to_bytes(4, "big"), b"new")

    assert store.nodes.dirty_count == 3


def test_two_empty_trees_do_not_differ(store: Store) -> None:
    roots = [store.new_root(), store.new_root()]

    assert list(differing(store.nodes, roots[0].top, roots[1].top)) == []


@pytest.mark.parametrize("count", [200, 20_000])
def test_a_tree_whose_top_became_idle_shares_the_rest_with_its_clone(
    store: Store, count: int
) -> None:
    """The top of one tree, a leaf or a branch, is then below the top of the other."""
    root = store.new_root()
    tree = BTree(store.nodes, root)
    keys = [number.to_bytes(4, "big") for number in range(count)]
    for key in keys:
        tree.put(key, b"")
    top = store.nodes.get(root.top)
    assert isinstance(top, Branch)
    bound = top.keys[1]
    clone = store.clone_root(root)

    for key in keys:
        if key >= bound:
            tree.delete(key)

    assert root.top == top.children[0]
    expected = [(key, b"", None) for key in keys if key >= bound]
    visits = store.nodes.visits
    assert list(differing(store.nodes, clone.top, root.top)) == expected
    backward = [(key, None, b"") for key in keys if key >= bound]
    assert list(differing(store.nodes, root.top, clone.top)) == backward
    assert store.nodes.visits - visits < 100, "what is shared is not read"


def test_idle_tops_are_left_to_the_clone_that_shares_them(store: Store) -> None:
    """A branch with one child may stand below another; when it becomes the top it goes."""
    root = store.new_root()
    nodes = store.nodes
    left = nodes.new_leaf(root.generation, [b"a"], [b""])
    right = nodes.new_leaf(root.generation, [b"m"], [b""])
    low, high = (
        nodes.new_branch(root.generation, [leaf.keys[0]], [leaf.node_id]) for leaf in (left, right)
    )
    root.top = nodes.new_branch(root.generation, [b"a", b"m"], [low.node_id, high.node_id]).node_id
    clone = store.clone_root(root)

    BTree(nodes, root).delete(b"a")

    assert root.top == right.node_id
    assert list(BTree(nodes, root).scan(b"", END)) == [(b"m", b"")]
    assert list(BTree(nodes, clone).scan(b"", END)) == [(b"a", b""), (b"m", b"")]


def test_the_key_below_one_that_is_gone_may_be_in_another_branch(store: Store) -> None:
    root = store.new_root()
    tree = BTree(store.nodes, root)
    for number in range(20_000):
        tree.put(number.to_bytes(4, "big"), b"%d" % number)
    top = store.nodes.get(root.top)
    assert isinstance(top, Branch)
    bound = top.keys[1]
    assert isinstance(store.nodes.get(top.children[1]), Branch)

    tree.delete(bound)

    before = int.from_bytes(bound, "big") - 1
    assert tree.floor(bound) == (before.to_bytes(4, "big"), b"%d" % before)


def test_branches_that_lost_their_first_children_are_merged_and_weigh_what_they_should(
    store: Store,
) -> None:
    root = store.new_root()
    tree = BTree(store.nodes, root)
    keys = [number.to_bytes(4, "big") + b"k" * (number % 7) for number in range(20_000)]
    for key in keys:
        tree.put(key, b"")
    top = store.nodes.get(root.top)
    assert isinstance(top, Branch)
    first_of_right = keys.index(top.keys[1])

    for key in keys[first_of_right // 2 : first_of_right]:
        tree.delete(key)
    for number, key in enumerate(keys[first_of_right:]):
        tree.delete(key)
        if number % 100 == 0:
            check_shape(store, root)

    assert [key for key, _ in tree.scan(b"", END)] == keys[: first_of_right // 2]

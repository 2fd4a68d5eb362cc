"""Many changes at once give the tree that the same changes give one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.meta.node import MAX_BYTES, MAX_KEYS, Branch, Leaf
from kaifs.store import bulk
from kaifs.store.differing import items
from kaifs.store.roots import Root
from kaifs.store.store import Store
from kaifs.tree.btree import BTree

keys = st.binary(min_size=1, max_size=3) | st.integers(0, 3000).map(lambda n: b"%06d" % n)
values = st.none() | st.sampled_from([b"", b"v", b"x" * 300, b"y" * 6000])
batches = st.lists(st.dictionaries(keys, values, max_size=200), min_size=1, max_size=5)


def check_shape(store: Store, root: Root) -> None:
    """Check order, bounds, depth and size of every node."""
    depths = set()
    stack = [(root.top, b"", b"\xff" * 20, 0)]
    while stack:
        node_id, low, high, depth = stack.pop()
        node = store.nodes.get(node_id)
        assert node.keys == sorted(set(node.keys))
        assert len(node.keys) <= MAX_KEYS
        assert node.weight <= MAX_BYTES or len(node.keys) == 1
        fresh = node.copy(node.node_id, node.generation)
        assert node.weight == fresh.weight
        if isinstance(node, Leaf):
            depths.add(depth)
            assert node.keys or root.top == node_id
            assert all(low <= key < high for key in node.keys)
            continue
        assert isinstance(node, Branch)
        bounds = [low, *node.keys[1:], high]
        for index, child in enumerate(node.children):
            stack.append((child, bounds[index], bounds[index + 1], depth + 1))
    assert len(depths) == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.create(tmp_path_factory.mktemp("bulk") / "store")


@given(batches=batches, clones=st.booleans())
def test_a_batch_does_what_its_changes_do(
    store: Store, batches: list[dict[bytes, bytes | None]], *, clones: bool
) -> None:
    root = store.new_root()
    model: dict[bytes, bytes] = {}
    kept: list[tuple[Root, dict[bytes, bytes]]] = []
    for batch in batches:
        bulk.apply(store.nodes, root, batch)
        for key, value in batch.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        assert dict(items(store.nodes, root.top)) == model
        check_shape(store, root)
        if clones:
            kept.append((store.clone_root(root), model.copy()))
    for clone, then in kept:
        assert dict(items(store.nodes, clone.top)) == then


def test_growing_and_emptying_a_deep_tree(store: Store) -> None:
    root = store.new_root()
    everything = {b"%08d" % number: b"v" * (number % 50) for number in range(40_000)}
    bulk.apply(store.nodes, root, everything)
    check_shape(store, root)
    assert dict(items(store.nodes, root.top)) == everything
    tree = BTree(store.nodes, root)
    for number in range(0, 40_000, 997):
        key = b"%08d" % number
        assert tree.get(key) == everything[key]
        assert tree.delete(key)
        del everything[key]
    check_shape(store, root)

    bulk.apply(store.nodes, root, dict.fromkeys(list(everything)[100:]))
    check_shape(store, root)
    assert list(items(store.nodes, root.top)) == sorted(everything.items())[:100]
    bulk.apply(store.nodes, root, dict.fromkeys(everything))

    assert list(items(store.nodes, root.top)) == []
    assert isinstance(store.nodes.get(root.top), Leaf)


def test_deleting_what_is_not_there_changes_nothing_else(store: Store) -> None:
    root = store.new_root()
    bulk.apply(store.nodes, root, {b"a": b"1"})

    bulk.apply(store.nodes, root, {b"b": None, b"a": b"2", b"c": None})
    bulk.apply(store.nodes, root, {})

    assert list(items(store.nodes, root.top)) == [(b"a", b"2")]


def test_a_store_made_in_bulk_is_read_again(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    root = store.new_root()
    changes = {b"%d" % number: b"%d" % number for number in range(1000)}
    bulk.apply(store.nodes, root, changes)
    store.close()

    store = Store.open(tmp_path / "store")

    assert dict(items(store.nodes, store.root(root.root_id).top)) == changes
    store.close()

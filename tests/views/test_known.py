"""Lookup counts."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.types import Ino, KernelNode, RootId, kernel_node
from kaifs.views.known import KnownNodes

nodes = st.builds(
    lambda root, ino: kernel_node(RootId(root), Ino(ino)),
    st.integers(0, 1),
    st.sampled_from([1, 2, 127, 128]),
)
steps = st.lists(st.tuples(nodes, st.integers(0, 3)), max_size=60)


@given(steps)
def test_counts_agree_with_a_plain_list(history: list[tuple[KernelNode, int]]) -> None:
    """A node is known while it was named more often than forgotten; a root while a node is."""
    known = KnownNodes()
    model: dict[KernelNode, int] = {}
    for node, lookups in history:
        if not lookups:
            known.remember(node)
            model[node] = model.get(node, 0) + 1
        else:
            left = model.get(node, 0) - lookups
            ends = node in model and left <= 0
            assert known.forget(node, lookups) is ends
            if ends:
                del model[node]
            elif node in model:
                model[node] = left

        assert sorted(known.nodes()) == sorted(model)
        assert len(known) == len(model)
        for root in range(2):
            assert (kernel_node(RootId(root), Ino(1)) in known) is (root << 36 | 1 in model)
            of_root = [node for node in model if node >> 36 == root]
            assert sorted(known.nodes_of(RootId(root))) == sorted(of_root)
            assert known.has_root(RootId(root)) is any(one >> 36 == root for one in model)


def test_a_root_is_unknown_when_its_only_node_was_named_twice_and_forgotten() -> None:
    known = KnownNodes()
    node = kernel_node(RootId(5), Ino(1))
    known.remember(node)
    known.remember(node)

    assert known.forget(node, 2)

    assert not known.has_root(RootId(5))
    assert len(known) == 0


def test_what_another_server_told_is_known_until_the_connection_is_gone() -> None:
    known = KnownNodes()
    known.inherit(next_root=RootId(9), next_inos={RootId(5): Ino(100)})
    old, new = kernel_node(RootId(5), Ino(99)), kernel_node(RootId(5), Ino(100))
    sealed, later = kernel_node(RootId(4), Ino(7)), kernel_node(RootId(9), Ino(7))

    assert old in known
    assert sealed in known
    assert new not in known
    assert later not in known
    assert known.has_root(RootId(8))
    assert not known.has_root(RootId(9))
    for node, ends in ((old, False), (sealed, False), (new, True), (later, True)):
        known.remember(node)
        assert known.forget(node, 7) is ends
    known.disown()
    assert old not in known
    assert not known.has_root(RootId(8))


def test_counts_of_a_whole_tree_take_ten_bytes_a_node() -> None:
    """A million files that were listed must not cost more than the cache is allowed to."""
    known = KnownNodes()
    tracemalloc.start()
    for ino in range(1, 50_001):
        known.remember(kernel_node(RootId(3), Ino(ino)))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size < 11 * 50_000


def test_what_another_process_tells_is_what_it_knew() -> None:
    """Counts go on where they were; a node is unknown when the last lookup is forgotten."""
    before, after = KnownNodes(), KnownNodes()
    node = kernel_node(RootId(3), Ino(7))
    before.remember(node)
    before.remember(node)

    after.adopt(before.told())

    assert after.is_exact
    assert after.nodes() == [node]
    assert not after.forget(node, 1)
    assert after.forget(node, 1)
    assert not after.has_root(RootId(3))

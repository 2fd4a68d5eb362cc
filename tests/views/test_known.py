"""Lookup counts."""

from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.types import Ino, KernelNode, RootId, kernel_node
from kaifs.views.known import KnownNodes

nodes = st.builds(
    lambda root, ino: kernel_node(RootId(root), Ino(ino)), st.integers(0, 2), st.integers(1, 3)
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
            continue
        left = model.get(node, 0) - lookups
        ends = node in model and left <= 0
        assert known.forget(node, lookups) is ends
        if ends:
            del model[node]
        elif node in model:
            model[node] = left

        assert sorted(known.nodes()) == sorted(model)
        for root in range(3):
            assert known.has_root(RootId(root)) is any(one >> 36 == root for one in model)

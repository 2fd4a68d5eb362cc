"""Ids fit the numbers that the kernel takes, and no two objects share one."""

from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.types import (
    FILE_SIZE_MAX,
    INO_BITS,
    MAX_INO,
    MAX_ROOT_ID,
    MAX_SLOT,
    SLOT_SHIFT,
    TOP_INO,
    Ino,
    KernelNode,
    RootId,
    Slot,
    kernel_node,
    split_kernel_node,
    stat_ino,
)

inos = st.integers(TOP_INO, MAX_INO).map(Ino) | st.just(Ino(MAX_INO))
roots = st.integers(0, MAX_ROOT_ID).map(RootId) | st.just(RootId(MAX_ROOT_ID))
slots = st.integers(1, MAX_SLOT).map(Slot) | st.just(Slot(MAX_SLOT))


@given(roots, inos)
def test_kernel_node_splits_into_what_it_was_made_from(root: RootId, ino: Ino) -> None:
    assert split_kernel_node(kernel_node(root, ino)) == (root, ino)


@given(st.integers(0, 2**63 - 1).map(KernelNode))
def test_every_number_is_one_kernel_node(node: KernelNode) -> None:
    root, ino = split_kernel_node(node)

    assert 0 <= ino <= MAX_INO
    assert 0 <= root <= MAX_ROOT_ID
    assert kernel_node(root, ino) == node


@given(roots, inos)
def test_kernel_node_is_a_positive_signed_number_of_64_bits(root: RootId, ino: Ino) -> None:
    """0 is no inode to the kernel, and pyfuse3 takes signed numbers."""
    assert 0 < kernel_node(root, ino) < 2**63


@given(slots, inos)
def test_stat_ino_is_a_positive_signed_number_of_64_bits(slot: Slot, ino: Ino) -> None:
    assert 0 < stat_ino(slot, ino) < 2**63


@given(slots, inos, slots, inos)
def test_stat_ino_tells_views_and_inodes_apart(
    slot: Slot, ino: Ino, other_slot: Slot, other_ino: Ino
) -> None:
    """`cp` and `du` take equal numbers for one file."""
    assert (stat_ino(slot, ino) == stat_ino(other_slot, other_ino)) is (
        (slot, ino) == (other_slot, other_ino)
    )


def test_an_inode_number_fits_below_a_slot() -> None:
    assert SLOT_SHIFT >= INO_BITS
    assert MAX_INO.bit_length() == INO_BITS


def test_the_kernel_s_root_is_the_name_space_s_top() -> None:
    """FUSE calls the root of a mount node 1."""
    assert kernel_node(RootId(0), TOP_INO) == 1


def test_a_file_can_be_as_large_as_an_offset() -> None:
    assert FILE_SIZE_MAX == 2**63 - 1

"""Numbers of virtual inodes."""

from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.types import MAX_INO, MAX_ROOT_ID, Ino
from kaifs.views.numbers import ROOT_NODE, Kind, split_virtual, virtual_ino


@given(st.sampled_from(Kind), st.integers(0, MAX_ROOT_ID))
def test_a_number_says_what_it_shows(kind: Kind, number: int) -> None:
    ino = virtual_ino(kind, number)

    assert split_virtual(ino) == (kind, number)
    assert ino <= MAX_INO


def test_the_root_is_the_node_that_fuse_begins_with() -> None:
    assert ROOT_NODE == 1


def test_numbers_of_no_kind_are_told_apart() -> None:
    assert split_virtual(Ino(MAX_INO))[0] is None

"""Keys sort so that what belongs to one inode stands together, in the order of kinds."""

from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.types import MAX_INO, Ino
from kaifs.meta import keys

inos = st.integers(1, MAX_INO).map(Ino)
names = st.binary(min_size=1, max_size=255)
numbers = st.integers(0, (1 << 64) - 1)


@given(inos, inos, names, numbers)
def test_a_key_gives_back_what_it_was_made_from(
    ino: Ino, parent: Ino, name: bytes, number: int
) -> None:
    linked = parent.to_bytes(8, "big") + name

    assert keys.split_key(keys.inode_key(ino)) == (ino, keys.INODE, b"")
    assert keys.split_key(keys.link_key(ino, parent, name)) == (ino, keys.LINK, linked)
    assert keys.split_key(keys.xattr_key(ino, name)) == (ino, keys.XATTR, name)
    assert keys.split_key(keys.dentry_key(ino, name)) == (ino, keys.DENTRY, name)
    assert keys.number_at_end(keys.dir_index_key(ino, number)) == number
    assert keys.number_at_end(keys.extent_key(ino, number)) == number
    assert keys.number_at_end(keys.orphan_key(ino)) == ino


@given(inos, st.lists(names, min_size=2, max_size=2), st.lists(numbers, min_size=2, max_size=2))
def test_keys_of_a_kind_sort_as_their_rest(
    ino: Ino, some_names: list[bytes], some_numbers: list[int]
) -> None:
    """A scan of a directory gives names by their bytes, one of a file gives extents by offset."""
    (a, b), (x, y) = some_names, some_numbers

    assert (keys.dentry_key(ino, a) < keys.dentry_key(ino, b)) is (a < b)
    assert (keys.xattr_key(ino, a) < keys.xattr_key(ino, b)) is (a < b)
    assert (keys.extent_key(ino, x) < keys.extent_key(ino, y)) is (x < y)
    assert (keys.dir_index_key(ino, x) < keys.dir_index_key(ino, y)) is (x < y)


@given(inos.filter(lambda ino: ino < MAX_INO), inos, names, numbers)
def test_all_keys_of_an_inode_lie_between_its_own_and_the_next_inodes(
    ino: Ino, parent: Ino, name: bytes, number: int
) -> None:
    start, stop = keys.inode_key(ino), keys.inode_key(Ino(ino + 1))

    for key in (
        keys.link_key(ino, parent, name),
        keys.xattr_key(ino, name),
        keys.dentry_key(ino, name),
        keys.dir_index_key(ino, number),
        keys.extent_key(ino, number),
    ):
        assert start < key < stop


def test_kinds_of_one_inode_sort_by_number() -> None:
    kinds = [
        keys.INODE, keys.LINK, keys.XATTR, keys.DENTRY, keys.DIR_INDEX, keys.EXTENT, keys.ORPHAN,
    ]  # fmt: skip

    assert kinds == sorted(kinds)
    assert [keys.prefix(Ino(7), kind) for kind in kinds] == sorted(
        keys.prefix(Ino(7), kind) for kind in kinds
    )


def test_the_layout_is_that_of_the_format() -> None:
    """Written out once by hand, because a reader of the format has only the document."""
    assert keys.link_key(Ino(258), Ino(1), b"x").hex() == (
        "0000000000000102" "01" "0000000000000001" "78"
    )  # fmt: skip
    assert keys.extent_key(Ino(2), 65536).hex() == "0000000000000002050000000000010000"
    assert keys.orphan_key(Ino(9)).hex() == "0000000000000000060000000000000009"

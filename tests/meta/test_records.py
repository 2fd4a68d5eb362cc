"""Records come back as they were; what is no record is damage."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import TIME_MAX_NS, TIME_MIN_NS, TREE_SIZE_MAX, BlockId, Ino
from kaifs.meta.records import (
    INODE,
    Extent,
    InodeRecord,
    decode_dentry,
    decode_dir_index,
    decode_extent,
    dentry_ino,
    encode_dentry,
    encode_dir_index,
    encode_extent,
    extent_block,
    extent_length,
    protect,
    unprotect,
)

offsets = st.integers(0, (1 << 62) - 1)
inos = st.integers(1, (1 << 36) - 1).map(Ino)
times = st.integers(TIME_MIN_NS, TIME_MAX_NS)


def block_extents() -> st.SearchStrategy[Extent]:
    word = st.integers(1, (1 << 32) - 1)
    blocks = st.integers(1, (1 << 64) - 1).map(BlockId)
    return st.builds(Extent, offsets, word, blocks, st.integers(0, (1 << 32) - 1))


def inline_extents() -> st.SearchStrategy[Extent]:
    def build(offset: int, inline: bytes) -> Extent:
        return Extent(offset, len(inline), BlockId(0), 0, inline)

    return st.builds(build, offsets, st.binary(min_size=1, max_size=600))


@given(block_extents() | inline_extents())
def test_an_extent_comes_back_from_its_value(extent: Extent) -> None:
    value = encode_extent(extent)

    assert decode_extent(extent.offset, value) == extent
    assert extent_block(value) == extent.block
    assert extent_length(value) == extent.length


@given(block_extents() | inline_extents(), st.data())
def test_a_cut_of_an_extent_covers_the_same_bytes(extent: Extent, data: st.DataObject) -> None:
    start = data.draw(st.integers(extent.offset, extent.stop - 1))
    stop = data.draw(st.integers(start + 1, extent.stop))

    cut = extent.cut(start, stop)

    assert (cut.offset, cut.stop, cut.block) == (start, stop, extent.block)
    if extent.block:
        assert cut.block_offset - extent.block_offset == start - extent.offset
    else:
        assert cut.inline == extent.inline[start - extent.offset : stop - extent.offset]


@given(inos, st.integers(0, (1 << 64) - 1), st.integers(1, 15), st.binary(max_size=255))
def test_directory_records_come_back(ino: Ino, seq: int, kind: int, name: bytes) -> None:
    dentry = encode_dentry(ino, seq, kind)

    assert decode_dentry(dentry) == (ino, seq, kind)
    assert dentry_ino(dentry) == ino
    assert decode_dir_index(encode_dir_index(ino, kind, name)) == (ino, kind, name)


@given(times, times, st.integers(0, TREE_SIZE_MAX))
def test_every_time_and_size_that_the_types_allow_can_be_kept(
    early: int, late: int, size: int
) -> None:
    inode = InodeRecord(0o100644, 0, 0, 1, size, 0, early, late, early, late, size, 1, bytes(32))

    assert INODE.decode(INODE.encode(inode)) == inode


def test_the_record_of_an_inode_is_a_plain_array() -> None:
    inode = InodeRecord(0o100644, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, b"s")

    assert msgspec.msgpack.decode(INODE.encode(inode)) == [
        0o100644, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, b"s",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode([1, 2]), b"\x80"])
def test_what_is_no_record_is_damage(value: bytes) -> None:
    with pytest.raises(StoreDamagedError, match="unreadable InodeRecord"):
        INODE.decode(value)


def test_a_record_with_a_field_too_many_is_refused() -> None:
    """A store that has more says so in its feature sets first; see the superblock."""
    inode = InodeRecord(0o100644, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, b"")
    fields = msgspec.msgpack.decode(INODE.encode(inode))

    with pytest.raises(StoreDamagedError):
        INODE.decode(msgspec.msgpack.encode([*fields, 0]))


@given(st.binary(max_size=200), st.data())
def test_one_flipped_bit_of_a_protected_record_is_found(record: bytes, data: st.DataObject) -> None:
    value = bytearray(protect(record))
    assert unprotect(memoryview(value), "it") == record
    position = data.draw(st.integers(0, len(value) * 8 - 1))
    value[position // 8] ^= 1 << position % 8

    with pytest.raises(StoreDamagedError, match="checksum of it is wrong"):
        unprotect(bytes(value), "it")

"""Nodes of the B+tree are encoded in msgpack, and a record that is no node is refused."""

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import Generation, NodeId
from kaifs.meta.node import (
    MAX_BYTES,
    MAX_KEYS,
    RAW_MAX,
    RECORD_MAX,
    ZSTD_MAGIC,
    Branch,
    Leaf,
    decode_node,
    encode_node,
    is_leaf,
)

G7 = Generation(7)
texts = st.binary(max_size=40)


@given(st.dictionaries(texts, texts, max_size=20))
def test_a_leaf_comes_back_as_it_was(content: dict[bytes, bytes]) -> None:
    leaf = Leaf(NodeId(3), G7, list(content), list(content.values()))

    again = decode_node(NodeId(3), encode_node(leaf))

    assert isinstance(again, Leaf)
    assert (again.node_id, again.generation) == (3, 7)
    assert dict(zip(again.keys, again.values, strict=True)) == content
    assert again.weight == leaf.weight == sum(len(key) + len(content[key]) for key in content)


@given(st.lists(st.tuples(texts, st.integers(1, 1 << 63)), min_size=1, max_size=20))
def test_a_branch_comes_back_as_it_was(content: list[tuple[bytes, int]]) -> None:
    bounds = [bound for bound, _ in content]
    branch = Branch(NodeId(3), G7, bounds, [NodeId(child) for _, child in content])

    again = decode_node(NodeId(3), encode_node(branch))

    assert isinstance(again, Branch)
    assert (again.keys, again.children) == (bounds, [child for _, child in content])
    assert again.weight == branch.weight == sum(map(len, bounds)) + 8 * len(content)


def test_the_record_of_a_node_is_a_plain_array() -> None:
    leaf = Leaf(NodeId(1), G7, [b"k"], [b"v"])
    branch = Branch(NodeId(2), G7, [b"", b"k"], [NodeId(3), NodeId(4)])

    assert msgspec.msgpack.decode(encode_node(leaf)) == ["L", 7, [b"k"], [b"v"]]
    assert msgspec.msgpack.decode(encode_node(branch)) == ["B", 7, [b"", b"k"], [3, 4]]


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["X", 1, [], []]),
        msgspec.msgpack.encode(["L", 1, [b"k"], []]),
        msgspec.msgpack.encode(["B", 1, [b"k"], []]),
        msgspec.msgpack.encode(["B", 1, [], []]),
        msgspec.msgpack.encode(["L", 1, [b"k"]]),
    ],
)
def test_what_is_no_node_is_damage(record: bytes) -> None:
    with pytest.raises(StoreDamagedError, match="node 9"):
        decode_node(NodeId(9), record)


def test_a_copy_has_its_own_identity_and_its_own_lists() -> None:
    leaf = Leaf(NodeId(1), G7, [b"k"], [b"v"])
    branch = Branch(NodeId(2), G7, [b""], [NodeId(1)])

    leaf_copy = leaf.copy(NodeId(8), Generation(9))
    branch_copy = branch.copy(NodeId(9), Generation(9))
    leaf_copy.keys.append(b"z")
    branch_copy.children.append(NodeId(5))

    assert (leaf_copy.node_id, leaf_copy.generation) == (8, 9)
    assert (branch_copy.node_id, branch_copy.generation) == (9, 9)
    assert leaf.keys == [b"k"]
    assert branch.children == [1]
    assert is_leaf(leaf_copy)
    assert not is_leaf(branch_copy)


def test_a_node_is_overfull_by_keys_or_by_bytes_but_never_with_one_key() -> None:
    many = [number.to_bytes(2, "big") for number in range(MAX_KEYS + 1)]
    heavy = bytes(MAX_BYTES)

    assert Leaf(NodeId(1), G7, many, [b""] * len(many)).is_overfull
    assert not Leaf(NodeId(1), G7, many[:-1], [b""] * MAX_KEYS).is_overfull
    assert Leaf(NodeId(1), G7, [b"a", b"b"], [heavy, b""]).is_overfull
    assert not Leaf(NodeId(1), G7, [b"a"], [heavy]).is_overfull


def test_memory_grows_with_keys_and_bytes() -> None:
    small = Leaf(NodeId(1), G7, [b"a"], [b""])

    assert Leaf(NodeId(1), G7, [b"a", b"b"], [b"", b""]).memory > small.memory + 1
    assert Leaf(NodeId(1), G7, [b"a"], [bytes(1000)]).memory == small.memory + 1000


# --- compression -----------------------------------------------------------------------------


def long_leaf() -> Leaf:
    keys = [b"key %05d" % number for number in range(100)]
    return Leaf(NodeId(7), Generation(3), keys, [b"value of " + key for key in keys])


def test_a_long_node_is_compressed_and_comes_back_as_it_was() -> None:
    leaf = long_leaf()

    record = encode_node(leaf)

    assert record[:4] == ZSTD_MAGIC
    assert len(record) < leaf.weight / 2
    back = decode_node(NodeId(7), record)
    assert isinstance(back, Leaf)
    assert (back.keys, back.values, back.generation) == (leaf.keys, leaf.values, 3)


def test_a_short_node_is_stored_as_it_is() -> None:
    record = encode_node(Leaf(NodeId(7), Generation(3), [b"k"], [b"v"]))

    assert len(record) < RAW_MAX
    assert record[0] == 0x94


@pytest.mark.parametrize("cut", [4, 9, 60, -1])
def test_a_frame_that_is_cut_off_is_damage(cut: int) -> None:
    with pytest.raises(StoreDamagedError, match="node 7"):
        decode_node(NodeId(7), encode_node(long_leaf())[:cut])


def test_a_frame_that_asks_for_much_memory_is_damage() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(RECORD_MAX + 1))

    with pytest.raises(StoreDamagedError, match="size"):
        decode_node(NodeId(7), bomb)

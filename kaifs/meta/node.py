"""Nodes of the B+trees: what one holds and how it is encoded.

A leaf holds keys and values; a branch holds, for each child, a key that is not
greater than any key below that child, and the child's id. In memory a node is
two plain lists, so that a search is one `bisect`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, TypeGuard

import msgspec

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import Generation, NodeId
from kaifs.base.zstd import expand

if TYPE_CHECKING:
    import zstandard

MAX_KEYS: Final = 128
"""A node with more keys is split."""
MAX_BYTES: Final = 16384
"""A node with more bytes of keys and values is split, if it has more than one key."""
MIN_KEYS: Final = 32
"""A node with fewer keys is merged with a neighbour, if both fit."""

RAW_MAX: Final = 512
"""A node of more bytes is compressed: an LMDB page has room for three or four then, not for one."""
RECORD_MAX: Final = 1 << 20
"""A node takes fewer bytes: names, values and extended attributes are bounded."""
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""What a compressed record begins with; a plain one begins with an array's mark, 0x94."""
_LEVEL: Final = -1
"""Half as long to compress as at level 1, and as small: 7 µs and 2.3 to 1 for a node of 2.4 KB."""

_OVERHEAD: Final = 96
"""What CPython needs beside the bytes for one key and one value, roughly."""


class Node:
    """Common to leaves and branches."""

    __slots__ = ("dirty", "generation", "keys", "node_id", "used", "weight")

    def __init__(self, node_id: NodeId, generation: Generation, keys: list[bytes]) -> None:
        self.node_id = node_id
        self.generation = generation
        self.keys = keys
        self.weight = 0
        """Bytes of keys and values."""
        self.dirty = False
        """Changed since it was last encoded."""
        self.used = True
        """Asked for since the cache last looked for something to drop."""

    @property
    def memory(self) -> int:
        """Bytes of memory that the node takes, roughly."""
        return self.weight + _OVERHEAD * len(self.keys) + 256

    @property
    def is_overfull(self) -> bool:
        """Whether the node must be split."""
        count = len(self.keys)
        return count > MAX_KEYS or (self.weight > MAX_BYTES and count > 1)


class Leaf(Node):
    """Keys with their values."""

    __slots__ = ("values",)

    def __init__(
        self, node_id: NodeId, generation: Generation, keys: list[bytes], values: list[bytes]
    ) -> None:
        super().__init__(node_id, generation, keys)
        self.values = values
        self.weight = sum(map(len, keys)) + sum(map(len, values))

    def copy(self, node_id: NodeId, generation: Generation) -> Leaf:
        """Return a leaf with the same content and another identity."""
        return Leaf(node_id, generation, self.keys.copy(), self.values.copy())


class Branch(Node):
    """Lower bounds with the children that they bound. The first bound is never looked at."""

    __slots__ = ("children",)

    def __init__(
        self,
        node_id: NodeId,
        generation: Generation,
        keys: list[bytes],
        children: list[NodeId],
    ) -> None:
        super().__init__(node_id, generation, keys)
        self.children = children
        self.weight = sum(map(len, keys)) + 8 * len(children)

    def copy(self, node_id: NodeId, generation: Generation) -> Branch:
        """Return a branch with the same content and another identity."""
        return Branch(node_id, generation, self.keys.copy(), self.children.copy())


def is_leaf(node: Leaf | Branch) -> TypeGuard[Leaf]:
    """Return whether *node* is a leaf."""
    return node.__class__ is Leaf


@cache
def _compressor() -> zstandard.ZstdCompressor:
    import zstandard

    return zstandard.ZstdCompressor(level=_LEVEL)


class _LeafRecord(msgspec.Struct, array_like=True, tag="L", gc=False):
    generation: int
    keys: list[bytes]
    values: list[bytes]


class _BranchRecord(msgspec.Struct, array_like=True, tag="B", gc=False):
    generation: int
    keys: list[bytes]
    children: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_LeafRecord | _BranchRecord)


def encode_node(node: Leaf | Branch) -> bytes:
    """Return `["L", generation, keys, values]` or `["B", generation, keys, children]` in msgpack.

    As one zstd frame, if that is long.
    """
    if isinstance(node, Leaf):
        record = _encode(_LeafRecord(node.generation, node.keys, node.values))
    else:
        record = _encode(_BranchRecord(node.generation, node.keys, list(node.children)))
    return record if len(record) <= RAW_MAX else _compressor().compress(record)


def decode_node(node_id: NodeId, record: bytes) -> Leaf | Branch:
    """Return the node that *record* holds.

    Raises:
        StoreDamagedError: *record* is no node.
    """
    try:
        fields = _decoder.decode(
            expand(record, 1, RECORD_MAX) if record[:4] == ZSTD_MAGIC else record
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreDamagedError(f"unreadable node {node_id}: {error}") from error
    generation = Generation(fields.generation)
    if isinstance(fields, _LeafRecord):
        if len(fields.keys) != len(fields.values):
            raise StoreDamagedError(f"node {node_id} has keys without values")
        return Leaf(node_id, generation, fields.keys, fields.values)
    if len(fields.keys) != len(fields.children) or not fields.keys:
        raise StoreDamagedError(f"node {node_id} has keys without children")
    return Branch(node_id, generation, fields.keys, [NodeId(child) for child in fields.children])

"""Typed ids and the limits that bound them.

An id is never a bare `int` in a signature: mixing a block id with an inode
number is then a type error, not a corrupted store.
"""

from typing import Final, NewType

Ino = NewType("Ino", int)
"""Inode number: one file-system object inside a lineage of trees. Never reused."""

RootId = NewType("RootId", int)
"""Names one root (one whole tree). Never reused."""

NodeId = NewType("NodeId", int)
"""Names one B+tree node. Never reused."""

BlockId = NewType("BlockId", int)
"""Names one block of payload. Never reused."""

SegmentId = NewType("SegmentId", int)
"""Names one segment file. Never reused."""

Slot = NewType("Slot", int)
"""What stays the same in `st_ino` of a head, version or snapshot. Never reused."""

Generation = NewType("Generation", int)
"""Moment of a clone or seal. A node is changed in place only by the root of its own generation."""

Epoch = NewType("Epoch", int)
"""Counts the durable commits of a store."""

KernelNode = NewType("KernelNode", int)
"""Node id towards the kernel: root id and inode number in 64 bits, the same after a restart."""

AgentName = NewType("AgentName", str)
SnapshotName = NewType("SnapshotName", str)

NO_NODE: Final = NodeId(0)
TOP_INO: Final = Ino(1)
"""The top directory of every tree."""

INO_BITS: Final = 36
MAX_INO: Final = (1 << INO_BITS) - 1
MAX_ROOT_ID: Final = (1 << (63 - INO_BITS)) - 1
SLOT_SHIFT: Final = 40
MAX_SLOT: Final = (1 << (63 - SLOT_SHIFT)) - 1

NAME_MAX: Final = 255
"""Bytes in one name. Source: NAME_MAX of limits.h."""
SYMLINK_MAX: Final = 4095
"""Bytes in a symbolic link's target. Source: PATH_MAX less the terminator."""
XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65536
"""Bytes in an extended attribute's value. Source: xattr(7)."""
LINK_MAX: Final = 65000
"""Names of one file. Source: ext4's EXT4_LINK_MAX."""
FILE_SIZE_MAX: Final = (1 << 63) - 1
"""Bytes in a file. Source: MAX_LFS_FILESIZE on 64 bits."""
TREE_SIZE_MAX: Final = (1 << 64) - 1
"""Bytes in all files of a tree, holes included: what msgpack can count."""
TIME_MIN_NS: Final = -(1 << 63)
TIME_MAX_NS: Final = (1 << 63) - 1
"""Times are in 64 bits, from 1677 to 2262; later and earlier ones are cut to that."""


def kernel_node(root: RootId, ino: Ino) -> KernelNode:
    """Return the kernel's node id of inode *ino* in the tree of *root*."""
    return KernelNode(root << INO_BITS | ino)


def split_kernel_node(node: KernelNode) -> tuple[RootId, Ino]:
    """Return the root and the inode number that *node* was made from."""
    return RootId(node >> INO_BITS), Ino(node & MAX_INO)


def stat_ino(slot: Slot, ino: Ino) -> int:
    """Return `st_ino` of inode *ino* shown in *slot*: distinct across all views of a store."""
    return slot << SLOT_SHIFT | ino

"""Numbers of the directories and files that exist in no tree.

The folders around the views (the root, `AGENT/`, `@versions/` …) and the files
in `@meta/` live under root id 0. Their inode number is a kind and the id of
what they show, so a number says everything and nothing is kept.
"""

from enum import IntEnum
from typing import Final

from kaifs.base.types import (
    MAX_ROOT_ID,
    Ino,
    KernelNode,
    RootId,
    Slot,
    kernel_node,
    split_kernel_node,
    stat_ino,
)

VIRTUAL_ROOT: Final = RootId(0)
VIRTUAL_SLOT: Final = Slot(0)

_ID_BITS: Final = 32
_ID_MASK: Final = (1 << _ID_BITS) - 1


class Kind(IntEnum):
    """What a virtual inode shows, and of what its id is."""

    ROOT = 0
    """The folder of all agents; id 1, which makes its node FUSE's root node."""
    AGENT = 1
    """`AGENT/`; id of the agent."""
    VERSIONS = 2
    """`AGENT/@versions/`; id of the agent."""
    SNAPSHOTS = 3
    """`AGENT/@snapshots/`; id of the agent."""
    META = 4
    """`AGENT/@meta/`; id of the agent."""
    RECORD = 5
    """`AGENT/@meta/LABEL.json`; root id of the version."""
    MANIFEST = 6
    """`AGENT/@meta/LABEL.mtree`; root id of the version."""
    SIGNATURE = 7
    """`AGENT/@meta/LABEL.json.sig`; root id of the version, and which of its signatures."""
    QUARANTINE = 8
    """`AGENT/@quarantine/`; id of the agent."""
    ASIDE = 9
    """`AGENT/@quarantine/LABEL/`; root id of the version."""
    NOTE = 10
    """`AGENT/@quarantine/LABEL/quarantine.json`; root id of the version."""
    CURRENT = 11
    """`AGENT/current/`, where it stays the same node when it shows another tree; id of the agent."""
    ALIAS = 12
    """A regular file that another connection changes; a number of `views.aliases.Aliases`."""


def virtual_ino(kind: Kind, number: int) -> Ino:
    """Return the inode number of the virtual inode that shows *number* as *kind*."""
    return Ino(kind << _ID_BITS | number)


def virtual_node(kind: Kind, number: int) -> KernelNode:
    """Return the kernel's node id of the virtual inode that shows *number* as *kind*."""
    return kernel_node(VIRTUAL_ROOT, virtual_ino(kind, number))


def split_virtual(ino: Ino) -> tuple[Kind | None, int]:
    """Return the kind and the id in *ino*; the kind is None if there is no such kind."""
    number = ino >> _ID_BITS
    kind = Kind(number) if number < len(Kind) else None
    return kind, ino & _ID_MASK


def signature_id(root: RootId, signatures: int) -> int:
    """Return the id of the latest of *signatures* signatures of the version with *root*.

    A signature that is replaced is another file: with the writeback cache the kernel keeps the
    size of a file that it knows, whatever it is told. Five bits are left for the count, so only
    who has the 32nd before it open could take one for the other.
    """
    return signatures << MAX_ROOT_ID.bit_length() & _ID_MASK | root


def virtual_stat_ino(node: KernelNode) -> int:
    """Return `st_ino` of a virtual inode."""
    return stat_ino(VIRTUAL_SLOT, split_kernel_node(node)[1])


ROOT_NODE: Final = virtual_node(Kind.ROOT, 1)
"""The folder of all agents. Equals FUSE_ROOT_ID."""

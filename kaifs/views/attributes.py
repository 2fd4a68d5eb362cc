"""What the name space answers: plain values that any transport can send."""

from dataclasses import dataclass
from typing import Final

import msgspec

from kaifs.base.types import KernelNode

FOREVER_S: Final = 1_000_000_000.0
"""Time-out of what only changes by the kernel's own requests, or is invalidated: 31 years."""

BLOCK_SIZE: Final = 512
"""Unit of `blocks`. Source: stat(2)."""

LEAF_LINKS: Final = 2
"""Names of a directory without directories in it: its own, and `.`."""


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """One inode as the kernel sees it. Times are ns since 1970.

    One is made for nearly each request, and a Struct in a tenth of a dataclass's time.
    """

    node: KernelNode
    st_ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    rdev: int
    blocks: int
    """Units of 512 bytes."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    """When it was made."""
    entry_timeout_s: float
    """How long the kernel may remember the name under which this was found."""
    attr_timeout_s: float
    """How long the kernel may remember the attributes."""


class Listed(msgspec.Struct, frozen=True):
    """One entry of a directory listing."""

    name: bytes
    cookie: int
    """Where a listing goes on after this entry; below 2**63."""
    attributes: Attributes
    counted: bool
    """Whether the kernel gets to know the node; false for `.` and `..`."""


@dataclass(frozen=True, slots=True)
class FileSystemSpace:
    """What statvfs(3) tells. Counts of blocks are in units of `block_size` bytes."""

    block_size: int
    blocks: int
    free: int
    available: int
    inodes: int
    inodes_free: int


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who made a request, as the kernel tells it."""

    uid: int
    gid: int

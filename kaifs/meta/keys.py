"""Keys of a tree: ordered bytes that keep what belongs to one inode together.

::

    inode number (8, big-endian) | kind (1) | rest
    INODE      -
    LINK       parent inode number (8, big-endian), name
    XATTR      name
    DENTRY     name
    DIR_INDEX  position (8, big-endian)
    EXTENT     file offset (8, big-endian)
    ORPHAN     (inode number 0) inode number (8, big-endian)
"""

import struct
from typing import Final

from kaifs.base.types import Ino

INODE: Final = 0
LINK: Final = 1
XATTR: Final = 2
DENTRY: Final = 3
DIR_INDEX: Final = 4
EXTENT: Final = 5
ORPHAN: Final = 6

PREFIX_SIZE: Final = 9
NO_INO: Final = Ino(0)
"""Keys of the tree itself are kept under this number; no inode has it."""

_prefix = struct.Struct(">QB").pack
_numbered = struct.Struct(">QBQ").pack
_unpack_prefix = struct.Struct(">QB").unpack_from


def prefix(ino: Ino, kind: int) -> bytes:
    """Return what all keys of *kind* of inode *ino* begin with."""
    return _prefix(ino, kind)


def inode_key(ino: Ino) -> bytes:
    """Return the key of the inode record."""
    return _prefix(ino, INODE)


def link_key(ino: Ino, parent: Ino, name: bytes) -> bytes:
    """Return the key that says: *ino* is called *name* in *parent*."""
    return _numbered(ino, LINK, parent) + name


def xattr_key(ino: Ino, name: bytes) -> bytes:
    """Return the key of an extended attribute."""
    return _prefix(ino, XATTR) + name


def dentry_key(parent: Ino, name: bytes) -> bytes:
    """Return the key of the entry *name* of directory *parent*."""
    return _prefix(parent, DENTRY) + name


def dir_index_key(parent: Ino, seq: int) -> bytes:
    """Return the key of position *seq* of directory *parent*."""
    return _numbered(parent, DIR_INDEX, seq)


def extent_key(ino: Ino, offset: int) -> bytes:
    """Return the key of the extent that begins at file position *offset*."""
    return _numbered(ino, EXTENT, offset)


def orphan_key(ino: Ino) -> bytes:
    """Return the key that lists *ino* as an orphan."""
    return _numbered(NO_INO, ORPHAN, ino)


def split_key(key: bytes) -> tuple[Ino, int, bytes]:
    """Return inode number, kind and rest of *key*."""
    ino, kind = _unpack_prefix(key)
    return Ino(ino), kind, key[PREFIX_SIZE:]


def number_at_end(key: bytes) -> int:
    """Return the 8-byte number that a DIR_INDEX, EXTENT or ORPHAN key ends with."""
    return int.from_bytes(key[PREFIX_SIZE:], "big")

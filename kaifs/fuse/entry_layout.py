"""Where pyfuse3 keeps the two inode numbers of an `EntryAttributes`.

The node id (by which the kernel asks) and `st_ino` (which programs see) differ
in kaifs, and pyfuse3 has one property that sets both. Both are in the object's
memory, in the struct fuse_entry_param of libfuse: so the place of the second
is found once, by a value that occurs nowhere else, and written directly.
"""

import ctypes
from typing import Final

import pyfuse3
from pyfuse3 import EntryAttributes, InodeT

from kaifs.base.errors import MountFailedError

_SENTINEL: Final = 0x5AFE_C0DE_1D0F_F5E7
_OTHER: Final = 0x0BAD_F00D_2CAF_E0D5


def find_stat_ino_offset() -> int:
    """Return the offset of `attr.st_ino` in an `EntryAttributes` object, in bytes.

    Raises:
        MountFailedError: this pyfuse3 has another layout.
    """
    entry = EntryAttributes()
    entry.st_ino = InodeT(_SENTINEL)
    size = EntryAttributes.__basicsize__
    places = [
        offset
        for offset in range(0, size - 7, 8)
        if ctypes.c_uint64.from_address(id(entry) + offset).value == _SENTINEL
    ]
    if len(places) == 2:
        # The property reads the node id, so what it does not notice is attr.st_ino.
        ctypes.c_uint64.from_address(id(entry) + places[1]).value = _OTHER
        if entry.st_ino == _SENTINEL:
            return places[1]
    raise MountFailedError(f"pyfuse3 {pyfuse3.__version__} lays out EntryAttributes unexpectedly")

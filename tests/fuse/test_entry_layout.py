"""Node id and st_ino in one `EntryAttributes`."""

import ctypes

from pyfuse3 import EntryAttributes, InodeT

from kaifs.fuse.entry_layout import find_stat_ino_offset


def test_st_ino_is_written_beside_the_node_id() -> None:
    offset = find_stat_ino_offset()
    entry = EntryAttributes()
    entry.st_ino = InodeT(7)

    ctypes.c_uint64.from_address(id(entry) + offset).value = 9

    assert entry.st_ino == 7
    assert offset + 8 <= EntryAttributes.__basicsize__

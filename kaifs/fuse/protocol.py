"""The FUSE kernel protocol: layouts and constants of ABI 7.31 to 7.45.

Names are those of the kernel's include/uapi/linux/fuse.h, the source of
everything here, without its prefix. All integers are in the machine's order.
"""

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 45
"""Newest minor version that is known here; the kernel speaks the smaller of the two."""
OLDEST_MINOR: Final = 31
EPOCH_MINOR: Final = 44
"""Since when all names can be made stale at once."""

IN_HEADER: Final = Struct("=IIQQIII4x")
"""len, opcode, unique, nodeid, uid, gid, pid; then total_extlen, padding."""
BODY: Final = IN_HEADER.size
"""Where in a message the fields of its opcode begin."""
OUT_HEADER: Final = Struct("=IiQ")
"""len, error (negative errno), unique."""
ATTR: Final = Struct("=QQQqqqIIIIIIIIII")
"""ino, size, blocks, a/m/ctime, a/m/ctimensec, mode, nlink, uid, gid, rdev, blksize, flags. Seconds
are negative before 1970."""
ATTR_OUT: Final = Struct("=QII")
"""attr_valid, attr_valid_nsec, dummy; then ATTR."""
ENTRY_OUT: Final = Struct("=QQQQII")
"""nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec; then ATTR."""
INIT_IN: Final = Struct("=IIII")
"""major, minor, max_readahead, flags; then flags2 since 7.36."""
INIT_OUT: Final = Struct("=IIIIHHIIHHII24x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
max_pages, map_alignment, flags2, max_stack_depth."""
FORGET_ONE: Final = Struct("=QQ")
SETATTR_IN: Final = Struct("=IIQQQqqqIIIIIIII")
"""valid, padding, fh, size, lock_owner, a/m/ctime, a/m/ctimensec, mode, unused, uid, gid, unused."""
MKNOD_IN: Final = Struct("=III4x")
"""mode, rdev, umask; then the name."""
CREATE_IN: Final = Struct("=IIII")
"""flags, mode, umask, open_flags; then the name. TMPFILE too."""
OPEN_OUT: Final = Struct("=QII")
"""fh, open_flags, backing_id."""
READ_IN: Final = Struct("=QQI")
"""fh, offset, size; then read_flags, lock_owner, flags. READDIR and READDIRPLUS too."""
WRITE_IN: Final = Struct("=QQII16x")
"""fh, offset, size, write_flags; then lock_owner, flags."""
LSEEK_IN: Final = Struct("=QQI4x")
"""fh, offset, whence."""
FALLOCATE_IN: Final = Struct("=QQQI4x")
"""fh, offset, length, mode."""
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags; the header's node is the source."""
SETXATTR_EXT: Final = 16
"""Size of SETXATTR's fields with SETXATTR_EXT: size, flags, setxattr_flags, padding."""
SETXATTR_SHORT: Final = 8
"""Without it: size, flags."""
STATX_IN: Final = Struct("=II8xII")
"""getattr_flags, reserved; fh; sx_flags, sx_mask."""
STATX_OUT: Final = Struct("=QII16xIIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII112x")
"""attr_valid, attr_valid_nsec, flags; then statx: mask, blksize, attributes, nlink, uid, gid, mode,
ino, size, blocks, attributes_mask, a/b/c/mtime, rdev and dev as major and minor."""
STATFS_OUT: Final = Struct("=QQQQQIII28x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
DIRENT: Final = Struct("=QQII")
"""ino, off, namelen, type; then the name, padded to 8 bytes."""
U32: Final = Struct("=I")
TWO_U32: Final = Struct("=II")
U64: Final = Struct("=Q")
NOTIFY_INVAL_INODE: Final = Struct("=Qqq")
"""ino, off, len."""
NOTIFY_INVAL_ENTRY: Final = Struct("=QII")
"""parent, namelen, flags; then the name and a zero byte."""
NOTIFY_RETRIEVE: Final = Struct("=QQQI4x")
"""notify_unique, nodeid, offset, size. A request NOTIFY_REPLY answers, with that `unique`."""
RETRIEVE_IN: Final = Struct("=8xQI")
"""offset, size; then padding and the bytes."""


class Opcode(IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


LOOKS: Final = frozenset(
    {
        Opcode.INIT,
        Opcode.LOOKUP,
        Opcode.GETATTR,
        Opcode.STATX,
        Opcode.READLINK,
        Opcode.OPEN,
        Opcode.READ,
        Opcode.LSEEK,
        Opcode.NOTIFY_REPLY,
        Opcode.STATFS,
        Opcode.GETXATTR,
        Opcode.LISTXATTR,
        Opcode.READDIR,
        Opcode.READDIRPLUS,
    }
)
"""Requests that change nothing; a truncation at open(2) comes as SETATTR."""


class Notify(IntEnum):
    """What a server tells the kernel unasked."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RETRIEVE = 5
    RESEND = 7
    INC_EPOCH = 8


class Init(IntFlag):
    """Features negotiated by INIT."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39
    """What was read and not answered can be had again, by a server that takes over."""
    ALLOW_IDMAP = 1 << 40
    """Then `uid` and `gid` of a request count only where something is made."""


class SetAttr(IntFlag):
    """Which fields of SETATTR count (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


OPEN_DIRECT_IO: Final = 1 << 0
OPEN_KEEP_CACHE: Final = 1 << 1
OPEN_CACHE_DIR: Final = 1 << 3
OPEN_NOFLUSH: Final = 1 << 5
OPEN_KILL_SUIDGID: Final = 1 << 0
"""In the open_flags of OPEN and CREATE: a truncation takes set-id bits away."""
WRITE_KILL_SUIDGID: Final = 1 << 2
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
RESENT: Final = 1 << 63
"""Set in `unique` of a request that was sent again, and in that of its reply."""
INTERRUPT_BIT: Final = 1
"""Set in `unique` of an INTERRUPT, whose body names the request."""

MIN_READ_BUFFER: Final = 8192
"""Smallest buffer that read(2) of the device accepts."""

"""Requests of the kernel's protocol: from the bytes of a message to handlers, and back.

Each opcode has one method here that unpacks the message, calls the handler and
packs the reply. Nothing waits: what has to is returned as `Later`.
"""

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kaifs.base.errors import MountFailedError, PastEndError, SealedError
from kaifs.base.types import NAME_MAX, KernelNode
from kaifs.fuse import protocol as p
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.protocol import Init, Opcode, SetAttr
from kaifs.fuse.walks import Listing, Listings, Walks
from kaifs.store.payload import ColdBlockError
from kaifs.tree.tree import AttributeChange
from kaifs.views.attributes import LEAF_LINKS, Attributes, Caller, Listed
from kaifs.views.namespace import Namespace

MAX_WRITE: Final = 1 << 20
"""Bytes of one READ or WRITE at most."""
MAX_BACKGROUND: Final = 65535
"""Background requests in flight; a smaller limit lets syncfs(2) return too early."""
BLOCK_SIZE: Final = 4096
"""What st_blksize says."""
_NS: Final = 1_000_000_000
# Plain numbers: an IntFlag takes ten times as long to look into.
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _ATIME_NOW, _MTIME_NOW, _CTIME, _KILL_SUIDGID = (
    int(field)
    for field in (
        SetAttr.MODE,
        SetAttr.UID,
        SetAttr.GID,
        SetAttr.SIZE,
        SetAttr.ATIME,
        SetAttr.MTIME,
        SetAttr.ATIME_NOW,
        SetAttr.MTIME_NOW,
        SetAttr.CTIME,
        SetAttr.KILL_SUIDGID,
    )
)
_unpack_header: Final = p.IN_HEADER.unpack_from
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_STATX_BASIC: Final = 0x7FF
_STATX_BTIME: Final = 0x800


@dataclass(frozen=True, slots=True)
class Later:
    """The reply of a request that has to wait for something."""

    work: Callable[[], Awaitable[bytes | list[bytes]]]
    interruptible: bool = False
    """Whether it may be given up with EINTR when who asked is killed. What then was not
    done must not be done."""


Reply = bytes | list[bytes] | Later | None
"""What follows the header: bytes, or several; None for no reply at all."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a connection is to do."""

    writeback: bool = True
    """Let the kernel gather writes. Without it an error of a write is that write's own."""
    zero_message_open: bool = False
    """Let the kernel open files unasked. Only where nothing is sealed, or nothing writable."""
    access_lists: bool = True
    """Let the kernel check POSIX ACLs."""
    mapped_owners: bool = False
    """Allow idmapped mounts. Only where nothing asks who makes a request that makes nothing."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What kernel and server agreed on when the connection began: it holds for every server."""

    minor: int
    """ABI version."""
    flags: int
    """Of `Init`."""
    features: Features


def features_of(namespace: Namespace) -> Features:
    """Return what the connection of a mount of *namespace* can do.

    Without OPEN nothing stops who has the permission from opening a sealed file for writing,
    and what is then written is seen by all readers, in the kernel's cache.

    With the writeback cache the kernel asks for a file's attributes anew after each close: it
    does not count blocks. Source: fuse_flush() in fs/fuse/file.c of Linux.
    """
    return Features(
        writeback=not namespace.read_only,
        zero_message_open=namespace.read_only or namespace.holds_nothing_sealed(),
        # Whoever removes or renames an agent or a snapshot must be known.
        mapped_owners=bool(namespace.scope.view),
    )


class Refusal(Exception):
    """The answer is this errno, which is no failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class Request:
    """The request that lies in the buffer. There is one, filled anew for each."""

    __slots__ = ("gid", "node", "opcode", "pid", "size", "uid", "unique", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.size = 0
        self.opcode = 0
        self.unique = 0
        self.node = KernelNode(0)
        self.uid = 0
        self.gid = 0
        self.pid = 0
        """The thread that made the request; 0: the kernel, or one that cannot be named here."""

    def load(self) -> None:
        """Take in the header of what was read into the buffer."""
        (
            self.size,
            self.opcode,
            self.unique,
            self.node,
            self.uid,
            self.gid,
            self.pid,
        ) = _unpack_header(self.view)

    @property
    def caller(self) -> Caller:
        """Who made the request."""
        return Caller(self.uid, self.gid)

    def name(self, skip: int = 0) -> bytes:
        """Return the zero-terminated name that is all there is after *skip* bytes."""
        return bytes(self.view[p.BODY + skip : self.size - 1])

    def names(self, skip: int = 0) -> tuple[bytes, bytes]:
        """Return the two zero-terminated names after *skip* bytes."""
        first, second, *_ = bytes(self.view[p.BODY + skip : self.size]).split(b"\0")
        return first, second


class Requests:
    """Answers the requests of one connection."""

    def __init__(
        self,
        handlers: Handlers,
        features: Features,
        forget_pages: Callable[[KernelNode], Awaitable[None]],
        discard_pages: Callable[[KernelNode], None],
        forget_attributes: Callable[[KernelNode], None],
        retrieve: Callable[[int, KernelNode, int], bool],
    ) -> None:
        """Answer with *handlers*.

        Args:
            handlers: What requests do.
            features: What the connection is to do.
            forget_pages: Has the kernel send what it has not written of a node, and drop
                its pages; waits for that.
            discard_pages: The same without waiting.
            forget_attributes: Has the kernel ask for a node's attributes again. Never blocks.
            retrieve: Has the kernel say whether it has a byte of a node in memory, by a request
                NOTIFY_REPLY of that `unique`; false: it will not. Never blocks.
        """
        handlers.are_opens_told = not features.zero_message_open
        self._handlers = handlers
        self._features = features
        self._forget_pages = forget_pages
        self._discard_pages = discard_pages
        self._forget_attributes = forget_attributes
        self._retrieve = retrieve
        self._supposed: dict[int, tuple[KernelNode, int, int]] = {}
        """By the `unique` of an LSEEK: node, offset, and the hole that there is unless the kernel
        has it in memory."""
        self._walks = Walks(handlers.namespace, lambda nodes: handlers.drop_listings(nodes))
        self._listings = Listings(handlers)
        self._setxattr_size = p.SETXATTR_SHORT
        self._masks = False
        """Whether the kernel leaves the umask to us."""
        self.minor = 0
        """ABI version in force; 0 before INIT."""
        self.agreement: Agreement | None = None
        """None before INIT."""
        self.table: dict[int, Callable[[Request], Reply]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: lambda r: handlers.readlink(r.node),
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.LSEEK: self._lseek,
            Opcode.NOTIFY_REPLY: self._retrieved,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.COPY_FILE_RANGE: lambda r: p.TWO_U32.pack(self._copy_range(r), 0),
            Opcode.COPY_FILE_RANGE_64: lambda r: p.U64.pack(self._copy_range(r)),
            Opcode.RELEASE: self._release,
            Opcode.STATFS: self._statfs,
            Opcode.FSYNC: self._fsync,
            Opcode.FSYNCDIR: self._fsync,
            Opcode.SYNCFS: self._fsync,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.INIT: self._init,
            Opcode.DESTROY: lambda r: b"",
        }
        """FLUSH and OPENDIR are not in it: answered ENOSYS once, they never come again."""

    # --- the connection ------------------------------------------------------------------

    def _init(self, request: Request) -> Reply:
        major, minor, readahead, flags = p.INIT_IN.unpack_from(request.view, p.BODY)
        if major != p.MAJOR or minor < p.OLDEST_MINOR:
            raise MountFailedError(f"the kernel speaks FUSE {major}.{minor}")
        if flags & Init.INIT_EXT:
            (high,) = p.U32.unpack_from(request.view, p.BODY + p.INIT_IN.size)
            flags |= high << 32
        wanted = int(self._wanted()) & flags
        self.adopt(Agreement(min(minor, p.MINOR), wanted, self._features))
        return p.INIT_OUT.pack(
            p.MAJOR,
            self.minor,
            readahead,
            wanted & 0xFFFFFFFF,
            MAX_BACKGROUND,
            MAX_BACKGROUND,
            MAX_WRITE,
            1,
            MAX_WRITE // BLOCK_SIZE,
            0,
            wanted >> 32,
            0,
        )

    def adopt(self, agreement: Agreement) -> None:
        """Do as was agreed, now or with a former server."""
        self.agreement = agreement
        self.minor = agreement.minor
        self._features = agreement.features
        self._handlers.are_opens_told = not agreement.features.zero_message_open
        self._handlers.namespace.keeps_tops = agreement.minor >= p.EPOCH_MINOR
        is_extended = agreement.flags & Init.SETXATTR_EXT
        self._setxattr_size = p.SETXATTR_EXT if is_extended else p.SETXATTR_SHORT
        self._masks = bool(agreement.flags & Init.DONT_MASK)

    def _wanted(self) -> Init:
        wanted = (
            Init.ASYNC_READ
            | Init.BIG_WRITES
            | Init.DO_READDIRPLUS
            | Init.READDIRPLUS_AUTO
            | Init.ASYNC_DIO
            | Init.PARALLEL_DIROPS
            | Init.MAX_PAGES
            | Init.CACHE_SYMLINKS
            | Init.NO_OPENDIR_SUPPORT
            | Init.HANDLE_KILLPRIV_V2
            | Init.SETXATTR_EXT
            | Init.INIT_EXT
            | Init.HAS_RESEND
        )
        if self._features.writeback:
            wanted |= Init.WRITEBACK_CACHE
        if self._features.zero_message_open:
            wanted |= Init.NO_OPEN_SUPPORT
        if self._features.access_lists:
            # A default ACL replaces the umask, which only who knows the ACL can do.
            wanted |= Init.POSIX_ACL | Init.DONT_MASK
        if self._features.mapped_owners:
            wanted |= Init.ALLOW_IDMAP
        return wanted

    def _statfs(self, request: Request) -> Reply:
        space = self._handlers.statfs()
        return p.STATFS_OUT.pack(
            space.blocks,
            space.free,
            space.available,
            space.inodes,
            space.inodes_free,
            space.block_size,
            NAME_MAX,
            space.block_size,
        )

    def _fsync(self, request: Request) -> Reply:
        async def work() -> bytes:
            await self._handlers.fsync()
            return b""

        return Later(work)

    # --- names -------------------------------------------------------------------------

    def _lookup(self, request: Request) -> Reply:
        found = self._handlers.lookup(request.node, request.name())
        return _ABSENT if found is None else _entry(found)

    def _forget(self, request: Request) -> Reply:
        (lookups,) = p.U64.unpack_from(request.view, p.BODY)
        self._handlers.forget(request.node, lookups)
        return None

    def _batch_forget(self, request: Request) -> Reply:
        count, _ = p.TWO_U32.unpack_from(request.view, p.BODY)
        start = p.BODY + p.TWO_U32.size
        stop = start + count * p.FORGET_ONE.size
        forget = self._handlers.forget
        for node, lookups in p.FORGET_ONE.iter_unpack(request.view[start:stop]):
            forget(node, lookups)
        return None

    def _umask(self, umask: int) -> int:
        return umask & 0o777 if self._masks else 0

    def _mknod(self, request: Request) -> Reply:
        mode, rdev, umask = p.MKNOD_IN.unpack_from(request.view, p.BODY)
        name = request.name(p.MKNOD_IN.size)
        made = self._handlers.mknod(
            request.node, name, mode, rdev, request.caller, self._umask(umask)
        )
        return _entry(made)

    def _mkdir(self, request: Request) -> Reply:
        mode, umask = p.TWO_U32.unpack_from(request.view, p.BODY)
        handlers, node, caller = self._handlers, request.node, request.caller
        name, mode, umask = request.name(8), stat.S_IFDIR | mode, self._umask(umask)
        if not handlers.is_made_behind_barrier(node):
            return _entry(handlers.mkdir_nowait(node, name, mode, caller, umask))

        async def work() -> bytes:
            return _entry(await handlers.mkdir(node, name, mode, caller, umask))

        return Later(work, interruptible=True)

    def _symlink(self, request: Request) -> Reply:
        name, target = request.names()
        return _entry(self._handlers.symlink(request.node, name, target, request.caller))

    def _link(self, request: Request) -> Reply:
        (node,) = p.U64.unpack_from(request.view, p.BODY)
        return _entry(self._handlers.link(KernelNode(node), request.node, request.name(8)))

    def _unlink(self, request: Request) -> Reply:
        self._handlers.unlink(request.node, request.name())
        return b""

    def _rmdir(self, request: Request) -> Reply:
        self._handlers.rmdir(request.node, request.name(), request.caller)
        return b""

    def _rename(self, request: Request) -> Reply:
        (parent,) = p.U64.unpack_from(request.view, p.BODY)
        return self._move(request, KernelNode(parent), 0, p.U64.size)

    def _rename2(self, request: Request) -> Reply:
        (parent,) = p.U64.unpack_from(request.view, p.BODY)
        flags, _ = p.TWO_U32.unpack_from(request.view, p.BODY + p.U64.size)
        return self._move(request, KernelNode(parent), flags, 16)

    def _move(self, request: Request, parent: KernelNode, flags: int, skip: int) -> Reply:
        old, new = request.names(skip)
        self._handlers.rename(request.node, old, parent, new, flags, request.caller)
        return b""

    def _readdir(self, request: Request) -> Reply:
        return self._listing(request, self._names)

    def _readdirplus(self, request: Request) -> Reply:
        return self._listing(request, self._entries)

    def _listing(self, request: Request, make: Callable[[KernelNode, int, int], Listing]) -> Reply:
        _, cookie, room = p.READ_IN.unpack_from(request.view, p.BODY)
        node, pid = request.node, request.pid
        if not self._walks.is_walking(pid):
            return make(node, cookie, room).reply
        found = self._listings.get(node, cookie, room, make)
        self._walks.listed(pid, node, found)
        return found.reply

    def _names(self, node: KernelNode, cookie: int, room: int) -> Listing:
        parts: list[bytes] = []
        listed: list[Listed] = []
        for found in self._handlers.readdir(node, cookie):
            dirent = _dirent(found)
            room -= len(dirent)
            if room < 0:
                break
            parts.append(dirent)
            listed.append(found)
        return Listing(b"".join(parts), (), *_folders(listed))

    def _entries(self, node: KernelNode, cookie: int, room: int) -> Listing:
        parts: list[bytes] = []
        nodes: list[KernelNode] = []
        listed: list[Listed] = []
        is_known = True
        for found in self._handlers.readdir(node, cookie):
            attributes = found.attributes
            # Node id 0 tells the kernel not to look the entry up by the way.
            entry = _entry(attributes) if found.counted else _UNKNOWN
            dirent = _dirent(found)
            room -= len(entry) + len(dirent)
            if room < 0:
                break
            parts += (entry, dirent)
            if found.counted:
                nodes.append(attributes.node)
                listed.append(found)
            elif found.name not in (b".", b".."):
                is_known = False
        self._handlers.listed(nodes)
        return Listing(b"".join(parts), nodes, *_folders(listed), is_known)

    # --- inodes ------------------------------------------------------------------------

    def _getattr(self, request: Request) -> Reply:
        found = self._handlers.getattr(request.node)
        if stat.S_ISREG(found.mode):
            self._walks.asked(request.pid, found)
        return _attributes(found)

    def _statx(self, request: Request) -> Reply:
        return _statx(self._handlers.getattr(request.node))

    def _setattr(self, request: Request) -> Reply:
        fields = p.SETATTR_IN.unpack_from(request.view, p.BODY)
        valid = fields[0]
        now_ns = self._handlers.now_ns()
        change = AttributeChange(
            mode=fields[11] if valid & _MODE else None,
            uid=fields[13] if valid & _UID else None,
            gid=fields[14] if valid & _GID else None,
            size=fields[3] if valid & _SIZE else None,
            atime_ns=_time(valid, _ATIME, _ATIME_NOW, fields[5], fields[8], now_ns),
            mtime_ns=_time(valid, _MTIME, _MTIME_NOW, fields[6], fields[9], now_ns),
            ctime_ns=fields[7] * _NS + fields[10] if valid & _CTIME else None,
        )
        kill = bool(valid & _KILL_SUIDGID)
        return _attributes(self._handlers.setattr(request.node, change, kill_privileges=kill))

    def _setxattr(self, request: Request) -> Reply:
        size, flags = p.TWO_U32.unpack_from(request.view, p.BODY)
        start = p.BODY + self._setxattr_size
        kill_set_gid = False
        if self._setxattr_size == p.SETXATTR_EXT:
            (more,) = p.U32.unpack_from(request.view, p.BODY + p.TWO_U32.size)
            kill_set_gid = bool(more & p.SETXATTR_ACL_KILL_SGID)
        name, _, value = bytes(request.view[start : request.size]).partition(b"\0")
        self._handlers.setxattr(request.node, name, value[:size], flags, kill_set_gid=kill_set_gid)
        return b""

    def _getxattr(self, request: Request) -> Reply:
        size, _ = p.TWO_U32.unpack_from(request.view, p.BODY)
        return _sized(self._handlers.getxattr(request.node, request.name(8)), size)

    def _listxattr(self, request: Request) -> Reply:
        size, _ = p.TWO_U32.unpack_from(request.view, p.BODY)
        names = self._handlers.listxattr(request.node)
        return _sized(b"".join(name + b"\0" for name in names), size)

    def _removexattr(self, request: Request) -> Reply:
        self._handlers.removexattr(request.node, request.name())
        return b""

    # --- open files ----------------------------------------------------------------------

    def _open(self, request: Request) -> Reply:
        if self._features.zero_message_open:
            # Answered once, it is never asked again.
            raise Refusal(errno.ENOSYS)
        (flags,) = p.U32.unpack_from(request.view, p.BODY)
        handle = self._handlers.open(request.node, flags, request.caller)
        return p.OPEN_OUT.pack(handle, self._open_flags(request.node), 0)

    def _open_flags(self, node: KernelNode) -> int:
        if self._handlers.is_cached(node):
            return p.OPEN_KEEP_CACHE | p.OPEN_NOFLUSH
        return p.OPEN_DIRECT_IO

    def _create(self, request: Request) -> Reply:
        if self._features.zero_message_open:
            # The kernel then sends MKNOD, and opens unasked.
            raise Refusal(errno.ENOSYS)
        _, mode, umask, _ = p.CREATE_IN.unpack_from(request.view, p.BODY)
        made, handle = self._handlers.create(
            request.node,
            request.name(p.CREATE_IN.size),
            stat.S_IFREG | mode,
            request.caller,
            self._umask(umask),
        )
        return _entry(made) + p.OPEN_OUT.pack(handle, self._open_flags(made.node), 0)

    def _tmpfile(self, request: Request) -> Reply:
        _, mode, umask, _ = p.CREATE_IN.unpack_from(request.view, p.BODY)
        made, handle = self._handlers.create_nameless(
            request.node, mode, request.caller, self._umask(umask)
        )
        return _entry(made) + p.OPEN_OUT.pack(handle, self._open_flags(made.node), 0)

    def _read(self, request: Request) -> Reply:
        _, offset, size = p.READ_IN.unpack_from(request.view, p.BODY)
        handlers, node = self._handlers, request.node
        try:
            return handlers.read(node, offset, size)
        except ColdBlockError:
            return Later(lambda: handlers.read_cold(node, offset, size))

    def _write(self, request: Request) -> Reply:
        _, offset, size, flags = p.WRITE_IN.unpack_from(request.view, p.BODY)
        start = p.BODY + p.WRITE_IN.size
        kill = bool(flags & p.WRITE_KILL_SUIDGID)
        if kill:
            self._tell_killed(request.node)
        try:
            written = self._handlers.write(
                request.node,
                offset,
                request.view[start : start + size],
                kill_privileges=kill,
                keep_times=self._features.writeback,
            )
        except SealedError:
            # Pages that were written unasked (the mount was made writable again under a
            # zero-message open) must not stay for readers to see.
            self._discard_pages(request.node)
            raise
        return p.TWO_U32.pack(written, 0)

    def _tell_killed(self, node: KernelNode) -> None:
        """Have the kernel ask for the mode again if set-id bits are about to go.

        Of what a request does to a mode it keeps nothing, also for execve(2). It asks when
        this request has been answered.
        """
        if self._handlers.getattr(node).mode & _SET_ID:
            self._forget_attributes(node)

    def _lseek(self, request: Request) -> Reply:
        _, offset, whence = p.LSEEK_IN.unpack_from(request.view, p.BODY)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Refusal(errno.EINVAL)
        handlers, node, hole = self._handlers, request.node, whence == os.SEEK_HOLE
        if not handlers.is_written(node):
            return p.U64.pack(handlers.seek(node, offset, hole=hole))
        # The kernel asks without having sent what it gathered, a new size included. By that, data
        # does not become a hole, nor a hole of which the kernel has nothing become data.
        with suppress(PastEndError):
            found = handlers.seek(node, offset, hole=hole)
            if not hole and found == offset:
                return p.U64.pack(found)
            if hole and self._retrieve(request.unique, node, found):
                self._supposed[request.unique] = node, offset, found
                return None
        return self._seek_in_sent(node, offset, hole=hole)

    def _retrieved(self, request: Request) -> Reply:
        """Answer the LSEEK that had the kernel asked what it has."""
        supposed = self._supposed.pop(request.unique, None)
        if supposed is None:
            # A former server had it asked; the LSEEK comes again.
            return None
        node, offset, found = supposed
        _, size = p.RETRIEVE_IN.unpack_from(request.view, p.BODY)
        if size == 0:
            return p.U64.pack(found)
        return self._seek_in_sent(node, offset, hole=True)

    def _seek_in_sent(self, node: KernelNode, offset: int, *, hole: bool) -> Later:
        async def work() -> bytes:
            # Not by syncing it, which would take the inode's lock: who asks holds that.
            await self._forget_pages(node)
            return p.U64.pack(self._handlers.seek(node, offset, hole=hole))

        return Later(work)

    def _fallocate(self, request: Request) -> Reply:
        _, offset, length, mode = p.FALLOCATE_IN.unpack_from(request.view, p.BODY)
        if request.uid != 0:
            self._tell_killed(request.node)
        self._handlers.allocate(
            request.node,
            offset,
            length,
            mode,
            kill_privileges=request.uid != 0,
            keep_times=self._features.writeback,
        )
        return b""

    def _copy_range(self, request: Request) -> int:
        _, start, target, _, offset, length, flags = p.COPY_FILE_RANGE_IN.unpack_from(
            request.view, p.BODY
        )
        if flags:
            raise Refusal(errno.EINVAL)
        if request.uid != 0:
            self._tell_killed(KernelNode(target))
        return self._handlers.copy_range(
            request.node,
            start,
            KernelNode(target),
            offset,
            length,
            kill_privileges=request.uid != 0,
            keep_times=self._features.writeback,
        )

    def _release(self, request: Request) -> Reply:
        (handle,) = p.U64.unpack_from(request.view, p.BODY)
        self._handlers.release(handle)
        return b""


def _time(
    valid: int, given: int, now: int, seconds: int, nanoseconds: int, now_ns: int
) -> int | None:
    if not valid & given:
        return None
    return now_ns if valid & now else seconds * _NS + nanoseconds


def _attributes(found: Attributes) -> bytes:
    return p.ATTR_OUT.pack(int(found.attr_timeout_s), 0, 0) + _attr(found)


def _entry(found: Attributes) -> bytes:
    entry_s, attr_s = int(found.entry_timeout_s), int(found.attr_timeout_s)
    return p.ENTRY_OUT.pack(found.node, 0, entry_s, attr_s, 0, 0) + _attr(found)


def _attr(found: Attributes) -> bytes:
    atime_s, atime = divmod(found.atime_ns, _NS)
    mtime_s, mtime = divmod(found.mtime_ns, _NS)
    ctime_s, ctime = divmod(found.ctime_ns, _NS)
    return p.ATTR.pack(
        found.st_ino,
        found.size,
        found.blocks,
        atime_s,
        mtime_s,
        ctime_s,
        atime,
        mtime,
        ctime,
        found.mode,
        found.nlink,
        found.uid,
        found.gid,
        found.rdev & 0xFFFFFFFF,
        BLOCK_SIZE,
        0,
    )


def _statx(found: Attributes) -> bytes:
    atime_s, atime = divmod(found.atime_ns, _NS)
    mtime_s, mtime = divmod(found.mtime_ns, _NS)
    ctime_s, ctime = divmod(found.ctime_ns, _NS)
    btime_s, btime = divmod(found.btime_ns, _NS)
    return p.STATX_OUT.pack(
        int(found.attr_timeout_s),
        0,
        0,
        _STATX_BASIC | _STATX_BTIME,
        BLOCK_SIZE,
        0,
        found.nlink,
        found.uid,
        found.gid,
        found.mode,
        found.st_ino,
        found.size,
        found.blocks,
        0,
        atime_s,
        atime,
        btime_s,
        btime,
        ctime_s,
        ctime,
        mtime_s,
        mtime,
        os.major(found.rdev),
        os.minor(found.rdev),
        0,
        0,
    )


_ABSENT: Final = p.ENTRY_OUT.pack(0, 0, 1_000_000_000, 0, 0, 0) + bytes(p.ATTR.size)
"""A negative entry that the kernel may keep."""
_UNKNOWN: Final = bytes(p.ENTRY_OUT.size + p.ATTR.size)


def _dirent(found: Listed) -> bytes:
    kind = stat.S_IFMT(found.attributes.mode) >> 12
    head = p.DIRENT.pack(found.attributes.st_ino, found.cookie, len(found.name), kind)
    return head + found.name + bytes(-len(found.name) % 8)


def _folders(listed: list[Listed]) -> tuple[list[KernelNode], list[KernelNode]]:
    """Return the directories among what was *listed*, and those of them that have some themselves."""
    found = [one.attributes for one in listed if one.counted and stat.S_ISDIR(one.attributes.mode)]
    return [one.node for one in found], [one.node for one in found if one.nlink > LEAF_LINKS]


def _sized(value: bytes, room: int) -> bytes:
    """Return *value*, or its size if *room* is 0 (getxattr(2), listxattr(2))."""
    if room == 0:
        return p.TWO_U32.pack(len(value), 0)
    if len(value) > room:
        raise Refusal(errno.ERANGE)
    return value

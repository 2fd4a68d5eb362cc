"""The FUSE transport that speaks the kernel's protocol itself, on `/dev/fuse`.

Requests are read and answered by one trio task, each at once, without a task
of its own; only what must wait (fsync, a barrier) gets one. Nothing is
allocated for a request but its answer. Several connections can be served by
one process; a connection ends when its last mount is gone.
"""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from kaifs.base.errors import MountFailedError
from kaifs.base.types import NAME_MAX, KernelNode
from kaifs.fuse import protocol as p
from kaifs.fuse.errno_map import errno_of
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.mounting import MountOptions, mount_fuse
from kaifs.fuse.protocol import Init, Opcode, SetAttr
from kaifs.linux.mounts import unmount
from kaifs.tree.tree import AttributeChange
from kaifs.views.attributes import Attributes, Caller, Listed

log = logging.getLogger(__name__)

MAX_WRITE: Final = 1 << 20
"""Bytes of one READ or WRITE at most."""
MAX_BACKGROUND: Final = 65535
"""Background requests in flight; a smaller limit lets syncfs(2) return too early."""
BLOCK_SIZE: Final = 4096
"""What st_blksize says."""
TURN: Final = 64
"""Requests answered in a row before other tasks get a turn."""
_BUFFER_SIZE: Final = MAX_WRITE + (1 << 16)
_NS: Final = 1_000_000_000
_SIGN: Final = 1 << 63
_WRAP: Final = 1 << 64

_Reply = bytes | list[bytes] | None
"""What follows the header: bytes, several, or None for no reply at all."""
_Handler = Callable[["_Request"], _Reply]


@dataclass(frozen=True, slots=True)
class Features:
    """What a connection is to do."""

    writeback: bool = True
    """Let the kernel gather writes. Without it an error of a write is that write's own."""
    zero_message_open: bool = False
    """Let the kernel open files unasked. Only where nothing is sealed, or nothing writable."""


class _Request:
    """One request as it lies in the buffer. Valid until the next one is read."""

    __slots__ = ("body", "gid", "node", "opcode", "uid", "unique")

    def __init__(self, message: memoryview) -> None:
        fields = p.IN_HEADER.unpack_from(message)
        self.opcode: int = fields[1]
        self.unique: int = fields[2]
        self.node = KernelNode(fields[3])
        self.uid: int = fields[4]
        self.gid: int = fields[5]
        self.body = message[p.IN_HEADER.size : fields[0]]

    @property
    def caller(self) -> Caller:
        """Who made the request."""
        return Caller(self.uid, self.gid)

    def name(self, skip: int = 0) -> bytes:
        """Return the zero-terminated name after *skip* bytes."""
        rest = bytes(self.body[skip:])
        return rest[: rest.index(0)]

    def names(self, skip: int = 0) -> tuple[bytes, bytes]:
        """Return the two zero-terminated names after *skip* bytes."""
        first, second, *_ = bytes(self.body[skip:]).split(b"\0")
        return first, second


class KernelConnection:
    """One connection: a descriptor of `/dev/fuse` that is, or will be, mounted."""

    def __init__(self, fd: int, handlers: Handlers, features: Features) -> None:
        """Answer what comes from *fd*, which this owns from now on."""
        self._fd = fd
        self._handlers = handlers
        self._features = features
        self._minor = 0
        self._is_closing = False
        self._nursery: trio.Nursery | None = None
        os.set_blocking(fd, False)
        self._table: dict[int, _Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.GETATTR: self._getattr,
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
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
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
            Opcode.INTERRUPT: lambda r: None,
        }

    # --- serving -----------------------------------------------------------------------

    async def serve(self) -> None:
        """Answer requests until the connection ends: unmounted, aborted, or `terminate`.

        Raises:
            MountFailedError: the kernel speaks another protocol.
        """
        buffer = bytearray(_BUFFER_SIZE)
        view = memoryview(buffer)
        served = 0
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while not self._is_closing:
                try:
                    size = os.readv(self._fd, [buffer])
                except BlockingIOError:
                    # Closed by `terminate` while it waits.
                    with contextlib.suppress(trio.ClosedResourceError):
                        await trio.lowlevel.wait_readable(self._fd)
                    continue
                except OSError as error:
                    if error.errno in (errno.EINTR, errno.ENOENT):
                        # ENOENT: the request was interrupted before it was read.
                        continue
                    if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                        break
                    raise
                self._answer(_Request(view[:size]))
                served += 1
                if served % TURN == 0:
                    # A busy mount must not starve the control socket. A checkpoint costs as
                    # much as a request, so others have a turn only now and then.
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    def terminate(self) -> None:
        """Let `serve` return. For the loop's thread."""
        self._is_closing = True
        trio.lowlevel.notify_closing(self._fd)

    def close(self) -> None:
        """Close the descriptor; what is still mounted on it answers ENOTCONN from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _answer(self, request: _Request) -> None:
        handler = self._table.get(request.opcode)
        if handler is None:
            self._reply_error(request.unique, errno.ENOSYS)
            return
        try:
            reply = handler(request)
        except _Refusal as refusal:
            self._reply_error(request.unique, refusal.errno)
        # A bug answers EIO and is logged; the server goes on.
        except Exception as error:  # noqa: BLE001
            self._reply_error(request.unique, errno_of(error, _name_of(request.opcode)))
        else:
            if reply is not None:
                self._reply(request.unique, reply)

    def _reply(self, unique: int, reply: bytes | list[bytes]) -> None:
        parts = reply if isinstance(reply, list) else [reply]
        size = p.OUT_HEADER.size + sum(map(len, parts))
        self._send([p.OUT_HEADER.pack(size, 0, unique), *parts])

    def _reply_error(self, unique: int, number: int) -> None:
        self._send([p.OUT_HEADER.pack(p.OUT_HEADER.size, -number, unique)])

    def _send(self, parts: list[bytes]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: the process that asked was killed meanwhile. ENODEV: unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF):
                log.exception("reply_failed")

    def _later(self, request: _Request, work: Callable[[], Awaitable[_Reply]]) -> None:
        """Answer *request* when *work* is done, and others meanwhile."""
        unique, opcode = request.unique, request.opcode

        async def run() -> None:
            try:
                reply = await work()
            # As in `_answer`.
            except Exception as error:  # noqa: BLE001
                self._reply_error(unique, errno_of(error, _name_of(opcode)))
            else:
                self._reply(unique, reply if reply is not None else b"")

        assert self._nursery is not None, "requests are answered inside serve"
        self._nursery.start_soon(run)

    # --- telling the kernel --------------------------------------------------------------

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """Let the kernel forget *name* in *parent*. May block: not from the loop's thread.

        Raises:
            FileNotFoundError: it was not cached.
        """
        body = p.NOTIFY_INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"
        self._notify(p.Notify.INVAL_ENTRY, body)

    def invalidate_inode(self, node: KernelNode) -> None:
        """Let the kernel forget attributes, listing and pages of *node*. As `invalidate_entry`."""
        self._notify(p.Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE.pack(node, 0, 0))

    def _notify(self, code: int, body: bytes) -> None:
        size = p.OUT_HEADER.size + len(body)
        os.writev(self._fd, [p.OUT_HEADER.pack(size, code, 0), body])

    # --- the connection ------------------------------------------------------------------

    def _init(self, request: _Request) -> _Reply:
        major, minor, readahead, flags = p.INIT_IN.unpack_from(request.body)
        if major != p.MAJOR or minor < p.OLDEST_MINOR:
            raise MountFailedError(f"the kernel speaks FUSE {major}.{minor}")
        self._minor = min(minor, p.MINOR)
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
        )
        if self._features.writeback:
            wanted |= Init.WRITEBACK_CACHE
        if self._features.zero_message_open:
            wanted |= Init.NO_OPEN_SUPPORT
        wanted &= flags
        self._setxattr_size = 16 if wanted & Init.SETXATTR_EXT else 8
        return p.INIT_OUT.pack(
            p.MAJOR,
            self._minor,
            readahead,
            wanted,
            MAX_BACKGROUND,
            MAX_BACKGROUND,
            MAX_WRITE,
            1,
            MAX_WRITE // BLOCK_SIZE,
            0,
            0,
            0,
        )

    def _statfs(self, request: _Request) -> _Reply:
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

    def _fsync(self, request: _Request) -> _Reply:
        async def work() -> _Reply:
            await self._handlers.fsync()
            return b""

        self._later(request, work)
        return None

    # --- names -------------------------------------------------------------------------

    def _lookup(self, request: _Request) -> _Reply:
        found = self._handlers.lookup(request.node, request.name())
        return _ABSENT if found is None else _entry(found)

    def _forget(self, request: _Request) -> _Reply:
        (lookups,) = p.U64.unpack_from(request.body)
        self._handlers.forget(request.node, lookups)
        return None

    def _batch_forget(self, request: _Request) -> _Reply:
        count, _ = p.TWO_U32.unpack_from(request.body)
        start = p.TWO_U32.size
        stop = start + count * p.FORGET_ONE.size
        for node, lookups in p.FORGET_ONE.iter_unpack(request.body[start:stop]):
            self._handlers.forget(KernelNode(node), lookups)
        return None

    def _mknod(self, request: _Request) -> _Reply:
        mode, rdev = p.TWO_U32.unpack_from(request.body)
        name = request.name(16)
        return _entry(self._handlers.mknod(request.node, name, mode, rdev, request.caller))

    def _mkdir(self, request: _Request) -> _Reply:
        mode, _ = p.TWO_U32.unpack_from(request.body)
        node, name, caller = request.node, request.name(8), request.caller

        async def work() -> _Reply:
            return _entry(await self._handlers.mkdir(node, name, stat.S_IFDIR | mode, caller))

        self._later(request, work)
        return None

    def _symlink(self, request: _Request) -> _Reply:
        name, target = request.names()
        return _entry(self._handlers.symlink(request.node, name, target, request.caller))

    def _link(self, request: _Request) -> _Reply:
        (node,) = p.U64.unpack_from(request.body)
        return _entry(self._handlers.link(KernelNode(node), request.node, request.name(8)))

    def _unlink(self, request: _Request) -> _Reply:
        self._handlers.unlink(request.node, request.name())
        return b""

    def _rmdir(self, request: _Request) -> _Reply:
        self._handlers.rmdir(request.node, request.name(), request.caller)
        return b""

    def _rename(self, request: _Request) -> _Reply:
        (parent,) = p.U64.unpack_from(request.body)
        return self._move(request, KernelNode(parent), 0, p.U64.size)

    def _rename2(self, request: _Request) -> _Reply:
        (parent,) = p.U64.unpack_from(request.body)
        flags, _ = p.TWO_U32.unpack_from(request.body, p.U64.size)
        return self._move(request, KernelNode(parent), flags, 16)

    def _move(self, request: _Request, parent: KernelNode, flags: int, skip: int) -> _Reply:
        old, new = request.names(skip)
        self._handlers.rename(request.node, old, parent, new, flags, request.caller)
        return b""

    def _readdir(self, request: _Request) -> _Reply:
        _, cookie, room, *_ = p.READ_IN.unpack_from(request.body)
        parts: list[bytes] = []
        for found in self._handlers.readdir(request.node, cookie):
            dirent = _dirent(found)
            room -= len(dirent)
            if room < 0:
                break
            parts.append(dirent)
        return b"".join(parts)

    def _readdirplus(self, request: _Request) -> _Reply:
        _, cookie, room, *_ = p.READ_IN.unpack_from(request.body)
        parts: list[bytes] = []
        for found in self._handlers.readdir(request.node, cookie):
            # Node id 0 tells the kernel not to look the entry up by the way.
            entry = _entry(found.attributes) if found.counted else _unknown(found.attributes)
            dirent = _dirent(found)
            room -= len(entry) + len(dirent)
            if room < 0:
                break
            parts += (entry, dirent)
            self._handlers.listed(found)
        return b"".join(parts)

    # --- inodes ------------------------------------------------------------------------

    def _getattr(self, request: _Request) -> _Reply:
        return _attributes(self._handlers.getattr(request.node))

    def _setattr(self, request: _Request) -> _Reply:
        fields = p.SETATTR_IN.unpack_from(request.body)
        valid = fields[0]
        now_ns = self._handlers.now_ns()
        change = AttributeChange(
            mode=fields[11] if valid & SetAttr.MODE else None,
            uid=fields[13] if valid & SetAttr.UID else None,
            gid=fields[14] if valid & SetAttr.GID else None,
            size=fields[3] if valid & SetAttr.SIZE else None,
            atime_ns=_time(valid, SetAttr.ATIME, SetAttr.ATIME_NOW, fields[5], fields[8], now_ns),
            mtime_ns=_time(valid, SetAttr.MTIME, SetAttr.MTIME_NOW, fields[6], fields[9], now_ns),
            ctime_ns=_ns(fields[7], fields[10]) if valid & SetAttr.CTIME else None,
        )
        kill = bool(valid & SetAttr.KILL_SUIDGID)
        return _attributes(self._handlers.setattr(request.node, change, kill_privileges=kill))

    def _setxattr(self, request: _Request) -> _Reply:
        size, flags = p.TWO_U32.unpack_from(request.body)
        name = request.name(self._setxattr_size)
        start = self._setxattr_size + len(name) + 1
        value = bytes(request.body[start : start + size])
        self._handlers.setxattr(request.node, name, value, flags)
        return b""

    def _getxattr(self, request: _Request) -> _Reply:
        size, _ = p.TWO_U32.unpack_from(request.body)
        return _sized(self._handlers.getxattr(request.node, request.name(8)), size)

    def _listxattr(self, request: _Request) -> _Reply:
        size, _ = p.TWO_U32.unpack_from(request.body)
        names = self._handlers.listxattr(request.node)
        return _sized(b"".join(name + b"\0" for name in names), size)

    def _removexattr(self, request: _Request) -> _Reply:
        self._handlers.removexattr(request.node, request.name())
        return b""

    # --- open files ----------------------------------------------------------------------

    def _open(self, request: _Request) -> _Reply:
        if self._features.zero_message_open:
            # Answered once, it is never asked again.
            raise _Refusal(errno.ENOSYS)
        flags, _ = p.TWO_U32.unpack_from(request.body)
        handle = self._handlers.open(request.node, flags, request.caller)
        return p.OPEN_OUT.pack(handle, self._open_flags(request.node), 0)

    def _open_flags(self, node: KernelNode) -> int:
        if self._handlers.is_cached(node):
            return p.OPEN_KEEP_CACHE | p.OPEN_NOFLUSH
        return p.OPEN_DIRECT_IO

    def _create(self, request: _Request) -> _Reply:
        if self._features.zero_message_open:
            # The kernel then sends MKNOD, and opens unasked.
            raise _Refusal(errno.ENOSYS)
        _, mode = p.TWO_U32.unpack_from(request.body)
        made, handle = self._handlers.create(
            request.node, request.name(16), stat.S_IFREG | mode, request.caller
        )
        return [_entry(made), p.OPEN_OUT.pack(handle, self._open_flags(made.node), 0)]

    def _read(self, request: _Request) -> _Reply:
        _, offset, size, *_ = p.READ_IN.unpack_from(request.body)
        return self._handlers.read(request.node, offset, size)

    def _write(self, request: _Request) -> _Reply:
        _, offset, size, flags, *_ = p.WRITE_IN.unpack_from(request.body)
        start = p.WRITE_IN.size
        payload = bytes(request.body[start : start + size])
        written = self._handlers.write(
            request.node,
            offset,
            payload,
            kill_privileges=bool(flags & p.WRITE_KILL_SUIDGID),
            keep_times=self._features.writeback,
        )
        return p.TWO_U32.pack(written, 0)

    def _release(self, request: _Request) -> _Reply:
        (handle,) = p.U64.unpack_from(request.body)
        self._handlers.release(handle)
        return b""


class KernelMount:
    """One mount through the kernel's protocol. Signals are for the caller to handle."""

    name: Final = "kernel"

    def __init__(self, handlers: Handlers, features: Features) -> None:
        """Serve with *handlers*."""
        self._handlers = handlers
        self._features = features
        self._connection: KernelConnection | None = None
        self._mountpoint = Path()

    @property
    def notifier(self) -> "KernelMount":
        """What tells the kernel: this, once it is mounted."""
        return self

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """As `KernelConnection.invalidate_entry`."""
        self._connected().invalidate_entry(parent, name)

    def invalidate_inode(self, node: KernelNode) -> None:
        """As `KernelConnection.invalidate_inode`."""
        self._connected().invalidate_inode(node)

    def _connected(self) -> KernelConnection:
        assert self._connection is not None, "mount first"
        return self._connection

    def mount(self, mountpoint: Path, options: MountOptions) -> None:
        """Mount on *mountpoint*. Requests wait until `serve` runs.

        Raises:
            MountFailedError: the system refuses.
        """
        fd = mount_fuse(mountpoint, options)
        self._mountpoint = mountpoint
        self._connection = KernelConnection(fd, self._handlers, self._features)

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or `terminate` is called."""
        await self._connected().serve()

    def terminate(self) -> None:
        """Let `serve` return; the mount stays, and answers nothing."""
        self._connected().terminate()

    def unmount(self) -> None:
        """Detach the mount if it is there, and close the connection. After `serve` has returned."""
        if self._connection is not None:
            # Closed first: unmounting would otherwise wait for a server that is no more.
            self._connection.close()
            self._connection = None
            with contextlib.suppress(OSError):
                unmount(self._mountpoint, lazy=True)


class _Refusal(Exception):
    """The answer is this errno, which is no failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


def _name_of(opcode: int) -> str:
    return Opcode(opcode).name.lower()


def _ns(seconds: int, nanoseconds: int) -> int:
    if seconds >= _SIGN:
        seconds -= _WRAP
    return seconds * _NS + nanoseconds


def _time(
    valid: int, given: int, now: int, seconds: int, nanoseconds: int, now_ns: int
) -> int | None:
    if not valid & given:
        return None
    return now_ns if valid & now else _ns(seconds, nanoseconds)


def _attr(attributes: Attributes) -> bytes:
    atime_s, atime = divmod(attributes.atime_ns, _NS)
    mtime_s, mtime = divmod(attributes.mtime_ns, _NS)
    ctime_s, ctime = divmod(attributes.ctime_ns, _NS)
    return p.ATTR.pack(
        attributes.st_ino,
        attributes.size,
        attributes.blocks,
        atime_s % _WRAP,
        mtime_s % _WRAP,
        ctime_s % _WRAP,
        atime,
        mtime,
        ctime,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        attributes.rdev & 0xFFFFFFFF,
        BLOCK_SIZE,
        0,
    )


def _attributes(attributes: Attributes) -> bytes:
    return p.ATTR_HEAD.pack(int(attributes.attr_timeout_s), 0, 0) + _attr(attributes)


def _entry(attributes: Attributes) -> bytes:
    valid = (int(attributes.entry_timeout_s), int(attributes.attr_timeout_s))
    return p.ENTRY_HEAD.pack(attributes.node, 0, *valid, 0, 0) + _attr(attributes)


def _unknown(attributes: Attributes) -> bytes:
    return p.ENTRY_HEAD.pack(0, 0, 0, 0, 0, 0) + _attr(attributes)


_ABSENT: Final = p.ENTRY_HEAD.pack(0, 0, 1_000_000_000, 0, 0, 0) + bytes(p.ATTR.size)
"""A negative entry that the kernel may keep."""


def _dirent(found: Listed) -> bytes:
    kind = stat.S_IFMT(found.attributes.mode) >> 12
    head = p.DIRENT.pack(found.attributes.st_ino, found.cookie, len(found.name), kind)
    return head + found.name + bytes(-len(found.name) % 8)


def _sized(value: bytes, room: int) -> bytes:
    """Return *value*, or its size if *room* is 0 (getxattr(2), listxattr(2))."""
    if room == 0:
        return p.TWO_U32.pack(len(value), 0)
    if len(value) > room:
        raise _Refusal(errno.ERANGE)
    return value

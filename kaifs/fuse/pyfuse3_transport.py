"""The FUSE transport through pyfuse3 and libfuse: any kernel, also unprivileged.

With the writeback cache on, the kernel gathers writes, keeps a regular file's
size, mtime and ctime, and sends them with SETATTR; set-id bits it clears by
SETATTR as well, since libfuse does not ask for HANDLE_KILLPRIV (Debian 12,
libfuse 3.14: INIT flags 0x4041b039). A truncation at open is the exception: it
comes with OPEN (ATOMIC_O_TRUNC), all of it.

The kernel checks POSIX ACLs. libfuse is not asked to leave the umask to us (DONT_MASK), so where a
default ACL would replace it, the umask has been taken off before.

pyfuse3 holds its session in module variables, so one process has at most one
mount of this kind.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from kaifs.base.errors import MountFailedError
from kaifs.base.types import NAME_MAX, KernelNode
from kaifs.fuse.entry_layout import find_stat_ino_offset
from kaifs.fuse.errno_map import replies
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.mounting import MountOptions
from kaifs.store.payload import ColdBlockError
from kaifs.tree.tree import AttributeChange
from kaifs.views.attributes import FOREVER_S, Attributes, Caller, FileSystemSpace

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_Request: TypeAlias = Callable[Concatenate["Pyfuse3Operations", P], Coroutine[Any, Any, R]]


def _answered(request: _Request[P, R]) -> _Request[P, R]:
    """Turn what *request* raises into an errno, and let what it has done survive this process."""

    @replies(FUSEError)
    @functools.wraps(request)
    async def settled(self: "Pyfuse3Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        reply = await request(self, *args, **kwargs)
        self.handlers.settle()
        return reply

    return settled


def _looked(request: _Request[P, R]) -> _Request[P, R]:
    """As `_answered`, for a request that changes nothing."""

    @replies(FUSEError)
    @functools.wraps(request)
    async def settled(self: "Pyfuse3Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        reply = await request(self, *args, **kwargs)
        self.handlers.settle_look()
        return reply

    return settled


class Pyfuse3Operations(pyfuse3.Operations):
    """Turns pyfuse3's calls into calls of handlers. `flush` and `poll` stay unimplemented.

    ENOSYS to the first FLUSH silences it for good; a close still sends what is
    dirty. ACCESS does not come with default_permissions.
    """

    enable_writeback_cache = True
    supports_dot_lookup = True
    enable_acl = True

    def __init__(self, handlers: Handlers) -> None:
        """Answer with *handlers*.

        Raises:
            MountFailedError: this pyfuse3 cannot tell node ids from st_ino.
        """
        self.handlers = handlers
        self._stat_ino_offset = find_stat_ino_offset()
        absent = EntryAttributes()
        absent.st_ino = InodeT(0)
        absent.entry_timeout = FOREVER_S
        self._absent = absent

    def _entry(self, attributes: Attributes, *, known: bool = True) -> EntryAttributes:
        """Return *attributes* as pyfuse3 takes them; without the node unless *known*."""
        entry = EntryAttributes()
        entry.st_ino = InodeT(attributes.node if known else 0)
        # After the property, which sets both numbers.
        place = id(entry) + self._stat_ino_offset
        ctypes.c_uint64.from_address(place).value = attributes.st_ino
        entry.entry_timeout = attributes.entry_timeout_s
        entry.attr_timeout = attributes.attr_timeout_s
        entry.st_mode = ModeT(attributes.mode)
        entry.st_nlink = attributes.nlink
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_rdev = attributes.rdev
        entry.st_size = attributes.size
        entry.st_blocks = attributes.blocks
        entry.st_atime_ns = attributes.atime_ns
        entry.st_mtime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        return entry

    # --- names ------------------------------------------------------------------------

    @_looked
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Answer LOOKUP."""
        found = self.handlers.lookup(_node(parent_inode), name)
        return self._absent if found is None else self._entry(found)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take in FORGET and BATCH_FORGET, which have no reply."""
        for inode, lookups in inode_list:
            try:
                self.handlers.forget(_node(inode), lookups)
            except Exception:
                # A node too many in memory harms less than a server that ends.
                log.exception("forget_failed", extra={"node": inode})

    @_answered
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Answer MKNOD."""
        return self._entry(self.handlers.mknod(_node(parent_inode), name, mode, rdev, _caller(ctx)))

    @_answered
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Answer MKDIR."""
        return self._entry(await self.handlers.mkdir(_node(parent_inode), name, mode, _caller(ctx)))

    @_answered
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Answer CREATE."""
        made, handle = self.handlers.create(_node(parent_inode), name, mode, _caller(ctx))
        return FileInfo(fh=FileHandleT(handle), keep_cache=True), self._entry(made)

    @_answered
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Answer SYMLINK."""
        return self._entry(self.handlers.symlink(_node(parent_inode), name, target, _caller(ctx)))

    @_answered
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Answer LINK."""
        return self._entry(self.handlers.link(_node(inode), _node(new_parent_inode), new_name))

    @_answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Answer UNLINK."""
        self.handlers.unlink(_node(parent_inode), name)

    @_answered
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Answer RMDIR."""
        self.handlers.rmdir(_node(parent_inode), name, _caller(ctx))

    @_answered
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Answer RENAME and RENAME2."""
        self.handlers.rename(
            _node(parent_inode_old),
            name_old,
            _node(parent_inode_new),
            name_new,
            flags,
            _caller(ctx),
        )

    # --- inodes -----------------------------------------------------------------------

    @_looked
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Answer GETATTR."""
        return self._entry(self.handlers.getattr(_node(inode)))

    @_answered
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Answer SETATTR."""
        change = AttributeChange(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._entry(self.handlers.setattr(_node(inode), change))

    @_looked
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Answer READLINK."""
        return FileNameT(self.handlers.readlink(_node(inode)))

    @_looked
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Answer GETXATTR."""
        return self.handlers.getxattr(_node(inode), name)

    @_answered
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Answer SETXATTR; pyfuse3 has checked XATTR_CREATE and XATTR_REPLACE by GETXATTR."""
        self.handlers.setxattr(_node(inode), name, value)

    @_looked
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Answer LISTXATTR."""
        return self.handlers.listxattr(_node(inode))

    @_answered
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Answer REMOVEXATTR."""
        self.handlers.removexattr(_node(inode), name)

    # --- open files -------------------------------------------------------------------

    @_looked
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Answer OPEN. Cached pages stay: only the kernel's own requests change a file."""
        handle = self.handlers.open(_node(inode), flags, _caller(ctx))
        if flags & os.O_TRUNC:
            self.handlers.settle()
        cached = self.handlers.is_cached(_node(inode))
        return FileInfo(fh=FileHandleT(handle), keep_cache=cached, direct_io=not cached)

    @_looked
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Answer READ."""
        try:
            return self.handlers.read(fh, off, size)
        except ColdBlockError:
            return await self.handlers.read_cold(fh, off, size)

    @_answered
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Answer WRITE."""
        return self.handlers.write(fh, off, buf)

    @_answered
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Answer FSYNC; the kernel has sent the file's dirty pages before."""
        await self.handlers.fsync()

    @_answered
    async def release(self, fh: FileHandleT) -> None:
        """Answer RELEASE."""
        self.handlers.release(fh)

    @_looked
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Answer OPENDIR."""
        return FileHandleT(self.handlers.opendir(_node(inode)))

    @_looked
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Answer READDIRPLUS. Node id 0 tells the kernel not to look an entry up by the way."""
        for found in self.handlers.readdir(KernelNode(fh), start_id):
            entry = self._entry(found.attributes, known=found.counted)
            if not pyfuse3.readdir_reply(token, FileNameT(found.name), entry, found.cookie):
                break
            if found.counted:
                self.handlers.listed((found.attributes.node,))

    @_looked
    async def releasedir(self, fh: FileHandleT) -> None:
        """Answer RELEASEDIR."""

    @_answered
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Answer FSYNCDIR."""
        await self.handlers.fsync()

    # --- the file system ----------------------------------------------------------------

    @_looked
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Answer STATFS."""
        return _statvfs(self.handlers.statfs())


class Pyfuse3Notifier:
    """Tells the kernel through pyfuse3's session."""

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """Let the kernel forget *name* in *parent*."""
        pyfuse3.invalidate_entry(InodeT(parent), FileNameT(name))

    def invalidate_inode(self, node: KernelNode) -> None:
        """Let the kernel forget the attributes and the listing of *node*."""
        pyfuse3.invalidate_inode(InodeT(node))

    def expire_names(self) -> None:
        """Is never called: libfuse cannot."""
        raise AssertionError("names expire one by one")


class Pyfuse3Mount:
    """One mount through pyfuse3. Signals are for the caller to handle."""

    name: Final = "pyfuse3"
    connected: Final = None
    """libfuse cannot be told to go on with a connection."""

    def __init__(self, handlers: Handlers) -> None:
        """Serve with *handlers*.

        Raises:
            MountFailedError: this pyfuse3 cannot be used.
        """
        self.reason = "asked for"
        self._operations = Pyfuse3Operations(handlers)
        self.notifier = Pyfuse3Notifier()

    def mount(self, mountpoint: Path, options: MountOptions) -> None:
        """Mount on *mountpoint*. Requests wait until `serve` runs.

        Raises:
            MountFailedError: the system refuses.
        """
        try:
            pyfuse3.init(self._operations, str(mountpoint), options.for_libfuse())
        except RuntimeError as error:
            # libfuse prints the cause on stderr and returns none.
            raise MountFailedError(f"{mountpoint}: {error}") from error

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or `terminate` is called."""
        await pyfuse3.main()

    def terminate(self) -> None:
        """Let `serve` return; the mount stays, and answers nothing."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Nothing to do: a process serves one such mount, and the session lasts as long as it."""

    def unmount(self) -> None:
        """Detach the mount if it is there, and close the connection. After `serve` has returned."""
        pyfuse3.close(unmount=True)


def _node(inode: InodeT) -> KernelNode:
    return KernelNode(inode)


def _caller(context: RequestContext) -> Caller:
    return Caller(context.uid, context.gid)


def _statvfs(space: FileSystemSpace) -> StatvfsData:
    answer = StatvfsData()
    answer.f_bsize = answer.f_frsize = space.block_size
    answer.f_blocks = space.blocks
    answer.f_bfree = space.free
    answer.f_bavail = space.available
    answer.f_files = space.inodes
    answer.f_ffree = answer.f_favail = space.inodes_free
    answer.f_namemax = NAME_MAX
    return answer

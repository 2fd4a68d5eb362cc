"""Request handlers: what every transport does for a request of the kernel.

They add to the name space what belongs to a connection: lookup counts, which
inodes are open for writing, how many STATFS came, and what a request has to
wait for. Ints and bytes in, plain values out, `KaifsError` if it cannot be.

Everything but `fsync`, `read_cold` and `mkdir` (in `@snapshots/`) is done without a wait, so no
request ever sees another half done.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress

import msgspec
import trio

from kaifs.base.errors import NoSpaceError, StoreIOError
from kaifs.base.types import KernelNode, RootId, split_kernel_node
from kaifs.tree.tree import AttributeChange
from kaifs.views.attributes import Attributes, Caller, FileSystemSpace, Listed
from kaifs.views.namespace import Namespace, Remembered

_WRITES = 1 << 63
"""Marks the handle of an open that may write. Node ids end below it."""


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What there is to know of a connection, as another process is told of it."""

    remembered: Remembered
    writers: dict[int, int]
    """How many opens for writing each node has."""


class Handlers:
    """The handlers of one connection. A file handle is the node id, so nothing is kept for it."""

    def __init__(
        self,
        namespace: Namespace,
        sync: Callable[[], Awaitable[None]],
        barrier: Callable[[], Awaitable[None]],
    ) -> None:
        """Answer from *namespace*.

        Args:
            namespace: What the kernel sees.
            sync: Waits until everything done so far is durable.
            barrier: Waits until everything that programs have written has arrived here.
        """
        self.namespace = namespace
        self.settle = namespace.forest.store.flush_journal
        """To be called by a transport when a request is done, before it is answered: what is
        acknowledged survives the death of this process. Raises as `Store.flush_journal`."""
        self.statfs_seen = 0
        """STATFS requests so far: the barrier's marker."""
        self.background_seen = 0
        """READs and WRITEs so far: what the kernel's limit of background requests is about."""
        self.drop_listings: Callable[[Sequence[KernelNode]], None] = lambda _nodes: None
        """Has the kernel forget the listings of directories, some time. Never blocks."""
        self.are_opens_told = True
        """Whether the kernel tells of each open; if not, any file may be open for writing."""
        self._sync = sync
        self._barrier = barrier
        self._writers: dict[KernelNode, int] = {}

    def told(self) -> Told:
        """Return what is known of the connection, for another process that goes on with it."""
        return Told(
            self.namespace.told(), {int(node): opens for node, opens in self._writers.items()}
        )

    def adopt(self, told: Told) -> None:
        """Go on with what another process has told at its end."""
        self.namespace.adopt(told.remembered)
        self._writers = {KernelNode(node): opens for node, opens in told.writers.items()}

    def settle_look(self) -> None:
        """As `settle`, for a request that has only looked: nobody waits for what it writes.

        What it has seen may be of a change that could not be written. Who made that was told,
        and everybody else must be able to read.
        """
        with suppress(NoSpaceError, StoreIOError):
            self.settle()

    # --- names ------------------------------------------------------------------------

    def lookup(self, parent: KernelNode, name: bytes) -> Attributes | None:
        """Find a name; None: absent, to be remembered by the kernel."""
        found = self.namespace.lookup(parent, name)
        return None if found is None else self._told(found)

    def forget(self, node: KernelNode, lookups: int) -> None:
        """Take *lookups* off what the kernel knows of *node*."""
        self.namespace.forget(node, lookups)

    def mknod(
        self,
        parent: KernelNode,
        name: bytes,
        mode: int,
        rdev: int,
        caller: Caller,
        umask: int = 0,
    ) -> Attributes:
        """Make a file of any type but a directory."""
        return self._told(self.namespace.make(parent, name, mode, caller, rdev, umask))

    def is_made_behind_barrier(self, parent: KernelNode) -> bool:
        """Return whether a directory made in *parent* shows all that was written before."""
        return self.namespace.is_snapshots(parent)

    def mkdir_nowait(
        self, parent: KernelNode, name: bytes, mode: int, caller: Caller, umask: int = 0
    ) -> Attributes:
        """Make a directory, for which nothing needs to be written before."""
        return self._told(self.namespace.make(parent, name, mode, caller, 0, umask))

    async def mkdir(
        self, parent: KernelNode, name: bytes, mode: int, caller: Caller, umask: int = 0
    ) -> Attributes:
        """Make a directory; in `@snapshots/` one that shows all that was written before."""
        if self.is_made_behind_barrier(parent):
            await self._barrier()
        return self.mkdir_nowait(parent, name, mode, caller, umask)

    def create(
        self, parent: KernelNode, name: bytes, mode: int, caller: Caller, umask: int = 0
    ) -> tuple[Attributes, int]:
        """Make a regular file and open it; return its attributes and handle."""
        made = self._told(self.namespace.make(parent, name, mode, caller, 0, umask))
        return made, self._open_for_writing(made.node)

    def create_nameless(
        self, parent: KernelNode, mode: int, caller: Caller, umask: int
    ) -> tuple[Attributes, int]:
        """Make a regular file without a name and open it, as `create`."""
        made = self._told(self.namespace.make_nameless(parent, mode, caller, umask))
        return made, self._open_for_writing(made.node)

    def symlink(self, parent: KernelNode, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        return self._told(self.namespace.symlink(parent, name, target, caller))

    def link(self, node: KernelNode, parent: KernelNode, name: bytes) -> Attributes:
        """Give a file another name."""
        return self._told(self.namespace.link(node, parent, name))

    def unlink(self, parent: KernelNode, name: bytes) -> None:
        """Take away a file's name."""
        self.namespace.unlink(parent, name)

    def rmdir(self, parent: KernelNode, name: bytes, caller: Caller) -> None:
        """Remove a directory."""
        self.namespace.rmdir(parent, name, caller)

    def rename(
        self,
        parent: KernelNode,
        name: bytes,
        new_parent: KernelNode,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """Move a name."""
        self.namespace.rename(parent, name, new_parent, new_name, flags, caller)

    def readdir(self, node: KernelNode, cookie: int) -> Iterator[Listed]:
        """Yield the entries after *cookie*. Call `listed` with what the reply has room for."""
        return self.namespace.readdir(node, cookie)

    def listed(self, nodes: Sequence[KernelNode]) -> None:
        """Note that a reply to READDIRPLUS names *nodes*."""
        self.namespace.remember_all(nodes)

    def _told(self, attributes: Attributes) -> Attributes:
        """Note that the kernel gets to know a node."""
        self.namespace.remember(attributes.node)
        return attributes

    # --- inodes -----------------------------------------------------------------------

    def getattr(self, node: KernelNode) -> Attributes:
        """Return attributes."""
        return self.namespace.getattr(node)

    def setattr(
        self, node: KernelNode, change: AttributeChange, *, kill_privileges: bool = False
    ) -> Attributes:
        """Change attributes and return them."""
        return self.namespace.setattr(node, change, kill_privileges=kill_privileges)

    def readlink(self, node: KernelNode) -> bytes:
        """Return a symbolic link's target."""
        return self.namespace.readlink(node)

    def getxattr(self, node: KernelNode, name: bytes) -> bytes:
        """Return an extended attribute."""
        return self.namespace.getxattr(node, name)

    def setxattr(
        self,
        node: KernelNode,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        kill_set_gid: bool = False,
    ) -> None:
        """Set an extended attribute."""
        self.namespace.setxattr(node, name, value, flags, kill_set_gid=kill_set_gid)

    def listxattr(self, node: KernelNode) -> list[bytes]:
        """Return the names of extended attributes."""
        return self.namespace.listxattr(node)

    def removexattr(self, node: KernelNode, name: bytes) -> None:
        """Remove an extended attribute."""
        self.namespace.removexattr(node, name)

    # --- open files -------------------------------------------------------------------

    def open(self, node: KernelNode, flags: int, caller: Caller) -> int:
        """Check what an open asks for and return the handle."""
        if self.namespace.open(node, flags, caller):
            return self._open_for_writing(self.namespace.meant(node))
        return node

    def is_cached(self, node: KernelNode) -> bool:
        """Return whether the kernel may keep pages of *node*."""
        return self.namespace.is_cached(node)

    def opendir(self, node: KernelNode) -> int:
        """Check that a directory is there and return the handle."""
        self.namespace.getattr(node)
        return node

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Return up to *size* bytes; fewer only at the end of the file.

        Raises:
            ColdBlockError: the disk takes its time: `read_cold` waits for it.
        """
        self.background_seen += 1
        return self.namespace.read(_node_of(handle), offset, size, wait=False)

    async def read_cold(self, handle: int, offset: int, size: int) -> bytes:
        """Do what `read` does, and let others have their turn while the disk is at work."""
        node = _node_of(handle)
        fetch = self.namespace.fetcher(node, offset, size)
        await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)
        return self.namespace.read(node, offset, size)

    def write(
        self,
        handle: int,
        offset: int,
        data: bytes | memoryview,
        *,
        kill_privileges: bool = False,
        keep_times: bool = True,
    ) -> int:
        """Write and return how much: all. *keep_times*: the kernel keeps them and sends them."""
        self.background_seen += 1
        return self.namespace.write(
            _node_of(handle),
            offset,
            data,
            kill_privileges=kill_privileges,
            keep_times=keep_times,
        )

    def seek(self, node: KernelNode, offset: int, *, hole: bool) -> int:
        """Return where data, or a hole, is. What the kernel has not sent yet is not seen."""
        return self.namespace.seek(node, offset, hole=hole)

    def allocate(
        self,
        node: KernelNode,
        offset: int,
        length: int,
        mode: int,
        *,
        kill_privileges: bool,
        keep_times: bool,
    ) -> None:
        """Extend a file, or make a hole in it."""
        self.namespace.allocate(
            node,
            offset,
            length,
            mode,
            kill_privileges=kill_privileges,
            keep_times=keep_times,
        )

    def copy_range(
        self,
        source: KernelNode,
        start: int,
        node: KernelNode,
        offset: int,
        length: int,
        *,
        kill_privileges: bool,
        keep_times: bool,
    ) -> int:
        """Copy between two files by sharing blocks; return how many bytes."""
        return self.namespace.copy_range(
            source,
            start,
            node,
            offset,
            length,
            kill_privileges=kill_privileges,
            keep_times=keep_times,
        )

    def is_written(self, node: KernelNode) -> bool:
        """Return whether *node* may be open for writing, and so have unsent data."""
        if not self.are_opens_told:
            return not self.namespace.read_only
        # Who opened it before another process began to serve is not in the list.
        node = self.namespace.meant(node)
        return node in self._writers or self.namespace.known.is_inherited(node)

    def is_root_written(self, root: RootId) -> bool:
        """Return whether a file of *root* may be open for writing."""
        if not self.are_opens_told:
            return self.namespace.shows(root) and not self.namespace.read_only
        return any(split_kernel_node(node)[0] == root for node in self._writers)

    def now_ns(self) -> int:
        """Return the time, ns since 1970."""
        return self.namespace.now_ns()

    async def fsync(self) -> None:
        """Wait until everything done so far is durable, names included."""
        await self._sync()

    def release(self, handle: int) -> None:
        """Close a handle."""
        if not handle & _WRITES:
            return
        node = _node_of(handle)
        opens = self._writers.get(node, 0) - 1
        if opens > 0:
            self._writers[node] = opens
        else:
            self._writers.pop(node, None)

    def written_nodes(self) -> list[KernelNode]:
        """Return the inodes that are open for writing, and so may have unsent data.

        None, if opens are not told.
        """
        return list(self._writers)

    def written_paths(self) -> list[bytes]:
        """Return a path from the mount's root of each of `written_nodes` that still has one."""
        paths = (self.namespace.path_of(node) for node in self._writers)
        return [path for path in paths if path is not None]

    def _open_for_writing(self, node: KernelNode) -> int:
        self._writers[node] = self._writers.get(node, 0) + 1
        return node | _WRITES

    # --- the file system ----------------------------------------------------------------

    def statfs(self) -> FileSystemSpace:
        """Return the space, and count: requests are answered in the order in which they come."""
        self.statfs_seen += 1
        return self.namespace.statfs()


def _node_of(handle: int) -> KernelNode:
    return KernelNode(handle & ~_WRITES)

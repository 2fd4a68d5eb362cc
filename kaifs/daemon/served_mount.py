"""One mount that the daemon serves: its name space, its connection, and what goes with them."""

import logging
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

from kaifs.base.errors import MountBusyError, MountFailedError, NotMountedError
from kaifs.base.types import SLOT_SHIFT, TOP_INO, RootId, kernel_node, split_kernel_node
from kaifs.control.info import MountInfo
from kaifs.daemon.barrier import Barrier, Helper, prepare_mount
from kaifs.daemon.handover import Unsettled
from kaifs.daemon.options import MountOptions
from kaifs.fuse import mounting
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.invalidate import Invalidator
from kaifs.fuse.transports import Transport
from kaifs.linux.mounts import MountEntry, MountUser, find_mount, mounts, users_of, written_inodes
from kaifs.linux.processes import captured_stderr
from kaifs.meta.records import RootKind
from kaifs.views.folders import CURRENT
from kaifs.views.namespace import Namespace
from kaifs.views.numbers import Kind, virtual_node
from kaifs.views.stale import StaleName

log = logging.getLogger(__name__)

DETACH_WAIT_S: Final = 1.0
"""Seconds within which a mount that nobody uses is gone after it was detached."""
UNMOUNT_WAIT_S: Final = 5.0
"""The same of a mount that was not busy when it was unmounted."""
INVALIDATION_WAIT_S: Final = 30.0
"""Seconds that a verb's answer waits for the kernel to forget what the verb made wrong."""


class ServedMount:
    """One mount. `mount` or `take_over` it, then run `serve`, then `answer`."""

    def __init__(
        self,
        mountpoint: Path | None,
        options: MountOptions,
        handlers: Handlers,
        transport: Transport,
        helper: Helper,
        unsettled: Unsettled,
    ) -> None:
        """Make a mount of what *handlers* show.

        Args:
            mountpoint: Absolute and without symbolic links; None: nothing is mounted.
            options: As the user gave them.
            handlers: What requests do.
            transport: Brings the requests.
            helper: Touches the mount.
            unsettled: Remembers whether the kernel has been told everything.
        """
        self.mountpoint = mountpoint
        self.options = options
        self.handlers = handlers
        self.transport = transport
        self.entry: MountEntry | None = None
        self.ready = trio.Event()
        """Set when the mount answers."""
        self.gone = trio.Event()
        """Set when no request comes any more."""
        self.unsettled = unsettled
        self.invalidator = Invalidator(self.namespace, transport.notifier, unsettled)
        handlers.drop_listings = self.invalidator.drop_listings
        self.taken: set[RootId] = set()
        """Roots that this mount alone writes and caches."""
        self._helper = helper
        self._barrier: Barrier | None = None
        self._old_writers: set[int] = set()
        """Inode numbers, as stat(2) tells them, of files that are written since before we served."""

    @property
    def name(self) -> str:
        """What the supervisor calls its connection."""
        return str(self.mountpoint)

    @property
    def namespace(self) -> Namespace:
        """What the kernel sees."""
        return self.handlers.namespace

    def info(self, *, survives: bool, reason: str) -> MountInfo:
        """Describe the mount.

        Args:
            survives: Whether it goes on if this process dies.
            reason: Why it does or does not.
        """
        assert self.entry is not None, "mount first"
        return MountInfo(
            mountpoint=str(self.mountpoint),
            transport=self.transport.name,
            reason=self.transport.reason,
            agent=self.options.agent or None,
            options=self.options.text,
            minor=self.entry.minor,
            survives=survives,
            survives_reason=reason,
        )

    # --- the way up ------------------------------------------------------------------------

    def mount(self, store: Path) -> None:
        """Mount *store*. Requests wait until `serve` runs.

        Raises:
            MountFailedError: The system refuses.
        """
        assert self.mountpoint is not None, "there is nothing to mount"
        told = mounting.MountOptions(
            read_only=self.options.read_only,
            allow_other=self.options.allow_other,
            source=quote(str(store), safe="/._-+:@"),
            flags=_kernel_flags(self.options.mount_flags),
        )
        with captured_stderr() as errors:
            try:
                self.transport.mount(self.mountpoint, told)
            except MountFailedError as error:
                reason = " ".join(errors().split()) or error.subject
                raise MountFailedError(f"{self.mountpoint}: {reason}") from error
        self.entry = find_mount(self.mountpoint)

    def take_over(self, minor: int) -> None:
        """Find what a server that is no more has mounted as the device *minor*.

        There is no entry if it has been detached: whoever has it open may still use it.
        """
        same = (
            entry
            for entry in mounts()
            if entry.mountpoint == self.mountpoint and (entry.major, entry.minor) == (0, minor)
        )
        self.entry = next(same, None)

    async def serve(self) -> None:
        """Answer the kernel until the mount has gone, by whatever way."""
        try:
            await self.transport.serve()
        except* OSError as group:
            # ECONNABORTED: somebody aborted the connection through fusectl.
            log.warning("connection_lost", extra={"error": str(group.exceptions[0])})
        finally:
            self.gone.set()

    async def answer(self, *, is_new: bool) -> None:
        """Wait until the mount answers. `serve` must be running.

        Args:
            is_new: Whether it must be there; else somebody may have detached it.

        Raises:
            MountFailedError: It is gone already.
            OSError: It does not answer.
        """
        if self.mountpoint is not None and (is_new or self.entry is not None):
            await self._helper.ask("statvfs", mountpoint=str(self.mountpoint))
            if self.entry is None:
                raise MountFailedError(f"{self.mountpoint}: gone already")
            # Now, not before: the answer to INIT may set the limits.
            mounted = prepare_mount(self.entry)
            self._barrier = Barrier(self._helper, mounted, self.handlers, self._written_paths)

    # --- what is written, and what the kernel remembers --------------------------------------

    async def wait_barrier(self) -> None:
        """Wait until all that programs have written so far has arrived.

        Raises:
            BarrierError: It cannot be made to.
        """
        if self.options.read_only or self.gone.is_set():
            return
        await self.ready.wait()
        if self._barrier is not None:
            await self._barrier.wait()

    async def wait_invalidated(self) -> None:
        """Wait until the kernel has forgotten what changes have made wrong, if it does in time."""
        if not self.gone.is_set():
            with trio.move_on_after(INVALIDATION_WAIT_S) as waiting:
                await self.invalidator.wait_idle()
            if waiting.cancelled_caught:
                log.warning("invalidation_slow")

    async def find_old_writers(self) -> None:
        """Find out which files programs write that they had opened before we served."""
        if self.entry is not None:
            self._old_writers = await trio.to_thread.run_sync(written_inodes, self.entry)

    def is_written(self, root_id: RootId) -> bool:
        """Return whether a file of the root is open for writing."""
        if not self.namespace.known.has_root(root_id):
            return False
        if self.handlers.is_root_written(root_id):
            return True
        slot = self.namespace.forest.store.slot_of(root_id)
        return any(number >> SLOT_SHIFT == slot for number in self._old_writers)

    def withdraw(self, root_id: RootId) -> None:
        """Let the kernel forget a view that can be written: from now on it asks each time."""
        shown = self.namespace.shown_node
        tree = self.namespace.forest.tree(root_id)
        root = tree.root
        nodes = self.namespace.known_nodes(root_id)
        if root.kind is RootKind.SNAPSHOT:
            folder, name = virtual_node(Kind.SNAPSHOTS, root.agent_id), root.name.encode()
        else:
            folder, name = shown(virtual_node(Kind.AGENT, root.agent_id)), CURRENT
        names = [StaleName(folder, name)]
        # What is open stays in the kernel's tree of names, also where a name above goes.
        for node in nodes:
            names += [
                StaleName(shown(kernel_node(root_id, parent)), name)
                for parent, name in tree.links(split_kernel_node(self.namespace.meant(node))[1])
            ]
        self.invalidator.withdraw(names, [*nodes, shown(kernel_node(root_id, TOP_INO))])

    def _written_paths(self) -> list[bytes]:
        """Return the files that are open for writing, as paths below the mountpoint."""
        paths = []
        for node in self.handlers.written_nodes():
            root_id, ino = split_kernel_node(node)
            folder = self._folder_of(root_id)
            if folder is not None:
                # Any one name does. A file without names is in no view.
                tree = self.namespace.forest.tree(root_id)
                paths += [folder + name for name in tree.paths(ino)[:1]]
        return paths

    def _folder_of(self, root_id: RootId) -> bytes | None:
        """Return where the mount shows a root that can be written to, None if nowhere."""
        store = self.namespace.forest.store
        if not store.has_root(root_id):
            return None
        root = store.root(root_id)
        agent = store.agent_by_id(root.agent_id)
        if agent is None or not root.is_writable:
            return None
        if self.options.view:
            return b""
        inside = f"@snapshots/{root.name}/" if root.kind is RootKind.SNAPSHOT else "current/"
        return (inside if self.options.agent else f"{agent.name}/{inside}").encode()

    # --- the way down --------------------------------------------------------------------------

    async def check_unused(self, servers: tuple[int, ...]) -> None:
        """Check that nobody but the processes *servers* uses the mount.

        Raises:
            MountBusyError: It names who does.
        """
        if self.entry is None:
            return
        users = await trio.to_thread.run_sync(users_of, self.entry)
        others = [user for user in users if user.pid not in servers]
        if others:
            raise busy_error(self.entry.mountpoint, others)

    async def unmount(self, servers: tuple[int, ...], *, lazy: bool) -> None:
        """Take the mount out of the name space, and wait a little for its last user.

        Args:
            servers: Processes that do not count as users.
            lazy: Detach it also if it is used.

        Raises:
            MountBusyError: Processes use it and *lazy* is False.
            NotMountedError: It is there no more.
        """
        try:
            await self._helper.ask(
                "unmount",
                moved=lambda: self.handlers.background_seen,
                mountpoint=str(self.mountpoint),
                lazy=lazy,
            )
        except OSError as error:
            if not lazy:
                await self.check_unused(servers)
                raise MountBusyError(f"{self.mountpoint}: {error.strerror}") from error
            raise NotMountedError(f"{self.mountpoint}: {error.strerror}") from error
        # Another mount namespace, such as a container's, may have the mount too: as long as
        # it does, this is what --lazy is.
        with trio.move_on_after(DETACH_WAIT_S if lazy else UNMOUNT_WAIT_S):
            await self.gone.wait()
        if self.gone.is_set():
            self.namespace.forget_all()

    async def stop_telling(self) -> None:
        """Have the kernel told what is left to be told, if it listens in time."""
        with trio.move_on_after(INVALIDATION_WAIT_S):
            # It uses the connection, which must not be closed under it.
            await trio.to_thread.run_sync(self.invalidator.stop, abandon_on_cancel=True)
            self.unsettled.close()

    def is_there(self) -> bool:
        """Return whether the mount is in the name space."""
        if self.entry is None:
            return False
        entry = find_mount(self.entry.mountpoint)
        return entry is not None and entry.device == self.entry.device


def _kernel_flags(asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return what libfuse is told: as asked, and without device nodes and set-id unless asked."""
    defaults = [f"no{flag}" for flag in ("dev", "suid") if flag not in asked]
    return tuple(dict.fromkeys([*(flag for flag in asked if flag != "relatime"), *defaults]))


def busy_error(mountpoint: Path, users: list[MountUser]) -> MountBusyError:
    """Return the refusal to take down a mount that *users* use."""
    names = [str(user) for user in users]
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return MountBusyError(f"{mountpoint}: {shown}", processes=names)

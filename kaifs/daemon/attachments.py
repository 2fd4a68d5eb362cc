"""Private connections: a snapshot served to one sandbox alone.

The sandbox mounts it in a mount namespace of its own and passes the descriptor
of `/dev/fuse`, so the mount is seen by nobody else and is gone with the last
process inside. The kernel's caches belong to a connection: while a sandbox has
a snapshot, the store's own mount shows it read-only and keeps nothing of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from kaifs.base.errors import SnapshotIsolationError, SnapshotNotFoundError
from kaifs.base.types import RootId
from kaifs.control.messages import AttachParams, AttachResult
from kaifs.control.server import Passed
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.kernel_requests import Features
from kaifs.fuse.kernel_transport import KernelConnection
from kaifs.meta.records import RootState
from kaifs.service.context import Context
from kaifs.service.reference import resolve_snapshot
from kaifs.store.store import Store
from kaifs.views.attributes import Caller
from kaifs.views.namespace import MountScope, Namespace, Squash

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Attachments:
    """The private connections of one daemon."""

    flush: Callable[[], Awaitable[None]]
    """Brings what programs have written through the store's own mount into the store."""
    sync: Callable[[], Awaitable[None]]
    """Makes everything done so far durable."""
    is_written: Callable[[RootId], bool]
    """Whether a file of the root is open for writing in the store's own mount."""
    withdraw: Callable[[RootId], None]
    """Lets the kernel forget what it knows of a root through the store's own mount."""
    on_root_forgotten: Callable[[RootId], None]
    on_lent: Callable[[], None]
    """Called when `lent` has changed."""
    mount_of: Callable[[RootId], str]
    """Where a root is mounted by itself; empty: nowhere."""
    lent: set[RootId] = field(default_factory=set)
    """Roots that a sandbox has."""
    on_damage: Callable[[RootId, str], None] = lambda _root, _where: None
    """As `Namespace.on_damage`."""
    _connections: dict[RootId, KernelConnection] = field(default_factory=dict)

    async def serve(
        self,
        context: Context,
        params: AttachParams,
        receive: Callable[[], Awaitable[Passed]],
        cancelled: trio.Event,
    ) -> AttachResult:
        """Serve a snapshot by what *receive* returns, until the mount is gone.

        Args:
            context: The store, and who asks.
            params: Which snapshot, and how.
            receive: Waits for the descriptor of `/dev/fuse`, which is closed here.
            cancelled: Set when who asked has gone away: the connection ends then.

        Raises:
            SnapshotIsolationError: another sandbox has it, or files of it are open for writing.
            AccessDeniedError: the snapshot is somebody else's.
        """
        agent, snapshot = resolve_snapshot(context.store, params.reference)
        if context.caller.uid != snapshot.uid:
            context.require_owner(agent)
        where = f"{agent.name}/@snapshots/{snapshot.name}"
        root = snapshot.root
        await self.flush()
        # No await between these checks and the loan. Without a file open for writing the kernel
        # holds nothing unwritten: closing one sends it.
        if root in self.lent:
            raise SnapshotIsolationError(f"{where}: another sandbox runs in it")
        if place := self.mount_of(root):
            raise SnapshotIsolationError(f"{where}: it is mounted on {place}")
        if self.is_written(root):
            raise SnapshotIsolationError(f"{where}: files are open for writing in the mount")
        self.lent.add(root)
        self.on_lent()
        try:
            self.withdraw(root)
            passed = await receive()
            if context.store.root(root).state is RootState.SUPERSEDED:
                os.close(passed.fd)
                raise SnapshotNotFoundError(where)
            namespace = Namespace(
                context.forest,
                _NoActions(),
                MountScope(agent.name, f"@snapshots/{snapshot.name}", root),
                params.read_only or snapshot.read_only,
                self.on_root_forgotten,
                quota=params.quota,
                on_damage=self.on_damage,
                squash=Squash(passed.uid, passed.gid, agent.uid, agent.gid),
            )
            handlers = Handlers(namespace, self.sync, _nothing_to_flush)
            # Without the writeback cache a quota answers at write(2), and not at a later fsync.
            # What may not be written must be refused at open, and a client may mount as it
            # likes: then OPEN has to come.
            features = Features(
                writeback=False,
                zero_message_open=not namespace.read_only,
                # Whoever is inside owns everything: the lists of others say nothing to them.
                access_lists=False,
            )
            connection = self._connections[root] = KernelConnection(passed.fd, handlers, features)
            log.info("attached", extra={"snapshot": where, "quota": params.quota})
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_terminate_when, cancelled, connection)
                    await connection.serve()
                    nursery.cancel_scope.cancel()
            finally:
                del self._connections[root]
                connection.close()
                namespace.forget_all()
        finally:
            self.lent.discard(root)
            self.on_lent()
        log.info("detached", extra={"snapshot": where})
        return AttachResult()

    @property
    def is_empty(self) -> bool:
        """Whether no sandbox has anything."""
        return not self.lent

    def terminate_removed(self, store: Store) -> None:
        """End the connections of snapshots that are gone: the warden of a sandbox then kills it."""
        for root, connection in self._connections.items():
            if store.root(root).state is RootState.SUPERSEDED:
                connection.terminate()

    def terminate(self) -> None:
        """End every connection: what runs in the sandboxes gets ENOTCONN from now on."""
        for connection in self._connections.values():
            connection.terminate()


async def _terminate_when(cancelled: trio.Event, connection: KernelConnection) -> None:
    await cancelled.wait()
    connection.terminate()


async def _nothing_to_flush() -> None:
    await trio.lowlevel.checkpoint()


class _NoActions:
    """A view has no folders of agents and snapshots in which something could be made."""

    def make_agent(self, name: str, caller: Caller) -> None:
        raise AssertionError("a view has no agents")

    def remove_agent(self, name: str, caller: Caller) -> None:
        raise AssertionError("a view has no agents")

    def make_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        raise AssertionError("a view has no snapshots")

    def discard_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        raise AssertionError("a view has no snapshots")

    def rename_snapshot(self, agent: str, name: str, new_name: str, caller: Caller) -> None:
        raise AssertionError("a view has no snapshots")

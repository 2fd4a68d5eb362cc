"""Private connections: a snapshot served to one sandbox alone.

The sandbox mounts it in a mount namespace of its own and passes the descriptor
of `/dev/fuse`, so the mount is seen by nobody else and is gone with the last
process inside. It survives this process as the store's own mount does: at each
step the supervisor gets what a successor needs. The kernel's caches belong to a connection: while a sandbox has
a snapshot, the store's own mount shows it read-only and keeps nothing of it.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import msgspec
import outcome
import trio
from msgspec.structs import replace

from kaifs.base.errors import SnapshotIsolationError, SnapshotNotFoundError
from kaifs.base.types import RootId
from kaifs.control.messages import ATTACH, AttachParams, AttachResult
from kaifs.control.ongoing import Ongoing
from kaifs.control.server import Guest
from kaifs.daemon.succession import Succession
from kaifs.fuse.handlers import Handlers, Told
from kaifs.fuse.kernel_requests import Agreement, Features
from kaifs.fuse.kernel_transport import KernelConnection
from kaifs.fuse.transports import NO_HURRY, Pace, Terms
from kaifs.meta.records import RootState
from kaifs.service.context import Context
from kaifs.service.reference import resolve_snapshot
from kaifs.service.steps import ResumedElsewhereError
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.views.attributes import Caller
from kaifs.views.namespace import MountScope, Namespace, Squash

log = logging.getLogger(__name__)


class Facts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a successor must know of a private connection, beside descriptors."""

    root: int
    read_only: bool
    quota: int | None
    passed: tuple[int, int] | None = None
    """Uid and gid, as `Passed`. None: the descriptor has not come yet."""
    terms: Terms | None = None
    """None: the kernel has not been answered yet."""


@dataclass(slots=True)
class _Loan:
    """A snapshot that a sandbox has."""

    name: str
    """Of its conversation, for the supervisor."""
    facts: Facts
    device: int = -1
    is_taken_over: bool = False
    """Whether a former server has begun it."""
    told: Told | None = None
    """What that has told of the connection at its end."""


@dataclass(slots=True)
class Attachments:
    """The private connections of one daemon."""

    flush: Callable[[], Awaitable[None]]
    """Brings what programs have written through the store's own mount into the store."""
    sync: Callable[[], Awaitable[None]]
    """Makes everything done so far durable."""
    use_of: Callable[[RootId], str]
    """Why a root cannot be lent now: who has it, or writes in it; empty: it can."""
    withdraw: Callable[[RootId], None]
    """Lets the kernel forget what it knows of a root through the store's own mount."""
    on_root_forgotten: Callable[[RootId], None]
    on_lent: Callable[[], None]
    """Called when `lent` has changed."""
    succession: Succession
    """Has a successor go on with the connections."""
    pace: Pace = NO_HURRY
    """What is spent for speed on each."""
    lent: set[RootId] = field(default_factory=set)
    """Roots that a sandbox has."""
    on_damage: Callable[[RootId, str], None] = lambda _root, _where: None
    """As `Namespace.on_damage`."""
    leaving: trio.Event = field(default_factory=trio.Event)
    """Set when a successor is to go on with every connection."""
    told: dict[str, Told] = field(default_factory=dict)
    """What is known of the connections with which a successor goes on, by name."""
    _connections: dict[RootId, KernelConnection] = field(default_factory=dict)

    async def serve(self, context: Context, params: AttachParams, guest: Guest) -> AttachResult:
        """Serve a snapshot by what *guest* passes, until the mount is gone.

        Args:
            context: The store, and who asks.
            params: Which snapshot, and how.
            guest: Who asks. The connection ends when they go away.

        Raises:
            SnapshotIsolationError: another sandbox has it, or files of it are open for writing.
            AccessDeniedError: the snapshot is somebody else's.
            ResumedElsewhereError: a successor goes on.
        """
        agent, snapshot = resolve_snapshot(context.store, params.reference)
        if context.caller.uid != snapshot.uid:
            context.require_owner(agent)
        where = f"{agent.name}/@snapshots/{snapshot.name}"
        root = snapshot.root
        await self.flush()
        # No await between this check and the loan.
        if use := self.use_of(root):
            raise SnapshotIsolationError(f"{where}: {use}")
        read_only = params.read_only or snapshot.read_only
        facts = Facts(root=root, read_only=read_only, quota=params.quota)
        with self._lend(root):
            self.withdraw(root)
            guest.ask()
            loan = _Loan(secrets.token_hex(8), facts)
            self._note(loan, guest)
            await self._serve(context.forest, loan, guest)
        return AttachResult()

    def take_over(
        self, forest: Forest, ongoing: Ongoing, told: Told | None
    ) -> Callable[[Guest], Awaitable[AttachResult]] | None:
        """Lend what a sandbox has from a server that is no more; return what serves it.

        None if the snapshot is gone. Before any request is answered: nobody else may write it.

        Args:
            forest: The trees.
            ongoing: What that server had.
            told: What it has told of the connection.
        """
        facts = msgspec.convert(dict(ongoing.facts), Facts)
        root = RootId(facts.root)
        device = ongoing.fds[1] if len(ongoing.fds) > 1 else -1
        store = forest.store
        if not store.has_root(root) or store.root(root).state is RootState.SUPERSEDED:
            if device >= 0:
                os.close(device)
            self.succession.over(ongoing.name)
            return None
        loan = _Loan(ongoing.name, facts, device, is_taken_over=True, told=told)
        self.lent.add(root)

        async def serve(guest: Guest) -> AttachResult:
            with self._lend(root):
                await self._serve(forest, loan, guest)
            return AttachResult()

        return serve

    @contextmanager
    def _lend(self, root: RootId) -> Iterator[None]:
        if root not in self.lent:
            self.lent.add(root)
            self.on_lent()
        try:
            yield
        finally:
            if not self.leaving.is_set():
                self.lent.discard(root)
                self.on_lent()

    def _note(self, loan: _Loan, guest: Guest) -> None:
        """Have a successor go on with *loan* as it is now."""
        fds = [guest.fileno(), loan.device] if loan.device >= 0 else [guest.fileno()]
        facts = {"kind": ATTACH, **msgspec.to_builtins(loan.facts)}
        self.succession.go_on(Ongoing(loan.name, fds, facts))

    async def _serve(self, forest: Forest, loan: _Loan, guest: Guest) -> None:
        goes_on = False
        try:
            if loan.device < 0:
                await self._receive(loan, guest)
            if loan.device >= 0:
                await self._serve_connection(forest, loan, guest)
            goes_on = self.leaving.is_set()
        finally:
            if not goes_on:
                self.succession.over(loan.name)
        if goes_on:
            raise ResumedElsewhereError

    async def _receive(self, loan: _Loan, guest: Guest) -> None:
        """Wait for the descriptor, unless a successor is to."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, self.leaving, nursery.cancel_scope)
            # Captured, for a nursery would wrap what it raises.
            received = await outcome.acapture(guest.receive)
            nursery.cancel_scope.cancel()
        if self.leaving.is_set() and isinstance(received, outcome.Error):
            return
        passed = received.unwrap()
        loan.device = passed.fd
        loan.facts = replace(loan.facts, passed=(passed.uid, passed.gid))
        self._note(loan, guest)

    async def _serve_connection(self, forest: Forest, loan: _Loan, guest: Guest) -> None:
        facts, store = loan.facts, forest.store
        root = RootId(facts.root)
        record = store.root(root)
        agent = store.agent_by_id(record.agent_id)
        if agent is None or record.state is RootState.SUPERSEDED:
            os.close(loan.device)
            raise SnapshotNotFoundError(record.name)
        assert facts.passed is not None, "a descriptor comes with ids"
        where = f"{agent.name}/@snapshots/{record.name}"
        namespace = Namespace(
            forest,
            _NoActions(),
            MountScope(agent.name, f"@snapshots/{record.name}", root),
            facts.read_only,
            self.on_root_forgotten,
            quota=facts.quota,
            on_damage=self.on_damage,
            squash=Squash(*facts.passed, agent.uid, agent.gid),
        )
        handlers = Handlers(namespace, self.sync, _nothing_to_flush)
        connection = self._connections[root] = self._connect(loan, handlers, guest)
        event = "attachment_taken_over" if loan.is_taken_over else "attached"
        log.info(event, extra={"snapshot": where, "quota": facts.quota})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_terminate_when, guest.gone, connection)
                nursery.start_soon(_terminate_when, self.leaving, connection)
                nursery.start_soon(guest.watch)
                await connection.serve()
                nursery.cancel_scope.cancel()
        finally:
            del self._connections[root]
            connection.close()
            if self.leaving.is_set():
                self.told[loan.name] = handlers.told()
            else:
                namespace.forget_all()
        log.info("detached", extra={"snapshot": where})

    def _connect(self, loan: _Loan, handlers: Handlers, guest: Guest) -> KernelConnection:
        """Return the connection of *loan*, ready to be served."""
        namespace, terms = handlers.namespace, loan.facts.terms
        if terms is not None:
            features = Features(**terms.features)
        else:
            # Without the writeback cache a quota answers at write(2), and not at a later fsync.
            # What may not be written must be refused at open, and a client may mount as it
            # likes: then OPEN has to come.
            features = Features(
                writeback=False,
                zero_message_open=not namespace.read_only,
                # Whoever is inside owns everything: the lists of others say nothing to them.
                access_lists=False,
            )
        identity = None if terms is None else terms.identity
        connection = KernelConnection(loan.device, handlers, features, self.pace, identity)
        if loan.is_taken_over:
            agreed = None if terms is None else Agreement(terms.minor, terms.flags, features)
            connection.resume(agreed, namespace.forest.store.answer)
            if loan.told is not None:
                handlers.adopt(loan.told)
            else:
                namespace.inherit()

        def note(agreement: Agreement) -> None:
            agreed = Terms(
                identity=connection.identity,
                minor=agreement.minor,
                flags=agreement.flags,
                features=asdict(agreement.features),
                reason="",
            )
            loan.facts = replace(loan.facts, terms=agreed)
            self._note(loan, guest)

        if terms is None:
            # Before the kernel has its answer: INIT does not come a second time.
            connection.tell_agreement(note)
        return connection

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


async def _terminate_when(event: trio.Event, connection: KernelConnection) -> None:
    await event.wait()
    connection.terminate()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


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

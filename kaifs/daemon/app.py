"""The daemon: composition root of everything that serves one store.

It builds the layers, owns every background task, and has one way down: the
mount goes, what is left is committed, the socket goes, the lock goes. An
unmount by whomever, a signal and the verb `shutdown` all end there.
"""

import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import trio

from kaifs.base.errors import (
    AccessDeniedError,
    DaemonError,
    KaifsError,
    MountBusyError,
    MountFailedError,
    MountOptionError,
    NoEntryError,
    NoSpaceError,
    NotMountedError,
    RestartError,
    StoreDamagedError,
    ViewTakenError,
)
from kaifs.base.types import RootId, split_kernel_node
from kaifs.control import server
from kaifs.control.info import DaemonInfo, remove_info, write_info
from kaifs.control.messages import (
    ATTACH,
    Failure,
    MountParams,
    MountResult,
    RestartResult,
    Result,
    ShutdownParams,
    ShutdownResult,
    encode,
)
from kaifs.control.places import log_path, run_folder, socket_path
from kaifs.daemon.actions import StoreActions, load_verbs
from kaifs.daemon.attachments import Attachments
from kaifs.daemon.barrier import Helper
from kaifs.daemon.care import Care, Means
from kaifs.daemon.epochs import RETRY_MAX_S, Epochs
from kaifs.daemon.handover import Kept, KeptConnection, Line, Unsettled
from kaifs.daemon.helper_process import HelperProcess
from kaifs.daemon.log import log_to_file
from kaifs.daemon.options import STORE_WIDE, MountOptions, parse_options
from kaifs.daemon.scrubbing import Scrubbing
from kaifs.daemon.served_mount import ServedMount
from kaifs.daemon.succession import Facts, Succession
from kaifs.fuse.handlers import Handlers, Told
from kaifs.fuse.transports import Connected, Pace, make_transport, resume_transport
from kaifs.fuse.transports import Name as TransportName
from kaifs.linux.files import take_memory_file, write_all
from kaifs.linux.namespaces import mount_namespace
from kaifs.linux.processes import identify, leave_terminal, set_process_name
from kaifs.linux.sockets import listen_at
from kaifs.meta.records import RootState
from kaifs.service.context import Caller, Context, no_alert, this_caller
from kaifs.service.reference import resolve
from kaifs.store.changes import Change, HeadSwitched, SnapshotRemoved
from kaifs.store.replay import Recovery
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.forest import Forest
from kaifs.views.namespace import MountScope, Namespace

log = logging.getLogger(__name__)

STORE_WAIT_S: Final = 10.0
"""Seconds for which a mount waits for an embedded verb to let the store go."""
SOCKET_MODE: Final = 0o666
"""Who connects is asked for credentials; who gets as far as here, the store's folder says."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon is told at its start."""

    store: Path
    mountpoint: Path | None
    """Absolute and without symbolic links; None: there is no mount, sandboxes are served alone."""
    options: MountOptions
    foreground: bool = False
    """Stay in the terminal's session, with its standard streams."""
    ready_fd: int = -1
    """Where to tell that the mount answers, or why there is none; -1: nowhere."""
    end_fd: int = -1
    """End when the other end of this pipe is closed; -1: when told."""
    line: Line | None = None
    """Leads to the supervisor; None: there is none."""
    helper: HelperProcess | None = None
    """The process that touches the mount, if it was started already."""
    kept: Kept | None = None
    """What a server that is no more has left: its mount goes on here. None: mount."""


def run(settings: Settings) -> bool:
    """Serve until the mount has gone, or goes on in another process; return whether it does.

    Raises:
        KaifsError: It could not be mounted.
    """
    set_process_name("kaifs")
    return trio.run(_run, settings)


async def _run(settings: Settings) -> bool:
    return await _Daemon(settings).run()


def tell_ready(fd: int, failure: Failure | None = None) -> None:
    """Tell the process at the other end of the pipe *fd* how the start went, and close it.

    Raises:
        BrokenPipeError: It has gone.
    """
    try:
        write_all(fd, encode(failure or Result(b"", is_last=True)))
    finally:
        os.close(fd)


class _Daemon:
    """One store, its mounts, one socket."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changing = trio.Lock()
        self._unmounted = trio.Event()
        """Set when there is no mount any more."""
        self._ready = trio.Event()
        """Set when the first mount answers."""
        self._mounts: list[ServedMount] = []
        """Those that are served now."""
        self._resumed_conversations: list[server.Resumed] = []
        """With which a server that is no more had begun."""
        self._care: Care | None = None
        self._failure: KaifsError | None = None
        self._holders = 0
        self._is_unwanted = False
        self._closing = trio.Event()
        """Set when nobody is to be let in at the control socket any more."""
        self._succession = Succession(settings.line, settings.kept)
        self._leaving = trio.Event()
        """Set when the mounts are to go on in another process."""

    async def run(self) -> bool:
        """Serve from the store's lock to its release; return whether the mount goes on."""
        settings = self._settings
        # Before the store and /dev/fuse are open: the helper must hold neither.
        self._helper = Helper(settings.helper)
        try:
            options = StoreOptions(
                zstd_level=settings.options.zstd_level,
                journal=True,
                # Whoever takes over from one that died does not: that may be why it died.
                check_later=settings.line is not None and settings.kept is None,
            )
            if settings.options.cache_size is not None:
                options = replace(options, node_cache=settings.options.cache_size)
            self._store = Store.open(
                settings.store,
                options=options,
                wait_s=STORE_WAIT_S,
                lock_fd=None if settings.kept is None else settings.kept.lock,
            )
            is_done = False
            try:
                await self._serve_store()
                is_done = not self._leaving.is_set()
            finally:
                # A successor is found by what a server that failed has published.
                if is_done or not self._succession.is_kept:
                    remove_info(settings.store)
                self._store.close(commit=False)
        finally:
            self._helper.close()
        self._succession.end(self._told() if self._leaving.is_set() else None)
        if self._failure is not None:
            raise self._failure
        return self._leaving.is_set()

    async def _serve_store(self) -> None:
        settings, options = self._settings, self._settings.options
        run_folder(settings.store).mkdir(mode=0o700, exist_ok=True)
        log_to_file(log_path(settings.store))
        _log_recovery(self._store.recovery)
        self._forest = Forest(self._store)
        self._epochs = Epochs(self._store, options.commit_s)
        self._attachments = Attachments(
            self._flush_for_sandbox,
            self._epochs.sync,
            self._use_of,
            self._withdraw,
            self._drop_if_superseded,
            self._lend,
            self._succession,
            _pace(settings.options),
            leaving=self._leaving,
        )
        means = Means(self._own_context, self._flush, self._commit_change, self._changing)
        self._care = Care(self._store, means)
        self._scrubbing = Scrubbing(self._store, means, self._settings.options.scrub_ns)
        self._attachments.on_damage = self._care.damage_met
        kept = settings.kept
        if kept is None:
            self._check_scope(options)
            self._forest.recover()
            self._finish_due_backups()
            name = options.transport if settings.mountpoint is not None else "none"
            self._mounts.append(self._new_mount(settings.mountpoint, options, name))
        else:
            told: dict[str, Told] = {}
            if kept.known >= 0:
                known = take_memory_file(kept.known)
                told = msgspec.msgpack.decode(known, type=dict[str, Told])
            for key, connection in kept.connections.items():
                self._mounts.append(self._resumed(connection, told.get(key)))
            self._resumed_conversations = [*self._resume_conversations(kept, told)]
        for mount in self._mounts:
            mount.taken = self._roots_of(mount)
        self._lend()
        self._store.on_change = self._changed
        if kept is None:
            self._listener = listen_at(socket_path(settings.store), SOCKET_MODE)
            if settings.mountpoint is not None:
                self._mounts[0].mount(settings.store)
        else:
            self._listener = socket.socket(fileno=kept.listener)
            # Not earlier: what it changes, the kernel is told.
            going_on = {RootId(one.facts["root"]) for one in kept.ongoing.values()}
            self._forest.recover(is_served=True, going_on=going_on)
            for mount in self._mounts:
                if mount.unsettled.was_left:
                    mount.invalidator.catch_up()
        services = server.Services(
            context=self._context,
            barrier=self._flush,
            commit=self._commit_change,
            sync=self._sync_change,
            changing=self._changing,
            shutdown=self._shutdown_for,
            mount=self._mount_for,
            attach=self._attachments.serve,
            hold=self._hold,
            restart=self._restart_for,
            leaving=self._leaving,
            go_on=self._succession.go_on,
            over=self._succession.over,
        )
        async with trio.open_nursery() as background:
            background.start_soon(self._watch_signals)
            if settings.end_fd >= 0:
                background.start_soon(self._watch_end)
            background.start_soon(self._announce)
            background.start_soon(self._watch_supervisor)
            if kept is not None:
                background.start_soon(self._finish_left)
            background.start_soon(self._check_index)
            background.start_soon(self._load_verbs)
            background.start_soon(self._epochs.run)
            background.start_soon(self._care.run)
            background.start_soon(self._scrubbing.run)
            async with trio.open_nursery() as foreground:
                self._foreground = foreground
                foreground.start_soon(self._serve_clients, services)
                for mount in self._mounts:
                    foreground.start_soon(self._serve_mount, mount)
            if not self._leaving.is_set():
                await self._finish()
            background.cancel_scope.cancel()

    async def _serve_clients(self, services: server.Services) -> None:
        resumed = self._resumed_conversations
        await server.serve(self._listener, services, self._closing, resumed)
        if self._leaving.is_set():
            for mount in self._mounts:
                # While requests are still answered: what it tells the kernel may need one.
                await trio.to_thread.run_sync(mount.invalidator.stop)
                mount.transport.terminate()

    # --- the way up ------------------------------------------------------------------------

    def _new_mount(
        self, mountpoint: Path | None, options: MountOptions, transport: TransportName
    ) -> ServedMount:
        """Return a mount with *options*, to be mounted."""
        handlers = self._new_handlers(options)
        made = make_transport(transport, handlers, _pace(options))
        return ServedMount(mountpoint, options, handlers, made, self._helper, Unsettled())

    def _resumed(self, kept: KeptConnection, told: Told | None) -> ServedMount:
        """Return the mount that a server which is no more has served by a connection.

        *told* is what it has said of it at its end.
        """
        facts = msgspec.convert(kept.facts, Facts)
        mountpoint, options = Path(facts.mountpoint), parse_options([facts.options])
        handlers = self._new_handlers(options)
        if told is not None:
            handlers.adopt(told)
        else:
            handlers.namespace.inherit()
        transport = resume_transport(
            handlers,
            _pace(options),
            mountpoint,
            Connected(kept.device, facts.terms),
            self._store.answer,
            self._succession.served,
        )
        unsettled = Unsettled(kept.unsettled)
        mount = ServedMount(mountpoint, options, handlers, transport, self._helper, unsettled)
        mount.take_over(facts.minor)
        return mount

    def _resume_conversations(self, kept: Kept, told: dict[str, Told]) -> Iterator[server.Resumed]:
        """Yield the conversations that go on here, from a server that is no more."""
        for one in kept.ongoing.values():
            if one.facts["kind"] != ATTACH:
                yield server.Resumed(one)
                continue
            serve = self._attachments.take_over(self._forest, one, told.get(one.name))
            if serve is None:
                # Who has the other end is told by its end.
                os.close(one.fds[0])
            else:
                yield server.Resumed(one, serve)

    def _told(self) -> bytes:
        """Return what is known of all connections, for a successor."""
        told = {mount.name: mount.handlers.told() for mount in self._mounts}
        return encode({**told, **self._attachments.told})

    def _new_handlers(self, options: MountOptions) -> Handlers:
        """Return what requests of a mount with *options* do."""
        namespace = Namespace(
            self._forest,
            StoreActions(self._context),
            MountScope(options.agent, options.view),
            options.read_only,
            self._drop_if_superseded,
            options.uid,
            options.gid,
            on_damage=self._attachments.on_damage,
        )
        return Handlers(namespace, self._epochs.sync, self._wait_barrier)

    async def _finish_left(self) -> None:
        """Finish what the server that is no more had begun and must be finished."""
        # Held from the start: who changes something must find it finished.
        async with self._changing:
            try:
                await self._flush()
                self._finish_due_backups(is_served=True)
            except KaifsError as error:
                log.warning("not_finished", extra={"error": str(error)})

    def _check_scope(self, options: MountOptions) -> None:
        """Check that what a mount with *options* is to show exists.

        Raises:
            AgentNotFoundError, InvalidVersionError, SnapshotNotFoundError: It does not.
        """
        if not options.agent:
            return
        folder, _, name = options.view.partition("/")
        match folder:
            case "@versions":
                resolve(self._store, f"{options.agent}@{name}")
            case "@snapshots":
                resolve(self._store, f"{options.agent}/{options.view}")
            case _:
                self._store.get_agent(options.agent)

    async def _serve_mount(self, mount: ServedMount) -> None:
        """Answer the kernel until *mount* has gone; the last one ends the daemon."""
        try:
            await mount.serve()
        finally:
            if not self._leaving.is_set():
                self._mounts.remove(mount)
                self._lend()
            if self._leaving.is_set() or not self._mounts:
                self._closing.set()
                self._unmounted.set()
        if not self._leaving.is_set():
            await self._end_mount(mount)
            if self._mounts:
                self._publish()

    async def _end_mount(self, mount: ServedMount) -> None:
        """Leave nothing of a mount whose requests are not answered any more."""
        await mount.stop_telling()
        is_there = mount.is_there()
        if is_there or self._mounts:
            # Unmounting waits for whoever has the device open. With the last one the supervisor
            # keeps what it has until all is on disk.
            await self._succession.drop(mount.name)
        if is_there:
            mount.transport.unmount()
        else:
            mount.transport.close()
        mount.namespace.forget_all()

    async def _mount_for(self, caller: Caller, params: MountParams) -> MountResult:
        """Serve another mount, of views that no other mount writes.

        Raises:
            AccessDeniedError: The daemon would do it with rights that the caller has not.
            MountOptionError, MountFailedError: As for the first mount.
            ViewTakenError: What it would show is on another mount, or used by a sandbox.
        """
        if caller.uid not in (0, os.geteuid()):
            raise AccessDeniedError("the daemon belongs to another user")
        if params.namespace != mount_namespace():
            raise MountFailedError(f"{params.mountpoint}: the daemon is in another mount namespace")
        options = parse_options([params.options])
        first = self._settings.options
        for name, word in STORE_WIDE.items():
            if getattr(options, name) not in (getattr(first, name), getattr(MountOptions(), name)):
                raise MountOptionError(
                    f"{word}= is for the whole store, and its first mount's to say"
                )
        if options.transport == "pyfuse3":
            raise MountOptionError("transport=pyfuse3: it can serve one mount only, the first")
        self._check_scope(options)
        mount = self._new_mount(Path(params.mountpoint), options, "kernel")
        log.info("mount_asked", extra={"uid": caller.uid, "mountpoint": params.mountpoint})
        await self._ready.wait()
        async with self._changing:
            if self._closing.is_set():
                raise DaemonError("it is about to end")
            try:
                self._mount_beside(mount, await self._taken_for(mount))
            except BaseException:
                mount.unsettled.close()
                raise
            try:
                await mount.answer(is_new=True)
            except OSError as error:
                mount.transport.terminate()
                raise MountFailedError(f"{params.mountpoint}: {error.strerror}") from error
            mount.ready.set()
            self._hold_connection(mount)
            self._publish()
        return MountResult()

    async def _taken_for(self, mount: ServedMount) -> set[RootId]:
        """Return the roots that *mount* is to have for itself, flushed.

        Raises:
            ViewTakenError: It cannot have them.
            ForeignMountError: something is mounted inside one of them.
        """
        options = mount.options
        if not options.view:
            for other in self._mounts:
                agents = {options.agent, other.options.agent}
                if not other.options.view and ("" in agents or len(agents) == 1):
                    raise ViewTakenError(f"{other.mountpoint} shows it already")
            return set()
        from kaifs.service.switching import refuse_foreign_mounts

        refuse_foreign_mounts(self._own_context())
        await self._flush()
        return self._roots_of(mount)

    def _mount_beside(self, mount: ServedMount, roots: set[RootId]) -> None:
        """Mount, and take *roots* from the other mounts.

        Raises:
            ViewTakenError: Somebody else writes one.
            MountFailedError: The system refuses.
        """
        for root in roots:
            if use := self._use_of(root):
                raise ViewTakenError(use)
        mount.mount(self._settings.store)
        for root in roots:
            self._withdraw(root)
        mount.taken = roots
        self._mounts.append(mount)
        self._lend()
        self._foreground.start_soon(self._serve_mount, mount)

    def _roots_of(self, mount: ServedMount) -> set[RootId]:
        """Return the root that *mount* shows alone, if it can be written."""
        if not mount.options.view or mount.options.shows_sealed:
            return set()
        try:
            return {split_kernel_node(mount.namespace.scope_node())[0]}
        except NoEntryError:
            # Discarded meanwhile: nobody finds it by its name any more.
            return set()

    def _use_of(self, root_id: RootId) -> str:
        """Return why no other connection can have *root_id* for itself now; empty: one can.

        Without a file open for writing the kernel holds nothing unwritten: closing one sends it.
        """
        if root_id in self._attachments.lent:
            return "a sandbox runs in it"
        for mount in self._mounts:
            if root_id in mount.taken:
                return f"it is mounted on {mount.mountpoint}"
            if mount.is_written(root_id):
                return f"files are open for writing below {mount.mountpoint}"
        return ""

    def _lend(self) -> None:
        """Let each mount only read what another connection has for itself."""
        for mount in self._mounts:
            taken = (other.taken for other in self._mounts if other is not mount)
            mount.namespace.lend(self._attachments.lent.union(*taken))

    async def _announce(self) -> None:
        """Say that the mounts answer, once they do."""
        settings = self._settings
        mounts = list(self._mounts)
        try:
            for mount in mounts:
                await mount.answer(is_new=settings.kept is None)
            if settings.mountpoint is not None and settings.kept is None:
                self._keep(mounts[0])
            self._publish()
            if settings.ready_fd >= 0:
                tell_ready(settings.ready_fd)
        except (OSError, KaifsError) as error:
            failure = error if isinstance(error, KaifsError) else MountFailedError(str(error))
            log.warning("not_ready", extra={"error": str(error)})
            self._failure = failure
            await self._go_down()
            return
        for mount in mounts:
            mount.ready.set()
        self._ready.set()
        if not settings.foreground:
            leave_terminal()
        event = "mounted" if settings.kept is None else "taken_over"
        log.info(event, extra={"mountpoint": settings.mountpoint, "pid": os.getpid()})

    def _keep(self, first: ServedMount) -> None:
        """Give the supervisor what a successor needs."""
        if first.transport.connected is None:
            self._succession.stay_alone()
            return
        self._succession.keep(self._store.lock_fd, self._listener.fileno())
        self._hold_connection(first)

    def _hold_connection(self, mount: ServedMount) -> None:
        """Let the supervisor hold the connection of *mount*, if it holds any."""
        connected, entry = mount.transport.connected, mount.entry
        if connected is None or entry is None or self._succession.supervisor is None:
            return
        facts = Facts(
            terms=connected.terms,
            minor=entry.minor,
            mountpoint=str(mount.mountpoint),
            options=mount.options.text,
        )
        self._succession.hold(
            mount.name, connected.fd, mount.unsettled.fd, msgspec.to_builtins(facts)
        )

    def _finish_due_backups(self, *, is_served: bool = False) -> None:
        if self._store.unfinished_roots():
            # Not at the top: few mounts need it, and it takes long to load.
            from kaifs.service.switching import finish_due_backups

            finish_due_backups(self._own_context(), is_served=is_served)

    async def _load_verbs(self) -> None:
        """Load what verbs need, once the mount answers: who asks first is not to wait for it."""
        await self._ready.wait()
        await trio.to_thread.run_sync(load_verbs)

    async def _check_index(self) -> None:
        """Check the index if it was opened unseen, once the mount answers."""
        await self._ready.wait()
        try:
            await trio.to_thread.run_sync(self._store.check_index)
        except StoreDamagedError as error:
            # What was read off it may be wrong. A successor opens it anew, which mends it.
            log.error("index_changed", extra={"error": str(error)})  # noqa: TRY400 - expected
            os.kill(os.getpid(), signal.SIGKILL)

    async def _watch_supervisor(self) -> None:
        """Hear what the supervisor says, and take note of its death."""
        await self._succession.listen()
        if self._settings.line is None or self._unmounted.is_set():
            return
        await self._ready.wait()
        log.warning("supervisor_died")
        # Who connects finds our own pid from now on.
        self._listener.listen()
        self._publish()

    def _publish(self) -> None:
        settings = self._settings
        process = identify(os.getpid())
        assert process is not None, "this process is running"
        supervisor = self._succession.supervisor or process
        mounts = [
            mount.info(
                survives=self._succession.keeps(mount.name),
                reason=self._survives_reason(mount),
            )
            for mount in self._mounts
            if mount.entry is not None
        ]
        info = DaemonInfo(
            pid=process.pid,
            supervisor_pid=supervisor.pid,
            supervisor_ticks=supervisor.started,
            started_ticks=process.started,
            started_ns=self._store.clock.now_ns(),
            mounts=mounts,
        )
        write_info(settings.store, info)

    def _survives_reason(self, mount: ServedMount) -> str:
        if self._succession.keeps(mount.name):
            return "a supervisor keeps its connection"
        if mount.transport.connected is not None:
            return "its supervisor is gone"
        if mount.transport.name == "kernel":
            return f"Linux {os.uname().release} cannot send requests again"
        return f"{mount.transport.name} cannot go on with a connection"

    # --- what others ask for ------------------------------------------------------------------

    def _context(self, caller: Caller) -> Context:
        agents = {one.mountpoint: one.options.agent for one in self._mounts if one.mountpoint}
        whole = next((place for place, agent in agents.items() if not agent), None)
        alert = no_alert if self._care is None else self._care.alert
        scrub_ns = self._settings.options.scrub_ns
        return Context(self._store, self._forest, caller, whole, tuple(agents), alert, scrub_ns)

    def _own_context(self) -> Context:
        return self._context(this_caller())

    def _changed(self, change: Change) -> None:
        if isinstance(change, HeadSwitched):
            for mount in self._mounts:
                if change.old in mount.taken:
                    mount.taken.add(change.new)
            self._lend()
        for mount in self._mounts:
            mount.invalidator.changed(change)
        if isinstance(change, SnapshotRemoved):
            self._attachments.terminate_removed(self._store)

    async def _wait_barrier(self) -> None:
        for mount in list(self._mounts):
            await mount.wait_barrier()

    async def _flush(self) -> None:
        """Bring what programs have written so far into the store.

        First the kernel forgets what a switch has made wrong: who then opens a
        file by its path gets the new tree, and what was written to the old one
        is all there is. Not for a handler, on which the forgetting may wait.
        """
        await self._wait_invalidated()
        await self._wait_barrier()

    async def _flush_for_sandbox(self) -> None:
        """Flush, and find out which files programs write that they had opened before we served."""
        await self._flush()
        if self._settings.kept is not None:
            for mount in list(self._mounts):
                if not mount.namespace.known.is_exact:
                    await mount.find_old_writers()

    async def _wait_invalidated(self) -> None:
        for mount in list(self._mounts):
            await mount.wait_invalidated()

    async def _commit_change(self) -> None:
        await self._wait_invalidated()
        self._drop_superseded()
        try:
            await self._epochs.commit()
        except NoSpaceError:
            # What was done is in the journal, and is as durable there as in an epoch.
            await self._epochs.sync()

    async def _sync_change(self) -> None:
        await self._wait_invalidated()
        self._drop_superseded()
        await self._epochs.sync()

    def _withdraw(self, root_id: RootId) -> None:
        for mount in self._mounts:
            mount.withdraw(root_id)

    def _drop_if_superseded(self, root_id: RootId) -> None:
        """Drop a root that no name leads to, once the kernel knows nothing of it."""
        is_used = root_id in self._attachments.lent or any(
            mount.namespace.known.has_root(root_id) for mount in self._mounts
        )
        if not self._store.has_root(root_id) or is_used:
            return
        root = self._store.root(root_id)
        if root.state is not RootState.SUPERSEDED:
            return
        agent = self._store.agent_by_id(root.agent_id)
        if agent is None or agent.superseded != root_id:
            self._forest.drop(root_id)

    def _drop_superseded(self) -> None:
        """Drop every superseded root of which the kernel knows nothing."""
        for root_id in self._store.unfinished_roots():
            self._drop_if_superseded(root_id)

    # --- the way down --------------------------------------------------------------------------

    async def _watch_signals(self) -> None:
        ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with trio.open_signal_receiver(*ends) as signals:
            async with trio.open_nursery() as nursery:
                is_asked = False
                async for number in signals:
                    log.info("signal", extra={"signal": signal.Signals(number).name})
                    if is_asked:
                        self._terminate()
                    else:
                        is_asked = True
                        nursery.start_soon(self._go_down)

    async def _watch_end(self) -> None:
        """Go down when the process that wanted this daemon has ended."""
        async with trio.lowlevel.FdStream(self._settings.end_fd) as stream:
            while await stream.receive_some():
                pass
        self._is_unwanted = True
        if self._holders == 0:
            await self._go_down()

    async def _hold(self, last: Callable[[], Awaitable[None]]) -> None:
        """Stay there as long as *last* does, also if who wanted this daemon has ended."""
        self._holders += 1
        try:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    await last()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait)
                await self._unmounted.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._holders -= 1
        if self._is_unwanted and self._holders == 0 and not self._unmounted.is_set():
            await self._go_down()

    async def _go_down(self) -> None:
        """Take the mount down whoever uses it, having flushed what can be flushed."""
        try:
            await self._shutdown(list(self._mounts), lazy=False)
        except (KaifsError, OSError) as error:
            log.warning("not_unmounted", extra={"error": str(error)})
            try:
                await self._shutdown(list(self._mounts), lazy=True)
            except (KaifsError, OSError) as again:
                log.warning("not_detached", extra={"error": str(again)})
        self._terminate()

    def _terminate(self) -> None:
        """Let every mount go, whoever uses it."""
        for mount in self._mounts:
            mount.transport.terminate()

    async def _shutdown_for(self, caller: Caller, params: ShutdownParams) -> ShutdownResult:
        log.info("shutdown_asked", extra={"uid": caller.uid, "lazy": params.lazy})
        if self._holders and not params.held:
            await self._epochs.commit()
            return ShutdownResult(ends=False)
        mounts = list(self._mounts)
        if params.mountpoint:
            mounts = [mount for mount in mounts if str(mount.mountpoint) == params.mountpoint]
            if not mounts:
                raise NotMountedError(params.mountpoint)
        return await self._shutdown(mounts, lazy=params.lazy)

    async def _restart_for(self, caller: Caller) -> RestartResult:
        """Let another process go on with the mount, with the code that is installed now.

        It is started first, so that an installation that is broken does no harm, and that
        nobody waits for it to load. It begins when this process has ended.
        """
        log.info("restart_asked", extra={"uid": caller.uid})
        where = self._settings.mountpoint or self._settings.store
        for mount in self._mounts:
            if not self._succession.keeps(mount.name):
                raise RestartError(f"{mount.mountpoint or where}: {self._survives_reason(mount)}")
        if self._leaving.is_set():
            raise RestartError(f"{where}: it is under way")
        await self._ready.wait()
        reason = await self._succession.prepare()
        if reason:
            raise RestartError(f"{where}: the new server: {reason}")
        async with self._changing:
            await self._wait_invalidated()
            await self._epochs.commit()
            # Verbs that are running end first, and so does this one; nobody new is let in.
            self._leaving.set()
            self._closing.set()
        return RestartResult(pid=os.getpid())

    async def _shutdown(self, mounts: list[ServedMount], *, lazy: bool) -> ShutdownResult:
        """Flush, commit, unmount, commit what came with that. The last mount ends the daemon.

        Raises:
            MountBusyError: Processes use the mount and *lazy* is False.
            BarrierError, NoSpaceError, StoreIOError: The mount stays as it is.
        """
        where = self._settings.mountpoint or self._settings.store
        async with self._changing:
            is_last = set(mounts) >= set(self._mounts)
            if not lazy:
                for mount in mounts:
                    await mount.check_unused(self._own_processes)
                if is_last and not self._attachments.is_empty:
                    raise MountBusyError(f"{where}: a sandbox runs in a snapshot")
            if is_last:
                self._attachments.terminate()
            if self._ready.is_set():
                await self._wait_barrier()
            await self._epochs.commit()
            for mount in mounts:
                if mount.mountpoint is None:
                    mount.transport.terminate()
                    await mount.gone.wait()
                else:
                    await mount.unmount(self._own_processes, lazy=lazy)
            await self._epochs.commit()
        is_gone = all(mount.gone.is_set() for mount in mounts)
        return ShutdownResult(ends=is_last and is_gone, is_gone=is_gone)

    @property
    def _own_processes(self) -> tuple[int, int]:
        return os.getpid(), self._helper.pid

    async def _finish(self) -> None:
        """Make the last state durable, however often that must be tried."""
        if self._settings.kept is not None:
            self._forest.recover()
        self._drop_superseded()
        wait_s = 1.0
        while True:
            try:
                await self._epochs.commit()
            except KaifsError as error:
                log.warning("commit_failed", extra={"error": str(error)})
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)
            else:
                break
        log.info("ended", extra={"epoch": self._store.epoch})


def _pace(options: MountOptions) -> Pace:
    return Pace(options.busypoll_us, options.latency == "auto")


def _log_recovery(found: Recovery) -> None:
    if found.records:
        log.info("journal_replayed", extra={"records": found.records, "blocks": found.blocks})
    if found.reason:
        # Of a process that was killed in the middle of a record, or of power loss.
        log.warning("journal_cut", extra={"bytes": found.cut, "reason": found.reason})

"""The daemon: composition root of everything that serves one store.

It builds the layers, owns every background task, and has one way down: the
mount goes, what is left is committed, the socket goes, the lock goes. An
unmount by whomever, a signal and the verb `shutdown` all end there.
"""

import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
import trio

from kaifs.base.errors import (
    KaifsError,
    MountBusyError,
    MountFailedError,
    NoSpaceError,
    NotMountedError,
    RestartError,
)
from kaifs.base.types import SLOT_SHIFT, RootId, split_kernel_node
from kaifs.control import server
from kaifs.control.info import (
    DaemonInfo,
    MountInfo,
    log_path,
    remove_info,
    run_folder,
    socket_path,
    write_info,
)
from kaifs.control.messages import (
    Failure,
    RestartResult,
    Result,
    ShutdownParams,
    ShutdownResult,
    encode,
)
from kaifs.daemon.actions import StoreActions
from kaifs.daemon.attachments import Attachments
from kaifs.daemon.barrier import Barrier, Helper, prepare_mount
from kaifs.daemon.care import Care, Means
from kaifs.daemon.epochs import RETRY_MAX_S, Epochs
from kaifs.daemon.handover import Kept, Line
from kaifs.daemon.log import log_to_file
from kaifs.daemon.options import MountOptions
from kaifs.daemon.succession import Facts, Succession
from kaifs.fuse import mounting
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.invalidate import Invalidator
from kaifs.fuse.transports import Connected, Pace, Transport, make_transport, resume_transport
from kaifs.linux.files import write_all
from kaifs.linux.mounts import MountEntry, MountUser, find_mount, mounts, users_of, written_inodes
from kaifs.linux.processes import captured_stderr, identify, leave_terminal, set_process_name
from kaifs.linux.sockets import listen_at
from kaifs.meta.records import RootKind, RootState
from kaifs.service.context import Caller, Context, no_alert, this_caller
from kaifs.service.reference import resolve
from kaifs.service.switching import finish_due_backups
from kaifs.store.changes import Change, SnapshotRemoved
from kaifs.store.replay import Recovery
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.forest import Forest
from kaifs.views.namespace import MountScope, Namespace
from kaifs.views.numbers import Kind, virtual_node

log = logging.getLogger(__name__)

STORE_WAIT_S: Final = 10.0
"""Seconds for which a mount waits for an embedded verb to let the store go."""
DETACH_WAIT_S: Final = 1.0
"""Seconds within which a mount that nobody uses is gone after it was detached."""
UNMOUNT_WAIT_S: Final = 5.0
"""The same of a mount that was not busy when it was unmounted."""
INVALIDATION_WAIT_S: Final = 30.0
"""Seconds that a verb's answer waits for the kernel to forget what the verb made wrong."""
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
    """One store, one mount, one socket."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changing = trio.Lock()
        self._unmounted = trio.Event()
        self._ready = trio.Event()
        self._barrier: Barrier | None = None
        self._entry: MountEntry | None = None
        self._care: Care | None = None
        self._failure: KaifsError | None = None
        self._holders = 0
        self._is_unwanted = False
        self._closing = trio.Event()
        """Set when nobody is to be let in at the control socket any more."""
        self._succession = Succession(settings.line, settings.kept)
        self._old_writers: set[int] = set()
        """Inode numbers, as stat(2) tells them, of files that are written since before we served."""
        self._is_leaving = False
        """Whether the mount is to go on in another process."""

    async def run(self) -> bool:
        """Serve from the store's lock to its release; return whether the mount goes on."""
        settings = self._settings
        # Before the store and /dev/fuse are open: the helper must hold neither.
        self._helper = Helper()
        try:
            options = StoreOptions(zstd_level=settings.options.zstd_level, journal=True)
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
                is_done = not self._is_leaving
            finally:
                # A successor is found by what a server that failed has published.
                if is_done or not self._succession.is_kept:
                    remove_info(settings.store)
                self._store.close(commit=False)
        finally:
            self._helper.close()
        self._succession.end(again=self._is_leaving)
        if self._failure is not None:
            raise self._failure
        return self._is_leaving

    async def _serve_store(self) -> None:
        settings, options = self._settings, self._settings.options
        run_folder(settings.store).mkdir(mode=0o700, exist_ok=True)
        log_to_file(log_path(settings.store))
        _log_recovery(self._store.recovery)
        self._forest = Forest(self._store)
        self._epochs = Epochs(self._store, options.commit_s)
        kept = settings.kept
        if kept is None:
            self._check_scope()
        self._namespace = Namespace(
            self._forest,
            StoreActions(self._context),
            MountScope(options.agent, options.view),
            options.read_only,
            self._drop_if_superseded,
            options.uid,
            options.gid,
        )
        if kept is None:
            self._forest.recover()
            finish_due_backups(self._own_context())
        else:
            self._namespace.inherit()
        self._handlers = Handlers(self._namespace, self._epochs.sync, self._wait_barrier)
        pace = Pace(options.busypoll_us, options.latency == "auto")
        if kept is not None:
            self._transport = self._resumed(kept, pace)
        else:
            transport = options.transport if settings.mountpoint is not None else "none"
            self._transport = make_transport(transport, self._handlers, pace)
        self._invalidator = Invalidator(
            self._namespace, self._transport.notifier, self._succession.unsettled
        )
        self._attachments = Attachments(
            self._flush_for_sandbox,
            self._epochs.sync,
            self._is_written,
            self._withdraw,
            self._drop_if_superseded,
            self._namespace.lent,
        )
        self._store.on_change = self._changed
        self._care = Care(
            self._store,
            Means(self._own_context, self._flush, self._commit_change, self._changing),
        )
        self._namespace.on_damage = self._attachments.on_damage = self._care.damage_met
        if kept is not None:
            self._listener = socket.socket(fileno=kept.listener)
            # Not earlier: what it changes, the kernel is told.
            self._forest.recover(is_served=True)
            if self._succession.unsettled.was_left:
                self._invalidator.catch_up()
        else:
            self._listener = listen_at(socket_path(settings.store), SOCKET_MODE)
            if settings.mountpoint is not None:
                self._mount(settings.mountpoint)
        services = server.Services(
            context=self._context,
            barrier=self._flush,
            commit=self._commit_change,
            changing=self._changing,
            shutdown=self._shutdown_for,
            attach=self._attachments.serve,
            hold=self._hold,
            restart=self._restart_for,
        )
        async with trio.open_nursery() as background:
            background.start_soon(self._watch_signals)
            if settings.end_fd >= 0:
                background.start_soon(self._watch_end)
            background.start_soon(self._announce)
            background.start_soon(self._watch_supervisor)
            if kept is not None:
                background.start_soon(self._finish_left)
            background.start_soon(self._epochs.run)
            background.start_soon(self._care.run)
            async with trio.open_nursery() as foreground:
                foreground.start_soon(self._serve_clients, services)
                foreground.start_soon(self._serve_mount)
            if not self._is_leaving:
                await self._finish()
            background.cancel_scope.cancel()

    async def _serve_clients(self, services: server.Services) -> None:
        await server.serve(self._listener, services, self._closing)
        if self._is_leaving:
            # While requests are still answered: what it tells the kernel may need one.
            await trio.to_thread.run_sync(self._invalidator.stop)
            self._transport.terminate()

    # --- the way up ------------------------------------------------------------------------

    def _resumed(self, kept: Kept, pace: Pace) -> Transport:
        """Return the transport that goes on with the connection of a server that is no more."""
        mountpoint = self._settings.mountpoint
        assert mountpoint is not None, "without a mount there is nothing to keep"
        facts = msgspec.convert(kept.facts, Facts)
        self._entry = _find_served(mountpoint, facts.minor)
        connected = Connected(kept.device, facts.terms)
        return resume_transport(
            self._handlers,
            pace,
            mountpoint,
            connected,
            self._store.answer,
            self._succession.served,
        )

    async def _finish_left(self) -> None:
        """Finish what the server that is no more had begun and must be finished."""
        # Held from the start: who changes something must find it finished.
        async with self._changing:
            try:
                await self._flush()
                finish_due_backups(self._own_context(), is_served=True)
            except KaifsError as error:
                log.warning("not_finished", extra={"error": str(error)})

    def _check_scope(self) -> None:
        """Check that what the mount is to show exists.

        Raises:
            AgentNotFoundError, InvalidVersionError, SnapshotNotFoundError: It does not.
        """
        options = self._settings.options
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

    def _mount(self, mountpoint: Path) -> None:
        settings, options = self._settings, self._settings.options
        told = mounting.MountOptions(
            read_only=options.read_only,
            allow_other=options.allow_other,
            source=quote(str(settings.store), safe="/._-+:@"),
            flags=_kernel_flags(options.mount_flags),
        )
        with captured_stderr() as errors:
            try:
                self._transport.mount(mountpoint, told)
            except MountFailedError as error:
                reason = " ".join(errors().split()) or error.subject
                raise MountFailedError(f"{mountpoint}: {reason}") from error
        self._entry = find_mount(mountpoint)

    async def _serve_mount(self) -> None:
        """Answer the kernel until the mount has gone, by whatever way."""
        try:
            await self._transport.serve()
        except* OSError as group:
            # ECONNABORTED: somebody aborted the connection through fusectl.
            log.warning("connection_lost", extra={"error": str(group.exceptions[0])})
        finally:
            self._closing.set()
            self._unmounted.set()

    async def _announce(self) -> None:
        """Say that the mount answers, once it does."""
        settings = self._settings
        is_shown = settings.kept is None or self._entry is not None
        try:
            # Who has detached the mount may still use it.
            if settings.mountpoint is not None and is_shown:
                await self._helper.ask("statvfs", mountpoint=str(settings.mountpoint))
                if self._entry is None:
                    raise MountFailedError(f"{settings.mountpoint}: gone already")
                # Now, not before: the answer to INIT may set the limits.
                self._barrier = Barrier(
                    self._helper, prepare_mount(self._entry), self._handlers, self._written_paths
                )
            if settings.mountpoint is not None:
                self._keep()
            self._publish()
            if settings.ready_fd >= 0:
                tell_ready(settings.ready_fd)
        except (OSError, KaifsError) as error:
            failure = error if isinstance(error, KaifsError) else MountFailedError(str(error))
            log.warning("not_ready", extra={"error": str(error)})
            self._failure = failure
            await self._go_down()
            return
        self._ready.set()
        if not settings.foreground:
            leave_terminal()
        event = "mounted" if settings.kept is None else "taken_over"
        log.info(event, extra={"mountpoint": settings.mountpoint, "pid": os.getpid()})

    def _keep(self) -> None:
        """Give the supervisor what a successor needs."""
        if self._settings.kept is not None:
            return
        connected = self._transport.connected
        if connected is None or self._entry is None:
            self._succession.stay_alone()
            return
        facts = Facts(terms=connected.terms, minor=self._entry.minor)
        self._succession.keep(
            connected.fd, self._store.lock_fd, self._listener.fileno(), msgspec.to_builtins(facts)
        )

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
        mounts = []
        if self._entry is not None:
            mount = MountInfo(
                mountpoint=str(settings.mountpoint),
                transport=self._transport.name,
                reason=self._transport.reason,
                agent=settings.options.agent or None,
                options=settings.options.text,
                minor=self._entry.minor,
                survives=self._succession.is_kept,
                survives_reason=self._survives_reason(),
            )
            mounts.append(mount)
        info = DaemonInfo(
            pid=process.pid,
            supervisor_pid=supervisor.pid,
            supervisor_ticks=supervisor.started,
            started_ticks=process.started,
            started_ns=self._store.clock.now_ns(),
            mounts=mounts,
        )
        write_info(settings.store, info)

    def _survives_reason(self) -> str:
        if self._succession.is_kept:
            return "a supervisor keeps its connection"
        if self._transport.connected is not None:
            return "its supervisor is gone"
        if self._transport.name == "kernel":
            return f"Linux {os.uname().release} cannot send requests again"
        return f"{self._transport.name} cannot go on with a connection"

    # --- what others ask for ------------------------------------------------------------------

    def _context(self, caller: Caller) -> Context:
        mounted = self._settings.mountpoint
        whole = None if self._settings.options.agent else mounted
        alert = no_alert if self._care is None else self._care.alert
        return Context(self._store, self._forest, caller, whole, mounted, alert)

    def _own_context(self) -> Context:
        return self._context(this_caller())

    def _changed(self, change: Change) -> None:
        self._invalidator.changed(change)
        if isinstance(change, SnapshotRemoved):
            self._attachments.terminate_removed(self._store)

    async def _wait_barrier(self) -> None:
        if self._settings.options.read_only or self._unmounted.is_set():
            return
        await self._ready.wait()
        if self._barrier is not None:
            await self._barrier.wait()

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
        if self._settings.kept is not None and self._entry is not None:
            self._old_writers = await trio.to_thread.run_sync(written_inodes, self._entry)

    async def _wait_invalidated(self) -> None:
        if not self._unmounted.is_set():
            with trio.move_on_after(INVALIDATION_WAIT_S) as waiting:
                await self._invalidator.wait_idle()
            if waiting.cancelled_caught:
                log.warning("invalidation_slow")

    async def _commit_change(self) -> None:
        await self._wait_invalidated()
        self._drop_superseded()
        try:
            await self._epochs.commit()
        except NoSpaceError:
            # What was done is in the journal, and is as durable there as in an epoch.
            await self._epochs.sync()

    def _written_paths(self) -> list[bytes]:
        """Return the files that are open for writing, as paths below the mountpoint."""
        paths = []
        for node in self._handlers.written_nodes():
            root_id, ino = split_kernel_node(node)
            folder = self._folder_of(root_id)
            if folder is not None:
                # Any one name does. A file without names is in no view.
                paths += [folder + name for name in self._forest.tree(root_id).paths(ino)[:1]]
        return paths

    def _folder_of(self, root_id: RootId) -> bytes | None:
        """Return where the mount shows a root that can be written to, None if nowhere."""
        options = self._settings.options
        if not self._store.has_root(root_id):
            return None
        root = self._store.root(root_id)
        agent = self._store.agent_by_id(root.agent_id)
        if agent is None or not root.is_writable:
            return None
        if options.view:
            return b""
        inside = f"@snapshots/{root.name}/" if root.kind is RootKind.SNAPSHOT else "current/"
        return (inside if options.agent else f"{agent.name}/{inside}").encode()

    def _is_written(self, root_id: RootId) -> bool:
        if self._handlers.is_root_written(root_id):
            return True
        slot = self._store.slot_of(root_id)
        return any(number >> SLOT_SHIFT == slot for number in self._old_writers)

    def _withdraw(self, root_id: RootId) -> None:
        """Let the kernel forget a snapshot: from now on it is asked for each time."""
        root = self._store.root(root_id)
        folder = virtual_node(Kind.SNAPSHOTS, root.agent_id)
        nodes = self._namespace.known.nodes_of(root_id)
        self._invalidator.withdraw(folder, root.name.encode(), nodes)

    def _drop_if_superseded(self, root_id: RootId) -> None:
        """Drop a root that no name leads to, once the kernel knows nothing of it."""
        is_used = self._namespace.known.has_root(root_id) or root_id in self._attachments.lent
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
                        self._transport.terminate()
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
            await self._shutdown(lazy=False)
        except (KaifsError, OSError) as error:
            log.warning("not_unmounted", extra={"error": str(error)})
            try:
                await self._shutdown(lazy=True)
            except (KaifsError, OSError) as again:
                log.warning("not_detached", extra={"error": str(again)})
        if not self._unmounted.is_set():
            self._transport.terminate()

    async def _shutdown_for(self, caller: Caller, params: ShutdownParams) -> ShutdownResult:
        log.info("shutdown_asked", extra={"uid": caller.uid, "lazy": params.lazy})
        if self._holders and not params.held:
            await self._epochs.commit()
            return ShutdownResult(ends=False)
        return await self._shutdown(lazy=params.lazy)

    async def _restart_for(self, caller: Caller) -> RestartResult:
        """Let another process go on with the mount, with the code that is installed now.

        It is started first, so that an installation that is broken does no harm, and that
        nobody waits for it to load. It begins when this process has ended.
        """
        log.info("restart_asked", extra={"uid": caller.uid})
        where = self._settings.mountpoint or self._settings.store
        if not self._succession.is_kept:
            raise RestartError(f"{where}: {self._survives_reason()}")
        if self._is_leaving:
            raise RestartError(f"{where}: it is under way")
        self._check_no_sandbox(where)
        await self._ready.wait()
        reason = await self._succession.prepare()
        if reason:
            raise RestartError(f"{where}: the new server: {reason}")
        async with self._changing:
            self._check_no_sandbox(where)
            await self._wait_invalidated()
            await self._epochs.commit()
            # Verbs that are running end first, and so does this one; nobody new is let in.
            self._is_leaving = True
            self._closing.set()
        return RestartResult(pid=os.getpid())

    def _check_no_sandbox(self, where: Path) -> None:
        if not self._attachments.is_empty:
            raise RestartError(f"{where}: a sandbox runs in a snapshot, and would be killed")

    async def _shutdown(self, *, lazy: bool) -> ShutdownResult:
        """Flush, commit, unmount, commit what came with that.

        Raises:
            MountBusyError: Processes use the mount and *lazy* is False.
            BarrierError, NoSpaceError, StoreIOError: The mount stays as it is.
        """
        mountpoint = self._settings.mountpoint
        async with self._changing:
            if not lazy:
                await self._check_unused()
                if not self._attachments.is_empty:
                    where = mountpoint or self._settings.store
                    raise MountBusyError(f"{where}: a sandbox runs in a snapshot")
            self._attachments.terminate()
            if self._ready.is_set():
                await self._wait_barrier()
            await self._epochs.commit()
            if mountpoint is None:
                self._transport.terminate()
                return ShutdownResult(ends=True)
            try:
                await self._helper.ask(
                    "unmount",
                    moved=lambda: self._handlers.background_seen,
                    mountpoint=str(mountpoint),
                    lazy=lazy,
                )
            except OSError as error:
                if not lazy:
                    await self._check_unused()
                    raise MountBusyError(f"{mountpoint}: {error.strerror}") from error
                raise NotMountedError(f"{mountpoint}: {error.strerror}") from error
            # Another mount namespace, such as a container's, may have the mount too: as long as
            # it does, this is what --lazy is.
            with trio.move_on_after(DETACH_WAIT_S if lazy else UNMOUNT_WAIT_S):
                await self._unmounted.wait()
            if self._unmounted.is_set():
                self._namespace.forget_all()
            await self._epochs.commit()
        return ShutdownResult(ends=self._unmounted.is_set())

    async def _check_unused(self) -> None:
        """Check that nobody but us uses the mount.

        Raises:
            MountBusyError: It names who does.
        """
        if self._entry is None:
            return
        users = await trio.to_thread.run_sync(users_of, self._entry)
        others = [user for user in users if user.pid not in (os.getpid(), self._helper.pid)]
        if others:
            raise busy_error(self._entry.mountpoint, others)

    async def _finish(self) -> None:
        """Make the last state durable, however often that must be tried."""
        with trio.move_on_after(INVALIDATION_WAIT_S):
            # It uses the connection, which must not be closed under it.
            await trio.to_thread.run_sync(self._invalidator.stop, abandon_on_cancel=True)
        if self._entry is not None:
            entry = find_mount(self._entry.mountpoint)
            if entry is not None and entry.device == self._entry.device:
                # Unmounting waits for whoever has the device open.
                await self._succession.drop()
                self._transport.unmount()
        self._namespace.forget_all()
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


def _log_recovery(found: Recovery) -> None:
    if found.records:
        log.info("journal_replayed", extra={"records": found.records, "blocks": found.blocks})
    if found.reason:
        # Of a process that was killed in the middle of a record, or of power loss.
        log.warning("journal_cut", extra={"bytes": found.cut, "reason": found.reason})


def _find_served(mountpoint: Path, minor: int) -> MountEntry | None:
    """Return the mount of the device *minor*, None if it has been detached."""
    same = (e for e in mounts() if e.mountpoint == mountpoint and (e.major, e.minor) == (0, minor))
    return next(same, None)


def _kernel_flags(asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return what libfuse is told: as asked, and without device nodes and set-id unless asked."""
    defaults = [f"no{flag}" for flag in ("dev", "suid") if flag not in asked]
    return tuple(dict.fromkeys([*(flag for flag in asked if flag != "relatime"), *defaults]))


def busy_error(mountpoint: Path, users: list[MountUser]) -> MountBusyError:
    """Return the refusal to take down a mount that *users* use."""
    names = [str(user) for user in users]
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return MountBusyError(f"{mountpoint}: {shown}", processes=names)

"""The daemon's side of the control socket.

Each connection is one task that runs one verb: a generator, with a checkpoint
after every step, so that the mount is served while a verb runs. Verbs that
change the store run one at a time. A client that goes away ends its verb at the
next checkpoint by closing the generator, which drops what it had begun; nothing
of it is reachable. Between the last step and the answer lies the disk, for which
it is waited in any case: whoever is told "done" is told the truth, and whoever hangs
up then has missed only the answer.

What arrives is not trusted: every body is decoded into typed messages, and
whatever does not fit ends that connection and nothing else.
"""

import logging
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import outcome
import trio

from kaifs.base.errors import (
    ArgumentValueError,
    KaifsError,
    NoSpaceError,
    StoreBusyError,
    StoreIOError,
)
from kaifs.control.frames import FrameError, FrameReader, pack_frame
from kaifs.control.messages import (
    ATTACH,
    HOLD,
    MOUNT,
    PASSED,
    RESTART,
    RESULT_PART,
    SHUTDOWN,
    AttachParams,
    AttachResult,
    FromDaemon,
    HoldParams,
    MessageError,
    MountParams,
    MountResult,
    Request,
    RestartParams,
    RestartResult,
    Result,
    ShutdownParams,
    ShutdownResult,
    decode_from_client,
    decode_params,
    encode,
    encode_json,
    failure_of,
    is_json,
)
from kaifs.control.ongoing import Ongoing
from kaifs.linux.files import memory_file, take_memory_file
from kaifs.linux.sockets import Peer, passed_descriptor, peer_of
from kaifs.service.context import Caller, Context
from kaifs.service.steps import (
    Commit,
    End,
    Exclusive,
    Flush,
    Item,
    Output,
    Progress,
    Resumable,
    ResumedElsewhereError,
    Sign,
    Signature,
    Step,
    Want,
    Work,
)
from kaifs.service.verbs import VERBS, Verb

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 64
"""Connections served at once; more wait in the socket's backlog. Those that only wait for their
client do not count: what they wait for may need a connection itself."""
REQUEST_TIMEOUT_S: Final = 30.0
"""Seconds within which a new connection must have said what it wants."""
SIGNATURE_TIMEOUT_S: Final = 60.0
"""Seconds within which a client must have signed: other verbs wait meanwhile."""
PROGRESS_INTERVAL_S: Final = 0.1
"""Seconds between two progress messages of a verb, at least."""

_RECEIVE: Final = 1 << 18
_ITEMS_AHEAD: Final = 4
"""Items of a source that are kept until the verb wants them."""

FUSE_DEVICE: Final = os.makedev(10, 229)
"""Device number of /dev/fuse. Source: Documentation/admin-guide/devices.txt."""
_DESCRIPTORS_MAX: Final = 8
"""Descriptors for which there is room in a message; what is passed beyond is lost."""

_Params = TypeVar("_Params")
_Begin: TypeAlias = Callable[[Context], Generator[Step, Item | None, msgspec.Struct]]
_Items: TypeAlias = "trio.MemoryReceiveChannel[Item]"


@dataclass(frozen=True, slots=True)
class Passed:
    """What a client that attaches a snapshot has passed."""

    fd: int
    """A mounted descriptor of `/dev/fuse`; whoever gets this closes it."""
    uid: int
    gid: int
    """As whom everything is shown, as the one who mounted counts them."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the server needs of the daemon."""

    context: Callable[[Caller], Context]
    barrier: Callable[[], Awaitable[None]]
    """Brings what programs have written so far into the store."""
    commit: Callable[[], Awaitable[None]]
    """Makes an epoch of the store's state: it is durable, and what was freed is free."""
    sync: Callable[[], Awaitable[None]]
    """Makes the store's state durable, by an epoch or in the journal."""
    changing: trio.Lock
    """Held by whoever changes more than single files."""
    mount: Callable[[Caller, MountParams], Awaitable[MountResult]]
    """Serves another mount."""
    shutdown: Callable[[Caller, ShutdownParams], Awaitable[ShutdownResult]]
    attach: Callable[[Context, AttachParams, "Guest"], Awaitable[AttachResult]]
    """Serves a snapshot by a descriptor until who asks goes away, or its mount is gone."""
    hold: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
    """Keeps the daemon as long as what it is given lasts, or until it ends all the same."""
    restart: Callable[[Caller], Awaitable[RestartResult]]
    """Lets another process go on with the mount."""
    leaving: trio.Event
    """Set when it is about to: what can go on there ends here."""
    go_on: Callable[[Ongoing], bool]
    """Has a successor go on with a conversation; returns whether it would."""
    over: Callable[[str], None]
    """Has no successor go on with the conversation of that name."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A conversation that another process has begun."""

    ongoing: Ongoing
    attach: Callable[["Guest"], Awaitable[AttachResult]] | None = None
    """Serves a snapshot; None: it is that of a verb that was `Resumable`."""


class _HungUpError(Exception):
    """The client has closed its end."""


@contextmanager
def _done_all_the_same() -> Iterator[None]:
    """Say in an error of the disk that the verb itself has been done.

    It cannot be undone: requests of the mount that came since rest on what it changed. So it
    stays, is seen by everybody, and goes with the next record or epoch that the disk takes.
    """
    try:
        yield
    except (NoSpaceError, StoreIOError) as error:
        told = "it is done, and not on the disk yet: it will be when the disk takes it"
        raise type(error)(f"{told} ({error.subject})") from error


class Guest:
    """Who attaches a snapshot, for who serves it."""

    def __init__(self, stream: trio.SocketStream, request: bytes) -> None:
        """Talk over *stream*; *request* is the frame that asks for the descriptor."""
        self._stream = stream
        self._request = request
        self.gone = trio.Event()
        """Set when they have gone away; while `watch` runs."""

    def fileno(self) -> int:
        """Return the descriptor of the conversation."""
        return self._stream.socket.fileno()

    def ask(self) -> None:
        """Say that the descriptor may come. It is the first that they hear, so there is room for it.

        Without a wait: what is noted for a successor right after is not late.
        """
        try:
            os.write(self.fileno(), self._request)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise _HungUpError from error

    async def receive(self) -> Passed:
        """Return what they pass. Nothing is lost if this is cancelled."""
        room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4)
        with trio.fail_after(REQUEST_TIMEOUT_S):
            received, ancillary, _, _ = await self._stream.socket.recvmsg(PASSED.size, room)
        if not received:
            raise _HungUpError
        try:
            fd = passed_descriptor(ancillary, FUSE_DEVICE)
        except ValueError as error:
            raise MessageError(str(error)) from error
        if len(received) < PASSED.size:
            os.close(fd)
            raise MessageError("a descriptor without ids")
        return Passed(fd, *PASSED.unpack(received))

    async def watch(self) -> None:
        """Wait until they go away. Nothing is to come any more but the end."""
        with suppress(trio.BrokenResourceError):
            while await self._stream.receive_some(_RECEIVE):
                pass
        self.gone.set()


async def serve(
    listener: socket.socket,
    services: Services,
    closing: trio.Event,
    resumed: Sequence[Resumed] = (),
) -> None:
    """Serve connections to *listener*, a listening socket.

    Once *closing* is set, nobody new is let in, and it returns when the verbs
    that are running have ended, or go on elsewhere.

    Args:
        listener: The socket.
        services: What is needed of the daemon.
        closing: See above.
        resumed: Conversations that another process has begun.
    """
    slots = trio.CapacityLimiter(CONNECTIONS_MAX)
    async with trio.open_nursery() as conversations, trio.open_nursery() as accepting:
        for one in resumed:
            conversations.start_soon(_resume_one, one, services)
        accepting.start_soon(_accept, listener, services, slots, conversations)
        await closing.wait()
        accepting.cancel_scope.cancel()


async def _accept(
    listener: socket.socket,
    services: Services,
    slots: trio.CapacityLimiter,
    conversations: trio.Nursery,
) -> None:
    accepting = trio.socket.from_stdlib_socket(listener)
    while True:
        slot = _Slot(slots)
        await slot.acquire()
        try:
            connection, _ = await accepting.accept()
        except OSError as error:
            # Of the connection, or too many files: the listener itself is sound.
            log.warning("accept_failed", extra={"error": str(error)})
            slot.release()
            await trio.sleep(PROGRESS_INTERVAL_S)
        else:
            conversations.start_soon(_serve_one, connection, services, slot)


async def _serve_one(connection: trio.socket.SocketType, services: Services, slot: "_Slot") -> None:
    try:
        async with _talking(connection) as stream:
            await _Conversation(stream, peer_of(connection), services, slot.release).run()
    finally:
        slot.release()


async def _resume_one(resumed: Resumed, services: Services) -> None:
    ongoing = resumed.ongoing
    connection = trio.socket.from_stdlib_socket(socket.socket(fileno=ongoing.fds[0]))
    async with _talking(connection) as stream:
        conversation = _Conversation(stream, peer_of(connection), services, lambda: None)
        await conversation.resume(resumed)


@asynccontextmanager
async def _talking(connection: trio.socket.SocketType) -> AsyncIterator[trio.SocketStream]:
    """Lend a stream on *connection*, which ends for the client too, unless somebody goes on."""
    async with trio.SocketStream(connection) as stream:
        try:
            yield stream
        except ResumedElsewhereError:
            return
        except (trio.BrokenResourceError, trio.ClosedResourceError, _HungUpError):
            log.debug("client_gone")
        except (FrameError, MessageError, trio.TooSlowError) as error:
            log.warning("bad_request", extra={"error": str(error)})
        # The supervisor may have it too: that this closes it does not tell the client.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class _Slot:
    """The right to be served; given back once."""

    def __init__(self, slots: trio.CapacityLimiter) -> None:
        self._slots = slots
        self._is_held = False

    async def acquire(self) -> None:
        await self._slots.acquire_on_behalf_of(self)
        self._is_held = True

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._slots.release_on_behalf_of(self)


class _Conversation:
    """One connection: one request, its steps, its answer."""

    def __init__(
        self,
        stream: trio.SocketStream,
        peer: Peer,
        services: Services,
        only_wait: Callable[[], None],
    ) -> None:
        """Talk over *stream*; *only_wait* is called when the rest is waiting for the client."""
        self._stream = stream
        self._only_wait = only_wait
        self._peer = peer
        self._services = services
        self._reader = FrameReader()
        self._bodies: list[bytes] = []
        self._last_progress = -math.inf
        self._resumable: Resumable | None = None
        self._ongoing = ""
        """What a successor calls it that goes on with it; empty: none would."""
        self._is_json = False
        """Whether the client speaks JSON."""

    async def run(self) -> None:
        with trio.fail_after(REQUEST_TIMEOUT_S):
            body = await self._receive()
        self._is_json = is_json(body)
        request = decode_from_client(body)
        if not isinstance(request, Request):
            raise MessageError("an item before a request")
        log.info(
            "request",
            extra={"verb": request.verb, "pid": self._peer.pid, "uid": self._peer.uid},
        )
        await self._tell_outcome(request.verb, lambda: self._answer(request))

    async def resume(self, resumed: Resumed) -> None:
        """Go on with what another process has begun."""
        ongoing, serve = resumed.ongoing, resumed.attach
        if serve is not None:
            await self._tell_outcome(ATTACH, lambda: self._attach(serve))
            return
        name = ongoing.facts["verb"]
        verb, state = VERBS[name], take_memory_file(ongoing.fds[1])
        self._is_json, self._ongoing = ongoing.facts["json"], ongoing.name
        log.info("resumed", extra={"verb": name, "pid": self._peer.pid})
        await self._tell_outcome(
            name, lambda: self._run(verb, lambda context: verb.resume(context, state))
        )

    async def _tell_outcome(self, verb: str, work: Callable[[], Awaitable[msgspec.Struct]]) -> None:
        """Send what comes of *work*, which does *verb*."""
        try:
            result = await work()
        except KaifsError as error:
            log.info("refused", extra={"verb": verb, "error": str(error)})
            await self._send(failure_of(error))
        except MessageError as error:
            refusal = ArgumentValueError(f"{verb}: {error}")
            await self._send(failure_of(refusal))
        except (trio.Cancelled, trio.BrokenResourceError, _HungUpError, ResumedElsewhereError):
            raise
        except Exception as error:
            # A bug in one verb must not take the mount from everybody.
            log.exception("bug", extra={"verb": verb})
            await self._send(failure_of(error))
        else:
            await self._send_result(result)

    @property
    def _caller(self) -> Caller:
        return Caller(self._peer.uid, self._peer.gid, self._peer.groups)

    async def _answer(self, request: Request) -> msgspec.Struct:
        context = self._services.context(self._caller)
        if request.verb == SHUTDOWN:
            shutdown = self._params(request, ShutdownParams)
            context.require_store_owner("ends its daemon")
            return await self._services.shutdown(context.caller, shutdown)
        if request.verb == MOUNT:
            mount = self._params(request, MountParams)
            context.require_store_owner("mounts it")
            return await self._services.mount(context.caller, mount)
        if request.verb == RESTART:
            self._params(request, RestartParams)
            context.require_store_owner("restarts its daemon")
            return await self._services.restart(context.caller)
        if request.verb == ATTACH:
            attach = self._params(request, AttachParams)
            self._only_wait()
            return await self._attach(lambda guest: self._services.attach(context, attach, guest))
        if request.verb == HOLD:
            self._params(request, HoldParams)
            self._only_wait()
            await self._services.hold(self._be_held)
            raise _HungUpError
        verb = VERBS.get(request.verb)
        if verb is None:
            raise ArgumentValueError(f"no such verb: {request.verb[:80]!r}")
        if verb.alone:
            raise StoreBusyError(f"process {os.getpid()} serves it, {verb.name} needs it alone")
        params = self._params(request, verb.params)
        return await self._run(verb, lambda context: verb.run(context, params))

    def _params(self, request: Request, wanted: type[_Params]) -> _Params:
        return decode_params(request.params, wanted, json=self._is_json)

    async def _be_held(self) -> None:
        """Say that the daemon is held, and wait until the client goes away."""
        with suppress(trio.BrokenResourceError):
            await self._send(Want())
            while await self._stream.receive_some(_RECEIVE):
                pass

    async def _attach(self, serve: Callable[[Guest], Awaitable[AttachResult]]) -> AttachResult:
        """Serve a snapshot until its mount is gone; a client that goes away ends it."""
        return await serve(Guest(self._stream, pack_frame(self._encode(Want()))))

    async def _run(self, verb: Verb, begin: _Begin) -> msgspec.Struct:
        """Run *verb*, which *begin* begins, while items are received; end it when the client goes away."""
        sender, items = trio.open_memory_channel[Item](_ITEMS_AHEAD)
        lost: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal lost
                try:
                    await self._receive_items(sender)
                except (_HungUpError, FrameError, MessageError, trio.BrokenResourceError) as error:
                    lost = error
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            done = await outcome.acapture(self._run_and_commit, verb, begin, items)
            nursery.cancel_scope.cancel()
        # Captured, a Cancelled must not leave the nursery that was cancelled.
        if lost is not None and isinstance(done, outcome.Error):
            raise lost
        return done.unwrap()

    async def _run_and_commit(self, verb: Verb, begin: _Begin, items: _Items) -> msgspec.Struct:
        lock: AbstractAsyncContextManager[None] = (
            self._services.changing if verb.changes else nullcontext()
        )
        async with lock:
            if verb.changes and not verb.frees:
                # Refused now, it has changed nothing; with the disk full it could not be told.
                self._services.context(self._caller).store.check_room()
            if verb.flush and not self._ongoing:
                await self._services.barrier()
            result = await self._step_through(verb, begin, items)
            if verb.changes:
                with trio.CancelScope(shield=True), _done_all_the_same():
                    # One write to the disk instead of four: an epoch is written to two copies of
                    # the index, after the segments.
                    await (self._services.commit if verb.frees else self._services.sync)()
        return result

    async def _step_through(self, verb: Verb, begin: _Begin, items: _Items) -> msgspec.Struct:
        context = self._services.context(self._caller)
        steps = begin(context)
        # One that was begun elsewhere has been asked there.
        is_asked, is_exclusive = bool(self._ongoing), False
        try:
            step = next(steps)
            while True:
                answer: Item | None = None
                match step:
                    case Want():
                        if not is_asked:
                            is_asked = True
                            if not verb.changes:
                                # Tests run as long as they like, and attach snapshots.
                                self._only_wait()
                            await self._send(step)
                        if self._resumable is not None:
                            self._let_go_on(verb, self._resumable)
                        try:
                            answer = await self._next_item(items)
                        except ResumedElsewhereError as error:
                            steps.throw(error)
                    case Resumable():
                        self._resumable = step
                    case Sign():
                        await self._send(step)
                        with trio.move_on_after(SIGNATURE_TIMEOUT_S):
                            answer = await anext(aiter(items), None)
                    case Flush():
                        await self._services.barrier()
                    case Commit():
                        await self._services.commit()
                    case Exclusive() if not verb.changes and not is_exclusive:
                        await self._services.changing.acquire()
                        is_exclusive = True
                    case Work(run=work):
                        await trio.to_thread.run_sync(work)
                    case Progress():
                        await self._tell(step)
                    case Output(payload=payload):
                        await self._send_output(payload)
                await trio.lowlevel.checkpoint()
                step = steps.send(answer)
        except StopIteration as stop:
            # What the client is told is done survives the death of this process.
            with _done_all_the_same():
                context.store.flush_journal()
            result: msgspec.Struct = stop.value
            return result
        finally:
            # On an error or a client that is gone, this is what undoes the verb's work.
            steps.close()
            if is_exclusive:
                self._services.changing.release()

    # --- what a successor goes on with -----------------------------------------------------

    def _let_go_on(self, verb: Verb, resumable: Resumable) -> None:
        """Have a successor go on with *verb* if this process ends before the first item."""
        self._resumable = None
        if self._bodies or not self._reader.is_between_frames:
            return
        name = secrets.token_hex(8)
        facts = {"kind": "verb", "verb": verb.name, "root": resumable.root, "json": self._is_json}
        with memory_file(resumable.state) as state:
            fds = [self._stream.socket.fileno(), state]
            if self._services.go_on(Ongoing(name, fds, facts)):
                self._ongoing = name

    async def _next_item(self, items: _Items) -> Item | None:
        """Return the next item; None: the source ended before its End.

        Raises:
            ResumedElsewhereError: A successor takes it.
        """
        if not self._ongoing:
            return await anext(aiter(items), None)
        item: Item | None = None
        is_leaving = False
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                nonlocal is_leaving
                await self._services.leaving.wait()
                # Once something has been read, a successor could not read it.
                if self._ongoing:
                    is_leaving = True
                    nursery.cancel_scope.cancel()

            nursery.start_soon(leave)
            item = await anext(aiter(items), None)
            nursery.cancel_scope.cancel()
        if is_leaving:
            raise ResumedElsewhereError
        return item

    async def _wait_readable(self) -> None:
        """Wait until something has come that is to be read here, and nowhere else."""
        await trio.lowlevel.wait_readable(self._stream.socket)
        if self._ongoing:
            if self._services.leaving.is_set():
                await trio.sleep_forever()
            self._services.over(self._ongoing)
            self._ongoing = ""

    # --- the connection ------------------------------------------------------------------

    async def _receive_items(self, sender: "trio.MemorySendChannel[Item]") -> None:
        is_whole = is_started = False
        while True:
            try:
                message = decode_from_client(await self._receive())
            except _HungUpError:
                if is_whole or not is_started:
                    raise
                sender.close()
                return
            is_late = is_whole and not isinstance(message, Signature)
            if isinstance(message, Request) or is_late:
                raise MessageError("one request a connection, and nothing after the end")
            # Nothing but further signatures follows one that comes without items before it.
            is_only_signed = isinstance(message, Signature) and not is_started
            is_whole = is_whole or is_only_signed or isinstance(message, End)
            is_started = True
            await sender.send(message)

    async def _receive(self) -> bytes:
        while not self._bodies:
            await self._wait_readable()
            received = await self._stream.receive_some(_RECEIVE)
            if not received:
                raise _HungUpError
            self._bodies.extend(self._reader.feed(bytes(received)))
            self._bodies.reverse()
        return self._bodies.pop()

    async def _send(self, message: FromDaemon) -> None:
        await self._stream.send_all(pack_frame(self._encode(message)))

    def _encode(self, message: msgspec.Struct) -> bytes:
        return encode_json(message) if self._is_json else encode(message)

    async def _tell(self, progress: Progress) -> None:
        now = trio.current_time()
        is_last = 0 < progress.total == progress.done
        if is_last or now - self._last_progress >= PROGRESS_INTERVAL_S:
            self._last_progress = now
            await self._send(progress)

    async def _send_output(self, payload: bytes) -> None:
        for start in range(0, len(payload), RESULT_PART):
            await self._send(Output(payload[start : start + RESULT_PART]))

    async def _send_result(self, result: Any) -> None:
        payload = self._encode(result)
        for start in range(0, max(len(payload), 1), RESULT_PART):
            stop = start + RESULT_PART
            await self._send(Result(payload[start:stop], is_last=stop >= len(payload)))

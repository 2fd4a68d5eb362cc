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
import secrets
import select
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns
from typing import Final

import trio

from kaifs.base.errors import NoSpaceError, StoreIOError
from kaifs.base.types import KernelNode
from kaifs.fuse import protocol as p
from kaifs.fuse.errno_map import errno_of
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.kernel_requests import (
    MAX_WRITE,
    Agreement,
    Features,
    Later,
    Refusal,
    Reply,
    Request,
    Requests,
)
from kaifs.fuse.mounting import MountOptions, mount_device
from kaifs.fuse.protocol import Opcode
from kaifs.fuse.transports import NO_HURRY, Connected, Pace, Terms
from kaifs.linux.latency import AwakeCores
from kaifs.linux.mounts import unmount
from kaifs.linux.processes import NOTIFYING, named_thread
from kaifs.meta.records import Answer

log = logging.getLogger(__name__)

TURN: Final = 64
"""Requests answered in a row before other tasks get a turn."""
UNHEARD: Final = 64
"""Of so many requests that nobody waits for (FORGET), one has the journal written."""
MISSES: Final = 2
"""How often in a row requests are polled for in vain; then that is given up for a while."""
AWAKE_S: Final = 0.002
"""Seconds without a request after which cores may sleep again."""
BURST: Final = 32
"""Requests without such a pause after which cores are kept awake."""
_OUT_HEADER_SIZE: Final = p.OUT_HEADER.size
_pack_out_header: Final = p.OUT_HEADER.pack
_BUFFER_SIZE: Final = MAX_WRITE + (1 << 16)

_Poll = Callable[[int], list[tuple[int, int]]]
_SERVED: Final = trio.lowlevel.RunVar[select.poll]("served devices")


class KernelConnection:
    """One connection: a descriptor of `/dev/fuse` that is, or will be, mounted."""

    def __init__(
        self,
        fd: int,
        handlers: Handlers,
        features: Features,
        pace: Pace = NO_HURRY,
        identity: int | None = None,
    ) -> None:
        """Answer what comes from *fd*, which this owns from now on.

        Args:
            fd: The descriptor.
            handlers: What requests do.
            features: What is to be agreed on.
            pace: What is spent for speed.
            identity: Which connection it is for the journal; None: a new one.
        """
        self._fd = fd
        self.identity = secrets.randbits(63) if identity is None else identity
        self._is_resumed = False
        self._last_answer: tuple[int, bytes] | None = None
        """`unique` of the last request that a former server has done, and the reply to it."""
        self._on_answered: Callable[[], None] | None = None
        self._awake = AwakeCores()
        self._can_keep_awake = pace.keeps_awake
        self._in_burst = 0
        """Requests since the last pause."""
        self._busypoll_ns = pace.busypoll_us * 1000
        self._misses = 0 if pace.busypoll_us else MISSES
        """How often in a row `_wait_awake` was in vain."""
        self._is_closing = False
        self._nursery: trio.Nursery | None = None
        self._waiting_work = 0
        """Requests whose answer waits for something."""
        self._waiting: dict[int, trio.CancelScope] = {}
        """Requests that may be interrupted, by their `unique`."""
        self._counts = [0] * 64
        self._handlers = handlers
        self._settle, self._settle_look = handlers.settle, handlers.settle_look
        self._requests = Requests(
            handlers,
            features,
            self._forget_pages,
            self._discard_pages,
            self._forget_attributes,
            self._retrieve,
        )
        self._table = self._requests.table
        os.set_blocking(fd, False)

    @property
    def keeps_awake(self) -> bool:
        """Whether cores are kept awake now."""
        return self._awake.is_held

    @property
    def counts(self) -> "Counter[str]":
        """How many requests of each opcode came; those that are not known are left out."""
        return Counter({opcode.name: self._counts[opcode] for opcode in Opcode})

    # --- taking over -------------------------------------------------------------------

    @property
    def agreement(self) -> Agreement | None:
        """What was agreed on; None before the kernel's first request."""
        return self._requests.agreement

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._fd

    def tell_agreement(self, tell: Callable[[Agreement], None]) -> None:
        """Have *tell* called when everything is agreed on, before the kernel goes on."""
        answer = self._requests.table[Opcode.INIT]

        def init(request: Request) -> Reply:
            reply = answer(request)
            assert self.agreement is not None, "INIT has been answered"
            tell(self.agreement)
            return reply

        self._requests.table[Opcode.INIT] = init

    def resume(
        self,
        agreement: Agreement | None,
        answer: Answer | None,
        on_answered: Callable[[], None] | None = None,
    ) -> None:
        """Go on where a server that is no more has stopped, once `serve` runs.

        Args:
            agreement: What that server agreed on; None: it had come to no agreement.
            answer: What it was going to answer to the last request that changed something, on
                whatever connection.
            on_answered: Called when a request has been answered.
        """
        self._on_answered = on_answered
        if agreement is not None:
            self._requests.adopt(agreement)
        self._is_resumed = True
        if answer is not None and answer.connection == self.identity:
            self._last_answer = answer.unique & ~p.RESENT, answer.reply

    def _is_answered_again(self, request: Request) -> bool:
        """Answer *request* if a former server has done what it asks for, but was not heard."""
        assert self._last_answer is not None, "asked only then"
        unique, reply = self._last_answer
        if request.unique != unique | p.RESENT:
            return False
        self._last_answer = None
        log.info("answered_again", extra={"opcode": request.opcode})
        self._reply(request.unique, reply)
        return True

    # --- serving -----------------------------------------------------------------------

    async def serve(self) -> None:
        """Answer requests until the connection ends: unmounted, aborted, or `terminate`.

        Raises:
            MountFailedError: the kernel speaks another protocol.
        """
        # Not zeros, whose pages would come into being while the kernel copies a request there: if
        # the process is killed at that moment, the request fails instead of being sent again.
        buffer = bytearray(b"\xff") * _BUFFER_SIZE
        request = Request(memoryview(buffer))
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._is_resumed:
                    self._notify(p.Notify.RESEND, b"")
                await self._serve(buffer, request)
                nursery.cancel_scope.cancel()
        finally:
            self._awake.release()

    async def _serve(self, buffer: bytearray, request: Request) -> None:
        devices = _served_devices()
        devices.register(self._fd, select.POLLIN)
        try:
            await self._serve_registered(devices, buffer, request)
        finally:
            devices.unregister(self._fd)

    async def _serve_registered(
        self, devices: select.poll, buffer: bytearray, request: Request
    ) -> None:
        fd, poll, buffers, readv = self._fd, devices.poll, [buffer], os.readv
        turn = self._next_turn()
        while not self._is_closing:
            # A read in vain would cost more: the text of its error is made anew each time.
            ready = poll(0) or self._wait_awake(poll)
            if not ready:
                began = perf_counter_ns()
                await self._sleep()
                slept = perf_counter_ns() - began
                if slept < self._busypoll_ns:
                    self._misses = 0
                elif slept > AWAKE_S * 1_000_000_000 and not self._awake.is_held:
                    self._in_burst = 0
                turn = self._next_turn()
                continue
            if len(ready) > 1 or ready[0][0] != fd:
                # Another connection has waited as long.
                await trio.lowlevel.checkpoint()
                if all(other != fd for other, _ in ready):
                    continue
            try:
                readv(fd, buffers)
            except BlockingIOError:
                # Interrupted before it was read.
                continue
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    # ENOENT: as above.
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                raise
            self._answer(request)
            self._in_burst += 1
            if self._in_burst == BURST and self._can_keep_awake:
                self._keep_awake()
            turn -= 1
            if not turn:
                if self._on_answered is not None:
                    self._on_answered()
                    self._on_answered = None
                # A busy mount must not starve the control socket. A checkpoint costs as
                # much as a request, so others have a turn only now and then.
                await trio.lowlevel.checkpoint()
                turn = TURN

    def _next_turn(self) -> int:
        """Return how many requests to answer until something else is looked after."""
        return TURN if self._on_answered is None else 1

    def _wait_awake(self, poll: _Poll) -> list[tuple[int, int]]:
        """Ask for a request, on any connection, without sleeping, for a while; return who has one.

        Not while what others wait for has to have its turn, nor where it was in vain lately:
        until a request comes so soon again that it would have been met.
        """
        if self._misses >= MISSES or self._waiting_work:
            return []
        stop = perf_counter_ns() + self._busypoll_ns
        while perf_counter_ns() < stop:
            ready = poll(0)
            if ready:
                self._misses = 0
                return ready
            # Where every core is busy, who is to ask next may be waiting for this one.
            os.sched_yield()
        self._misses += 1
        return []

    def _keep_awake(self) -> None:
        """Keep cores awake until no request has come for a while."""
        try:
            self._awake.hold()
        except OSError as error:
            self._can_keep_awake = False
            log.info("cores_not_kept_awake", extra={"error": str(error)})
            return

        async def let_sleep() -> None:
            seen = -1
            while seen != self._in_burst:
                seen = self._in_burst
                await trio.sleep(AWAKE_S)
            self._in_burst = 0
            self._awake.release()

        assert self._nursery is not None, "requests are answered inside serve"
        self._nursery.start_soon(let_sleep)

    async def _sleep(self) -> None:
        """Wait until a request can be read, or the connection is closed."""
        # Closed by `terminate` while it waits.
        with contextlib.suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(self._fd)

    def terminate(self) -> None:
        """Let `serve` return. For the loop's thread."""
        self._is_closing = True
        trio.lowlevel.notify_closing(self._fd)

    def close(self) -> None:
        """Close the descriptor; what is still mounted on it answers ENOTCONN from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _answer(self, request: Request) -> None:
        request.load()
        opcode = request.opcode
        self._counts[opcode & 63] += 1
        if self._last_answer is not None and self._is_answered_again(request):
            return
        handler = self._table.get(opcode)
        if handler is None:
            if opcode == Opcode.INTERRUPT:
                self._interrupt(request)
            else:
                self._reply_error(request.unique, errno.ENOSYS)
            return
        reply: Reply = None
        try:
            reply = handler(request)
            if reply.__class__ is bytes:
                self._settle((self.identity, request.unique, reply))
            elif reply is not None or not self._counts[opcode & 63] % UNHEARD:
                self._settle()
        except Refusal as refusal:
            self._reply_error(request.unique, refusal.errno)
            return
        except (NoSpaceError, StoreIOError) as error:
            # As `Handlers.settle_look`: the handler is done, and has only looked.
            if reply is None or opcode not in p.LOOKS:
                self._reply_error(request.unique, errno_of(error, _name_of(opcode)))
                if reply is not None:
                    self._distrust(request.node)
                return
        # A bug answers EIO and is logged; the server goes on.
        except Exception as error:  # noqa: BLE001
            self._reply_error(request.unique, errno_of(error, _name_of(opcode)))
            return
        if reply.__class__ is bytes:
            size = _OUT_HEADER_SIZE + len(reply)
            self._send([_pack_out_header(size, 0, request.unique), reply])
        elif isinstance(reply, Later):
            self._answer_later(request, reply)
        elif reply is not None:
            self._reply(request.unique, reply)

    def _distrust(self, node: KernelNode) -> None:
        """Have the kernel ask again what it knows of *node*: what was refused is done nevertheless.

        It goes with the next record that can be written.
        """
        if self._requests.minor >= p.EPOCH_MINOR:
            self.expire_names()
        self._handlers.drop_listings([node])

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

    def _answer_later(self, request: Request, later: Later) -> None:
        """Answer *request* when its work is done, and others meanwhile."""
        unique, opcode = request.unique, request.opcode

        async def run() -> None:
            try:
                with trio.CancelScope() as scope:
                    if later.interruptible:
                        self._waiting[unique] = scope
                    reply = await later.work()
                    # No await from here on: between the journal and the reply is this request only.
                    if opcode in p.LOOKS:
                        self._settle_look()
                    elif isinstance(reply, bytes):
                        self._settle((self.identity, unique, reply))
                    else:
                        self._settle()
                    self._reply(unique, reply)
                if scope.cancelled_caught:
                    self._reply_error(unique, errno.EINTR)
            except Refusal as refusal:
                self._reply_error(unique, refusal.errno)
            # As in `_answer`.
            except Exception as error:  # noqa: BLE001
                self._reply_error(unique, errno_of(error, _name_of(opcode)))
            finally:
                self._waiting_work -= 1
                self._waiting.pop(unique, None)

        assert self._nursery is not None, "requests are answered inside serve"
        self._waiting_work += 1
        self._nursery.start_soon(run)

    def _interrupt(self, request: Request) -> None:
        """Give up the request that INTERRUPT names, if it waits and may be given up.

        A process that is killed waits for its request's answer. What does not
        wait has been answered before; fsync(2) goes on, as on any file system.
        """
        (unique,) = p.U64.unpack_from(request.view, p.BODY)
        scope = self._waiting.get(unique)
        if scope is not None:
            scope.cancel()

    # --- telling the kernel --------------------------------------------------------------

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """Let the kernel forget *name* in *parent*. May block: not from the loop's thread.

        Raises:
            FileNotFoundError: it was not cached.
        """
        body = p.NOTIFY_INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"
        self._notify(p.Notify.INVAL_ENTRY, body)

    def invalidate_inode(self, node: KernelNode) -> None:
        """Let the kernel forget attributes, listing and pages of *node*. As `invalidate_entry`.

        Pages that it has not sent yet it sends first.
        """
        self._notify(p.Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE.pack(node, 0, 0))

    def _forget_attributes(self, node: KernelNode) -> None:
        # Without a range it looks at no page and takes no lock that a request may hold.
        with contextlib.suppress(FileNotFoundError):
            self._notify(p.Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE.pack(node, -1, 0))

    def _retrieve(self, unique: int, node: KernelNode, offset: int) -> bool:
        # Looks at no more than the size and the list of pages, without a lock.
        try:
            self._notify(p.Notify.RETRIEVE, p.NOTIFY_RETRIEVE.pack(unique, node, offset, 1))
        except OSError:
            return False
        return True

    def expire_names(self) -> None:
        """Let the kernel look every name up again; what is found stays the same inode.

        Takes no lock, and about 6 µs.
        """
        self._notify(p.Notify.INC_EPOCH, b"")

    def _notify(self, code: int, body: bytes) -> None:
        size = p.OUT_HEADER.size + len(body)
        os.writev(self._fd, [p.OUT_HEADER.pack(size, code, 0), body])

    async def _forget_pages(self, node: KernelNode) -> None:
        def forget() -> None:
            with contextlib.suppress(FileNotFoundError), named_thread(NOTIFYING):
                self.invalidate_inode(node)

        # Given up when the connection ends: it may wait for a WRITE that nobody answers then.
        await trio.to_thread.run_sync(forget, abandon_on_cancel=True)

    def _discard_pages(self, node: KernelNode) -> None:
        async def discard() -> None:
            try:
                await self._forget_pages(node)
            except OSError:
                log.exception("pages_not_discarded")

        assert self._nursery is not None, "requests are answered inside serve"
        self._nursery.start_soon(discard)


class KernelMount:
    """One mount through the kernel's protocol. Signals are for the caller to handle."""

    name: Final = "kernel"

    def __init__(self, handlers: Handlers, features: Features, pace: Pace = NO_HURRY) -> None:
        """Serve with *handlers*."""
        self.reason = ""
        self._handlers = handlers
        self._features = features
        self._pace = pace
        self._connection: KernelConnection | None = None
        self._mountpoint = Path()

    @property
    def notifier(self) -> "KernelMount":
        """What tells the kernel: this, once it is mounted."""
        return self

    @property
    def keeps_awake(self) -> bool:
        """Whether cores are kept awake now."""
        return self._connected().keeps_awake

    @property
    def counts(self) -> "Counter[str]":
        """As `KernelConnection.counts`."""
        return self._connected().counts

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """As `KernelConnection.invalidate_entry`."""
        self._connected().invalidate_entry(parent, name)

    def invalidate_inode(self, node: KernelNode) -> None:
        """As `KernelConnection.invalidate_inode`."""
        self._connected().invalidate_inode(node)

    def expire_names(self) -> None:
        """As `KernelConnection.expire_names`."""
        self._connected().expire_names()

    def _connected(self) -> KernelConnection:
        assert self._connection is not None, "mount first"
        return self._connection

    def mount(self, mountpoint: Path, options: MountOptions) -> None:
        """Mount on *mountpoint*. Requests wait until `serve` runs.

        Raises:
            MountFailedError: the system refuses.
        """
        device = mount_device(mountpoint, options)
        self.reason = f"mounted by {device.mounted_by}"
        self._mountpoint = mountpoint
        self._connection = KernelConnection(device.fd, self._handlers, self._features, self._pace)

    @property
    def connected(self) -> Connected | None:
        """As `Transport.connected`."""
        if self._connection is None or self._connection.agreement is None:
            return None
        agreement = self._connection.agreement
        if not agreement.flags & p.Init.HAS_RESEND:
            return None
        terms = Terms(
            identity=self._connection.identity,
            minor=agreement.minor,
            flags=agreement.flags,
            features=asdict(agreement.features),
            reason=self.reason,
        )
        return Connected(self._connection.fd, terms)

    def resume(
        self,
        mountpoint: Path,
        connected: Connected,
        answer: Answer | None,
        on_answered: Callable[[], None],
    ) -> None:
        """Serve a mount whose server is no more; instead of `mount`.

        Args:
            mountpoint: Where it is.
            connected: What that server had.
            answer: As `KernelConnection.resume`.
            on_answered: As `KernelConnection.resume`.
        """
        terms = connected.terms
        features = Features(**terms.features)
        self.reason = terms.reason
        self._mountpoint = mountpoint
        self._connection = KernelConnection(
            connected.fd, self._handlers, features, self._pace, terms.identity
        )
        agreement = Agreement(terms.minor, terms.flags, features)
        self._connection.resume(agreement, answer, on_answered)

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or `terminate` is called."""
        await self._connected().serve()

    def terminate(self) -> None:
        """Let `serve` return; the mount stays, and answers nothing."""
        self._connected().terminate()

    def close(self) -> None:
        """Close the connection. After `serve` has returned."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def unmount(self) -> None:
        """Detach the mount if it is there, and close the connection. After `serve` has returned."""
        if self._connection is not None:
            # Closed first: unmounting would otherwise wait for a server that is no more.
            self.close()
            with contextlib.suppress(OSError):
                unmount(self._mountpoint, lazy=True)


def _served_devices() -> select.poll:
    """Return what polls the descriptors of all connections that the running loop serves."""
    try:
        return _SERVED.get()
    except LookupError:
        _SERVED.set(select.poll())
        return _SERVED.get()


def _name_of(opcode: int) -> str:
    return Opcode(opcode).name.lower()

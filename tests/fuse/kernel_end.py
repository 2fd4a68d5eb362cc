"""A kernel that is this test: the other end of a connection, by a socket that keeps messages apart."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from trio.testing import wait_all_tasks_blocked

from kaifs.fuse import protocol as p
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.kernel_requests import Features
from kaifs.fuse.kernel_transport import KernelConnection
from kaifs.fuse.protocol import Opcode
from kaifs.fuse.transports import NO_HURRY, Pace

_REPLY_MAX = 1 << 21


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply; or a notification, whose `unique` is 0 and whose code is `error`."""

    unique: int
    error: int
    body: bytes


class KernelEnd:
    """Sends requests to `connection` and has its replies."""

    def __init__(
        self, handlers: Handlers, pace: Pace = NO_HURRY, features: Features | None = None
    ) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REPLY_MAX)
        self._socket.setblocking(False)
        self._sent = 0
        self.connection = KernelConnection(theirs.detach(), handlers, features or Features(), pace)

    def send(self, opcode: int, body: bytes = b"", node: int = 1, uid: int = 0) -> int:
        """Send a request, and return its `unique`."""
        self._sent += 2
        size = p.BODY + len(body)
        self.send_raw(p.IN_HEADER.pack(size, opcode, self._sent, node, uid, uid, 0) + body)
        return self._sent

    def send_raw(self, message: bytes) -> None:
        """Send what need not be a request."""
        self._socket.send(message)

    def received(self) -> list[Answer]:
        """Return what came since the last time."""
        found: list[Answer] = []
        while True:
            try:
                message = self._socket.recv(_REPLY_MAX)
            except BlockingIOError:
                return found
            size, error, unique = p.OUT_HEADER.unpack_from(message)
            assert size == len(message)
            body = message[p.OUT_HEADER.size :]
            found.append(Answer(unique, error, body))
            if unique == 0 and error == p.Notify.RETRIEVE:
                self._retrieved(*p.NOTIFY_RETRIEVE.unpack(body))

    def _retrieved(self, unique: int, node: int, offset: int, size: int) -> None:
        """Answer as who has no page of any file."""
        body = p.RETRIEVE_IN.pack(offset, 0).ljust(40, b"\0")
        header = p.IN_HEADER.pack(p.BODY + len(body), Opcode.NOTIFY_REPLY, unique, node, 0, 0, 0)
        self.send_raw(header + body)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Have requests answered inside, and the connection closed after it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.connection.serve)
                yield
                self.connection.terminate()
        finally:
            self.close()

    async def answer_to(self, unique: int) -> Answer:
        """Wait for the answer to a request, and return it; what came before is dropped."""
        with trio.fail_after(60):
            while True:
                for answer in self.received():
                    if answer.unique == unique:
                        return answer
                await trio.lowlevel.wait_readable(self._socket)

    async def idle(self) -> list[Answer]:
        """Wait until the server has nothing to do, and return what came."""
        await wait_all_tasks_blocked()
        return self.received()

    def close(self) -> None:
        """Close both ends."""
        self.connection.close()
        self._socket.close()

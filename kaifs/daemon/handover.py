"""What a server and its supervisor tell each other, and what a successor is given.

They talk over a socket that keeps messages apart: one JSON object each, with
descriptors beside it. What a server has sent is read also if it dies right after.

::

    supervisor                server
    serve  ----------------->          how many connections it is to take over
    take   ----------------->          each of them
    ongoing  --------------->          each conversation that goes on
           <-----------------  loaded  its code is there; it waits for `serve`
           <-----------------  keep    it serves: what any successor needs
           <-----------------  hold    a mount answers: its connection
           <-----------------  alone   the mount answers, and cannot be taken over
           <-----------------  served  it has taken over, and answers
           <-----------------  go_on   a conversation that a successor is to go on with
           <-----------------  over    it is not any more
           <-----------------  replace a successor is wanted
    loaded or failed  ------>          it waits for `serve`; or why there is none
           <-----------------  drop    a mount is to go: let its connection go
    dropped  --------------->
           <-----------------  ending  it ends on purpose; for good, or for its successor,
                                       with what the kernel knows
"""

import json
import mmap
import os
import socket
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

from kaifs.control.ongoing import Ongoing

PROTOCOL: Final = 3
"""A supervisor stays while servers of newer kaifs come and go. Raised when it must not."""
EXIT_AGAIN: Final = 75
"""Exit status of a server that ends for its successor. Source: EX_TEMPFAIL of sysexits.h."""
MESSAGE_MAX: Final = 1 << 16
_RIGHTS_MAX: Final = socket.CMSG_SPACE(8 * array("i").itemsize)
_COUNTER: Final = Struct("=Q")


@dataclass(frozen=True, slots=True)
class Message:
    """One message."""

    op: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    fds: Sequence[int] = ()
    """Descriptors that came with it; whoever receives it owns them."""


class Line:
    """One end of the conversation."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> "tuple[Line, Line]":
        """Return both ends of a new one."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @classmethod
    def of(cls, fd: int) -> "Line":
        """Return the end that was inherited as *fd*."""
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def send(self, op: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Send a message.

        Raises:
            OSError: The other end is gone, or does not listen any more.
        """
        body = json.dumps({"op": op, **fields}).encode()
        # Not send_fds and recv_fds, which take flags and do not use them.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self._socket.sendmsg([body], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def receive(self, *, is_waiting: bool = True) -> Message | None:
        """Return the next message; None at the end of the conversation.

        Raises:
            BlockingIOError: There is none now, and it is not to wait.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if is_waiting else socket.MSG_DONTWAIT)
        try:
            body, rights, _, _ = self._socket.recvmsg(MESSAGE_MAX, _RIGHTS_MAX, flags)
        except ConnectionResetError:
            return None
        if not body:
            return None
        fds = array("i")
        for _, _, data in rights:
            fds.frombytes(data)
        fields = json.loads(body)
        return Message(fields.pop("op"), fields, tuple(fds))

    def close(self) -> None:
        """End the conversation."""
        self._socket.close()


@dataclass(frozen=True, slots=True)
class KeptConnection:
    """A connection that outlives a server."""

    device: int
    """Its descriptor, of `/dev/fuse`."""
    unsettled: int
    """Descriptor of `Unsettled`."""
    facts: Mapping[str, Any]
    """What else a successor must know; the supervisor does not look into it."""

    @property
    def fds(self) -> list[int]:
        """All descriptors, in the order in which they are sent."""
        return [self.device, self.unsettled]

    @classmethod
    def of(cls, message: Message) -> "KeptConnection":
        """Return what came with *message*."""
        device, unsettled = message.fds
        return cls(device, unsettled, message.fields["facts"])


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives a server."""

    lock: int
    """Descriptor that holds the store's lock."""
    listener: int
    """Descriptor of the control socket, on which clients wait."""
    connections: dict[str, KeptConnection] = field(default_factory=dict)
    """By a name of the server's choice."""
    ongoing: dict[str, Ongoing] = field(default_factory=dict)
    """Conversations that outlive it, by name."""
    known: int = -1
    """Descriptor of a file that says what the kernel knows, for the next server alone. -1: one
    that was killed has said nothing."""

    @property
    def fds(self) -> list[int]:
        """The descriptors that belong to no connection, in the order in which they are sent."""
        more = [self.known] if self.known >= 0 else []
        return [self.lock, self.listener, *more]

    def send(self, line: "Line") -> None:
        """Let a successor have it all."""
        line.send(
            "serve",
            self.fds,
            protocol=PROTOCOL,
            connections=len(self.connections),
            ongoing=len(self.ongoing),
        )
        for name, connection in self.connections.items():
            line.send("take", connection.fds, name=name, facts=dict(connection.facts))
        for one in self.ongoing.values():
            line.send("ongoing", one.fds, name=one.name, facts=dict(one.facts))

    @classmethod
    def receive(cls, line: "Line") -> "Kept | None":
        """Wait for what `send` has sent; None: there is nothing to take over.

        Raises:
            EOFError: The conversation is over, nobody is to serve.
        """
        message = line.receive()
        if message is None:
            raise EOFError
        if not message.fds:
            return None
        lock, listener, *known = message.fds
        kept = cls(lock, listener, known=known[0] if known else -1)
        for _ in range(message.fields["connections"] + message.fields["ongoing"]):
            message = line.receive()
            if message is None:
                raise EOFError
            name = message.fields["name"]
            if message.op == "take":
                kept.connections[name] = KeptConnection.of(message)
            else:
                kept.ongoing[name] = Ongoing(name, message.fds, message.fields["facts"])
        return kept


class Unsettled:
    """Whether the kernel still remembers something wrongly: in memory that outlives the server.

    Two counters: what the kernel is to be told, and what it has been told. One thread
    changes the first, another one the second.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Use *fd* of a former server, or new memory."""
        self.fd = os.memfd_create("kaifs", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
        self._begun: int = _COUNTER.unpack_from(self._memory, 0)[0]
        self._done: int = _COUNTER.unpack_from(self._memory, _COUNTER.size)[0]
        self._left = self._begun - self._done

    @property
    def was_left(self) -> bool:
        """Whether a former server died before it had told everything."""
        return bool(self._left)

    def begin(self) -> None:
        """Count something that the kernel is to be told. Before anybody can see it."""
        self._begun += 1
        _COUNTER.pack_into(self._memory, 0, self._begun)

    def end(self) -> None:
        """Count something that the kernel has been told.

        The first also makes up for what was left: by then everything has been begun again.
        """
        self._done += 1 + self._left
        self._left = 0
        _COUNTER.pack_into(self._memory, _COUNTER.size, self._done)

    def close(self) -> None:
        """Let the memory go: nothing is to be told any more."""
        self._memory.close()
        os.close(self.fd)

"""The command's side of the control socket: synchronous, one request a connection.

Sending and receiving go on together: a source streams to the daemon while
progress comes back, and neither side can block the other by not listening.
"""

import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from kaifs.base.errors import AccessDeniedError, DaemonError
from kaifs.control.frames import FrameError, FrameReader, pack_frame
from kaifs.control.info import DaemonInfo, read_info
from kaifs.control.messages import (
    ATTACH,
    HOLD,
    MOUNT,
    PASSED,
    RESTART,
    SHUTDOWN,
    AttachParams,
    Failure,
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
    decode_from_daemon,
    encode,
    error_of,
)
from kaifs.control.places import socket_path
from kaifs.linux.sockets import connect_to, peer_of
from kaifs.service.steps import End, Output, Progress, Sign, Signature, Signer, Source, Want
from kaifs.service.verbs import VERBS

_RECEIVE: Final = 1 << 18
_CONNECT_TIMEOUT_S: Final = 10.0

OnProgress = Callable[[Progress], None]
OnOutput = Callable[[bytes], None]


def find_daemon(store_path: Path) -> DaemonInfo | None:
    """Return the daemon that serves the store at *store_path*, None if none does.

    What a daemon that was killed left behind is recognised and ignored.
    """
    info = read_info(store_path)
    while info is not None:
        try:
            connection = connect_to(socket_path(store_path), _CONNECT_TIMEOUT_S)
        except OSError:
            return None
        with connection:
            # Who listens: a supervisor does so for its servers.
            if peer_of(connection).pid in (info.pid, info.supervisor_pid):
                return info
        before, info = info, read_info(store_path)
        if info == before:
            return None
    return None


def call(
    store_path: Path,
    verb: str,
    params: msgspec.Struct,
    source: Source | None = None,
    on_progress: OnProgress | None = None,
    on_output: OnOutput | None = None,
    signer: Signer | None = None,
) -> Any:
    """Have the daemon of the store run *verb* and return its result, of the verb's type.

    Any exception on the way, Ctrl-C too, closes the connection, upon which the
    daemon gives the verb up.

    Raises:
        KaifsError: What the verb raised there; E116 if the daemon does not answer.
        RemoteBugError: The daemon has a bug.
    """
    with _connect(store_path) as connection:
        exchange = _Exchange(connection, source, on_progress, on_output, signer)
        payload = exchange.run(verb, params)
    return _decoded(payload, VERBS[verb].result)


def request_mount(store_path: Path, params: MountParams) -> None:
    """Have the daemon of the store serve another mount, and return when that answers.

    Raises:
        ViewTakenError: What it would show is on another mount already.
        KaifsError: As `lifecycle.mount` and `call`.
    """
    with _connect(store_path) as connection:
        payload = _Exchange(connection).run(MOUNT, params)
    _decoded(payload, MountResult)


def shutdown(
    store_path: Path, *, lazy: bool, held: bool = True, mountpoint: str = ""
) -> ShutdownResult:
    """Have the daemon of the store unmount, make everything durable, and end.

    Args:
        store_path: The store.
        lazy: Even if processes use the mount.
        mountpoint: Only this mount goes, and the daemon with its last one; empty: all.
        held: Even if somebody holds it, as `hold` does.

    Raises:
        MountBusyError: Processes use the mount; nothing was changed.
        KaifsError: As `call`.
    """
    with _connect(store_path) as connection:
        params = ShutdownParams(lazy=lazy, held=held, mountpoint=mountpoint)
        payload = _Exchange(connection).run(SHUTDOWN, params)
    result: ShutdownResult = _decoded(payload, ShutdownResult)
    return result


def request_restart(store_path: Path) -> RestartResult:
    """Have the daemon of the store give way to another process, which is about to begin on return.

    Raises:
        RestartError: It cannot, and goes on.
        KaifsError: As `call`.
    """
    with _connect(store_path) as connection:
        payload = _Exchange(connection).run(RESTART, RestartParams())
    result: RestartResult = _decoded(payload, RestartResult)
    return result


@contextmanager
def hold(store_path: Path) -> Iterator[None]:
    """Keep a daemon that only serves sandboxes from ending with who started it.

    Raises:
        KaifsError: as `attach`.
    """
    with _connect(store_path) as connection:
        _ask(connection, HOLD, HoldParams())
        yield


class Attachment:
    """A snapshot about to be served to one sandbox. Close it when the sandbox has ended."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def pass_descriptor(self, fd: int, uid: int, gid: int) -> None:
        """Send *fd*, a mounted descriptor of `/dev/fuse`, to be served. Once; any process may.

        Everything is shown as that of *uid* and *gid*, as the one who mounted counts them.
        """
        socket.send_fds(self._connection, [PASSED.pack(uid, gid)], [fd])

    def fileno(self) -> int:
        """Return what can be read from when the daemon ends the connection, or has died."""
        return self._connection.fileno()

    def wait_end(self, timeout_s: float | None = None) -> bytes:
        """Wait until the daemon ends the connection and return what it said, for its log.

        Raises:
            TimeoutError: it does not in *timeout_s* seconds.
        """
        self._connection.settimeout(timeout_s)
        said = b""
        # It may have died without having read everything.
        with suppress(ConnectionResetError):
            while received := self._connection.recv(_RECEIVE):
                said += received
        return said

    def close(self) -> None:
        """End the connection: what still uses the mount gets ENOTCONN."""
        self._connection.close()


def attach(store_path: Path, params: AttachParams) -> Attachment:
    """Ask the daemon of the store for a snapshot, and return when it waits for the descriptor.

    Raises:
        KaifsError: it refuses, or there is no daemon.
    """
    connection = _connect(store_path)
    try:
        _ask(connection, ATTACH, params)
    except BaseException:
        connection.close()
        raise
    return Attachment(connection)


def _ask(connection: socket.socket, verb: str, params: msgspec.Struct) -> None:
    """Send a request whose answer is `Want`, and return when that has come."""
    connection.setblocking(True)
    reader = FrameReader()
    bodies: list[bytes] = []
    try:
        connection.sendall(pack_frame(encode(Request(verb, msgspec.Raw(encode(params))))))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise DaemonError("it ended the conversation") from error
    while not bodies:
        try:
            received = connection.recv(_RECEIVE)
        except ConnectionResetError:
            received = b""
        if not received:
            raise DaemonError("it ended the conversation")
        bodies += reader.feed(received)
    message = decode_from_daemon(bodies[0])
    if isinstance(message, Failure):
        raise error_of(message)
    if not isinstance(message, Want):
        raise DaemonError("its answer makes no sense")


def _connect(store_path: Path) -> socket.socket:
    try:
        connection = connect_to(socket_path(store_path), _CONNECT_TIMEOUT_S)
    except PermissionError as error:
        raise AccessDeniedError(str(socket_path(store_path))) from error
    except OSError as error:
        raise DaemonError(f"{store_path}: {error.strerror or error}") from error
    connection.setblocking(False)
    return connection


def _decoded(payload: bytes, wanted: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.msgpack.decode(payload, type=wanted)
    except msgspec.MsgspecError as error:
        raise DaemonError(f"its answer makes no sense: {error}") from error


class _Exchange:
    """One request and all that follows from it."""

    def __init__(
        self,
        connection: socket.socket,
        source: Source | None = None,
        on_progress: OnProgress | None = None,
        on_output: OnOutput | None = None,
        signer: Signer | None = None,
    ) -> None:
        self._connection = connection
        self._signer = signer
        self._to_sign: bytes | None = None
        self._source = source
        self._on_progress = on_progress
        self._on_output = on_output
        self._reader = FrameReader()
        self._unsent = memoryview(b"")
        self._is_wanted = False
        self._is_source_whole = False
        self._parts: list[bytes] = []
        self._is_done = False

    def run(self, verb: str, params: msgspec.Struct) -> bytes:
        """Return the encoded result."""
        try:
            self._queue(encode(Request(verb, msgspec.Raw(encode(params)))))
            with selectors.DefaultSelector() as selector:
                key = selector.register(self._connection, selectors.EVENT_READ)
                while not self._is_done:
                    self._fill()
                    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
                    if key.events != wanted:
                        key = selector.modify(self._connection, wanted)
                    for _, ready in selector.select():
                        self._serve(ready)
        except (FrameError, MessageError) as error:
            raise DaemonError(str(error)) from error
        return b"".join(self._parts)

    def _serve(self, ready: int) -> None:
        # Reading first: the daemon may have failed the verb and stopped listening.
        if ready & selectors.EVENT_READ:
            self._receive()
        if ready & selectors.EVENT_WRITE and not self._is_done:
            self._send()

    def _queue(self, body: bytes) -> None:
        self._unsent = memoryview(pack_frame(body))

    def _fill(self) -> None:
        if self._unsent:
            return
        if self._to_sign is not None:
            assert self._signer is not None, "the verb wants a signature"
            self._queue(encode(Signature(self._signer(self._to_sign))))
            self._to_sign = None
            return
        if not self._is_wanted:
            return
        assert self._source is not None, "the verb wants a source"
        item = next(self._source, None)
        if item is None:
            self._is_wanted = False
            if not self._is_source_whole:
                self._connection.shutdown(socket.SHUT_WR)
        else:
            self._is_source_whole = isinstance(item, End)
            self._queue(encode(item))

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            # What it said before it hung up is still to be read, and says why.
            self._unsent = memoryview(b"")
            self._is_wanted = False

    def _receive(self) -> None:
        try:
            received = self._connection.recv(_RECEIVE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            received = b""
        if not received:
            raise DaemonError("it ended the conversation")
        for body in self._reader.feed(received):
            self._take(decode_from_daemon(body))

    def _take(self, message: FromDaemon) -> None:
        match message:
            case Progress():
                if self._on_progress is not None:
                    self._on_progress(message)
            case Output(payload=payload):
                if self._on_output is not None:
                    self._on_output(payload)
            case Want():
                self._is_wanted = True
            case Sign(record=record):
                self._to_sign = record
            case Result(payload=payload, is_last=is_last):
                self._parts.append(payload)
                self._is_done = is_last
            case Failure():
                raise error_of(message)

"""The command's side of the control socket for small questions: params and result as plain values.

The messages are those of `kaifs.control.messages`, in JSON. The types that they
are checked against are the daemon's: to load them, and what decodes them, takes
twice as long as Python itself needs to start.
"""

from __future__ import annotations

import json
import os
import socket
from binascii import a2b_base64
from struct import pack
from typing import Any

from kaifs.base.errors import AccessDeniedError, ArgumentValueError, DaemonError
from kaifs.control.failures import told_error
from kaifs.control.frames import FrameError, FrameReader, pack_frame
from kaifs.control.places import RUN_FOLDER, SOCKET_NAME

_RECEIVE = 1 << 18
_CONNECT_TIMEOUT = pack("@ll", 10, 0)
"""A timeval. A socket with a timeout of Python's does not wait where the queue is full."""


def call_plain(store: str, verb: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """Have the daemon of *store* run *verb* and return its result; None if there is no daemon.

    For verbs that take no items and give none out. What is told on the way is ignored.

    Raises:
        KaifsError: what the verb raised there; E116 if the daemon does not answer.
        RemoteBugError: the daemon has a bug.
    """
    try:
        request = json.dumps(["request", verb, params], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        start = error.object.rfind('"', 0, error.start) + 1
        word = error.object[start : error.object.find('"', error.end)]
        raise ArgumentValueError(f"{word!a} is not UTF-8") from error
    connection = _connect(store)
    if connection is None:
        return None
    with connection:
        return _exchange(connection, request)


def _connect(store: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _CONNECT_TIMEOUT)
        # As `kaifs.linux.sockets`, which takes longer to load: paths of any length.
        folder = os.open(os.path.join(store, RUN_FOLDER), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        finally:
            os.close(folder)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        return None
    except PermissionError as error:
        connection.close()
        raise AccessDeniedError(store) from error
    except OSError as error:
        connection.close()
        raise DaemonError(f"{store}: {error.strerror or error}") from error
    return connection


def _exchange(connection: socket.socket, request: bytes) -> dict[str, Any]:
    """Return the result."""
    reader = FrameReader()
    parts: list[bytes] = []
    try:
        connection.sendall(pack_frame(request))
        while received := connection.recv(_RECEIVE):
            for body in reader.feed(received):
                match json.loads(body):
                    case ["failure", code, message, subject, details]:
                        raise told_error(code, message, subject, details)
                    case ["result", payload, is_last]:
                        parts.append(a2b_base64(payload))
                        if is_last:
                            result: dict[str, Any] = json.loads(b"".join(parts))
                            return result
    except (FrameError, ValueError) as error:
        raise DaemonError(f"its answer makes no sense: {error}") from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise DaemonError("it ended the conversation") from error
    raise DaemonError("it ended the conversation")

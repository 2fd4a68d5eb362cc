"""The user's ssh-agent: which keys it holds, and having it sign.

Source: draft-ietf-sshm-ssh-agent. Only the process that the user started talks to
it. What it answers is not trusted: a signature is checked before it is used, by
whoever takes it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kaifs.base.errors import SigningKeyError
from kaifs.base.ssh_keys import RSA, PublicKey, WireReader, parse_public_blob, wire_string
from kaifs.linux.sockets import connect_to

AGENT_VARIABLE: Final = "SSH_AUTH_SOCK"

_REQUEST_IDENTITIES: Final = 11
_IDENTITIES_ANSWER: Final = 12
_SIGN_REQUEST: Final = 13
_SIGN_RESPONSE: Final = 14
_RSA_SHA2_512: Final = 4
"""Flag of a sign request."""
_MESSAGE_MAX: Final = 1 << 18
"""Source: OpenSSH, AGENT_MAX_LEN."""
_IDENTITIES_MAX: Final = 2048
"""Source: OpenSSH, MAX_AGENT_IDENTITIES."""
_ANSWER_S: Final = 10.0
_SIGN_S: Final = 120.0
"""Seconds to touch a token in, or to answer the agent's question."""
_LENGTH: Final = struct.Struct(">I")


def agent_keys() -> list[PublicKey]:
    """Return the keys of the user's agent that can sign here.

    Raises:
        SigningKeyError: there is no agent, or it does not answer.
    """
    with _connected(_ANSWER_S) as connection:
        answer = _ask(connection, bytes([_REQUEST_IDENTITIES]), _IDENTITIES_ANSWER)
    keys = []
    try:
        for _ in range(min(answer.number(), _IDENTITIES_MAX)):
            blob, comment = answer.string(), answer.string()
            try:
                keys.append(parse_public_blob(blob, comment.decode(errors="replace")))
            except SigningKeyError:
                continue
    except ValueError as error:
        raise SigningKeyError(f"ssh-agent: its answer makes no sense: {error}") from error
    return keys


def find_agent_key(fingerprint: str | None) -> PublicKey:
    """Return the key of the user's agent with that fingerprint; None: the only one that it has.

    Raises:
        SigningKeyError: there is none, or there are several.
    """
    keys = agent_keys()
    if fingerprint is None:
        if len(keys) == 1:
            return keys[0]
        if keys:
            names = ", ".join(key.fingerprint for key in keys)
            raise SigningKeyError(f"ssh-agent has several keys, name one: {names}")
        raise SigningKeyError("ssh-agent has no key that can be used; 'ssh-add' adds one")
    for key in keys:
        if key.fingerprint == fingerprint:
            return key
    raise SigningKeyError(f"ssh-agent does not have {fingerprint}")


def sign_by_agent(key: PublicKey, message: bytes) -> bytes:
    """Return the agent's signature of *message* by *key*, as it travels.

    Raises:
        SigningKeyError: it refuses, or there is no agent.
    """
    flags = _RSA_SHA2_512 if key.kind == RSA else 0
    request = bytes([_SIGN_REQUEST]) + wire_string(key.blob) + wire_string(message)
    with _connected(_SIGN_S) as connection:
        answer = _ask(connection, request + _LENGTH.pack(flags), _SIGN_RESPONSE)
    try:
        return answer.string()
    except ValueError as error:
        raise SigningKeyError(f"ssh-agent: its answer makes no sense: {error}") from error


@contextmanager
def _connected(timeout_s: float) -> Iterator[socket.socket]:
    path = os.environ.get(AGENT_VARIABLE)
    if not path:
        raise SigningKeyError(f"no ssh-agent: {AGENT_VARIABLE} is not set")
    try:
        with connect_to(Path(path), _ANSWER_S) as connection:
            connection.settimeout(timeout_s)
            yield connection
    except OSError as error:
        reason = error.strerror or "it does not answer"
        raise SigningKeyError(f"ssh-agent at {path}: {reason}") from error


def _ask(connection: socket.socket, request: bytes, wanted: int) -> WireReader:
    """Send *request* and return what follows the type of the answer, which must be *wanted*."""
    connection.sendall(wire_string(request))
    (size,) = _LENGTH.unpack(_received(connection, _LENGTH.size))
    if not 0 < size <= _MESSAGE_MAX:
        raise SigningKeyError("ssh-agent: its answer makes no sense")
    answer = _received(connection, size)
    if answer[0] != wanted:
        raise SigningKeyError("ssh-agent refuses")
    return WireReader(answer[1:])


def _received(connection: socket.socket, size: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < size:
        piece = connection.recv(size - len(pieces))
        if not piece:
            raise SigningKeyError("ssh-agent: it ended the conversation")
        pieces += piece
    return bytes(pieces)

"""Messages on the control socket.

::

    client                           daemon
    Request(verb, params)  ------>
                           <------   Progress, Output      any number
                           <------   Want                  once, if the verb takes a source
    Item, Item … End       ------>                         as fast as they are taken
                           <------   Sign                  if the user's key is to sign
    Signature              ------>                         behind the items, if there are any
                           <------   Result … or Failure   the last

Bodies are MessagePack, or JSON if the request is: then so is all that the daemon says
(`kaifs.control.plain`).

One request a connection. Whoever closes it before the last message gives the
request up. Items and the steps that are passed on are those of
`kaifs.service.steps`.
"""

from struct import Struct
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from kaifs.base.errors import KaifsError
from kaifs.control.failures import told_error
from kaifs.service.steps import Data, End, Entry, Output, Progress, Sign, Signature, Total, Want

_Message = TypeVar("_Message")

RESULT_PART: Final = 1 << 20
"""Most bytes of a result in one message."""


class Request(msgspec.Struct, frozen=True, array_like=True, tag="request"):
    """Run a verb."""

    verb: str
    params: msgspec.Raw
    """Decoded by the verb's own type once the verb is known."""


class Result(msgspec.Struct, frozen=True, array_like=True, tag="result"):
    """The verb is done, and what it changed is durable."""

    payload: bytes
    """A part of the encoded result, parts in order."""
    is_last: bool


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="failure"):
    """The verb failed. The store is as it was."""

    code: str
    """Of a `KaifsError`; empty if kaifs has a bug."""
    message: str
    """What a user reads."""
    subject: str = ""
    details: dict[str, str | int | list[Any]] = {}
    """As `kaifs.base.errors.Detail`."""


class ShutdownParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon's own verb `shutdown` is told."""

    lazy: bool = False
    """Detach the mount even if processes use it."""
    mountpoint: str = ""
    """Only this mount goes, and the daemon with the last one; empty: all of them."""
    held: bool = True
    """End also if somebody holds the daemon; otherwise it ends when nobody does any more."""


class ShutdownResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The mount is gone from the name space and everything written is durable."""

    ends: bool
    """Whether the daemon ends now; else with its last mount."""
    is_gone: bool = True
    """Whether nobody uses the mount any more."""


class MountParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon's own verb `mount` is told."""

    mountpoint: str
    """Absolute, an empty folder."""
    options: str
    """The values of `-o`."""
    namespace: int
    """The client's mount namespace: its inode number."""


class MountResult(msgspec.Struct, frozen=True, kw_only=True):
    """The mount answers."""


class RestartParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon's own verb `restart` is told."""


class RestartResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Another process is about to go on with the mount."""

    pid: int
    """Of the process that ends."""


class AttachParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon's own verb `attach` is told."""

    reference: str
    """The snapshot."""
    read_only: bool = False
    quota: int | None = None
    """Bytes that changes of the snapshot may take; None: any number."""


class HoldParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon's own verb `hold` is told."""


class AttachResult(msgspec.Struct, frozen=True, kw_only=True):
    """The sandbox's mount is gone."""


SHUTDOWN: Final = "shutdown"
"""Unmount, commit, end. Like `attach` and `hold` no verb of `kaifs.service.verbs`."""
MOUNT: Final = "mount"
"""Serve another mount of the store."""
RESTART: Final = "restart"
"""Let another process go on with the mount, with the code that is installed now."""
HOLD: Final = "hold"
"""Stay there: answered by `Want`, and held until the client closes the connection."""
ATTACH: Final = "attach"
"""Serve a snapshot by a descriptor: sent as SCM_RIGHTS with a `Passed`, after the answer `Want`."""
PASSED: Final = Struct("=II")
"""What a descriptor comes with: uid and gid as whom everything is shown, as the one who
mounted counts them."""

FromClient: TypeAlias = Request | Total | Entry | Data | End | Signature
FromDaemon: TypeAlias = Progress | Output | Want | Sign | Result | Failure

encode = msgspec.msgpack.Encoder().encode
encode_json = msgspec.json.Encoder().encode
_JSON_ARRAY: Final = b"["
"""Begins a request in JSON. In MessagePack it would be the number 91."""
_from_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_from_client_json: msgspec.json.Decoder[FromClient] = msgspec.json.Decoder(FromClient)
_from_daemon: msgspec.msgpack.Decoder[FromDaemon] = msgspec.msgpack.Decoder(FromDaemon)
_failure: msgspec.msgpack.Decoder[Failure] = msgspec.msgpack.Decoder(Failure)


_Decoder: TypeAlias = "msgspec.msgpack.Decoder[_Message] | msgspec.json.Decoder[_Message]"


class MessageError(Exception):
    """A body is no message of this protocol."""


def is_json(body: bytes) -> bool:
    """Return whether *body*, a client's first, is in JSON."""
    return body.startswith(_JSON_ARRAY)


def decode_from_client(body: bytes) -> FromClient:
    """Return the message that *body* holds.

    Raises:
        MessageError: It holds none.
    """
    return _guarded(_from_client_json if is_json(body) else _from_client, body)


def decode_from_daemon(body: bytes) -> FromDaemon:
    """Return the message that *body* holds.

    Raises:
        MessageError: It holds none.
    """
    return _guarded(_from_daemon, body)


def decode_failure(body: bytes) -> Failure:
    """Return the failure that *body* holds.

    Raises:
        MessageError: It holds none.
    """
    return _guarded(_failure, body)


def decode_params(params: msgspec.Raw, wanted: type[_Message], *, json: bool = False) -> _Message:
    """Return *params* as the type *wanted*.

    Raises:
        MessageError: They do not fit.
    """
    decoder: _Decoder[_Message]
    decoder = msgspec.json.Decoder(wanted) if json else msgspec.msgpack.Decoder(wanted)
    return _guarded(decoder, bytes(params))


def _guarded(decoder: "_Decoder[_Message]", body: bytes) -> _Message:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError) as error:
        raise MessageError(str(error)) from error


def failure_of(error: Exception) -> Failure:
    """Return what the other end is told of *error*."""
    if isinstance(error, KaifsError):
        return Failure(str(error.code), str(error), error.subject, dict(error.details))
    return Failure("", f"{type(error).__name__}: {error}")


def error_of(failure: Failure) -> Exception:
    """Return the exception that *failure* was made from."""
    return told_error(failure.code, failure.message, failure.subject, failure.details)

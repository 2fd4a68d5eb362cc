"""What a verb yields while it runs, and what it exchanges with whoever runs it.

A verb that takes in a folder yields `Want` and is sent one `Item`; a verb that
gives files out yields `Output` with encoded items. The same items travel both
ways: a tree in pre-order, each `Entry` followed by its `Data`. Only the
process that the user started touches the user's folders and keys; the side that
owns the store sees items alone, and has signatures made by yielding `Sign`.
"""

import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import msgspec

from kaifs.base.types import RootId

CHUNK_SIZE: Final = 1 << 20
"""Most bytes in one `Data` item."""


class Total(msgspec.Struct, frozen=True, array_like=True, tag="total"):
    """How much is to come, if that is known. At most one, before the first entry."""

    files: int
    size: int
    """Bytes of all regular files."""


class Entry(msgspec.Struct, frozen=True, array_like=True, tag="entry"):
    """One name in the tree. A directory comes before what is in it, names sorted bytewise."""

    path: bytes
    """From the top, without a leading slash; empty for the top itself."""
    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    """Where a symbolic link leads."""
    link: tuple[int, int] | None = None
    """Equal in all names of one file; None if it has one name. Only the first carries data."""


class Data(msgspec.Struct, frozen=True, array_like=True, tag="data"):
    """Bytes of the entry before, at growing offsets. What lies between is a hole."""

    offset: int
    payload: bytes
    """At least 1 and at most `CHUNK_SIZE` bytes."""


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Nothing follows. Without it the tree is incomplete."""


class Signature(msgspec.Struct, frozen=True, array_like=True, tag="signature"):
    """The answer to `Sign`. May come after `End`."""

    armored: bytes
    """SSHSIG."""


Item: TypeAlias = Total | Entry | Data | End | Signature


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """How far a verb is."""

    done: int
    total: int
    """0 if it is not known."""
    unit: str
    """`bytes` or `files`."""
    what: str
    """The step, in a word or two."""


class Output(msgspec.Struct, frozen=True, array_like=True, tag="output"):
    """Bytes for the caller: text of a patch or a manifest, or items (see `frame_item`)."""

    payload: bytes


class Want(msgspec.Struct, frozen=True, array_like=True, tag="want"):
    """The verb needs the next item of the source."""


@dataclass(frozen=True, slots=True)
class Resumable:
    """From here until the first item of its source comes, the verb can go on in another process.

    Before its first `Want`. If it does, this one raises `ResumedElsewhereError` in the verb,
    which then undoes nothing; `resume` of its module goes on there.
    """

    root: RootId
    """The root that must stay as it is meanwhile."""
    state: bytes
    """What `resume` needs."""


class ResumedElsewhereError(Exception):
    """Another process goes on with this; nothing is to be undone."""


class Sign(msgspec.Struct, frozen=True, array_like=True, tag="sign"):
    """The verb needs a signature of the user's, and is sent a `Signature`; None if none came."""

    record: bytes
    """What is to be signed."""


class Flush(msgspec.Struct, frozen=True, array_like=True, tag="flush"):
    """The verb needs a barrier here: what programs have written so far must reach the store.

    Without a mount there is nothing to do.
    """


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    """The verb needs what it has changed so far to be durable before it goes on."""


class Exclusive(msgspec.Struct, frozen=True, array_like=True, tag="exclusive"):
    """The verb changes more than single files from here to its end: no other verb does meanwhile.

    For a verb that finds out only on its way that it does.
    """


@dataclass(frozen=True, slots=True)
class Work:
    """The verb needs this done before it goes on.

    It may run on any thread: it takes long, and touches nothing that anybody changes meanwhile.
    """

    run: Callable[[], None]


Step: TypeAlias = Progress | Output | Want | Resumable | Sign | Flush | Commit | Exclusive | Work
Source: TypeAlias = Iterator[Item]
OnProgress: TypeAlias = Callable[[Progress], None]
OnOutput: TypeAlias = Callable[[bytes], None]
Signer: TypeAlias = Callable[[bytes], bytes]
"""Returns an armored signature of a record. In the user's process."""

Told = TypeVar("Told")
Done = TypeVar("Done")


def tell(
    work: Generator[Told, None, Done], step_of: Callable[[Told], Step]
) -> Generator[Step, Item | None, Done]:
    """Do *work*, which tells how far it is, as steps of a verb; return what comes of it."""
    try:
        while True:
            try:
                told = next(work)
            except StopIteration as stop:
                done: Done = stop.value
                return done
            yield step_of(told)
    finally:
        work.close()


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Item] = msgspec.msgpack.Decoder(Item)
_length = struct.Struct(">I")


def encode_item(item: Item) -> bytes:
    """Return *item* as one message."""
    return _encoder.encode(item)


def decode_item(message: bytes | memoryview) -> Item:
    """Return the item that `encode_item` made *message* of.

    Raises:
        msgspec.ValidationError: it is none.
    """
    return _decoder.decode(message)


def frame_item(item: Item) -> bytes:
    """Return *item* with its length before it, so that a byte stream can carry it."""
    message = _encoder.encode(item)
    return _length.pack(len(message)) + message


class ItemStream:
    """Cuts a byte stream of framed items into items, however the bytes arrive."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, payload: bytes) -> Generator[Item, None, None]:
        """Take in *payload* and yield every item that is complete by now."""
        self._pending += payload
        start = 0
        while len(self._pending) - start >= _length.size:
            (size,) = _length.unpack_from(self._pending, start)
            stop = start + _length.size + size
            if stop > len(self._pending):
                break
            yield decode_item(bytes(self._pending[start + _length.size : stop]))
            start = stop
        del self._pending[:start]

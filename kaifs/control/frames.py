"""Frames: a length and that many bytes, over a stream whose other end is not trusted.

::

    u32  length of the body, little-endian, at most FRAME_MAX
    ...  body: one MessagePack message (see `messages`)

A length beyond the limit ends the connection before anything is read for it,
and bytes are kept only as they arrive, so a lie about a length costs nothing.
"""

import struct
from collections.abc import Iterator
from typing import Final

FRAME_MAX: Final = 4 << 20
"""Bytes in a body."""

_LENGTH: Final = struct.Struct("<I")


class FrameError(Exception):
    """What arrives is no frame, or a message that is to be sent fits none."""


def pack_frame(body: bytes) -> bytes:
    """Return *body* with its length before it.

    Raises:
        FrameError: *body* is too long.
    """
    if len(body) > FRAME_MAX:
        raise FrameError(f"message of {len(body)} bytes, more than {FRAME_MAX}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into bodies, however the bytes arrive."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream could end here without cutting a frame."""
        return not self._pending

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Take in *received* and yield every body that is complete by now.

        Raises:
            FrameError: a length is beyond the limit; the stream is of no more use.
        """
        self._pending += received
        while len(self._pending) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._pending)
            if size > FRAME_MAX:
                raise FrameError(f"frame of {size} bytes, more than {FRAME_MAX}")
            stop = _LENGTH.size + size
            if len(self._pending) < stop:
                return
            body = bytes(self._pending[_LENGTH.size : stop])
            del self._pending[:stop]
            yield body

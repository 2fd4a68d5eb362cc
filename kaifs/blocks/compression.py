"""How payload is stored in a segment: as it is, or as one zstd frame."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeVar

from kaifs.base.errors import ChecksumMismatchError
from kaifs.base.zstd import expand

MIN_GAIN: Final = 8
"""A compressed payload is kept only if it saves at least one part in so many."""

_Stored = TypeVar("_Stored", bytes, memoryview)


class Codec(IntEnum):
    """The codec byte of a block."""

    NONE = 0
    ZSTD = 1


class Compressor:
    """Encodes payload for a store's `compress=` option. Not for several threads at once."""

    def __init__(self, level: int | None) -> None:
        """Compress with zstd at *level*, or not at all if it is None."""
        self._level = level
        self._compress = None
        if level is not None:
            import zstandard

            self._compress = zstandard.ZstdCompressor(level=level, write_content_size=True).compress

    def encode(self, payload: bytes | memoryview) -> tuple[Codec, bytes | memoryview]:
        """Return the codec chosen for *payload* and the bytes to store."""
        if self._compress is not None:
            packed = self._compress(payload)
            if len(packed) <= len(payload) - len(payload) // MIN_GAIN - 1:
                return Codec.ZSTD, packed
        return Codec.NONE, payload


def decode(codec: int, stored: _Stored, size: int) -> _Stored | bytes:
    """Return the *size* bytes of payload that *stored* encodes; *stored* itself if it is plain.

    Raises:
        ChecksumMismatchError: *stored* cannot be decoded.
    """
    if codec == Codec.NONE:
        return stored
    if codec != Codec.ZSTD:
        raise ChecksumMismatchError(f"unknown codec {codec}")
    try:
        return expand(stored, size, size)
    except ValueError as error:
        raise ChecksumMismatchError(f"block cannot be decompressed: {error}") from error

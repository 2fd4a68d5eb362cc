"""The two hashes and what each one is good for.

xxh3 finds accidents and is nearly free (25 GB/s); it does not stop an
attacker. SHA-256 seals: whatever a version's hash promises rests on it alone.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import xxhash

CHECKSUM_SIZE: Final = 16
RECORD_CHECKSUM_SIZE: Final = 8
SHA256_SIZE: Final = 32


# Not wrapped: what a call of ours would cost is as much as the hash of 4 KiB.
checksum: Final[Callable[[bytes | memoryview], bytes]] = xxhash.xxh3_128_digest
"""Return the xxh3-128 of a payload: 16 bytes, big-endian. Finds accidents only."""
record_checksum: Final[Callable[[bytes | memoryview], bytes]] = xxhash.xxh3_64_digest
"""Return the xxh3-64 of a record: 8 bytes, big-endian. Finds accidents only."""


def checksum_of_pieces(pieces: Iterable[bytes | memoryview]) -> bytes:
    """Return the checksum of what *pieces* are together."""
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.digest()


class Sha256(Protocol):
    """A SHA-256 being computed."""

    def update(self, payload: bytes | memoryview, /) -> None:
        """Take in *payload*."""
        ...

    def digest(self) -> bytes:
        """Return the hash of what came so far: 32 bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the hash of what came so far: 64 lower-case hex digits."""
        ...


def sha256(payload: bytes | memoryview = b"") -> Sha256:
    """Return a SHA-256 that has taken in *payload*."""
    # Not at the top: OpenSSL takes 6 ms to load, and few commands hash anything.
    import hashlib

    return hashlib.sha256(payload)

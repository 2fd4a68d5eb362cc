"""The two hashes and what each one is good for.

xxh3 finds accidents and is nearly free (25 GB/s); it does not stop an
attacker. SHA-256 seals: whatever a version's hash promises rests on it alone.
"""

import hashlib
from typing import Final

import xxhash

CHECKSUM_SIZE: Final = 16
RECORD_CHECKSUM_SIZE: Final = 8
SHA256_SIZE: Final = 32


def checksum(payload: bytes | memoryview) -> bytes:
    """Return the xxh3-128 of *payload*: 16 bytes, big-endian. Finds accidents only."""
    return xxhash.xxh3_128_digest(payload)


def record_checksum(record: bytes | memoryview) -> bytes:
    """Return the xxh3-64 of *record*: 8 bytes, big-endian. Finds accidents only."""
    return xxhash.xxh3_64_digest(record)


def sha256(payload: bytes | memoryview = b"") -> "hashlib._Hash":
    """Return a SHA-256 that has taken in *payload*."""
    return hashlib.sha256(payload)

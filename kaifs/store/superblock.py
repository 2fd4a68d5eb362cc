"""The superblock: what a store is, written once when it is made."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.base.digest import record_checksum
from kaifs.base.errors import (
    AccessDeniedError,
    FormatError,
    StoreDamagedError,
    StoreIOError,
    StoreNotFoundError,
)
from kaifs.linux.files import read_file, write_durably

SUPERBLOCK_MAGIC: Final = b"KAIFSSUP"
FORMAT_VERSION: Final = 2
BYTE_ORDER_MARK: Final = 0x01020304
SUPERBLOCK_SIZE: Final = 128
SUPERBLOCK_NAME: Final = "superblock"

KNOWN_COMPAT: Final = 0
"""Features that a reader and a writer may ignore."""
KNOWN_RO_COMPAT: Final = 0
"""Features that a reader may ignore, but no writer."""
KNOWN_INCOMPAT: Final = 0
"""Features that nobody may ignore."""

_LAYOUT: Final = struct.Struct("<8sII16sQQQq56x8s")
assert _LAYOUT.size == SUPERBLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Superblock:
    """Identity and features of a store."""

    uuid: bytes
    """16 bytes, also in each segment's header and in META."""
    created_ns: int
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0

    def encode(self) -> bytes:
        """Return the 128 bytes of the file."""
        fields = (SUPERBLOCK_MAGIC, FORMAT_VERSION, BYTE_ORDER_MARK, self.uuid)
        features = (self.compat, self.ro_compat, self.incompat)
        unsigned = _LAYOUT.pack(*fields, *features, self.created_ns, b"")[:-8]
        return unsigned + record_checksum(unsigned)

    def write(self, store: Path) -> None:
        """Put the superblock into the folder *store*, durably."""
        # For everybody who is let into the folder: it tells a daemon's clients the uuid.
        write_durably(store / SUPERBLOCK_NAME, self.encode(), mode=0o644)


def read_superblock(store: Path) -> Superblock:
    """Return the superblock of the store in *store*.

    Raises:
        StoreNotFoundError: there is none.
        AccessDeniedError: it is closed to the caller.
        StoreDamagedError: it is damaged.
        FormatError: a newer kaifs made it, or it has features that are not known.
    """
    try:
        raw = read_file(store / SUPERBLOCK_NAME, SUPERBLOCK_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFoundError(str(store)) from error
    except PermissionError as error:
        raise AccessDeniedError(str(store)) from error
    except OSError as error:
        raise StoreIOError(f"{store}: {error.strerror}") from error
    if len(raw) != SUPERBLOCK_SIZE or raw[:8] != SUPERBLOCK_MAGIC:
        raise StoreDamagedError(f"{store}: superblock is none")
    _, fmt, order, uuid, compat, ro_compat, incompat, created_ns, own = _LAYOUT.unpack(raw)
    # The format comes before the checksum: another format may have another checksum.
    if order != BYTE_ORDER_MARK or fmt != FORMAT_VERSION:
        raise FormatError(f"{store}: format version {fmt}, known is {FORMAT_VERSION}")
    if own != record_checksum(raw[:-8]):
        raise StoreDamagedError(f"{store}: checksum of the superblock is wrong")
    if unknown := incompat & ~KNOWN_INCOMPAT:
        raise FormatError(f"{store}: incompatible features {unknown:#x}")
    if unknown := ro_compat & ~KNOWN_RO_COMPAT:
        raise FormatError(f"{store}: features {unknown:#x} that this kaifs cannot write")
    return Superblock(uuid, created_ns, compat, ro_compat, incompat)

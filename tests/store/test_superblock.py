"""The superblock says what a store is, and refuses what this kaifs does not know."""

from pathlib import Path

import pytest

from kaifs.base.digest import record_checksum
from kaifs.base.errors import (
    FormatError,
    KaifsError,
    StoreDamagedError,
    StoreIOError,
    StoreNotFoundError,
)
from kaifs.store.superblock import (
    FORMAT_VERSION,
    SUPERBLOCK_NAME,
    SUPERBLOCK_SIZE,
    Superblock,
    read_superblock,
)

PLAIN = Superblock(bytes(range(16)), 1_234)


def with_bytes(start: int, replacement: bytes, *, sign: bool = True) -> bytes:
    raw = PLAIN.encode()
    raw = raw[:start] + replacement + raw[start + len(replacement) :]
    return raw[:-8] + record_checksum(raw[:-8]) if sign else raw


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    PLAIN.write(tmp_path)

    assert read_superblock(tmp_path) == PLAIN
    assert (tmp_path / SUPERBLOCK_NAME).stat().st_size == SUPERBLOCK_SIZE


def test_features_that_may_be_ignored_are(tmp_path: Path) -> None:
    block = Superblock(PLAIN.uuid, 1, compat=0xFF)
    block.write(tmp_path)

    assert read_superblock(tmp_path) == block


@pytest.mark.parametrize(
    ("raw", "error", "text"),
    [
        (with_bytes(8, (FORMAT_VERSION + 1).to_bytes(4, "little")), FormatError, "version 3"),
        (with_bytes(8, b"\x03", sign=False), FormatError, "version 3"),
        (with_bytes(12, b"\x01\x02\x03\x04"), FormatError, "format"),
        (Superblock(PLAIN.uuid, 1, incompat=1 << 63).encode(), FormatError, "incompatible"),
        (Superblock(PLAIN.uuid, 1, ro_compat=1).encode(), FormatError, "cannot write"),
        (with_bytes(20, b"\xff", sign=False), StoreDamagedError, "checksum"),
        (with_bytes(0, b"NOTKAIFS"), StoreDamagedError, "none"),
        (PLAIN.encode()[:-1], StoreDamagedError, "none"),
        (PLAIN.encode() + b"\0", StoreDamagedError, "none"),
        (b"", StoreDamagedError, "none"),
    ],
    ids=[
        "later format",
        "later format with another checksum",
        "other byte order",
        "unknown incompatible feature",
        "unknown feature for writers",
        "flipped byte",
        "other magic",
        "cut off",
        "too long",
        "empty",
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, raw: bytes, error: type[KaifsError], text: str
) -> None:
    (tmp_path / SUPERBLOCK_NAME).write_bytes(raw)

    with pytest.raises(error, match=text):
        read_superblock(tmp_path)


def test_no_superblock_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(StoreNotFoundError):
            read_superblock(path)


def test_a_superblock_that_the_system_does_not_give_is_an_error_of_the_system(
    tmp_path: Path,
) -> None:
    (tmp_path / SUPERBLOCK_NAME).symlink_to("elsewhere")

    with pytest.raises(StoreIOError):
        read_superblock(tmp_path)

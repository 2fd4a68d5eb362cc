"""Checksums and SHA-256 give the published values, whatever kind of buffer they take."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.digest import (
    CHECKSUM_SIZE,
    RECORD_CHECKSUM_SIZE,
    SHA256_SIZE,
    checksum,
    checksum_of_pieces,
    record_checksum,
    sha256,
)


def test_xxh3_of_nothing_is_the_published_value() -> None:
    """The library's own sanity values for length 0 and seed 0, big-endian as in its canonical form."""
    assert checksum(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert record_checksum(b"").hex() == "2d06800538d394c2"


def test_sha256_is_fips_180_4() -> None:
    assert (
        sha256(b"abc").hexdigest()
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert sha256().digest() == hashlib.sha256(b"").digest()


@given(st.binary(max_size=2000))
def test_sizes_are_the_constants_and_buffers_are_equal(payload: bytes) -> None:
    """A view of bytes has the digest of the bytes: nothing is copied to be hashed."""
    view = memoryview(b"x" + payload)[1:]

    assert len(checksum(payload)) == CHECKSUM_SIZE
    assert len(record_checksum(payload)) == RECORD_CHECKSUM_SIZE
    assert len(sha256(payload).digest()) == SHA256_SIZE
    assert checksum(view) == checksum(payload)
    assert record_checksum(view) == record_checksum(payload)
    assert sha256(view).digest() == sha256(payload).digest()


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_flipped_bit_changes_every_digest(payload: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(payload) * 8 - 1))
    damaged = bytearray(payload)
    damaged[position // 8] ^= 1 << position % 8

    assert checksum(bytes(damaged)) != checksum(payload)
    assert record_checksum(bytes(damaged)) != record_checksum(payload)
    assert sha256(bytes(damaged)).digest() != sha256(payload).digest()


@pytest.mark.parametrize("size", [0, 1, 16, 17, 128, 129, 240, 241, 1024, 1025, 70_000])
def test_digests_differ_between_lengths_of_zeros(size: int) -> None:
    """A run that is cut or grows by one zero byte is another payload."""
    assert checksum(bytes(size)) != checksum(bytes(size + 1))
    assert record_checksum(bytes(size)) != record_checksum(bytes(size + 1))


def test_a_checksum_does_not_depend_on_how_the_bytes_are_cut() -> None:
    payload = bytes(range(256)) * 40

    assert checksum_of_pieces([payload[:7], payload[7:9000], b"", payload[9000:]]) == checksum(
        payload
    )
    assert checksum_of_pieces([]) == checksum(b"")

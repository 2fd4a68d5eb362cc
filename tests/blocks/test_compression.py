"""A payload is stored compressed if that gains something, and comes back as it was."""

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.errors import ChecksumMismatchError
from kaifs.blocks.compression import MIN_GAIN, Codec, Compressor, decode

TEXT = b"a line that repeats itself\n" * 400


def test_without_a_level_nothing_is_compressed() -> None:
    assert Compressor(None).encode(TEXT) == (Codec.NONE, TEXT)


def test_what_gains_is_compressed_and_what_does_not_is_kept() -> None:
    noise = random.Random(1).randbytes(10_000)
    compressor = Compressor(3)

    codec, stored = compressor.encode(TEXT)

    assert codec is Codec.ZSTD
    assert len(stored) < len(TEXT) - len(TEXT) // MIN_GAIN
    assert compressor.encode(noise) == (Codec.NONE, noise)


@given(st.binary(max_size=3000) | st.binary(max_size=30).map(lambda piece: piece * 100))
def test_every_payload_comes_back(payload: bytes) -> None:
    codec, stored = Compressor(1).encode(payload)

    assert decode(codec, bytes(stored), len(payload)) == payload


def test_an_unknown_codec_is_damage() -> None:
    with pytest.raises(ChecksumMismatchError, match="unknown codec 9"):
        decode(9, b"", 0)


@given(st.integers(0, 8 * len(Compressor(3).encode(TEXT)[1]) - 1))
def test_a_flipped_bit_in_a_frame_never_gives_other_bytes_than_damage(position: int) -> None:
    """Also where the frame tells its size: a damaged one must not make us take memory for it."""
    stored = bytearray(Compressor(3).encode(TEXT)[1])
    stored[position // 8] ^= 1 << position % 8

    try:
        payload = decode(Codec.ZSTD, bytes(stored), len(TEXT))
    except ChecksumMismatchError:
        return

    assert len(payload) == len(TEXT)


def test_a_frame_of_another_size_is_damage_before_memory_is_taken() -> None:
    stored = zstandard.ZstdCompressor().compress(TEXT)

    with pytest.raises(ChecksumMismatchError, match="another size"):
        decode(Codec.ZSTD, stored, len(TEXT) - 1)

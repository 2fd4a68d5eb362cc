"""Frames, however the bytes arrive."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.control.frames import FRAME_MAX, FrameError, FrameReader, pack_frame


@given(st.lists(st.binary(max_size=200)), st.integers(1, 50))
def test_bodies_come_out_as_they_went_in_whatever_the_pieces(
    bodies: list[bytes], piece: int
) -> None:
    stream = b"".join(map(pack_frame, bodies))
    reader = FrameReader()

    found = [
        body
        for start in range(0, len(stream), piece)
        for body in reader.feed(stream[start : start + piece])
    ]

    assert found == bodies
    assert reader.is_between_frames


def test_a_length_beyond_the_limit_is_refused_before_its_bytes() -> None:
    with pytest.raises(FrameError):
        list(FrameReader().feed(struct.pack("<I", FRAME_MAX + 1)))
    with pytest.raises(FrameError):
        pack_frame(bytes(FRAME_MAX + 1))

"""Where a file is cut depends on its bytes alone: not on pieces, nor on what is far away."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kaifs.blocks.chunking import CHUNK_MAX, CHUNK_MIN, WHOLE_MAX, Chunker, cut


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


LARGE = noise(5 << 20)


def feed(chunker: Chunker, payload: bytes, pieces: list[int]) -> list[bytes]:
    chunks: list[bytes] = []
    start = 0
    for piece in [*pieces, len(payload)]:
        chunks += chunker.feed(payload[start : start + piece])
        start += piece
    return [*chunks, *chunker.finish()]


def test_nothing_has_no_chunks() -> None:
    assert list(cut(b"")) == []
    assert feed(Chunker(), b"", []) == []


@pytest.mark.parametrize("size", [1, CHUNK_MIN, CHUNK_MIN + 1, WHOLE_MAX])
def test_a_small_file_is_one_chunk(size: int) -> None:
    assert list(cut(LARGE[:size])) == [LARGE[:size]]


def test_chunks_are_the_file_and_keep_their_limits() -> None:
    chunks = list(cut(LARGE))

    assert b"".join(chunks) == LARGE
    assert all(CHUNK_MIN <= len(chunk) <= CHUNK_MAX for chunk in chunks[:-1])
    assert len(chunks) > 8


def test_bytes_without_a_cut_point_are_cut_at_the_greatest_size() -> None:
    assert {len(chunk) for chunk in cut(bytes(3 * CHUNK_MAX))} == {CHUNK_MAX}


@given(
    st.integers(0, len(LARGE)) | st.integers(WHOLE_MAX - 2, WHOLE_MAX + 2),
    st.lists(st.integers(0, 2 << 20), max_size=6),
)
@example(CHUNK_MAX, [CHUNK_MAX])
@example(CHUNK_MAX + 1, [CHUNK_MAX])
@example(WHOLE_MAX + 1, [WHOLE_MAX])
def test_any_pieces_give_the_chunks_of_the_whole(size: int, pieces: list[int]) -> None:
    assert feed(Chunker(), LARGE[:size], pieces) == list(cut(LARGE[:size]))


@given(st.lists(st.integers(0, 2 << 20), min_size=2, max_size=3))
@example([2 << 20, WHOLE_MAX])
def test_after_its_end_a_chunker_cuts_the_next_stream_as_a_new_one_would(sizes: list[int]) -> None:
    """One chunker serves all runs of a sparse file; a run's blocks depend on the run alone."""
    chunker = Chunker()

    for size in sizes:
        assert feed(chunker, LARGE[:size], []) == list(cut(LARGE[:size]))


@pytest.mark.parametrize("inserted", [1, 1000, 70_000])
def test_an_insertion_at_the_front_changes_few_chunks(inserted: int) -> None:
    old = set(cut(LARGE))

    new = list(cut(noise(inserted, 2) + LARGE))

    assert sum(chunk not in old for chunk in new) <= 3

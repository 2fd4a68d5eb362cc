"""Segments hold checksummed records, and what no commit named is cut off."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.digest import checksum, record_checksum
from kaifs.base.errors import ChecksumMismatchError, FormatError, StoreDamagedError
from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks.device import FileDevice
from kaifs.blocks.segments import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    RecordHeader,
    Segments,
    decode_record_header,
    encode_record_header,
    encode_segment_header,
    record_size,
    segment_name,
)

UUID = bytes(range(16))
S1, S2 = SegmentId(1), SegmentId(2)


@pytest.fixture
def segments(tmp_path: Path) -> Iterator[Segments]:
    segments = Segments(FileDevice(tmp_path), UUID, segment_size=1000)
    yield segments
    segments.close()


def header(block: int, payload: bytes) -> RecordHeader:
    return RecordHeader(BlockId(block), 0, len(payload), len(payload), checksum(payload))


headers = st.builds(
    RecordHeader,
    st.integers(0, (1 << 64) - 1).map(BlockId),
    st.integers(0, 255),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
    st.binary(min_size=16, max_size=16),
)


@given(headers)
def test_a_record_header_comes_back(one: RecordHeader) -> None:
    raw = encode_record_header(one)

    assert len(raw) == RECORD_HEADER_SIZE == 48
    assert decode_record_header(raw) == one


@given(headers, st.integers(0, 8 * 48 - 1))
def test_a_flipped_bit_of_a_record_header_is_found(one: RecordHeader, position: int) -> None:
    raw = bytearray(encode_record_header(one))
    raw[position // 8] ^= 1 << position % 8

    with pytest.raises(ChecksumMismatchError):
        decode_record_header(bytes(raw))


def test_a_record_header_that_is_cut_off_is_damage() -> None:
    with pytest.raises(ChecksumMismatchError, match="cut off"):
        decode_record_header(encode_record_header(header(1, b""))[:-1])


@pytest.mark.parametrize(("stored", "size"), [(0, 48), (1, 56), (8, 56), (9, 64)])
def test_records_are_padded_to_eight_bytes(stored: int, size: int) -> None:
    assert record_size(stored) == size


def test_what_is_appended_is_found_by_position_and_by_scan(segments: Segments) -> None:
    assert segments.needs_new
    segments.start(S1)
    places = [segments.append(header(n, b"x" * n), b"x" * n) for n in (1, 8, 30)]

    assert [segment for segment, _ in places] == [S1, S1, S1]
    assert segments.read_stored(S1, places[2][1], 30) == b"x" * 30
    assert segments.read_header(S1, places[1][1]) == header(8, b"x" * 8)
    assert list(segments.scan(S1, segments.sizes[S1])) == [
        (offset, header(n, b"x" * n)) for (_, offset), n in zip(places, (1, 8, 30), strict=True)
    ]


def test_a_segment_is_full_once_it_has_its_size(segments: Segments) -> None:
    segments.start(S1)
    assert not segments.needs_new

    segments.append(header(1, bytes(1000)), bytes(1000))

    assert segments.needs_new
    segments.start(S2)
    assert segments.active == S2


def test_appending_goes_on_nowhere_after_the_active_segment_is_retired(segments: Segments) -> None:
    segments.start(S1)

    segments.retire_active()

    assert segments.needs_new
    assert segments.active is None


def test_reading_past_the_end_of_a_segment_is_damage(segments: Segments) -> None:
    segments.start(S1)
    _, offset = segments.append(header(1, b"abc"), b"abc")

    with pytest.raises(ChecksumMismatchError, match="ends inside"):
        segments.read_stored(S1, offset, 100)


def test_only_what_was_appended_to_must_be_synced(segments: Segments) -> None:
    segments.start(S1)
    first, sizes = segments.unsynced(), dict(segments.sizes)
    segments.sync(first)
    segments.append(header(1, b"later"), b"later")
    segments.forget_unsynced(first, sizes)

    assert segments.unsynced() == {S1}, "it grew while it was synced"

    segments.forget_unsynced(segments.unsynced(), dict(segments.sizes))

    assert segments.unsynced() == frozenset()


def test_recovery_cuts_off_and_deletes_what_no_commit_named(
    segments: Segments, tmp_path: Path
) -> None:
    segments.start(S1)
    segments.append(header(1, b"committed"), b"committed")
    committed = dict(segments.sizes)
    segments.append(header(2, b"torn"), b"torn")
    segments.start(S2)
    (tmp_path / "notes.txt").touch()

    segments.recover(committed, S1)

    assert (tmp_path / segment_name(S1)).stat().st_size == committed[S1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [segment_name(S1), "notes.txt"]
    assert segments.sizes == committed
    assert segments.active == S1
    assert segments.unsynced() == frozenset(), "a segment that is gone is never synced"


def test_recovery_without_segments_leaves_none_to_append_to(segments: Segments) -> None:
    segments.start(S1)

    segments.recover({}, SegmentId(0))

    assert segments.needs_new
    assert segments.active is None


def test_a_segment_shorter_than_committed_is_damage(segments: Segments) -> None:
    segments.start(S1)

    with pytest.raises(StoreDamagedError, match="64 of 65 bytes"):
        segments.recover({S1: 65}, S1)


def test_a_missing_segment_is_damage(segments: Segments) -> None:
    with pytest.raises(StoreDamagedError, match="missing"):
        segments.recover({S1: 64}, S1)


def test_a_healthy_header_passes(segments: Segments) -> None:
    segments.start(S1)

    segments.check_header(S1)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(SEGMENT_HEADER_SIZE),
        encode_segment_header(bytes(16), S1),
        encode_segment_header(UUID, S2),
        encode_segment_header(UUID, S1)[:-1] + b"\0",
    ],
    ids=["empty", "zeros", "another store's", "another segment's", "wrong checksum"],
)
def test_a_header_that_is_damaged_or_foreign_is_refused(
    segments: Segments, tmp_path: Path, raw: bytes
) -> None:
    (tmp_path / segment_name(S1)).write_bytes(raw)

    with pytest.raises(StoreDamagedError):
        segments.check_header(S1)


def test_a_header_of_a_later_format_says_so(segments: Segments, tmp_path: Path) -> None:
    raw = bytearray(encode_segment_header(UUID, S1)[:-8])
    raw[8] = 2
    (tmp_path / segment_name(S1)).write_bytes(bytes(raw) + record_checksum(bytes(raw)))

    with pytest.raises(FormatError, match="format 2"):
        segments.check_header(S1)


def test_a_removed_segment_is_gone_from_the_folder(segments: Segments, tmp_path: Path) -> None:
    segments.start(S1)
    segments.retire_active()

    segments.remove(S1)

    assert list(tmp_path.iterdir()) == []
    assert segments.sizes == {}
    assert segments.unsynced() == frozenset()

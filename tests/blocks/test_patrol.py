"""A patrol finds every record of a segment that is not what its checksum says, from the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kaifs.base.digest import checksum
from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks import patrol as module
from kaifs.blocks.compression import Compressor
from kaifs.blocks.device import FileDevice
from kaifs.blocks.patrol import Seen, patrol
from kaifs.blocks.segments import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    RecordHeader,
    Segments,
    segment_name,
)

NUMBER = SegmentId(1)
PAYLOADS = [b"%d " % number * (number * 700 + 1) for number in range(9)]


@pytest.fixture
def segment(tmp_path: Path) -> tuple[Path, list[int], int]:
    """A segment with blocks and a journal record: its path, where each block is, where it ends."""
    segments = Segments(FileDevice(tmp_path), bytes(16), segment_size=1 << 20)
    segments.start(NUMBER)
    offsets = []
    compressor = Compressor(3)
    for number, payload in enumerate(PAYLOADS):
        codec, stored = compressor.encode(payload) if number % 2 else (0, payload)
        header = RecordHeader(BlockId(number), codec, len(stored), len(payload), checksum(payload))
        offsets.append(segments.append(header, stored)[1])
        segments.append_journal(number, b"journal")
    segments.sync(segments.unsynced())
    stop = segments.sizes[NUMBER]
    segments.close()
    return tmp_path / segment_name(NUMBER), offsets, stop


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 16]))


def whole(path: Path, stop: int) -> tuple[list[Seen], list[tuple[int, int]]]:
    """Return what was seen in all parts, and what of it is damaged."""
    parts: list[Seen] = []
    offset = 0
    while offset < stop and not (parts and parts[-1].is_blind):
        parts.append(patrol(path, offset, stop))
        assert parts[-1].stop > offset or parts[-1].is_blind
        offset = parts[-1].stop
    return parts, [one for part in parts for one in part.damaged]


@pytest.mark.parametrize("unit", [RECORD_HEADER_SIZE, 1000, 5000, 8 << 20])
def test_each_record_is_checked_once_however_little_is_read_at_once(
    segment: tuple[Path, list[int], int], unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, offsets, stop = segment
    monkeypatch.setattr(module, "UNIT", unit)
    for number in (2, 5, 8):
        flip(path, offsets[number] + RECORD_HEADER_SIZE + 3)

    parts, damaged = whole(path, stop)

    assert damaged == [(offsets[number], number) for number in (2, 5, 8)]
    assert parts[-1] == Seen(stop, parts[-1].damaged)
    assert len(parts) == 1 or unit < 10_000


def test_a_damaged_header_hides_what_follows(segment: tuple[Path, list[int], int]) -> None:
    path, offsets, stop = segment
    flip(path, offsets[4] + 9)

    assert patrol(path, 0, stop) == Seen(offsets[4], (), is_blind=True)


def test_a_journal_record_is_of_no_value_any_more(segment: tuple[Path, list[int], int]) -> None:
    path, offsets, stop = segment
    flip(path, offsets[1] - 8)

    assert patrol(path, 0, stop) == Seen(stop)


def test_a_segment_that_is_shorter_has_damaged_blocks(segment: tuple[Path, list[int], int]) -> None:
    path, offsets, stop = segment
    os.truncate(path, offsets[8] + RECORD_HEADER_SIZE + 5)

    parts, damaged = whole(path, stop)

    assert damaged == [(offsets[8], 8)]
    assert parts[-1].is_blind


def test_a_segment_that_is_gone_has_nothing_damaged(tmp_path: Path) -> None:
    assert patrol(tmp_path / "none.seg", SEGMENT_HEADER_SIZE, 999) == Seen(999)


def test_a_disk_that_refuses_hides_what_follows(
    segment: tuple[Path, list[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, stop = segment

    def refuse(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", refuse)

    assert patrol(path, 0, stop) == Seen(SEGMENT_HEADER_SIZE, (), is_blind=True)


def test_where_there_are_no_direct_reads_the_page_cache_has_to_do(
    segment: tuple[Path, list[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, offsets, stop = segment
    flip(path, offsets[3] + RECORD_HEADER_SIZE + 1)
    original: Callable[..., int] = os.open

    def plain(name: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return original(name, flags)

    monkeypatch.setattr(os, "open", plain)

    assert patrol(path, 0, stop) == Seen(stop, ((offsets[3], 3),))

"""Reading segments as the disk has them, past the page cache, and checking every record.

It needs neither index nor lock, only the folder of the segments: records describe
themselves. So it may be done by any thread, or by a process that yields to all
others. Whether anything of value is damaged is for who has the index to say.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from typing import Final, NamedTuple

from kaifs.base.digest import checksum
from kaifs.base.errors import ChecksumMismatchError
from kaifs.blocks.compression import decode
from kaifs.blocks.segments import (
    RECORD_BLOCK,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    RecordHeader,
    decode_record_header,
    record_size,
)

UNIT: Final = 8 << 20
"""Bytes read at once; some 3 ms of a processor."""
_ALIGNMENT: Final = 4096
"""Direct reads begin and end at multiples of so many bytes. Source: open(2), O_DIRECT."""


class Seen(NamedTuple):
    """What is in one part of a segment."""

    stop: int
    """Where the next record begins, or the part ends."""
    damaged: tuple[tuple[int, int], ...] = ()
    """Offset and block id of each record whose payload is not what its checksum says."""
    is_blind: bool = False
    """Whether what follows `stop` cannot be found: a header there is damaged, or the disk refuses."""


def patrol(path: Path, start: int, stop: int) -> Seen:
    """Check the records of the segment *path* from *start* on: some `UNIT` bytes, up to *stop*.

    *start* is where a record begins, or 0. A segment that is gone has nothing damaged.
    """
    first = offset = max(start, SEGMENT_HEADER_SIZE)
    damaged: list[tuple[int, int]] = []
    try:
        window = _read(path, first, min(stop - first, UNIT))
        while offset < stop:
            record = window[offset - first :]
            if len(record) < RECORD_HEADER_SIZE and offset > first:
                break
            header = decode_record_header(record)
            need = record_size(header.stored_size)
            if need > len(record):
                if offset > first:
                    break
                record = _read(path, offset, need)
            stored = record[RECORD_HEADER_SIZE : RECORD_HEADER_SIZE + header.stored_size]
            if header.kind == RECORD_BLOCK and not _is_sound(header, stored):
                damaged.append((offset, header.block))
            offset += need
    except FileNotFoundError:
        return Seen(stop, tuple(damaged))
    except (ChecksumMismatchError, OSError):
        return Seen(offset, tuple(damaged), is_blind=True)
    return Seen(offset, tuple(damaged))


def _is_sound(header: RecordHeader, stored: memoryview) -> bool:
    try:
        payload = decode(header.codec, stored, header.size)
    except ChecksumMismatchError:
        return False
    return len(payload) == header.size and checksum(payload) == header.checksum


_kept = threading.local()


def _aligned(size: int) -> memoryview:
    """Return memory that direct reads can go to. What was returned to this thread before is reused."""
    if getattr(_kept, "size", 0) < size:
        # New pages cost more than the read that goes to them.
        _kept.size = max(size, UNIT + 2 * _ALIGNMENT)
        _kept.pages = memoryview(mmap.mmap(-1, _kept.size))
    pages: memoryview = _kept.pages
    return pages[:size]


def _read(path: Path, offset: int, size: int) -> memoryview:
    """Return *size* bytes at *offset*, fewer at the end of the file; from the disk if that can be."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError:
        # The file system has no such reads.
        fd = os.open(path, flags)
    try:
        begin = offset & -_ALIGNMENT
        end = (offset + size + _ALIGNMENT - 1) & -_ALIGNMENT
        window = _aligned(end - begin)
        count = 0
        while count < len(window) and (got := os.preadv(fd, [window[count:]], begin + count)):
            count += got
            if got % _ALIGNMENT:
                break
        return window[offset - begin : min(count, offset - begin + size)]
    finally:
        os.close(fd)

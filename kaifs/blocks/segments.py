"""Segments: append-only files of checksummed records.

A record describes itself (magic, id, sizes, codec, checksum), so what the index
says of the blocks can be made again from the segments alone. Bytes past what a
commit has named are never read and are cut off when the store is opened.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kaifs.base.digest import record_checksum
from kaifs.base.errors import ChecksumMismatchError, FormatError, StoreDamagedError
from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks.device import Device

SEGMENT_MAGIC: Final = b"KAIFSSEG"
SEGMENT_FORMAT: Final = 1
BYTE_ORDER_MARK: Final = 0x01020304
RECORD_MAGIC: Final = 0x4B424C4B
RECORD_BLOCK: Final = 1
"""The only kind of record so far; readers skip kinds that they do not know."""
ALIGNMENT: Final = 8
"""Records begin at multiples of so many bytes."""

_SEGMENT_HEADER: Final = struct.Struct("<8sII16sQ16x8s")
_RECORD_HEADER: Final = struct.Struct("<IBBHIIQ16s8s")
SEGMENT_HEADER_SIZE: Final = _SEGMENT_HEADER.size
RECORD_HEADER_SIZE: Final = _RECORD_HEADER.size


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What stands before the stored bytes of one block."""

    block: BlockId
    codec: int
    stored_size: int
    """Bytes after the header, without padding."""
    size: int
    """Bytes of payload."""
    checksum: bytes
    """xxh3-128 of the payload."""


def segment_name(segment: SegmentId) -> str:
    """Return the name of a segment's file."""
    return f"{segment:010d}.seg"


def encode_segment_header(uuid: bytes, segment: SegmentId) -> bytes:
    """Return the 64 bytes that a segment begins with."""
    fields = (SEGMENT_MAGIC, SEGMENT_FORMAT, BYTE_ORDER_MARK, uuid, segment)
    unsigned = _SEGMENT_HEADER.pack(*fields, b"")[:-8]
    return unsigned + record_checksum(unsigned)


def encode_record_header(header: RecordHeader) -> bytes:
    """Return the 48 bytes that a record begins with."""
    unsigned = _RECORD_HEADER.pack(
        RECORD_MAGIC,
        RECORD_BLOCK,
        header.codec,
        0,
        header.stored_size,
        header.size,
        header.block,
        header.checksum,
        b"",
    )[:-8]
    return unsigned + record_checksum(unsigned)


def decode_record_header(raw: bytes) -> RecordHeader:
    """Return the header in the first 48 bytes of *raw*.

    Raises:
        ChecksumMismatchError: it is no header, or a damaged one.
    """
    if len(raw) < RECORD_HEADER_SIZE:
        raise ChecksumMismatchError("record header is cut off")
    magic, _, codec, _, stored_size, size, block, checksum, own = _RECORD_HEADER.unpack_from(raw)
    if magic != RECORD_MAGIC or own != record_checksum(raw[: RECORD_HEADER_SIZE - 8]):
        raise ChecksumMismatchError("record header is damaged")
    return RecordHeader(BlockId(block), codec, stored_size, size, checksum)


def record_size(stored_size: int) -> int:
    """Return the bytes that a record takes in its segment, header and padding included."""
    return -(-(RECORD_HEADER_SIZE + stored_size) // ALIGNMENT) * ALIGNMENT


class Segments:
    """The segments of one store: one is appended to, the others only read."""

    def __init__(self, device: Device, uuid: bytes, *, segment_size: int) -> None:
        """Use the files on *device*; a segment of *segment_size* bytes or more is full."""
        self._device = device
        self._uuid = uuid
        self._segment_size = segment_size
        self._active: SegmentId | None = None
        self._tail = 0
        self._unsynced: set[SegmentId] = set()
        self.sizes: dict[SegmentId, int] = {}
        """Bytes of each segment that records take up, the header included."""

    def recover(self, committed: dict[SegmentId, int], last: SegmentId) -> None:
        """Bring the files back to what was *committed*: sizes in bytes by segment.

        Cuts off and deletes what no commit named. *last* is the newest segment
        that may be appended to.

        Raises:
            StoreDamagedError: a segment is missing or shorter than was committed.
        """
        known = {segment_name(segment): segment for segment in committed}
        for name in self._device.names():
            if name not in known and name.endswith(".seg"):
                self._device.remove(name)
        for segment, size in committed.items():
            name = segment_name(segment)
            actual = self._device.size(name)
            if actual < size:
                raise StoreDamagedError(f"segment {name} has {actual} of {size} bytes")
            if actual > size:
                self._device.truncate(name, size)
        self.sizes = dict(committed)
        self._unsynced.clear()
        self._active, self._tail = None, 0
        if last in committed:
            self._active, self._tail = last, committed[last]

    def check_header(self, segment: SegmentId) -> None:
        """Check a segment's own header.

        Raises:
            StoreDamagedError: it is damaged or another store's.
            FormatError: it has a format that is not known.
        """
        name = segment_name(segment)
        raw = self._device.read(name, 0, SEGMENT_HEADER_SIZE)
        if len(raw) < SEGMENT_HEADER_SIZE or raw[-8:] != record_checksum(raw[:-8]):
            raise StoreDamagedError(f"header of segment {name} is damaged")
        magic, fmt, order, uuid, number, _ = _SEGMENT_HEADER.unpack(raw)
        if magic == SEGMENT_MAGIC and (fmt != SEGMENT_FORMAT or order != BYTE_ORDER_MARK):
            raise FormatError(f"segment {name}: format {fmt}")
        if magic != SEGMENT_MAGIC or uuid != self._uuid or number != segment:
            raise StoreDamagedError(f"segment {name} is not of this store")

    @property
    def needs_new(self) -> bool:
        """Whether the next append must be preceded by `start`."""
        return self._active is None or self._tail >= self._segment_size

    def start(self, segment: SegmentId) -> None:
        """Begin a new segment; appends go to it from now on."""
        name = segment_name(segment)
        header = encode_segment_header(self._uuid, segment)
        self._device.create(name)
        self._device.write(name, 0, header)
        self._active, self._tail = segment, len(header)
        self.sizes[segment] = self._tail
        self._unsynced.add(segment)

    def append(self, header: RecordHeader, stored: bytes) -> tuple[SegmentId, int]:
        """Append a record. Return its segment and its position there in bytes.

        Raises:
            NoSpaceError: the disk is full; nothing counts as appended.
        """
        assert self._active is not None, "start a segment first"
        raw = encode_record_header(header) + stored
        size = record_size(header.stored_size)
        if len(raw) < size:
            raw += bytes(size - len(raw))
        segment, offset = self._active, self._tail
        self._device.write(segment_name(segment), offset, raw)
        self._unsynced.add(segment)
        self._tail = self.sizes[segment] = offset + size
        return segment, offset

    def read_stored(self, segment: SegmentId, offset: int, stored_size: int) -> bytes:
        """Return the stored bytes of the record at *offset*.

        Raises:
            ChecksumMismatchError: the segment ends before them.
        """
        start = offset + RECORD_HEADER_SIZE
        stored = self._device.read(segment_name(segment), start, stored_size)
        if len(stored) < stored_size:
            raise ChecksumMismatchError(f"segment {segment} ends inside a block")
        return stored

    def read_header(self, segment: SegmentId, offset: int) -> RecordHeader:
        """Return the header of the record at *offset*.

        Raises:
            ChecksumMismatchError: it is damaged.
        """
        raw = self._device.read(segment_name(segment), offset, RECORD_HEADER_SIZE)
        return decode_record_header(raw)

    def scan(self, segment: SegmentId, stop: int) -> Iterator[tuple[int, RecordHeader]]:
        """Yield position and header of each record before *stop*.

        Raises:
            ChecksumMismatchError: a header is damaged; what follows it cannot be found.
        """
        offset = SEGMENT_HEADER_SIZE
        while offset < stop:
            header = self.read_header(segment, offset)
            yield offset, header
            offset += record_size(header.stored_size)

    def unsynced(self) -> frozenset[SegmentId]:
        """Return the segments that were appended to since they were last synced."""
        return frozenset(self._unsynced)

    def sync(self, segments: frozenset[SegmentId]) -> None:
        """Return when what was appended to *segments* is on disk. Blocks; any thread may call it."""
        for segment in sorted(segments):
            self._device.sync(segment_name(segment))

    def forget_unsynced(self, segments: frozenset[SegmentId], sizes: dict[SegmentId, int]) -> None:
        """Note that *segments* are on disk up to *sizes* bytes."""
        for segment in segments:
            if self.sizes.get(segment) == sizes.get(segment):
                self._unsynced.discard(segment)

    def remove(self, segment: SegmentId) -> None:
        """Delete a segment's file. Only after a commit that names none of its blocks."""
        assert segment != self._active, "the active segment is never removed"
        self.sizes.pop(segment, None)
        self._unsynced.discard(segment)
        self._device.remove(segment_name(segment))

    @property
    def active(self) -> SegmentId | None:
        """The segment that is appended to, None if the next append must start one."""
        return self._active

    def retire_active(self) -> None:
        """Append nothing more to the active segment."""
        self._active = None

    def close(self) -> None:
        """Close the device."""
        self._device.close()

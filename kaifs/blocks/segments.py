"""Segments: append-only files of checksummed records.

A record describes itself (magic, kind, id, sizes, codec, checksum), so what the
index says of the blocks can be made again from the segments alone. What lies past
what a commit has named is read once, when the store is opened: as far as its
journal leads it counts, and the rest is cut off.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from kaifs.base.digest import checksum, record_checksum
from kaifs.base.errors import (
    ChecksumMismatchError,
    FormatError,
    KaifsError,
    StoreDamagedError,
)
from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks.compression import decode
from kaifs.blocks.device import Device

SEGMENT_MAGIC: Final = b"KAIFSSEG"
SEGMENT_FORMAT: Final = 1
BYTE_ORDER_MARK: Final = 0x01020304
RECORD_MAGIC: Final = 0x4B424C4B
RECORD_BLOCK: Final = 1
"""Payload. Readers skip kinds that they do not know."""
RECORD_JOURNAL: Final = 2
"""What changed since the record of this kind before; its number stands in place of a block id."""
ALIGNMENT: Final = 8
"""Records begin at multiples of so many bytes."""

_SEGMENT_HEADER: Final = struct.Struct("<8sII16sQ16x8s")
_RECORD_HEADER: Final = struct.Struct("<IBBHIIQ16s8s")
SEGMENT_HEADER_SIZE: Final = _SEGMENT_HEADER.size
RECORD_HEADER_SIZE: Final = _RECORD_HEADER.size
_NOTHING: Final = memoryview(b"")
_WINDOW: Final = 4 << 20
"""Bytes of a tail that are read at once."""


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What stands before the stored bytes of one record."""

    block: BlockId
    """Of a journal record its sequence number."""
    codec: int
    stored_size: int
    """Bytes after the header, without padding."""
    size: int
    """Bytes of payload."""
    checksum: bytes
    """xxh3-128 of the payload."""
    kind: int = RECORD_BLOCK


class TailRecord(msgspec.Struct, frozen=True, gc=False):
    """A record past what was committed, whole and verified."""

    offset: int
    stop: int
    """Where the next record begins."""
    kind: int
    number: int
    """Block id or sequence number."""
    codec: int
    stored_size: int
    size: int
    checksum: bytes
    stored: memoryview
    """Of a journal record its stored bytes. Those of a block are not kept: there may be many."""


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
        header.kind,
        header.codec,
        0,
        header.stored_size,
        header.size,
        header.block,
        header.checksum,
        b"",
    )[:-8]
    return unsigned + record_checksum(unsigned)


def decode_record_header(raw: bytes | memoryview) -> RecordHeader:
    """Return the header in the first 48 bytes of *raw*.

    Raises:
        ChecksumMismatchError: it is no header, or a damaged one.
    """
    if len(raw) < RECORD_HEADER_SIZE:
        raise ChecksumMismatchError("record header is cut off")
    fields = _RECORD_HEADER.unpack_from(raw)
    magic, kind, codec, _, stored_size, size, block, digest, own = fields
    if magic != RECORD_MAGIC or own != record_checksum(raw[: RECORD_HEADER_SIZE - 8]):
        raise ChecksumMismatchError("record header is damaged")
    return RecordHeader(BlockId(block), codec, stored_size, size, digest, kind)


def record_size(stored_size: int) -> int:
    """Return the bytes that a record takes in its segment, header and padding included."""
    return -(-(RECORD_HEADER_SIZE + stored_size) // ALIGNMENT) * ALIGNMENT


class Segments:
    """The segments of one store: one is appended to, the others only read."""

    def __init__(self, device: Device, uuid: bytes, *, segment_size: int) -> None:
        """Use the files on *device*; a segment of *segment_size* bytes or more is full."""
        self._device = device
        self._uuid = uuid
        self.segment_size = segment_size
        """Bytes after which a segment is full."""
        self._active: SegmentId | None = None
        self._tail = 0
        self._is_torn = False
        """Whether an append that failed left something behind the tail."""
        self._unsynced: set[SegmentId] = set()
        self.sizes: dict[SegmentId, int] = {}
        """Bytes of each segment that records take up, the header included."""

    def recover(self, committed: dict[SegmentId, int], last: SegmentId) -> int:
        """Bring the files back to what was *committed*: sizes in bytes by segment.

        Cuts off and deletes what no commit named. *last* is the newest segment
        that may be appended to.

        Returns:
            The bytes that were cut off.

        Raises:
            StoreDamagedError: a segment is missing or shorter than was committed.
        """
        known = {segment_name(segment): segment for segment in committed}
        cut = 0
        for name in self._device.names():
            if name not in known and name.endswith(".seg"):
                cut += self._device.size(name)
                self._device.remove(name)
        for segment, size in committed.items():
            name = segment_name(segment)
            actual = self._device.size(name)
            if actual < size:
                raise StoreDamagedError(f"segment {name} has {actual} of {size} bytes")
            if actual > size:
                cut += actual - size
                self._device.truncate(name, size)
        self._unsynced = {one for one in self._unsynced if self.sizes[one] == committed.get(one)}
        self.sizes = dict(committed)
        self._active, self._tail, self._is_torn = None, 0, False
        if last in committed:
            self._active, self._tail = last, committed[last]
        return cut

    def tails(self, committed: dict[SegmentId, int], fresh: SegmentId) -> list[SegmentId]:
        """Return the segments that were appended to since a commit, in that order.

        Args:
            committed: What it named: sizes in bytes by segment.
            fresh: The id that the next segment would have got then. A file with a smaller one
                that was not named is what gc had emptied.

        Raises:
            StoreDamagedError: a segment is missing or shorter than was committed.
        """
        self.sizes = dict(committed)
        found = []
        for segment, size in sorted(committed.items()):
            actual = self._device.size(segment_name(segment))
            if actual < size:
                text = f"segment {segment_name(segment)} has {actual} of {size} bytes"
                raise StoreDamagedError(text)
            if actual > size:
                found.append(segment)
        new = []
        for name in self._device.names():
            stem, _, suffix = name.partition(".")
            # A file without a whole header is a segment that could not be begun.
            is_new = suffix == "seg" and stem.isdecimal() and int(stem) >= fresh
            if is_new and self._device.size(name) >= SEGMENT_HEADER_SIZE:
                new.append(SegmentId(int(stem)))
                self._device.adopt(name)
        return found[-1:] + sorted(new)

    def tail(self, segment: SegmentId, start: int | None = None) -> Iterator[TailRecord]:
        """Yield the records of *segment* that were not committed, as far as all are whole.

        They begin at *start*, or where `sizes` says.

        Raises:
            ChecksumMismatchError: what follows the last one is no whole record.
        """
        name = segment_name(segment)
        if segment not in self.sizes:
            self.check_header(segment)
        offset = self.sizes.get(segment, SEGMENT_HEADER_SIZE) if start is None else start
        # Every acknowledged change comes through here after a crash: what a call or an
        # attribute costs counts a hundred thousand times.
        unpack, check_header, check = _RECORD_HEADER.unpack_from, record_checksum, checksum
        need = RECORD_HEADER_SIZE
        while window := self._device.read(name, offset, max(need, _WINDOW)):
            if len(window) < need:
                raise ChecksumMismatchError(f"segment {segment}: cut off at {offset}")
            view, last = memoryview(window), len(window)
            place, need = 0, RECORD_HEADER_SIZE
            while (begin := place + RECORD_HEADER_SIZE) <= last:
                magic, kind, codec, _, stored_size, size, number, digest, own = unpack(
                    window, place
                )
                if magic != RECORD_MAGIC or own != check_header(window[place : begin - 8]):
                    text = f"segment {segment}: no record at {offset + place}"
                    raise ChecksumMismatchError(text)
                need = (RECORD_HEADER_SIZE + stored_size + ALIGNMENT - 1) & -ALIGNMENT
                stop = place + need
                if stop > last:
                    break
                stored = view[begin : begin + stored_size]
                payload = stored if codec == 0 else decode(codec, bytes(stored), size)
                if len(payload) != size or check(payload) != digest:
                    text = f"segment {segment}: damage at {offset + place}"
                    raise ChecksumMismatchError(text)
                yield TailRecord(
                    offset + place,
                    offset + stop,
                    kind,
                    number,
                    codec,
                    stored_size,
                    size,
                    digest,
                    stored if kind == RECORD_JOURNAL else _NOTHING,
                )
                place, need = stop, RECORD_HEADER_SIZE
            offset += place

    def excess(self) -> int:
        """Return the bytes in files of segments that `sizes` does not count."""
        sizes = {segment_name(segment): size for segment, size in self.sizes.items()}
        names = [name for name in self._device.names() if name.endswith(".seg")]
        return sum(self._device.size(name) - sizes.get(name, 0) for name in names)

    def extend(self, segment: SegmentId, size: int) -> None:
        """Count *segment* up to *size* bytes, as if it had just been appended to."""
        self.sizes[segment] = size
        self._unsynced.add(segment)

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

    def files(self) -> list[SegmentId]:
        """Return the segments that have a file, named by a commit or not."""
        stems = [name.partition(".") for name in self._device.names()]
        return [
            SegmentId(int(stem))
            for stem, _, suffix in stems
            if suffix == "seg" and stem.isdecimal()
        ]

    def find_size(self, segment: SegmentId) -> int | None:
        """Return the bytes of a segment's file, None if there is none."""
        name = segment_name(segment)
        return self._device.size(name) if name in self._device.names() else None

    def write_record_header(self, segment: SegmentId, offset: int, header: RecordHeader) -> None:
        """Write the header of the record at *offset* anew; its stored bytes are not touched."""
        self._device.write(segment_name(segment), offset, encode_record_header(header))
        self._unsynced.add(segment)

    def write_header(self, segment: SegmentId) -> None:
        """Write a segment's own header anew; nothing after it is touched."""
        self._device.write(segment_name(segment), 0, encode_segment_header(self._uuid, segment))
        self._unsynced.add(segment)

    @property
    def needs_new(self) -> bool:
        """Whether the next append must be preceded by `start`."""
        return self._active is None or self._tail >= self.segment_size

    def start(self, segment: SegmentId) -> None:
        """Begin a new segment; appends go to it from now on."""
        if self._is_torn and self._active is not None:
            # Nothing but records may be in a segment that others follow.
            self._device.truncate(segment_name(self._active), self._tail)
        name = segment_name(segment)
        header = encode_segment_header(self._uuid, segment)
        self._device.create(name)
        try:
            self._device.write(name, 0, header)
        except KaifsError:
            with suppress(KaifsError):
                self._device.remove(name)
            raise
        self._active, self._tail, self._is_torn = segment, len(header), False
        self.sizes[segment] = self._tail
        self._unsynced.add(segment)

    def append(self, header: RecordHeader, stored: bytes | memoryview) -> tuple[SegmentId, int]:
        """Append a record. Return its segment and its position there in bytes.

        Raises:
            NoSpaceError: the disk is full; nothing counts as appended.
        """
        return self._append(encode_record_header(header), stored)

    def append_journal(self, sequence: int, record: bytes) -> tuple[SegmentId, int]:
        """Append a journal record. As `append`."""
        size = len(record)
        unsigned = _RECORD_HEADER.pack(
            RECORD_MAGIC, RECORD_JOURNAL, 0, 0, size, size, sequence, checksum(record), b""
        )[:-8]
        return self._append(unsigned + record_checksum(unsigned), record)

    def _append(self, header: bytes, stored: bytes | memoryview) -> tuple[SegmentId, int]:
        segment, offset = self._active, self._tail
        assert segment is not None, "start a segment first"
        raw = b"".join((header, stored, bytes(-(len(header) + len(stored)) % ALIGNMENT)))
        try:
            self._device.write(segment_name(segment), offset, raw)
        except KaifsError:
            self._is_torn = True
            with suppress(KaifsError):
                self._device.truncate(segment_name(segment), offset)
                self._is_torn = False
            raise
        self._unsynced.add(segment)
        self._tail = self.sizes[segment] = offset + len(raw)
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

    def is_cached(self, segment: SegmentId, offset: int, stored_size: int) -> bool:
        """Return whether `read_stored` need not wait for the disk, as `Device.is_cached`."""
        start = offset + RECORD_HEADER_SIZE
        return self._device.is_cached(segment_name(segment), start, stored_size)

    def fetcher(self, records: Iterable[tuple[SegmentId, int, int]]) -> Callable[[], None]:
        """Return what brings the stored bytes of *records* into memory, as `Device.fetcher`.

        They are given as arguments of `read_stored`.
        """
        return self._device.fetcher(
            [
                (segment_name(segment), offset + RECORD_HEADER_SIZE, stored_size)
                for segment, offset, stored_size in records
            ]
        )

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
        self.forget(segment)
        self._device.remove(segment_name(segment))

    def forget(self, segment: SegmentId) -> None:
        """Count a segment no more, whose file is to be deleted later."""
        assert segment != self._active, "the active segment is never removed"
        self.sizes.pop(segment, None)
        self._unsynced.discard(segment)

    @property
    def active(self) -> SegmentId | None:
        """The segment that is appended to, None if the next append must start one."""
        return self._active

    def retire_active(self) -> None:
        """Append nothing more to the active segment.

        Raises:
            StoreIOError: what an append that failed left there cannot be cut off.
        """
        if self._is_torn and self._active is not None:
            self._device.truncate(segment_name(self._active), self._tail)
            self._is_torn = False
        self._active = None

    def close(self) -> None:
        """Close the device."""
        self._device.close()

"""The second copy of the index: a log of its commits, each in compressed frames.

A log takes half the room of an LMDB file with the same records, is only appended
to, and is read from front to back alone: to look one record up all of it is read.
That is what a copy for bad times may cost. When the log has grown to twice what a
new one would be, a new one is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from kaifs.base.digest import checksum, record_checksum
from kaifs.base.errors import NoSpaceError, StoreDamagedError, StoreIOError
from kaifs.base.zstd import expand
from kaifs.linux.files import fsync_directory
from kaifs.meta.database import Changes, Table

MIRROR_MAGIC: Final = b"KAIFSMIR"
MIRROR_FORMAT: Final = 1
MIRROR_HEADER_SIZE: Final = 32
FRAME_MAGIC: Final = 0x4D52464B
FRAME_HEADER_SIZE: Final = 48
CONTENT_MAX: Final = 4 << 20
"""Bytes of keys and records after which a commit goes on in another frame."""
_COUNTED: Final = 64
"""Records that are taken into a frame at once."""
_LEVEL: Final = 1
_HEADER: Final = struct.Struct("<8sI12x8s")
_FRAME: Final = struct.Struct("<IIQII16s8s")
assert _HEADER.size == MIRROR_HEADER_SIZE
assert _FRAME.size == FRAME_HEADER_SIZE


@dataclass(frozen=True, slots=True)
class _Commit:
    """Where one commit is in the log."""

    sequence: int
    begin: int
    stop: int


Records = dict[str, dict[bytes, bytes | None]]
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Records)


class Mirror:
    """An open log. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        """Open the log *path*; what is no whole commit at its end is cut off.

        Raises:
            StoreDamagedError: it is missing, or no log.
            StoreIOError: the system refuses.
        """
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreDamagedError("mirror of the index is missing") from error
        except OSError as error:
            raise _failure(error) from error
        self.sequence = 0
        """Number of the last commit."""
        try:
            self.size = self._recover()
        except BaseException:
            self.close()
            raise
        self.fresh_size = self.size
        """Bytes of the log when it was last written anew, or opened."""

    @classmethod
    def make(cls, path: Path, sequence: int, commits: Iterable[Changes]) -> Mirror:
        """Put a new log that holds *commits* in the place of *path*, durably, and open it.

        All of them together count as the commit *sequence*.

        Raises:
            NoSpaceError, StoreIOError: the system refuses; what was there still is.
        """
        fresh = path.with_suffix(".tmp")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                unsigned = _HEADER.pack(MIRROR_MAGIC, MIRROR_FORMAT, b"")[:-8]
                file.write(unsigned + record_checksum(unsigned))
                for changes in commits:
                    for frame in _frames(sequence, changes, is_last=False):
                        file.write(frame)
                for frame in _frames(sequence, {}, is_last=True):
                    file.write(frame)
                file.flush()
                os.fsync(file.fileno())
            os.rename(fresh, path)
            fsync_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise _failure(error) from error
        return cls(path)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def append(self, sequence: int, changes: Changes) -> None:
        """Add a commit; it is on disk when this returns.

        Raises:
            NoSpaceError, StoreIOError: the system refuses; the log is what it was.
        """
        size = self.size
        try:
            for frame in _frames(sequence, changes, is_last=True):
                rest = memoryview(frame)
                while rest:
                    written = os.pwrite(self._fd, rest, size)
                    size += written
                    rest = rest[written:]
            os.fdatasync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise _failure(error) from error
        self.size, self.sequence = size, sequence

    def commits(self) -> Iterator[Records]:
        """Yield what was changed, frame by frame, oldest first.

        Raises:
            StoreDamagedError: a frame is not what it was.
        """
        return self._read(MIRROR_HEADER_SIZE)

    def _read(self, offset: int) -> Iterator[Records]:
        while offset < self.size:
            stored_size, size, digest = self._frame(offset)[2:]
            stored = os.pread(self._fd, stored_size, offset + FRAME_HEADER_SIZE)
            if checksum(stored) != digest:
                raise StoreDamagedError(f"mirror of the index is damaged at {offset}")
            yield _expand(stored, size)
            offset += FRAME_HEADER_SIZE + stored_size

    def find(self, table: Table, key: bytes) -> bytes | None:
        """Return the record at *key*, None if there is none. Reads all of the log.

        Raises:
            StoreDamagedError: a frame is not what it was.
        """
        found = None
        for records in self.commits():
            changed = records.get(table.value, {})
            if key in changed:
                found = changed[key]
        return found

    def records(self, table: Table) -> dict[bytes, bytes]:
        """Return all records of *table*. Reads all of the log. As `find`."""
        found: dict[bytes, bytes] = {}
        for records in self.commits():
            for key, record in records.get(table.value, {}).items():
                if record is None:
                    found.pop(key, None)
                else:
                    found[key] = record
        return found

    def fault(self) -> str:
        """Return what is wrong with the log, nothing if it is as it was written. Reads all of it."""
        try:
            for _ in self.commits():
                pass
        except StoreDamagedError as error:
            return error.subject
        return ""

    def _recover(self) -> int:
        """Return where the last whole commit ends."""
        header = os.pread(self._fd, MIRROR_HEADER_SIZE, 0)
        if (
            len(header) < MIRROR_HEADER_SIZE
            or header[:8] != MIRROR_MAGIC
            or header[-8:] != record_checksum(header[:-8])
        ):
            raise StoreDamagedError("mirror of the index is none")
        end = os.fstat(self._fd).st_size
        commits = [_Commit(0, MIRROR_HEADER_SIZE, MIRROR_HEADER_SIZE)]
        offset = begin = MIRROR_HEADER_SIZE
        while offset < end:
            try:
                is_last, sequence, stored_size, _, _ = self._frame(offset)
            except StoreDamagedError:
                break
            offset += FRAME_HEADER_SIZE + stored_size
            if is_last and offset <= end:
                commits = [commits[-1], _Commit(sequence, begin, offset)]
                begin = offset
        # What was synced is whole; the last append may not have been.
        if len(commits) > 1 and commits[1].begin > MIRROR_HEADER_SIZE:
            self.size = commits[1].stop
            if not self._is_whole(commits[1]):
                del commits[1]
        last = commits[-1]
        self.sequence = last.sequence
        if last.stop < end:
            os.ftruncate(self._fd, last.stop)
        return last.stop

    def _is_whole(self, commit: _Commit) -> bool:
        try:
            for _ in self._read(commit.begin):
                pass
        except StoreDamagedError:
            return False
        return True

    def _frame(self, offset: int) -> tuple[bool, int, int, int, bytes]:
        raw = os.pread(self._fd, FRAME_HEADER_SIZE, offset)
        if len(raw) == FRAME_HEADER_SIZE:
            magic, is_last, sequence, stored_size, size, digest, own = _FRAME.unpack(raw)
            if magic == FRAME_MAGIC and own == record_checksum(raw[:-8]):
                return bool(is_last), sequence, stored_size, size, digest
        raise StoreDamagedError(f"mirror of the index is damaged at {offset}")


def _frames(sequence: int, changes: Changes, *, is_last: bool) -> Iterator[bytes]:
    """Yield *changes* as frames; the last of them ends the commit if *is_last*."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    portions = list(_portions(changes)) or ([{}] if is_last else [])
    for number, portion in enumerate(portions, 1):
        content = _encode(portion)
        stored = compressor.compress(content)
        ends = is_last and number == len(portions)
        fields = (FRAME_MAGIC, ends, sequence, len(stored), len(content), checksum(stored), b"")
        unsigned = _FRAME.pack(*fields)[:-8]
        yield unsigned + record_checksum(unsigned) + stored


def _portions(changes: Changes) -> Iterator[Records]:
    portion: Records = {}
    size = 0
    for table, records in changes.items():
        items = iter(records.items())
        while some := dict(islice(items, _COUNTED)):
            portion.setdefault(table.value, {}).update(some)
            size += sum(map(len, some)) + sum(map(len, filter(None, some.values())))
            if size >= CONTENT_MAX:
                yield portion
                portion, size = {}, 0
    if portion:
        yield portion


def _expand(stored: bytes, size: int) -> Records:
    try:
        return _decoder.decode(expand(stored, size, size))
    except (ValueError, msgspec.MsgspecError) as error:
        raise StoreDamagedError(f"mirror of the index is unreadable: {error}") from error


def _failure(error: OSError) -> NoSpaceError | StoreIOError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(str(error))
    return StoreIOError(str(error))

"""What segments are written to: a folder of append-only files.

A protocol, so that a test can put a device below the store that loses, tears
and reorders what was not synced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from kaifs.base.errors import NoSpaceError, StoreDamagedError, StoreIOError


class Device(Protocol):
    """A flat folder of files. Errors are `NoSpaceError` or `StoreIOError`."""

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        ...

    def create(self, name: str) -> None:
        """Make an empty file whose name survives power loss from the next `sync` of it on."""
        ...

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        ...

    def write(self, name: str, offset: int, payload: bytes) -> None:
        """Write all of *payload* at *offset*, or raise."""
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return up to *size* bytes from *offset*; fewer only at the end of the file."""
        ...

    def is_cached(self, name: str, offset: int, size: int) -> bool:
        """Return whether `read` need not wait for the disk; else the disk is asked, without a wait."""
        ...

    def fetcher(self, ranges: Sequence[tuple[str, int, int]]) -> Callable[[], None]:
        """Return what brings *ranges* (name, offset, size) into memory; any thread may call it.

        It blocks for the disk. What cannot be read is for `read` to tell.
        """
        ...

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to *size* bytes."""
        ...

    def sync(self, name: str) -> None:
        """Return when a file's bytes and its name are on disk. May block."""
        ...

    def adopt(self, name: str) -> None:
        """Take over a file that another process made: its next `sync` makes its name durable."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class FileDevice:
    """A real folder. Never follows a symbolic link."""

    def __init__(self, folder: Path) -> None:
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failure(error) from error
        self._path = folder
        self._files: dict[str, int] = {}
        self._unsynced_names: set[str] = set()
        self._tells_cached = True
        """Whether the system can read what is in memory alone; false on some file systems."""
        self._byte = [bytearray(1)]

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        return sorted(os.listdir(self._folder))

    def create(self, name: str) -> None:
        """Make an empty file; its name is made durable by its first `sync`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._files[name] = os.open(name, flags, 0o600, dir_fd=self._folder)
        except OSError as error:
            raise _failure(error) from error
        self._unsynced_names.add(name)

    def _open(self, name: str) -> int:
        fd = self._files.get(name)
        if fd is None:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                fd = self._files[name] = os.open(name, flags, dir_fd=self._folder)
            except FileNotFoundError as error:
                raise StoreDamagedError(f"segment file {name} is missing") from error
            except OSError as error:
                raise _failure(error) from error
        return fd

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return os.fstat(self._open(name)).st_size

    def write(self, name: str, offset: int, payload: bytes) -> None:
        """Write all of *payload* at *offset*, or raise."""
        fd = self._open(name)
        try:
            written = os.pwrite(fd, payload, offset)
            while written < len(payload):
                # A short write is the disk filling up; the next one tells the error.
                written += os.pwrite(fd, memoryview(payload)[written:], offset + written)
        except OSError as error:
            raise _failure(error) from error

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return up to *size* bytes from *offset*."""
        try:
            return os.pread(self._open(name), size, offset)
        except OSError as error:
            raise _failure(error) from error

    def is_cached(self, name: str, offset: int, size: int) -> bool:
        """Return whether first and last byte are in memory, by RWF_NOWAIT of preadv2(2)."""
        if not self._tells_cached:
            return True
        fd = self._open(name)
        try:
            os.preadv(fd, self._byte, offset, os.RWF_NOWAIT)
            os.preadv(fd, self._byte, offset + size - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)
            return False
        except OSError as error:
            # What else is wrong is for `read` to find.
            self._tells_cached = error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
        return True

    def fetcher(self, ranges: Sequence[tuple[str, int, int]]) -> Callable[[], None]:
        """Return what brings *ranges* into memory. It opens files anew: ours may be closed by then."""

        def fetch() -> None:
            for name, offset, size in ranges:
                with suppress(OSError), open(self._path / name, "rb", buffering=0) as file:
                    os.pread(file.fileno(), size, offset)

        return fetch

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to *size* bytes."""
        try:
            os.ftruncate(self._open(name), size)
        except OSError as error:
            raise _failure(error) from error

    def sync(self, name: str) -> None:
        """Make the bytes durable and, if the file is new, its name."""
        try:
            os.fdatasync(self._open(name))
            if name in self._unsynced_names:
                os.fsync(self._folder)
                self._unsynced_names.discard(name)
        except OSError as error:
            raise _failure(error) from error

    def adopt(self, name: str) -> None:
        """Let the next `sync` of a file that another process made make its name durable."""
        self._unsynced_names.add(name)

    def remove(self, name: str) -> None:
        """Delete a file."""
        fd = self._files.pop(name, None)
        if fd is not None:
            os.close(fd)
        try:
            os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _failure(error) from error

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _failure(error: OSError) -> NoSpaceError | StoreIOError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(str(error))
    return StoreIOError(str(error))

"""What segments are written to: a folder of append-only files.

A protocol, so that a test can put a device below the store that loses, tears
and reorders what was not synced.
"""

from __future__ import annotations

import errno
import os
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
        self._files: dict[str, int] = {}
        self._unsynced_names: set[str] = set()

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

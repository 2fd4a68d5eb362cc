"""Reads a folder of the host as items, for an import. Runs in the caller's process.

The walk goes from descriptor to descriptor and never follows a symbolic link,
so whoever renames things under it cannot lead it elsewhere. A FIFO, socket or
device is told but never opened. Whatever changes while it is read ends the
import: a version is one state of the folder, not a mixture of two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.base.errors import SourceChangedError, SourceError
from kaifs.linux.mounts import mounts
from kaifs.service.steps import CHUNK_SIZE, Data, End, Entry, Item, Total

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_DIRECTORY: Final = _OPEN | os.O_DIRECTORY
_NO_ATTRIBUTES: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
_OUR_ATTRIBUTES: Final = b"user.kaifs."
_OUR_FILE_SYSTEM: Final = "kaifs"


@dataclass(slots=True)
class _Frame:
    """One directory that the walk is in."""

    fd: int
    status: os.stat_result
    path: bytes
    names: Iterator[bytes]


class HostSource:
    """The folder at *path* as an iterator of items.

    Nothing is opened before the first item is asked for.

    Args:
        path: The folder. A symbolic link to it is followed.
        store: The store that takes it in; must not lie inside.
        count: Whether to count first, so that progress has a total.
    """

    def __init__(self, path: Path, store: Path, *, count: bool = False) -> None:
        self._path = path
        self._store = store
        self._count = count
        self._seen_links: set[tuple[int, int]] = set()
        self._store_identity: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Item]:
        """Yield the items of the folder, `End` last.

        Raises:
            SourceError: the folder cannot be read, or contains the store or a mount of kaifs.
            SourceChangedError: something changed while it was read.
        """
        self._refuse_store_inside()
        top = self._open_top()
        try:
            if self._count:
                yield self._total(top)
            status = os.fstat(top)
            yield _entry(b"", status, _xattrs(top))
            yield from self._walk(top, status)
        finally:
            os.close(top)
        yield End()

    def _open_top(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._path}: {_reason(error)}") from error

    def _refuse_store_inside(self) -> None:
        """Check that the store is not below the folder, whatever links lead to either."""
        try:
            status = os.stat(self._store)
        except OSError:
            return
        self._store_identity = (status.st_dev, status.st_ino)
        folder = os.path.realpath(self._path)
        store = os.path.realpath(self._store)
        if os.path.commonpath([folder, store]) == folder:
            raise SourceError(f"{self._path}: the store {store} lies inside")

    def _total(self, top: int) -> Total:
        """Count files and bytes below the open directory *top*; what cannot be read counts 0."""
        files = size = 0
        pending = [os.dup(top)]
        try:
            while pending:
                directory = pending.pop()
                try:
                    with os.scandir(directory) as entries:
                        for entry in entries:
                            files += 1
                            with contextlib.suppress(OSError):
                                if entry.is_dir(follow_symlinks=False):
                                    pending.append(
                                        os.open(entry.name, _OPEN_DIRECTORY, dir_fd=directory)
                                    )
                                elif entry.is_file(follow_symlinks=False):
                                    size += entry.stat(follow_symlinks=False).st_size
                finally:
                    os.close(directory)
        finally:
            for directory in pending:
                os.close(directory)
        return Total(files, size)

    def _walk(self, top: int, status: os.stat_result) -> Iterator[Item]:
        """Yield what is below the open directory *top*, which was as *status* when told."""
        # One frame a level instead of recursion: the host may nest deeper than Python does.
        frames = [_Frame(top, status, b"", iter(self._names(top, b"")))]
        try:
            while frames:
                frame = frames[-1]
                name = next(frame.names, None)
                if name is None:
                    self._require_unchanged(frame.status, os.fstat(frame.fd), frame.path)
                    frames.pop()
                    if frames:
                        os.close(frame.fd)
                    continue
                path = frame.path + b"/" + name if frame.path else name
                try:
                    child = yield from self._name(frame, name, path)
                except OSError as error:
                    if error.errno in _GONE:
                        raise SourceChangedError(self._shown(path)) from error
                    raise SourceError(f"{self._shown(path)}: {_reason(error)}") from error
                if child is not None:
                    frames.append(child)
        finally:
            for frame in frames[1:]:
                os.close(frame.fd)

    def _names(self, fd: int, path: bytes) -> list[bytes]:
        try:
            return sorted(map(os.fsencode, os.listdir(fd)))
        except OSError as error:
            raise SourceError(f"{self._shown(path)}: {_reason(error)}") from error

    def _name(
        self, parent: _Frame, name: bytes, path: bytes
    ) -> Generator[Item, None, _Frame | None]:
        """Yield the items of *name*; return the frame of a directory, still to be walked."""
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            fd = _open(name, parent.fd, directory=True)
            try:
                self._require_unchanged(status, os.fstat(fd), path)
                if status.st_dev != parent.status.st_dev:
                    self._refuse_our_mount(status, path)
                self._refuse_store(status, path)
                yield _entry(path, status, _xattrs(fd))
                return _Frame(fd, status, path, iter(self._names(fd, path)))
            except BaseException:
                os.close(fd)
                raise
        if kind == stat.S_IFREG:
            fd = _open(name, parent.fd, directory=False)
            try:
                self._require_unchanged(status, os.fstat(fd), path)
                yield from self._file(fd, status, path)
            finally:
                os.close(fd)
            return None
        target = os.readlink(name, dir_fd=parent.fd) if kind == stat.S_IFLNK else b""
        link, _ = self._link(status)
        xattrs = _xattrs(b"/proc/self/fd/%d/%b" % (parent.fd, name))
        yield _entry(path, status, xattrs, target=target, link=link)
        return None

    def _file(self, fd: int, status: os.stat_result, path: bytes) -> Iterator[Item]:
        """Yield the regular file *fd*: its entry, and its bytes if no other name had them."""
        link, is_first = self._link(status)
        yield _entry(path, status, _xattrs(fd), link=link)
        if not is_first:
            return
        for start, stop in _data_ranges(fd, status):
            offset = start
            while offset < stop:
                payload = os.pread(fd, min(CHUNK_SIZE, stop - offset), offset)
                if not payload:
                    raise SourceChangedError(self._shown(path))
                yield Data(offset, payload)
                offset += len(payload)
        self._require_unchanged(status, os.fstat(fd), path)

    def _link(self, status: os.stat_result) -> tuple[tuple[int, int] | None, bool]:
        """Return the identity of a file with several names, and whether this is the first."""
        if status.st_nlink < 2:
            return None, True
        identity = (status.st_dev, status.st_ino)
        is_first = identity not in self._seen_links
        self._seen_links.add(identity)
        return identity, is_first

    def _require_unchanged(
        self, before: os.stat_result, after: os.stat_result, path: bytes
    ) -> None:
        if _state(before) != _state(after):
            raise SourceChangedError(self._shown(path))

    def _refuse_store(self, status: os.stat_result, path: bytes) -> None:
        if (status.st_dev, status.st_ino) == self._store_identity:
            raise SourceError(f"{self._shown(path)}: the store lies inside")

    def _refuse_our_mount(self, status: os.stat_result, path: bytes) -> None:
        if any(
            mount.device == status.st_dev and _OUR_FILE_SYSTEM in mount.fstype for mount in mounts()
        ):
            raise SourceError(f"{self._shown(path)}: a kaifs is mounted inside")

    def _shown(self, path: bytes) -> str:
        full = os.path.join(os.fsencode(self._path), path) if path else os.fsencode(self._path)
        return full.decode("utf-8", "backslashreplace")


def _open(name: bytes, parent: int, *, directory: bool) -> int:
    """Open *name* for reading, without touching its access time if the system lets us."""
    flags = _OPEN_DIRECTORY if directory else _OPEN
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=parent)
    except PermissionError:
        # O_NOATIME is for the file's owner and CAP_FOWNER only. Source: open(2).
        return os.open(name, flags, dir_fd=parent)


def _data_ranges(fd: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield the half-open ranges of *fd* that are not holes."""
    size = status.st_size
    if status.st_blocks * 512 >= size:
        if size:
            yield 0, size
        return
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno == errno.EINVAL:
                yield offset, size
                return
            raise
        if start >= size:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, stop
        offset = stop


def _entry(
    path: bytes,
    status: os.stat_result,
    xattrs: tuple[tuple[bytes, bytes], ...],
    *,
    target: bytes = b"",
    link: tuple[int, int] | None = None,
) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    return Entry(
        path=path,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind == stat.S_IFREG else 0,
        rdev=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        xattrs=xattrs,
        target=target,
        link=link,
    )


def _xattrs(what: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the extended attributes of a descriptor, or of a path without following it."""
    follow = isinstance(what, int)
    try:
        names = os.listxattr(what, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return ()
        raise
    found = []
    for name in sorted(map(os.fsencode, names)):
        if name.startswith(_OUR_ATTRIBUTES):
            continue
        try:
            found.append((name, os.getxattr(what, name, follow_symlinks=follow)))
        except OSError as error:
            # Listed but closed to this caller, or taken away in between; a change of an
            # attribute changes ctime, which the caller of this compares.
            if error.errno not in _NO_ATTRIBUTES and error.errno != errno.ENODATA:
                raise
    return tuple(found)


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what is different once a file or directory has been changed."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)

"""Writes items to a folder of the host or into a tar stream. Runs in the caller's process.

The folder's files are made with the caller's own rights, one descriptor below
the other, never through a symbolic link and never over something that exists.
An export that fails takes away what it made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kaifs.base.errors import TargetError
from kaifs.service.steps import Data, End, Entry, Item, ItemStream

_NO_FOLLOW: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW
_NOT_OURS: Final = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP})
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_TAR_BLOCK: Final = 512
_ZEROS: Final = bytes(1 << 16)


class Target(Protocol):
    """Where an export goes."""

    skipped: list[str]
    """What could not be kept, a line each."""

    def take(self, item: Item) -> None:
        """Write *item*."""
        ...

    def abandon(self) -> None:
        """Take away what was written, as far as that is possible."""
        ...


def feeder(target: Target) -> Callable[[bytes], None]:
    """Return what takes an export's framed output and hands its items to *target*."""
    stream = ItemStream()

    def feed(payload: bytes) -> None:
        for item in stream.feed(payload):
            target.take(item)

    return feed


@dataclass(slots=True)
class _Directory:
    """One directory that the export is in."""

    fd: int
    path: bytes
    entry: Entry


class FolderTarget:
    """A folder that is new or empty.

    Raises:
        TargetError: it is neither, or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.skipped: list[str] = []
        self._is_root = os.geteuid() == 0
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._file: tuple[int, Entry] | None = None
        self._directories: list[_Directory] = []
        self._is_complete = False
        try:
            self._is_new = _make_folder(path)
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise TargetError(f"{path}: {_reason(error)}") from error
        if os.listdir(self._top):
            os.close(self._top)
            raise TargetError(f"{path} is not empty")

    def take(self, item: Item) -> None:
        """Write *item*.

        Raises:
            TargetError: the system refuses; the path is named.
        """
        try:
            match item:
                case Entry():
                    self._close_file()
                    self._make(item)
                case Data(offset=offset, payload=payload):
                    assert self._file is not None, "data without a file"
                    _write_at(self._file[0], payload, offset)
                case End():
                    self._close_file()
                    self._leave(b"")
                    self._close_directory()
                    self._is_complete = True
        except OSError as error:
            name = item.path if isinstance(item, Entry) else b""
            if self._file is not None:
                name = self._file[1].path
            shown = _shown(name) if name else str(self._path)
            raise TargetError(f"{shown}: {_reason(error)}") from error

    def abandon(self) -> None:
        """Remove what was made, the folder too if it was not there before."""
        if self._file is not None:
            os.close(self._file[0])
            self._file = None
        for directory in self._directories[1:]:
            os.close(directory.fd)
        self._directories.clear()
        if self._is_complete:
            return
        with contextlib.suppress(OSError):
            for name in os.listdir(self._top):
                _remove(name, self._top)
            os.close(self._top)
            if self._is_new:
                os.rmdir(self._path)

    def _make(self, entry: Entry) -> None:
        if not entry.path:
            self._directories.append(_Directory(self._top, b"", entry))
            return
        folder, _, name = entry.path.rpartition(b"/")
        self._leave(folder)
        parent = self._directories[-1].fd
        kind = stat.S_IFMT(entry.mode)
        if entry.link is not None and kind != stat.S_IFDIR:
            first = self._first_names.setdefault(entry.link, entry.path)
            if first is not entry.path:
                self._link(first, name, parent)
                return
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
            self._directories.append(_Directory(fd, entry.path, entry))
        elif kind == stat.S_IFREG:
            self._file = (os.open(name, _CREATE, 0o600, dir_fd=parent), entry)
        elif kind == stat.S_IFLNK:
            os.symlink(entry.target, name, dir_fd=parent)
            self._finish_name(name, parent, entry)
        else:
            os.mknod(name, kind | 0o600, entry.rdev, dir_fd=parent)
            self._finish_name(name, parent, entry)

    def _link(self, first: bytes, name: bytes, parent: int) -> None:
        """Make *name* in *parent* another name of the file at path *first*."""
        # Opened step by step: a path could lead through a link that somebody put there.
        folder, _, first_name = first.rpartition(b"/")
        fd = os.dup(self._top)
        try:
            for part in folder.split(b"/") if folder else ():
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            os.link(first_name, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(fd)

    def _leave(self, path: bytes) -> None:
        """Finish every directory that is not *path* or above it."""
        while self._directories[-1].path != path:
            self._close_directory()

    def _close_directory(self) -> None:
        # A directory gets its mode and times last: making what is in it changes them.
        directory = self._directories.pop()
        try:
            self._finish_fd(directory.fd, directory.entry)
        finally:
            os.close(directory.fd)

    def _close_file(self) -> None:
        if self._file is None:
            return
        fd, entry = self._file
        try:
            os.ftruncate(fd, entry.size)
            self._finish_fd(fd, entry)
        finally:
            self._file = None
            os.close(fd)

    def _finish_fd(self, fd: int, entry: Entry) -> None:
        """Give an open file its attributes: owner first, as chown clears bits and capabilities."""
        if self._is_root:
            os.fchown(fd, entry.uid, entry.gid)
        self._set_xattrs(fd, entry)
        os.fchmod(fd, self._mode(entry))
        os.utime(fd, ns=(entry.atime_ns, entry.mtime_ns))

    def _finish_name(self, name: bytes, parent: int, entry: Entry) -> None:
        """As `_finish_fd`, for what cannot be opened."""
        if self._is_root:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        self._set_xattrs(b"/proc/self/fd/%d/%b" % (parent, name), entry)
        if not stat.S_ISLNK(entry.mode):
            # Not made by anyone else since: mknod would have failed. fchmodat(2) of this
            # kernel cannot refuse to follow.
            os.chmod(name, self._mode(entry), dir_fd=parent)
        times = (entry.atime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _mode(self, entry: Entry) -> int:
        mode = stat.S_IMODE(entry.mode)
        if not self._is_root and entry.uid != os.geteuid():
            mode &= ~_SET_ID
        return mode

    def _set_xattrs(self, what: int | bytes, entry: Entry) -> None:
        for name, value in entry.xattrs:
            try:
                os.setxattr(what, name, value, follow_symlinks=isinstance(what, int))
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                attribute = name.decode("utf-8", "backslashreplace")
                self.skipped.append(f"{_shown(entry.path)}: {attribute}: {_reason(error)}")


class TarTarget:
    """A tar stream in POSIX (pax) format; holes are written as zeros."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.skipped: list[str] = []
        self._size = 0
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._file_left = 0
        self._padding = 0
        self._position = 0

    def take(self, item: Item) -> None:
        """Write *item*."""
        match item:
            case Entry():
                self._end_file()
                self._entry(item)
            case Data(offset=offset, payload=payload):
                self._zeros(offset - self._position)
                self._put(payload)
                self._position += len(payload)
                self._file_left -= len(payload)
            case End():
                self._end_file()
                self._put(_ZEROS[: 2 * _TAR_BLOCK])
                self._put(_ZEROS[: -self._size % tarfile.RECORDSIZE])

    def abandon(self) -> None:
        """Do nothing: what has gone down a stream is gone; the end that is missing tells."""

    def _entry(self, entry: Entry) -> None:
        kind = stat.S_IFMT(entry.mode)
        types = {
            stat.S_IFREG: tarfile.REGTYPE,
            stat.S_IFDIR: tarfile.DIRTYPE,
            stat.S_IFLNK: tarfile.SYMTYPE,
            stat.S_IFIFO: tarfile.FIFOTYPE,
            stat.S_IFCHR: tarfile.CHRTYPE,
            stat.S_IFBLK: tarfile.BLKTYPE,
        }
        if kind not in types:
            self.skipped.append(f"{_shown(entry.path)}: tar has no sockets")
            return
        header = tarfile.TarInfo(os.fsdecode(b"./" + entry.path if entry.path else b"."))
        header.type = types[kind]
        header.mode = stat.S_IMODE(entry.mode)
        header.uid, header.gid = entry.uid, entry.gid
        header.mtime = max(0, entry.mtime_ns // 1_000_000_000)
        header.linkname = os.fsdecode(entry.target)
        header.devmajor, header.devminor = os.major(entry.rdev), os.minor(entry.rdev)
        headers = {"mtime": _decimal(entry.mtime_ns), "atime": _decimal(entry.atime_ns)}
        for name, value in entry.xattrs:
            headers["SCHILY.xattr." + os.fsdecode(name)] = os.fsdecode(value)
        header.pax_headers = headers
        if entry.link is not None and kind != stat.S_IFDIR:
            first = self._first_names.setdefault(entry.link, entry.path)
            if first is not entry.path:
                header.type = tarfile.LNKTYPE
                header.linkname = os.fsdecode(b"./" + first)
        if header.type == tarfile.REGTYPE:
            header.size = self._file_left = entry.size
            self._padding = -entry.size % _TAR_BLOCK
        self._put(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _end_file(self) -> None:
        self._zeros(self._file_left + self._padding)
        self._position = self._file_left = self._padding = 0

    def _zeros(self, count: int) -> None:
        in_file = min(count, self._file_left)
        self._file_left -= in_file
        self._position += in_file
        while count > 0:
            part = min(count, len(_ZEROS))
            self._put(_ZEROS[:part])
            count -= part

    def _put(self, payload: bytes) -> None:
        self._write(payload)
        self._size += len(payload)


def _make_folder(path: Path) -> bool:
    """Make the folder *path*; return whether it was not there before."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _remove(name: str, directory: int) -> None:
    """Remove *name* in the open *directory* and all that is below."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(name, dir_fd=directory)
    else:
        os.unlink(name, dir_fd=directory)


def _write_at(fd: int, payload: bytes, offset: int) -> None:
    rest = memoryview(payload)
    while rest:
        written = os.pwrite(fd, rest, offset)
        offset += written
        rest = rest[written:]


def _decimal(time_ns: int) -> str:
    """Return *time_ns* as seconds with nine decimals. Source: pax(1), extended header mtime."""
    seconds, nanoseconds = divmod(abs(time_ns), 1_000_000_000)
    return f"{'-' if time_ns < 0 else ''}{seconds}.{nanoseconds:09d}"


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)

"""Local sockets at paths of any length, and who is at the other end.

A socket's address holds 108 bytes. The kernel resolves it like any path, so a
long one is shortened to `/proc/self/fd/N/NAME` with N the folder's descriptor.
"""

import contextlib
import ctypes
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

_CREDENTIALS: Final = struct.Struct("=iII")
_TIMEVAL: Final = struct.Struct("@ll")
_SO_PEERGROUPS: Final = 59
"""Source: asm-generic/socket.h; since Linux 4.13."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who was at the other end when the connection was made. Source: unix(7), SO_PEERCRED."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """Supplementary groups."""


class _HasOptions(Protocol):
    """A socket, blocking or of an event loop."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...

    def fileno(self) -> int: ...


def peer_of(connection: _HasOptions) -> Peer:
    """Return the credentials of the other end of *connection*, as the kernel knows them."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    return Peer(pid, uid, gid, _groups_of(connection.fileno()))


def _groups_of(fd: int) -> frozenset[int]:
    """Return the supplementary groups of the other end of the socket *fd*.

    By the C library, for Python's getsockopt takes 1,024 bytes at most, and a user may be in
    65,536 groups.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_uint32(0)
    none = ctypes.create_string_buffer(1)
    # Too little room is ERANGE, with the size that is needed. A process's groups at connect are
    # what is told, so the size cannot change between the calls.
    result = libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, none, ctypes.byref(size))
    if result == 0:
        return frozenset()
    if ctypes.get_errno() == errno.ERANGE:
        groups = (ctypes.c_uint32 * (size.value // ctypes.sizeof(ctypes.c_uint32)))()
        result = libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size))
        if result == 0:
            return frozenset(groups)
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def passed_descriptor(ancillary: list[tuple[int, int, bytes]], device: int) -> int:
    """Return the descriptor of the character device *device* that came with a message.

    Whatever else came is closed. Source: unix(7), SCM_RIGHTS.

    Raises:
        ValueError: It did not come, or not alone.
    """
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            size = struct.calcsize("=i")
            fds += [fd for (fd,) in struct.iter_unpack("=i", data[: len(data) // size * size])]
    for fd in fds:
        os.set_inheritable(fd, False)
    if len(fds) == 1:
        status = os.fstat(fds[0])
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == device:
            return fds[0]
    for fd in fds:
        os.close(fd)
    raise ValueError("not one descriptor of the device came")


def listen_at(path: Path, mode: int, backlog: int = 64) -> socket.socket:
    """Return a listening stream socket at *path*, replacing what is there.

    The name appears only when the socket listens and has *mode*, so nobody
    finds it half made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    temporary = f".{os.urandom(6).hex()}.sock"
    try:
        with _opened(path.parent) as folder:
            listener.bind(f"/proc/self/fd/{folder}/{temporary}")
            try:
                os.chmod(temporary, mode, dir_fd=folder)
                listener.listen(backlog)
                os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
    except BaseException:
        listener.close()
        raise
    return listener


def connect_to(path: Path, timeout_s: float | None = None) -> socket.socket:
    """Return a stream connected to the socket at *path*, with *timeout_s* for each operation.

    Raises:
        OSError: ENOENT or ECONNREFUSED if nobody listens there, EAGAIN if the queue of those who
            wait to be let in stays full for *timeout_s* seconds.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if timeout_s is not None:
            # Not settimeout: a socket that does not block never waits for a full queue.
            seconds = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        with _opened(path.parent) as folder:
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        connection.settimeout(timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)

"""The process that touches the daemon's own mount on its behalf.

A process that waits for a mount which it serves itself can hang beyond
SIGKILL, and keeps what it has open meanwhile. This one has nothing open but its
end of a socket: when the daemon dies, its requests fail, it reads the end of
the socket, and goes.

One JSON object a line each way. It imports nothing of kaifs but `linux`.
"""

import ctypes
import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kaifs.linux.mounts import unmount

_SYNC_TRIES: Final = 10
"""Who writes to a sealed view all the time does not keep a barrier from being reached."""
_NOT_OURS: Final = frozenset({errno.EROFS, errno.EINTR})
"""What others have been refused: no page that this mount could take is missing for it.

EROFS: somebody wrote, through a descriptor from before a switch, to a view that is sealed by
now; they are told at fsync(2). EINTR: somebody was killed in the middle of rename(2), unlink(2)
or copy_file_range(2), while the kernel sent a file's times in their name (fuse_flush_time_update
in Linux 6.18); WRITEs are sent in nobody's name.
"""


def flush(mountpoint: str, device: int, paths: list[str]) -> None:
    """Have the kernel send all that is dirty on the mount, then a request to mark the end.

    Args:
        mountpoint: Where the mount is.
        device: Its `st_dev`; another one there means that it is covered or gone.
        paths: Files, relative to it, to be flushed one by one.

    Raises:
        OSError: It cannot be done.
    """
    top = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(top).st_dev != device:
            raise OSError(f"another file system covers {mountpoint}")
        for path in paths:
            # Gone or closed to us: the marker that is counted by the daemon decides.
            with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
                flush_file(path, top)
        sync_all(top)
        os.fstatvfs(top)
    finally:
        os.close(top)


def flush_file(path: str, top: int) -> None:
    """Have the kernel send what is dirty in the file *path*, relative to the descriptor *top*."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, dir_fd=top)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
    finally:
        os.close(fd)


def sync_all(top: int) -> None:
    """Have the kernel send all that is dirty on the file system that *top* is on.

    What the kernel tells of `_NOT_OURS` is no failure: everything else has been sent all
    the same. An error is told once to each descriptor, so a second call tells whether there
    is another one.

    Raises:
        OSError: Something else could not be taken.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(_SYNC_TRIES):
        if libc.syncfs(top) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NOT_OURS:
            raise OSError(code, os.strerror(code))


def answer(request: dict[str, Any]) -> None:
    """Do what *request* says."""
    match request["op"]:
        case "flush":
            flush(request["mountpoint"], request["device"], request["paths"])
        case "statvfs":
            os.statvfs(request["mountpoint"])
        case "unmount":
            unmount(Path(request["mountpoint"]), lazy=request["lazy"])


def main(fd: int) -> None:
    """Serve the daemon at the other end of the socket *fd* until it goes."""
    with socket.socket(fileno=fd) as channel, channel.makefile("rwb") as lines:
        for line in lines:
            reply: dict[str, Any] = {"errno": 0, "reason": ""}
            try:
                answer(json.loads(line))
            except OSError as error:
                reply = {"errno": error.errno or -1, "reason": error.strerror or str(error)}
            try:
                lines.write(json.dumps(reply).encode() + b"\n")
                lines.flush()
            except BrokenPipeError:
                return

"""System calls that Python has no name for, and doing things as another user."""

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
STRANGER = 65534

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_STATX_MODE = 2


def renameat2(old: Path, new: Path, flags: int) -> None:
    """Rename with *flags*.

    Raises:
        OSError: as renameat2(2).
    """
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(old))


def as_stranger(folder: Path, action: Callable[[], object]) -> int:
    """Do *action* in *folder* as a user without rights; return its errno, 0 if it worked.

    A child process does it. Paths must be relative: the folder is usually below
    one that only root may enter.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 255
    try:
        os.chdir(folder)
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)
        action()
        status = 0
    except OSError as error:
        status = error.errno or 255
    finally:
        os._exit(status)


FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_COLLAPSE_RANGE = 8
FALLOC_ZERO_RANGE = 16
FALLOC_INSERT_RANGE = 32
RENAME_WHITEOUT = 4
FICLONE = 0x40049409


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change what is allocated of a file.

    Raises:
        OSError: as fallocate(2).
    """
    arguments = (ctypes.c_long(offset), ctypes.c_long(length))
    if _libc.fallocate(fd, mode, *arguments):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def mode_alone(path: Path) -> int:
    """Return the mode as a program gets it that asks for nothing else, such as `ls -l`.

    A file system may have it in memory while sizes and times must be asked for.
    """
    answer = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_MODE, answer):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(path))
    return int.from_bytes(answer.raw[28:30], "little")


def birth_ns(path: Path) -> int | None:
    """Return when *path* was made, ns since 1970; None if the file system does not tell."""
    answer = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), 0, 0xFFF, answer):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(path))
    mask = int.from_bytes(answer.raw[0:4], "little")
    seconds = int.from_bytes(answer.raw[80:88], "little", signed=True)
    return seconds * 10**9 + int.from_bytes(answer.raw[88:92], "little") if mask & 0x800 else None


def give_name(fd: int, path: Path) -> None:
    """Link what *fd* has open to *path*, as linkat(2) does through /proc.

    Raises:
        OSError: as linkat(2).
    """
    source = b"/proc/self/fd/%d" % fd
    if _libc.linkat(_AT_FDCWD, source, _AT_FDCWD, os.fsencode(path), 0x400):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(path))


_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_CLOEXEC = 0o2000000
_EMPTY_PATH = 0x1000


def bind_with_owner(source: Path, target: Path, stored: int, shown: int) -> None:
    """Bind *source* to *target* with an idmapping: what belongs to *stored* is *shown*'s there.

    Raises:
        OSError: EINVAL if the file system does not allow it.
    """
    holder = subprocess.Popen(
        ["unshare", "--user", "sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        ours = os.readlink("/proc/self/ns/user")
        while os.readlink(f"/proc/{holder.pid}/ns/user") == ours:
            os.sched_yield()
        for kind in ("uid", "gid"):
            Path(f"/proc/{holder.pid}/{kind}_map").write_text(f"{stored} {shown} 1")
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
    finally:
        holder.kill()
        holder.wait()
    tree = _called(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), 1 | _CLOEXEC)
    attributes = struct.pack("=QQQQ", 0x00100000, 0, 0, namespace)
    _called(_MOUNT_SETATTR, tree, b"", _EMPTY_PATH, attributes, len(attributes))
    _called(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), 4)
    os.close(tree)
    os.close(namespace)


def _called(number: int, *arguments: int | bytes) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result

"""Namespaces, the mounts made in them, and giving up rights: system calls that Python lacks.

Mounts are moved about by descriptor with the newer mount calls, so that nobody
can put something else at a path between a check and its use. Source:
open_tree(2), move_mount(2), mount_setattr(2), openat2(2); Linux 5.12 has all.
"""

import ctypes
import os
import signal
import struct
from enum import IntFlag
from functools import cache
from pathlib import Path
from typing import Final

# These numbers are the same on every architecture. Source: scripts/syscall.tbl of the kernel.
_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_CLOSE_RANGE: Final = 436
_NR_OPENAT2: Final = 437
_NR_MOUNT_SETATTR: Final = 442

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_CLOSE_RANGE_CLOEXEC: Final = 4
_RESOLVE_NO_MAGICLINKS: Final = 2
_RESOLVE_NO_SYMLINKS: Final = 4
_MOUNT_ATTR_IDMAP: Final = 0x00100000
_PR_SET_PDEATHSIG: Final = 1
_ID_MAX: Final = 0xFFFFFFFF


def mount_namespace() -> int:
    """Return the inode number that names this process's mount namespace. Source: namespaces(7)."""
    return os.stat("/proc/self/ns/mnt").st_ino


class Namespace(IntFlag):
    """Kinds of namespaces. Source: clone(2)."""

    MOUNT = 0x00020000
    CGROUP = 0x02000000
    UTS = 0x04000000
    IPC = 0x08000000
    USER = 0x10000000
    PID = 0x20000000
    NETWORK = 0x40000000


class MountFlag(IntFlag):
    """Flags of mount(2)."""

    NONE = 0
    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    RECURSIVE = 16384
    PRIVATE = 1 << 18


def unshare(kinds: Namespace) -> None:
    """Move this process into new namespaces of *kinds*."""
    _check(_libc().unshare(int(kinds)), "unshare")


def map_ids_to_themselves(uid: int, gid: int) -> None:
    """Map *uid* and *gid*, the caller's before it made its user namespace, to themselves there.

    Nobody else is mapped, and supplementary groups cannot be set any more.
    """
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def attach(source: str, target: Path, fstype: str, flags: MountFlag, data: str = "") -> None:
    """Attach *source*, a file system or what *flags* make of it, at *target*."""
    arguments = (source.encode(), os.fsencode(target), fstype.encode())
    _check(_libc().mount(*arguments, ctypes.c_ulong(flags), data.encode()), str(target))


def make_mounts_private() -> None:
    """Let no mount made from here on be seen elsewhere, nor any made elsewhere here."""
    attach("none", Path("/"), "", MountFlag.PRIVATE | MountFlag.RECURSIVE)


def open_plainly(path: Path) -> int:
    """Return a descriptor (O_PATH) of the absolute *path*, no part of which is a symbolic link.

    Raises:
        OSError: ELOOP if a part is a link by now.
    """
    how = struct.pack(
        "=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    )
    name = os.fsencode(path)
    return _check(_libc().syscall(_NR_OPENAT2, _AT_FDCWD, name, how, len(how)), str(path))


def clone_mount(fd: int) -> int:
    """Return a detached mount of what *fd* (O_PATH) stands for, without what is mounted below."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH
    return _check(_libc().syscall(_NR_OPEN_TREE, fd, b"", flags), "open_tree")


def attach_mount(fd: int, target: Path) -> None:
    """Put the detached mount *fd* at *target*."""
    arguments = (fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    _check(_libc().syscall(_NR_MOVE_MOUNT, *arguments), str(target))


def show_as_owned(fd: int, owner: tuple[int, int], shown: tuple[int, int]) -> None:
    """Show what *owner* (uid, gid) owns on the detached mount *fd* as owned by *shown*.

    What *shown* makes there belongs to *owner*. Everybody else stays who they
    are. Needs root, and a file system that takes mapped mounts (EINVAL otherwise).
    """
    ready, announce = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        # A user namespace exists only with a process in it until somebody has opened it.
        try:
            unshare(Namespace.USER)
            os.write(announce, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(announce)
        if not os.read(ready, 1):
            raise PermissionError("unshare")
        for name, inside, outside in zip(("uid_map", "gid_map"), owner, shown, strict=True):
            Path(f"/proc/{pid}/{name}").write_text(_identity_but(inside, outside))
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        arguments = (fd, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        _check(_libc().syscall(_NR_MOUNT_SETATTR, *arguments), "mount_setattr")
    finally:
        os.close(namespace)


def _identity_but(inside: int, outside: int) -> str:
    """Return an id map that is the identity except that *inside* is *outside*."""
    lines = [f"{inside} {outside} 1"]
    starts = sorted({inside, outside})
    start = 0
    for taken in [*starts, _ID_MAX]:
        if taken > start:
            lines.append(f"{start} {start} {taken - start}")
        start = taken + 1
    return "\n".join(lines) + "\n"


def keep_descriptors(kept: set[int]) -> None:
    """Let an exec close every descriptor but 0, 1, 2 and *kept*."""
    _check(_libc().syscall(_NR_CLOSE_RANGE, 3, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC), "close_range")
    for fd in kept:
        os.set_inheritable(fd, True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends.

    A change of user clears this, an exec does not. Source: PR_SET_PDEATHSIG(2const).

    Raises:
        ProcessLookupError: The parent, whose pid was *parent*, has ended already.
    """
    _check(_libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")
    if os.getppid() != parent:
        raise ProcessLookupError("the warden has ended")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, subject: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), subject)
    return result

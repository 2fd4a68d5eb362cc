"""Mounts: what is mounted where, who uses it, whether it answers, and how to end it.

A FUSE mount whose server is gone or stuck blocks whoever touches it, for ever
and beyond SIGKILL. So everything here that can be learned from /proc and from
fusectl is learned there, and the one question that must go through the mount
is asked by a child process that can be left behind.
"""

import ctypes
import errno
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from kaifs.linux.files import read_file

FUSECTL: Final = Path("/sys/fs/fuse/connections")
BDI: Final = Path("/sys/class/bdi")
MAX_BACKGROUND: Final = 65535
"""Greatest value that the kernel takes: the limit is 16 bits wide."""

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_SYMLINKS_MAX: Final = 40
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_UNESCAPED_LINK: Final = re.compile(r"(?: \(deleted\))?$")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/PID/mountinfo. Source: proc_pid_mountinfo(5)."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    """Folder of the file system that is shown; `/` unless it is a bind mount."""
    mountpoint: Path
    options: str
    """Of this mount (`rw,nosuid`), apart from the file system's own."""
    fstype: str
    source: str
    super_options: str

    @property
    def device(self) -> int:
        """`st_dev` of what is on the mount."""
        return os.makedev(self.major, self.minor)


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """Return the mounts in *text*, in its order. Lines that make no sense are left out."""
    entries = []
    for line in text.splitlines():
        fields = line.split(b" ")
        with suppress(ValueError, IndexError):
            # Optional fields of varying number end with a lone hyphen.
            rest = fields[fields.index(b"-", 6) + 1 :]
            major, _, minor = fields[2].partition(b":")
            entries.append(
                MountEntry(
                    mount_id=int(fields[0]),
                    parent_id=int(fields[1]),
                    major=int(major),
                    minor=int(minor),
                    root=_unescape(fields[3]),
                    mountpoint=Path(_unescape(fields[4])),
                    options=_unescape(fields[5]),
                    fstype=_unescape(rest[0]),
                    source=_unescape(rest[1]),
                    super_options=_unescape(rest[2]),
                )
            )
    return entries


def mounts(process: int | str = "self") -> list[MountEntry]:
    """Return the mounts that *process* sees, oldest first."""
    return parse_mountinfo(Path(f"/proc/{process}/mountinfo").read_bytes())


def find_mount(path: Path) -> MountEntry | None:
    """Return the topmost mount whose mountpoint is exactly *path*, an absolute path."""
    return next((entry for entry in reversed(mounts()) if entry.mountpoint == path), None)


def mounts_below(path: Path) -> list[MountEntry]:
    """Return the mounts whose mountpoint is below *path*, an absolute path, *path* excluded."""
    return [entry for entry in mounts() if path in entry.mountpoint.parents]


def resolve_mountpoint(path: Path) -> Path:
    """Return *path* absolute and without symbolic links, never touching a mount at its end.

    Raises:
        OSError: A folder on the way is missing, or there are too many links.
    """
    known = {entry.mountpoint for entry in mounts()}
    current = os.path.abspath(path)
    for _ in range(_SYMLINKS_MAX):
        # A mountpoint is looked up before each lstat, which could hang on it.
        if Path(current) in known or current == "/":
            return Path(current)
        parent, name = os.path.split(current)
        candidate = Path(os.path.realpath(parent, strict=True), name)
        if candidate in known or not candidate.is_symlink():
            return candidate
        current = os.path.abspath(candidate.parent / candidate.readlink())
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Take down the topmost mount at *mountpoint*.

    Blocks until what is dirty has been written, so never call it from the
    process that serves the mount.

    Args:
        mountpoint: Where; a symbolic link there is not followed.
        lazy: Detach it now and end it when its last user is gone.

    Raises:
        OSError: EBUSY if it is in use, EINVAL if nothing is mounted there.
    """
    try:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        _check(_libc().umount2(os.fsencode(mountpoint), flags), mountpoint)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        _fusermount(mountpoint, lazy=lazy)


def _fusermount(mountpoint: Path, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode == 0:
        return
    reason = os.fsdecode(done.stderr).strip()
    code = next(
        (code for code in (errno.EBUSY, errno.EINVAL) if os.strerror(code) in reason), errno.EPERM
    )
    raise OSError(code, reason or os.strerror(code), str(mountpoint))


# --- the control file system of FUSE -----------------------------------------------------


class FuseConnection:
    """The kernel's end of one FUSE mount, as fusectl shows it.

    The folder is named by the minor device number, which comes from mountinfo:
    a stat of a hung mount would hang. Source: Documentation/filesystems/fuse.rst.
    """

    def __init__(self, minor: int) -> None:
        self.folder = FUSECTL / str(minor)

    @property
    def is_available(self) -> bool:
        """Whether fusectl is mounted and shows this connection."""
        return self.folder.is_dir()

    def abort(self) -> None:
        """Fail every request, waiting and future ones; the mount is dead after this."""
        self._write("abort", 1)

    @property
    def waiting(self) -> int:
        """Requests that wait for the server or are being served."""
        return int(read_file(self.folder / "waiting", 32))

    @property
    def max_background(self) -> int:
        """Background requests (writeback, read-ahead) that the server may see at once."""
        return int(read_file(self.folder / "max_background", 32))

    def raise_limits(self, limit: int = MAX_BACKGROUND) -> int:
        """Set `max_background` and `congestion_threshold`; return what is then in force.

        Who has no CAP_SYS_ADMIN gets at most the module's `max_user_bgreq`.
        """
        try:
            self._write("max_background", limit)
        except OSError:
            limit = int(read_file(Path("/sys/module/fuse/parameters/max_user_bgreq"), 32))
            self._write("max_background", limit)
        self._write("congestion_threshold", limit)
        return self.max_background

    def _write(self, name: str, value: int) -> None:
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d\n" % value)
        finally:
            os.close(fd)


def set_read_ahead(minor: int, size: int) -> None:
    """Let the kernel read ahead *size* bytes on the mount with the device number 0:*minor*.

    It is 128 KiB otherwise, and no request for data is greater than that. Source:
    Documentation/ABI/testing/sysfs-class-bdi.

    Raises:
        OSError: only root may, and not where sysfs is read-only.
    """
    (BDI / f"0:{minor}" / "read_ahead_kb").write_text(f"{size >> 10}\n")


def ensure_fusectl() -> bool:
    """Return whether fusectl is mounted, mounting it if it is not and we may."""
    if any(e.fstype == "fusectl" and e.mountpoint == FUSECTL for e in mounts()):
        return True
    return bool(_libc().mount(b"fusectl", os.fsencode(FUSECTL), b"fusectl", 0, None) == 0)


# --- asking a mount -----------------------------------------------------------------------


class Answer(Enum):
    """What came of a question put to a mount."""

    YES = "answers"
    DEAD = "its server has gone"
    SILENT = "does not answer"


_PROBE: Final = """\
import os, sys
try:
    os.statvfs(sys.argv[1])
except OSError as error:
    os._exit(error.errno if 0 < error.errno < 128 else 127)
os._exit(0)
"""
_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})


def probe(path: Path, timeout_s: float) -> Answer:
    """Ask the mount at *path* for its statistics and tell how it took it.

    The asking is done by a child that is given up after *timeout_s* seconds. It
    may be unkillable then, until the connection is aborted; it holds nothing.
    """
    argv = [sys.executable, "-I", "-S", "-c", _PROBE, os.fspath(path)]
    pid = os.posix_spawn(sys.executable, argv, os.environ, setpgroup=0)
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not poll.poll(100):
                return Answer.SILENT
            os.waitpid(pid, 0)
            return Answer.SILENT
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)
    return Answer.DEAD if status in _GONE else Answer.YES


def is_answering(path: Path, timeout_s: float) -> bool:
    """Return whether the mount at *path* answers within *timeout_s* seconds."""
    return probe(path, timeout_s) is Answer.YES


# --- who uses a mount ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class MountUser:
    """A process that keeps a mount busy."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command}[{self.pid}]"


def users_of(mount: MountEntry) -> list[MountUser]:
    """Return the processes that use *mount*: by open files, mappings, cwd, root or program.

    Reads /proc only, so it works on a hung mount too. Processes whose /proc we
    may not read are left out.
    """
    processes = [Path("/proc", name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(MountUser(int(p.name), _command(p)) for p in processes if _uses(p, mount))


def written_inodes(mount: MountEntry) -> set[int]:
    """Return the inode numbers of files on *mount* that processes have open for writing, or mapped so.

    As `users_of`. Not for who serves the mount to wait for: a process may be held up by it.
    """
    found: set[int] = set()
    for process in (Path("/proc", name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            mount_ids = {e.mount_id for e in mounts(process.name) if e.device == mount.device}
            if mount_ids:
                found |= _written_by(process, mount_ids)
        with suppress(OSError):
            device = f"{mount.major:02x}:{mount.minor:02x}".encode()
            for line in (process / "maps").read_bytes().splitlines():
                fields = line.split(None, 5)
                if len(fields) > 4 and fields[3] == device and fields[1][1::2] == b"ws":
                    found.add(int(fields[4]))
    return found


def _written_by(process: Path, mount_ids: set[int]) -> set[int]:
    """Return what *process* has open for writing. Source: proc_pid_fdinfo(5), `ino` since 5.14."""
    found = set()
    for name in os.listdir(process / "fdinfo"):
        with suppress(OSError, ValueError, KeyError):
            lines = (process / "fdinfo" / name).read_text().splitlines()
            facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            writes = int(facts["flags"], 8) & os.O_ACCMODE != os.O_RDONLY
            if writes and int(facts["mnt_id"]) in mount_ids:
                found.add(int(facts["ino"]))
    return found


def _uses(process: Path, mount: MountEntry) -> bool:
    with suppress(OSError):
        if any(_is_below(process / link, mount.mountpoint) for link in ("cwd", "root", "exe")):
            return True
    with suppress(OSError):
        mount_ids = {e.mount_id for e in mounts(process.name) if e.device == mount.device}
        if mount_ids and any(mount_id in mount_ids for mount_id in _open_mount_ids(process)):
            return True
    with suppress(OSError):
        device = f"{mount.major:02x}:{mount.minor:02x}".encode()
        for line in (process / "maps").read_bytes().splitlines():
            fields = line.split(None, 5)
            if len(fields) > 3 and fields[3] == device:
                return True
    return False


def _is_below(link: Path, mountpoint: Path) -> bool:
    try:
        text = os.readlink(link)
    except OSError:
        return False
    target = Path(_UNESCAPED_LINK.sub("", text))
    return target == mountpoint or mountpoint in target.parents


def _open_mount_ids(process: Path) -> Iterator[int]:
    for name in os.listdir(process / "fdinfo"):
        with suppress(OSError, ValueError):
            for line in (process / "fdinfo" / name).read_bytes().splitlines():
                if line.startswith(b"mnt_id:"):
                    yield int(line[7:])
                    break


def _command(process: Path) -> str:
    try:
        return os.fsdecode((process / "comm").read_bytes()).strip()
    except OSError:
        return "?"


# --- plumbing -----------------------------------------------------------------------------


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(status: int, path: Path) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))

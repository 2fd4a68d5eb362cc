"""Files that survive power loss, and locks that say who holds them.

A durable write is a new file, synced, renamed over the old one, and then the
folder synced: readers see the old bytes or the new ones, never a mixture, and
after power loss one of the two is there. No function here follows a symbolic
link in the last component of a path, and every descriptor is close-on-exec.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOCK_POLL_S: Final = 0.02
"""Seconds between two tries for a lock that is held; flock(2) itself has no timeout."""

_OWNER_MAX: Final = 4096
_NOT_FOLLOWING: Final = os.O_NOFOLLOW | os.O_CLOEXEC


def fsync_directory(path: Path) -> None:
    """Make the names in the directory *path* durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of *data* to *fd*, however many write(2)s that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def write_durably(
    path: Path, data: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    """Make *path* hold *data*, at once and durably: after return no power loss undoes it.

    An error leaves the old file, or none, and no temporary file. A symbolic
    link at *path* is replaced, not followed. *owner* is a uid and a gid, for root.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f".{path.name}.{os.urandom(8).hex()}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWING
        fd = os.open(temporary, flags, mode, dir_fd=directory)
        try:
            try:
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, mode)
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def read_file(path: Path, limit: int) -> bytes:
    """Return what the regular file *path* holds, at most *limit* bytes of it.

    Opening does not wait for a writer if somebody put a FIFO there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _NOT_FOLLOWING)
    try:
        pieces = []
        while limit > 0 and (piece := os.read(fd, limit)):
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """Lend a descriptor of a file without a name that has *content*, to be passed on."""
    fd = os.memfd_create("kaifs", os.MFD_CLOEXEC)
    try:
        write_all(fd, content)
        yield fd
    finally:
        os.close(fd)


def take_memory_file(fd: int) -> bytes:
    """Return what the file of *fd*, a passed descriptor of `memory_file`, has; close it."""
    with open(fd, "rb") as file:
        # Whoever has written it shares the position.
        file.seek(0)
        return file.read()


class LockHeld(Exception):
    """Another process holds the lock."""

    def __init__(self, owner_text: str) -> None:
        super().__init__(owner_text)
        self.owner_text = owner_text
        """What the holder wrote into the lock file: `process PID (COMMAND)`."""


class FileLock:
    """An exclusive flock(2) on a file that records who holds it.

    The lock belongs to the open file description: a child that inherits `fd`
    shares it, and it is free when the last duplicate is closed, so no crash
    leaves it behind. The text in the file means something only while it is held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    @property
    def fd(self) -> int:
        """The descriptor that holds the lock; it is close-on-exec."""
        assert self._fd >= 0, "the lock is not held"
        return self._fd

    def acquire(self, timeout_s: float, owner: str) -> None:
        """Take the lock, waiting up to *timeout_s* seconds for another holder.

        Args:
            timeout_s: 0 tries once.
            owner: Command that others are told holds the lock.

        Raises:
            LockHeld: It stayed held.
        """
        assert self._fd < 0, "the lock is held already"
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | _NOT_FOLLOWING, 0o600)
        try:
            _wait_lock(fd, timeout_s)
            text = f"process {os.getpid()} ({owner})\n".encode(errors="surrogateescape")
            os.ftruncate(fd, 0)
            os.pwrite(fd, text[:_OWNER_MAX], 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def adopt(self, fd: int) -> None:
        """Take over *fd*, a descriptor of the lock file that holds the lock already.

        Raises:
            LockHeld: Another open file description holds it.
            OSError: *fd* is no descriptor of the lock file.
        """
        assert self._fd < 0, "the lock is held already"
        if not os.path.samestat(os.fstat(fd), os.stat(self.path, follow_symlinks=False)):
            raise OSError(f"descriptor {fd} is not {self.path}")
        os.set_inheritable(fd, False)
        if not _try_lock(fd):
            raise LockHeld(_read_owner(fd))
        self._fd = fd

    def release(self) -> None:
        """Let go. The lock stays held while another process has a duplicate of `fd`."""
        if self._fd >= 0:
            # Not LOCK_UN: that would take the lock from the duplicates too.
            os.close(self._fd)
            self._fd = -1


def lock_owner(path: Path) -> str | None:
    """Return who holds the lock on *path*, or None if it is free or was never taken."""
    try:
        fd = os.open(path, os.O_RDONLY | _NOT_FOLLOWING)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that two who look at once do not take each other for the holder.
        return None if _try_lock(fd, fcntl.LOCK_SH) else _read_owner(fd)
    finally:
        os.close(fd)


def _wait_lock(fd: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not _try_lock(fd):
        if time.monotonic() >= deadline:
            raise LockHeld(_read_owner(fd))
        time.sleep(LOCK_POLL_S)


def _try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_owner(fd: int) -> str:
    text = os.pread(fd, _OWNER_MAX, 0).decode(errors="replace").strip()
    return text or "another process"

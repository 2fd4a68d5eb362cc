"""Room that is kept for a full disk: what frees room needs some itself.

A file without content is kept beside the store's own while a daemon serves it.
When the disk is full it goes, so that what was done can be journaled and committed,
names be deleted and gc run; what would take more room is refused until the
file is there again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

SPARE_NAME: Final = "spare"
DISK_PART: Final = 64
"""Neither a segment nor the spare takes more than one part of the disk in so many."""


def share_of_disk(folder: Path) -> int:
    """Return the bytes of that part of the disk that *folder* is on."""
    disk = os.statvfs(folder)
    return disk.f_blocks * disk.f_frsize // DISK_PART


class Spare:
    """The file that keeps room. Its methods may be called by any thread."""

    def __init__(self, folder: Path, size: int) -> None:
        """Keep a file of *size* bytes in *folder*, which is made if need be."""
        self._path = folder / SPARE_NAME
        self._size = size

    def keep(self) -> bool:
        """Keep the room. Return whether the disk has it."""
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(fd, 0, self._size)
        except OSError:
            self.release()
            return False
        finally:
            os.close(fd)
        return True

    def release(self) -> bool:
        """Give the room back. Return whether there was some."""
        with suppress(OSError):
            self._path.unlink()
            return True
        return False

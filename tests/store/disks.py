"""Disks that are soon full, stand still, or refuse."""

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kaifs.base.errors import NoSpaceError
from kaifs.blocks.device import FileDevice


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of *size* (as mount(8) takes it) in the new folder *folder*."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class StalledDevice(FileDevice):
    """A disk with nothing in memory, which lets who fetches from it wait until it is woken."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked = threading.Event()
        self.woken = threading.Event()

    def is_cached(self, name: str, offset: int, size: int) -> bool:
        """Return False."""
        return False

    def fetcher(self, ranges: Sequence[tuple[str, int, int]]) -> Callable[[], None]:
        """Wait, then fetch."""
        fetch = super().fetcher(ranges)

        def wait() -> None:
            self.asked.set()
            assert self.woken.wait(60), "nobody woke the disk"
            fetch()

        return wait


class RefusingDevice(FileDevice):
    """A disk on which writes fail while it is told so, having written a part."""

    refuses = False

    def write(self, name: str, offset: int, payload: bytes) -> None:
        """Write, or half of it and fail."""
        if self.refuses:
            super().write(name, offset, payload[: len(payload) // 2])
            raise NoSpaceError("full")
        super().write(name, offset, payload)

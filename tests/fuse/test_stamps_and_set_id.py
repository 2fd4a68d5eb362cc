"""What the kernel remembers of a file and what the server does to it have to agree."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.abilities import can
from tests.fuse.system_calls import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    STRANGER,
    as_stranger,
    birth_ns,
    fallocate,
    mode_alone,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]

CHANGES: dict[str, tuple[int, Callable[[int], object]]] = {
    "write": (0, lambda fd: os.pwrite(fd, b"new", 0)),
    "append": (os.O_APPEND, lambda fd: os.write(fd, b"new")),
    "direct": (os.O_DIRECT, lambda fd: os.pwrite(fd, mmap.mmap(-1, 4096), 0)),
    "synchronous": (os.O_SYNC, lambda fd: os.pwrite(fd, b"new", 0)),
    "truncate": (0, lambda fd: os.ftruncate(fd, 5)),
    "open": (os.O_TRUNC, lambda fd: None),
    "copy": (0, lambda fd: os.copy_file_range(os.open("other", os.O_RDONLY), fd, 100)),
    "allocate": (0, lambda fd: fallocate(fd, 0, 0, 20_000)),
    "punch": (0, lambda fd: fallocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 0, 100)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [0o6755, 0o4644, 0o2775])
def test_set_id_bits_are_gone_for_everybody_when_a_stranger_has_written(
    folder: Path, transport: str, mode: int, change: str
) -> None:
    """The kernel must not go on with the old mode: execve(2) would honour it."""
    if change in ("allocate", "punch") and not can(transport, "fallocate"):
        return
    flags, act = CHANGES[change]
    for name in ("file", "other"):
        (folder / name).write_bytes(b"x" * 5000)
    os.chown(folder / "file", STRANGER, STRANGER)
    (folder / "file").chmod(mode)
    assert mode_alone(folder / "file") & 0o7777 == mode

    assert as_stranger(folder, lambda: act(os.open("file", os.O_RDWR | flags))) == 0

    assert mode_alone(folder / "file") & 0o7777 == mode & 0o777
    assert (folder / "file").stat().st_mode & 0o7777 == mode & 0o777


def test_a_file_is_not_born_after_it_was_written(folder: Path, transport: str) -> None:
    """Server and kernel stamp by the same clock, which is coarse."""
    for number in range(50):
        path = folder / str(number)
        path.write_bytes(b"x")

        status = path.stat()

        assert status.st_mtime_ns <= status.st_ctime_ns
        if can(transport, "birth times"):
            assert (birth_ns(path) or 0) <= status.st_mtime_ns


def test_what_is_made_later_is_not_older(folder: Path) -> None:
    """Whoever stamps it: make(1) compares a folder and a file beside it."""
    times = []
    for number in range(50):
        (folder / f"made{number}").mkdir()
        times.append((folder / f"made{number}").stat().st_mtime_ns)
        (folder / f"written{number}").write_bytes(b"x")
        times.append((folder / f"written{number}").stat().st_mtime_ns)

    assert times == sorted(times)

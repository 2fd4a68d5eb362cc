"""Nobody sees bytes in a sealed file that were not sealed, whoever tries and however.

Without OPEN a write to a sealed file lands in the kernel's cache, is refused
later, and every reader goes on seeing it. So sealed files are opened by asking.
"""

import errno
import mmap
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import STRANGER, as_stranger

pytestmark = [pytest.mark.fuse, pytest.mark.root]

CONTENT = b"sealed" * 1000


def pwrite(name: str) -> None:
    fd = os.open(name, os.O_WRONLY)
    os.pwrite(fd, b"FORGED", 0)
    os.close(fd)


def map_shared(name: str) -> None:
    fd = os.open(name, os.O_RDWR)
    with mmap.mmap(fd, len(CONTENT), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        mapping[:6] = b"FORGED"
    os.close(fd)


def map_after_reading(name: str) -> None:
    fd = os.open(name, os.O_RDONLY)
    try:
        mmap.mmap(fd, len(CONTENT), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except PermissionError as error:
        raise OSError(errno.EROFS, "as good") from error
    finally:
        os.close(fd)


def truncate_at_open(name: str) -> None:
    os.close(os.open(name, os.O_RDONLY | os.O_TRUNC))


def write_directly(name: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        os.pwrite(fd, page, 0)
    os.close(fd)


def copy_into(name: str) -> None:
    fd = os.open(name, os.O_RDWR)
    os.copy_file_range(fd, fd, 100, 0, 3000)
    os.close(fd)


ATTEMPTS: list[Callable[[str], None]] = [
    pwrite,
    map_shared,
    map_after_reading,
    truncate_at_open,
    write_directly,
    copy_into,
    lambda name: os.truncate(name, 0),
]


def test_no_attempt_forges_a_sealed_file(mounted: MountedStore) -> None:
    """As root and as the owner; in a version, and in the same version a second time."""
    for name in ("own", "warm"):
        (mounted.current / name).write_bytes(CONTENT)
        os.chown(mounted.current / name, STRANGER, STRANGER)
        (mounted.current / name).chmod(0o666)
    version = mounted.seal("1.0.0")
    assert (version / "warm").read_bytes() == CONTENT

    here = os.getcwd()
    os.chdir(version)
    try:
        for attempt in ATTEMPTS:
            for name in ("own", "warm"):
                with pytest.raises(OSError, match=r"Read-only|as good"):
                    attempt(name)
                assert as_stranger(version, lambda a=attempt, n=name: a(n)) == errno.EROFS  # type: ignore[misc]
                assert Path(name).read_bytes() == CONTENT
    finally:
        os.chdir(here)
    subprocess.run(["sync", "-f", version], check=True)
    assert (version / "own").read_bytes() == CONTENT


def test_a_view_that_was_rolled_back_is_not_opened_for_writing(mounted: MountedStore) -> None:
    (mounted.current / "file").write_bytes(CONTENT)
    mounted.seal("1.0.0")
    folder = os.open(mounted.current, os.O_RDONLY | os.O_DIRECTORY)
    file = os.open(mounted.current / "file", os.O_RDONLY)

    mounted.ask("rollback", "bot", "1.0.0")

    with pytest.raises(OSError, match="Read-only"):
        os.close(os.open(f"/proc/self/fd/{file}", os.O_WRONLY))
    assert (mounted.current / "file").read_bytes() == CONTENT
    os.close(file)
    os.close(folder)


def test_a_mount_made_writable_again_heals(mount_store: Callable[..., MountedStore]) -> None:
    """A read-only mount need not ask for opens; root can take the read-only away.

    What is forged then is refused when the kernel sends it, and dropped at once.
    """
    mounted = mount_store()
    (mounted.current / "file").write_bytes(CONTENT)
    version = mounted.seal("1.0.0").relative_to(mounted.mountpoint)
    mounted.end()
    mounted = mount_store(ro=True)
    path = mounted.mountpoint / version / "file"
    assert path.read_bytes() == CONTENT
    done = subprocess.run(
        ["mount", "-i", "-o", "remount,rw", mounted.mountpoint], check=False, capture_output=True
    )
    if done.returncode == 0:
        try:
            fd = os.open(path, os.O_WRONLY)
            os.pwrite(fd, b"FORGED", 0)
            with pytest.raises(OSError, match=r"Read-only|Input/output"):
                os.fsync(fd)
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EROFS  # noqa: PT017
    until = time.monotonic() + 10
    while path.read_bytes() != CONTENT:
        # The pages are dropped once the kernel has heard that their WRITE was refused.
        assert time.monotonic() < until, "forged bytes stay"
        mounted.ask("known")

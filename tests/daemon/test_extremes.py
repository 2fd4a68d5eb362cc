"""What is large, or long ago: full directories, far offsets, and times beyond 32 bits, through a remount.

`KAIFS_ENTRIES` says how many entries the directory has (2,000); 120,000 is the long form.
"""

import contextlib
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from kaifs.control.client import call
from kaifs.service.snapshot import Params as SnapshotParams
from tests.daemon.site import Site, check_store

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ENTRIES = int(os.environ.get("KAIFS_ENTRIES", "2000"))
FAR = [(1 << 31) - 3, (1 << 32) - 3, 1 << 32, (1 << 40) - 3, (1 << 43) + 1, (1 << 62) - 3]
SECONDS = [-(2**31) - 1, -(2**31), -1, 0, 2**31 - 1, 2**31, 2**32, 2**33]


@pytest.fixture(params=["pyfuse3", "kernel"])
def transport(request: pytest.FixtureRequest) -> str:
    """How the store is mounted."""
    name: str = request.param
    return name


def remount(site: Site, transport: str) -> None:
    """Unmount, find nothing wrong, and mount again."""
    site.umount()
    check_store(site.store)
    site.mount(f"transport={transport}")


def names_listed(folder: Path) -> list[str]:
    """Return what `ls` prints of *folder*, in the directory's own order."""
    listing = subprocess.check_output(["ls", "-U", folder], text=True)
    return listing.splitlines()


def test_a_full_directory_is_listed_shared_emptied_and_removed(site: Site, transport: str) -> None:
    """An entry that stays is met once while others go; a snapshot keeps them all."""
    site.mount(f"transport={transport}")
    (site.mountpoint / "agent").mkdir()
    folder = site.current / "full"
    folder.mkdir()
    names = {f"entry-{number:07}" for number in range(ENTRIES)}
    for name in sorted(names):
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    listed = names_listed(folder)
    assert len(listed) == ENTRIES
    assert set(listed) == names
    call(site.store, "snapshot", SnapshotParams(reference="agent", name="kept"))
    remount(site, transport)
    kept = site.mountpoint / "agent/@snapshots/kept/full"
    seen: list[str] = []

    with os.scandir(folder) as entries:
        for entry in entries:
            seen.append(entry.name)
            number = int(entry.name[-7:])
            if number % 2 == 0:
                os.unlink(entry.path)
            elif number % 7 == 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(folder / f"entry-{(number + ENTRIES // 2) % ENTRIES:07}")

    left = set(os.listdir(folder))
    assert len(seen) == len(set(seen))
    assert left <= set(seen) <= names
    assert 0 < len(left) < ENTRIES // 2 + 1
    subprocess.run(["rm", "-rf", folder], check=True)
    assert not folder.exists()
    remount(site, transport)
    assert not folder.exists()
    assert set(names_listed(kept)) == names
    site.umount()


def test_what_is_far_behind_survives_a_remount(site: Site, transport: str) -> None:
    """Written, mapped, appended beyond 2^31, 2^32, 2^40: read at its offset, zeros around it."""
    site.mount(f"transport={transport}")
    (site.mountpoint / "agent").mkdir()
    mapped_at = (1 << 40) - mmap.PAGESIZE
    for offset in FAR:
        with (site.current / f"at-{offset}").open("wb", buffering=0) as file:
            os.pwrite(file.fileno(), b"across", offset)
    with (site.current / "appended").open("wb", buffering=0) as file:
        file.truncate(FAR[-1])
    with (site.current / "appended").open("ab", buffering=0) as file:
        file.write(b"end")
    with (site.current / "mapped").open("w+b", buffering=0) as file:
        file.truncate(mapped_at + 2 * mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE, offset=mapped_at) as memory:
            memory[mmap.PAGESIZE - 3 : mmap.PAGESIZE + 3] = b"across"
    with (site.current / "cut").open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), b"across", (1 << 32) - 3)
        file.truncate(1 << 32)
        file.truncate(1 << 41)

    remount(site, transport)

    expected = [(f"at-{offset}", offset, b"across", 6) for offset in FAR]
    expected += [
        ("appended", FAR[-1], b"end", 3),
        ("mapped", (1 << 40) - 3, b"across", 3 + mmap.PAGESIZE),
        ("cut", (1 << 32) - 3, b"acr", (1 << 41) - (1 << 32) + 3),
    ]
    for name, offset, content, to_end in expected:
        with (site.current / name).open("rb", buffering=0) as file:
            around = os.pread(file.fileno(), 30, offset - 8)
            assert around[: 8 + len(content)] == bytes(8) + content
            assert not any(around[8 + len(content) :])
            assert os.fstat(file.fileno()).st_size == offset + to_end
            # Sparse: the file has what was written, not what it spans.
            assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
    site.umount()


def test_times_beyond_32_bits_survive_a_remount(site: Site, transport: str) -> None:
    """Of files, directories and symbolic links, to the nanosecond."""
    site.mount(f"transport={transport}")
    (site.mountpoint / "agent").mkdir()
    expected: dict[Path, tuple[int, int]] = {}
    for seconds in SECONDS:
        paths = [site.current / f"{kind}{seconds}" for kind in ("file", "folder", "link")]
        paths[0].touch()
        paths[1].mkdir()
        paths[2].symlink_to("nowhere")
        for path in paths:
            mtime_ns = seconds * 10**9 + 123_456_789
            expected[path] = (mtime_ns - 1, mtime_ns)
            os.utime(path, ns=expected[path], follow_symlinks=False)

    for _ in range(2):
        for path, times in expected.items():
            status = path.lstat()
            assert (status.st_atime_ns, status.st_mtime_ns) == times
        remount(site, transport)
    site.umount()

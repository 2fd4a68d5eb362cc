"""Corners of POSIX, each compared with what the host's own file system does."""

import contextlib
import errno
import mmap
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import RENAME_EXCHANGE, renameat2

pytestmark = pytest.mark.fuse

KIB, GIB, TIB = 1 << 10, 1 << 30, 1 << 40


def both(folder: Path, tmp_path: Path, action: Callable[[Path], object]) -> object:
    """Do *action* here and on the host's file system; return what came of it, the same."""
    here, there = action(folder), action(tmp_path)
    assert here == there
    return here


def outcome(action: Callable[[], object]) -> object:
    """Return what *action* returns, or its errno."""
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize("offset", [(1 << 31) - 3, (1 << 32) - 3, 1 << 32, TIB, 8 * TIB])
def test_files_reach_past_every_boundary(folder: Path, tmp_path: Path, offset: int) -> None:
    def action(place: Path) -> object:
        path = place / "large"
        with path.open("w+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"across", offset)
            os.fsync(file.fileno())
            beside = os.pread(file.fileno(), 20, offset - 8)
            os.ftruncate(file.fileno(), offset + 3)
            return path.stat().st_size, beside, os.pread(file.fileno(), 9, offset)

    result = both(folder, tmp_path, action)
    assert result == (offset + 3, bytes(8) + b"across", b"acr")


@pytest.mark.parametrize("seconds", [-(2**31) + 1, -1, 0, 2**31 - 1, 2**31, 2**33])
def test_times_before_1970_and_after_2038(folder: Path, tmp_path: Path, seconds: int) -> None:
    def action(place: Path) -> object:
        path = place / "file"
        path.touch()
        time_ns = seconds * 10**9 + 123_456_789
        os.utime(path, ns=(time_ns, time_ns + 1))
        status = path.stat()
        return status.st_atime_ns, status.st_mtime_ns

    both(folder, tmp_path, action)


def test_utimensat_now_and_omit(folder: Path) -> None:
    path = folder / "file"
    path.touch()
    os.utime(path, ns=(5, 7))
    subprocess.run(["touch", "-a", path], check=True)
    status = path.stat()
    assert status.st_mtime_ns == 7
    assert status.st_atime_ns > 5

    subprocess.run(["touch", "-m", path], check=True)
    assert path.stat().st_mtime_ns > 7
    assert path.stat().st_ctime_ns >= path.stat().st_mtime_ns


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "x" * 256, " ", "\n", "\\", "a\tb", "."])
def test_names(folder: Path, tmp_path: Path, name: str) -> None:
    def action(place: Path) -> object:
        made = outcome(lambda: os.close(os.open(place / name, os.O_CREAT | os.O_EXCL)))
        return made, name in os.listdir(place)

    both(folder, tmp_path, action)


def test_a_path_of_4095_bytes(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("file").write_bytes(b"deep")
        assert Path("file").read_bytes() == b"deep"
    finally:
        os.chdir(here)
    path = os.fsencode(folder) + (b"/" + b"d" * 250) * 13
    path += b"/." * ((4095 - len(path)) // 2)
    assert len(os.listdir(path[:4095])) == 1


@pytest.mark.slow
def test_a_large_directory_is_listed_while_it_is_emptied(
    shared: MountedStore, folder: Path
) -> None:
    """Each entry that stays is met exactly once, however many others go."""
    count = 5_000
    for number in range(count):
        os.mknod(folder / f"f{number:06}")
    seen: list[str] = []

    with os.scandir(folder) as entries:
        for entry in entries:
            seen.append(entry.name)
            number = int(entry.name[1:])
            if number % 2 == 0:
                os.unlink(entry.path)
            elif number % 7 == 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(folder / f"f{(number + 1000) % count:06}")

    left = set(os.listdir(folder))
    assert len(seen) == len(set(seen))
    assert left <= set(seen)
    subprocess.run(["rm", "-r", folder], check=True)
    assert not folder.exists()


APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(300):
    os.write(fd, b"%s:%04d\\n" % (sys.argv[2].encode(), number))
"""


def test_appends_of_two_processes_and_a_truncation(folder: Path) -> None:
    path = folder / "log"
    path.touch()
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, path, who]) for who in "ab"]
    for writer in writers:
        assert writer.wait() == 0
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%c:%04d" % (who, n) for who in b"ab" for n in range(300))

    with path.open("ab", buffering=0) as file:
        os.truncate(path, 0)
        file.write(b"after")
    assert path.read_bytes() == b"after"


def test_an_unlinked_file_lives_on(folder: Path, tmp_path: Path) -> None:
    def action(place: Path) -> object:
        path = place / "file"
        with path.open("w+b", buffering=0) as file:
            file.write(b"before")
            path.unlink()
            path.write_bytes(b"another")
            os.pwrite(file.fileno(), b"AFTER", 6)
            os.fchmod(file.fileno(), 0o640)
            os.ftruncate(file.fileno(), 9)
            os.utime(file.fileno(), ns=(1, 2))
            status = os.fstat(file.fileno())
            again = outcome(lambda: os.link(f"/proc/self/fd/{file.fileno()}", place / "again"))
            return (
                os.pread(file.fileno(), 100, 0),
                status.st_nlink,
                stat.S_IMODE(status.st_mode),
                status.st_mtime_ns,
                path.read_bytes(),
                again is None,
            )

    assert both(folder, tmp_path, action)


def test_a_rename_over_an_open_file(folder: Path, tmp_path: Path) -> None:
    def action(place: Path) -> object:
        (place / "old").write_bytes(b"old")
        (place / "new").write_bytes(b"new")
        with (place / "old").open("r+b", buffering=0) as file:
            os.rename(place / "new", place / "old")
            os.pwrite(file.fileno(), b"OLD", 0)
            return file.read(), os.fstat(file.fileno()).st_nlink, (place / "old").read_bytes()

    assert both(folder, tmp_path, action) == (b"OLD", 0, b"new")


def test_renames_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    def action(place: Path) -> object:
        (place / "d/e").mkdir(parents=True)
        (place / "full/x").mkdir(parents=True)
        (place / "file").touch()
        os.link(place / "file", place / "same")
        pairs = [("d", "d/e/f"), ("d", "full"), ("file", "d"), ("d", "file"), ("file", "same")]
        pairs += [("missing", "x"), ("d/..", "x"), ("d/.", "x"), ("file", "file/")]

        def rename(old: str, new: str) -> Callable[[], object]:
            return lambda: os.rename(f"{place}/{old}", f"{place}/{new}")

        found = [outcome(rename(old, new)) for old, new in pairs]
        swap = outcome(lambda: renameat2(place / "file", place / "full", RENAME_EXCHANGE))
        return found, swap, sorted(os.listdir(place)), (place / "file/x").is_dir()

    both(folder, tmp_path, action)


@pytest.mark.parametrize("how", ["shared", "private"])
def test_mappings(folder: Path, tmp_path: Path, how: str) -> None:
    flags = mmap.MAP_SHARED if how == "shared" else mmap.MAP_PRIVATE

    def action(place: Path) -> object:
        path = place / "mapped"
        path.write_bytes(b"0" * 8192)
        with path.open("r+b") as file:
            with mmap.mmap(file.fileno(), 8192, flags) as mapping:
                mapping[4090:4100] = b"1" * 10
                os.pwrite(file.fileno(), b"2", 0)
                seen = mapping[0:1], os.pread(file.fileno(), 12, 4089)
                mapping.flush()
            return seen, path.read_bytes()[4089:4101]

    both(folder, tmp_path, action)


def test_direct_io_and_the_cache_agree(folder: Path) -> None:
    path = folder / "direct"
    path.write_bytes(b"a" * 8192)
    cached = path.open("rb", buffering=0)
    assert cached.read(1) == b"a"
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        page.write(b"b" * 4096)
        os.pwrite(direct, page, 4096)
        assert os.pread(cached.fileno(), 8192, 0) == b"a" * 4096 + b"b" * 4096
        with path.open("r+b", buffering=0) as other:
            os.pwrite(other.fileno(), b"c", 0)
            assert os.preadv(direct, [page], 0) == 4096
            assert page[0:2] == b"ca"
    os.close(direct)
    cached.close()


@pytest.mark.root
def test_special_files(folder: Path, tmp_path: Path) -> None:
    def action(place: Path) -> object:
        os.mkfifo(place / "fifo", 0o640)
        os.mknod(place / "node", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
        here = os.getcwd()
        os.chdir(place)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
            listener.listen()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect("socket")
        os.chdir(here)
        reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(place / "fifo", os.O_WRONLY)
        os.write(writer, b"through")
        text = os.read(reader, 100)
        os.close(reader)
        os.close(writer)
        modes = [(name, os.lstat(place / name).st_mode) for name in ("fifo", "node", "socket")]
        opened = outcome(lambda: os.open(place / "socket", os.O_RDONLY))
        return text, modes, os.stat(place / "node").st_rdev, opened

    both(folder, tmp_path, action)


def test_links_of_every_kind(folder: Path, tmp_path: Path) -> None:
    def action(place: Path) -> object:
        (place / "file").write_bytes(b"x")
        (place / "link").symlink_to("y" * 4095)
        os.link(place / "link", place / "hard", follow_symlinks=False)
        too_long = outcome(lambda: os.symlink("y" * 4096, place / "longer"))
        for number in range(50):
            os.link(place / "file", place / f"n{number}")
        for number in range(0, 50, 2):
            os.unlink(place / f"n{number}")
        return (
            os.readlink(place / "hard") == "y" * 4095,
            os.lstat(place / "link").st_nlink,
            too_long,
            (place / "file").stat().st_nlink,
            outcome(lambda: os.link(place, place / "dir")),
        )

    both(folder, tmp_path, action)


def test_directories_count_and_refuse(folder: Path, tmp_path: Path) -> None:
    def action(place: Path) -> object:
        base = place / "base"
        for name in ("a/b", "c", "d"):
            (base / name).mkdir(parents=True)
        before = base.stat().st_nlink
        os.rename(base / "c", base / "a/c")
        with (base / "a/file").open("wb"):
            pass
        removed = os.open(base / "d", os.O_RDONLY | os.O_DIRECTORY)
        os.rmdir(base / "d")
        inside = outcome(lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=removed))
        listed = os.listdir(removed)
        nlink = os.fstat(removed).st_nlink
        os.close(removed)
        return (
            before,
            base.stat().st_nlink,
            (base / "a").stat().st_nlink,
            inside,
            listed,
            nlink,
            outcome(lambda: os.rmdir(base / "a")),
            outcome(lambda: os.unlink(base / "a")),
            outcome(lambda: os.open(base, os.O_WRONLY)),
        )

    both(folder, tmp_path, action)

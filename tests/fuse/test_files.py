"""Files of a writable view behave as on any other file system."""

import errno
import mmap
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import STRANGER, as_stranger

pytestmark = pytest.mark.fuse


def test_what_is_written_is_read_back(folder: Path) -> None:
    payload = os.urandom(3_000_001)

    (folder / "file").write_bytes(payload)

    assert (folder / "file").read_bytes() == payload
    assert (folder / "file").stat().st_size == len(payload)


def test_writes_deep_inside_leave_the_rest(folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(b"a" * 100_000)

    with file.open("r+b") as writer:
        os.pwrite(writer.fileno(), b"bbb", 70_000)

    assert file.read_bytes() == b"a" * 70_000 + b"bbb" + b"a" * 29_997


def test_a_hole_reads_as_zeros_and_takes_no_blocks(shared: MountedStore, folder: Path) -> None:
    file = folder / "sparse"
    with file.open("wb") as writer:
        os.pwrite(writer.fileno(), b"end", 1 << 30)
        os.fsync(writer.fileno())

    with file.open("rb") as reader:
        assert os.pread(reader.fileno(), 8, 1 << 29) == bytes(8)
        assert os.pread(reader.fileno(), 8, (1 << 30) - 2) == b"\0\0end"
    assert file.stat().st_blocks < 100


def test_truncate_cuts_and_extends(folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(b"0123456789")

    os.truncate(file, 4)
    os.truncate(file, 8)

    assert file.read_bytes() == b"0123\0\0\0\0"


def test_open_with_truncation_empties_the_file(folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(b"old" * 10_000)

    file.write_bytes(b"new")

    assert file.read_bytes() == b"new"


def test_appends_from_several_processes_lose_nothing(folder: Path) -> None:
    """Trap: O_APPEND from two processes."""
    file = folder / "log"
    file.touch()
    children = []
    for writer in range(4):
        child = os.fork()
        if not child:
            fd = os.open(file, os.O_WRONLY | os.O_APPEND)
            for number in range(100):
                os.write(fd, b"%d:%03d\n" % (writer, number))
            os._exit(0)
        children.append(child)

    for child in children:
        os.waitpid(child, 0)

    lines = file.read_bytes().splitlines()
    assert sorted(lines) == [b"%d:%03d" % (w, n) for w in range(4) for n in range(100)]


def test_a_shared_mapping_writes_through_and_moves_times(folder: Path) -> None:
    """Traps: mmap writes are seen by read(), and update mtime and ctime."""
    file = folder / "mapped"
    file.write_bytes(bytes(8192))
    os.utime(file, ns=(1, 1))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8192) as mapping:
        before = file.stat()

        mapping[5000:5003] = b"abc"
        mapping.flush()

        assert os.pread(opened.fileno(), 3, 5000) == b"abc"
    after = file.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_an_unlinked_open_file_lives_until_it_is_closed(shared: MountedStore, folder: Path) -> None:
    """Traps: nlink 0, and chmod, chown, utimens, truncate by descriptor."""
    inodes = shared.ask("inodes", "bot")
    fd = os.open(folder / "gone", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"still here")

    os.unlink(folder / "gone")

    os.fchmod(fd, 0o640)
    os.fchown(fd, 12, 34)
    os.utime(fd, ns=(5, 6))
    os.ftruncate(fd, 5)
    os.fsync(fd)
    status = os.fstat(fd)
    assert status.st_nlink == 0
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 12, 34)
    assert status.st_mtime_ns >= 6
    assert os.pread(fd, 100, 0) == b"still"
    os.close(fd)
    shared.ask_until(inodes, "inodes", "bot")


def test_a_name_can_be_used_again_while_the_old_file_is_open(folder: Path) -> None:
    (folder / "name").write_bytes(b"old")
    with (folder / "name").open("rb") as old:
        os.unlink(folder / "name")
        (folder / "name").write_bytes(b"new")

        assert old.read() == b"old"
        assert (folder / "name").read_bytes() == b"new"


def test_hard_links_are_one_file(folder: Path) -> None:
    (folder / "a").write_bytes(b"x")
    os.link(folder / "a", folder / "b")
    (folder / "b").write_bytes(b"both")

    assert (folder / "a").read_bytes() == b"both"
    assert (folder / "a").stat().st_ino == (folder / "b").stat().st_ino
    assert (folder / "a").stat().st_nlink == 2
    os.unlink(folder / "a")
    assert (folder / "b").stat().st_nlink == 1
    assert (folder / "b").read_bytes() == b"both"


def test_create_honours_the_mode_as_it_comes(folder: Path) -> None:
    """Trap: the kernel has already applied the umask."""
    before = os.umask(0o027)
    try:
        os.close(os.open(folder / "file", os.O_WRONLY | os.O_CREAT, 0o4777))
        os.mkdir(folder / "dir", 0o1777)
        os.mknod(folder / "fifo", stat.S_IFIFO | 0o666)
    finally:
        os.umask(before)

    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o4750
    assert stat.S_IMODE((folder / "dir").stat().st_mode) == 0o1750
    assert stat.S_IMODE((folder / "fifo").stat().st_mode) == 0o640


def test_a_file_can_be_written_by_who_made_it_read_only(folder: Path) -> None:
    fd = os.open(folder / "file", os.O_WRONLY | os.O_CREAT, 0o000)
    os.write(fd, b"x")
    os.close(fd)

    assert (folder / "file").stat().st_size == 1


def test_children_of_a_set_gid_directory_inherit(folder: Path) -> None:
    """Trap: the group, and subdirectories the bit too."""
    os.chown(folder, 0, 1234)
    folder.chmod(0o2775)

    (folder / "file").touch()
    (folder / "dir").mkdir(0o755)
    (folder / "link").symlink_to("file")

    assert (folder / "file").stat().st_gid == 1234
    assert (folder / "link").lstat().st_gid == 1234
    assert (folder / "dir").stat().st_gid == 1234
    assert (folder / "dir").stat().st_mode & stat.S_ISGID


def test_device_nodes_fifos_and_sockets_are_there(folder: Path) -> None:
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(folder / "fifo")
    here = os.getcwd()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    os.chdir(here)

    assert (folder / "null").stat().st_rdev == os.makedev(1, 3)
    assert (folder / "null").read_bytes() == b""
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((folder / "socket").stat().st_mode)


@pytest.mark.root
@pytest.mark.parametrize("how", ["write", "truncate", "open", "chown"])
def test_set_id_bits_go_when_a_stranger_changes_the_file(folder: Path, how: str) -> None:
    """Trap 8."""
    file = folder / "program"
    file.write_bytes(b"code")
    os.chown(file, STRANGER, STRANGER)
    file.chmod(0o6777)

    def change() -> None:
        if how == "write":
            fd = os.open("program", os.O_WRONLY)
            os.write(fd, b"x")
            assert not os.fstat(fd).st_mode & 0o6000
            os.close(fd)
        elif how == "truncate":
            os.truncate("program", 1)
        elif how == "open":
            os.close(os.open("program", os.O_WRONLY | os.O_TRUNC))
        else:
            os.chown("program", -1, STRANGER)

    assert as_stranger(folder, change) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o777


@pytest.mark.root
def test_the_kernel_checks_permissions(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)

    assert as_stranger(folder, lambda: os.open("secret", os.O_RDONLY)) == errno.EACCES
    assert as_stranger(folder, lambda: os.mkdir("new")) == errno.EACCES
    assert as_stranger(folder, lambda: os.chmod("secret", 0o777)) == errno.EPERM
    assert as_stranger(folder, lambda: os.unlink("secret")) == errno.EACCES


def test_times_are_kept_to_the_nanosecond(shared: MountedStore, folder: Path) -> None:
    (folder / "file").write_bytes(b"x")

    os.utime(folder / "file", ns=(1_234_567_890_123_456_789, -1_000_000_001))

    status = (folder / "file").stat()
    assert status.st_atime_ns == 1_234_567_890_123_456_789
    assert status.st_mtime_ns == -1_000_000_001


def test_extended_attributes(folder: Path) -> None:
    file = folder / "file"
    file.touch()

    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    os.setxattr(file, "user.b", b"x" * 20_000)
    os.setxattr(file, "user.a", b"2", os.XATTR_REPLACE)

    assert sorted(os.listxattr(file)) == ["user.a", "user.b"]
    assert os.getxattr(file, "user.a") == b"2"
    assert os.getxattr(file, "user.b") == b"x" * 20_000
    with pytest.raises(FileExistsError):
        os.setxattr(file, "user.a", b"3", os.XATTR_CREATE)
    os.removexattr(file, "user.a")
    with pytest.raises(OSError, match="No data") as caught:
        os.getxattr(file, "user.a")
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError, match="No data"):
        os.removexattr(file, "user.a")


def test_unaligned_direct_io_does_not_hurt_the_server(folder: Path) -> None:
    """Trap: one O_DIRECT write took a reference server down."""
    file = folder / "direct"
    payload = mmap.mmap(-1, 65536)
    payload.write(os.urandom(65536))
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_DIRECT)

    assert os.pwrite(fd, payload, 0) == 65536
    assert os.pwrite(fd, memoryview(payload)[3:1000], 70_001) == 997

    assert os.pread(fd, 65536, 0) == payload[:]
    os.close(fd)
    assert file.read_bytes()[70_001:] == payload[3:1000]


def test_locks_work(folder: Path) -> None:
    import fcntl

    with (folder / "lock").open("w") as one, (folder / "lock").open("w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_threads_that_write_beside_each_other(folder: Path) -> None:
    file = folder / "file"
    file.touch()

    def write(number: int) -> None:
        fd = os.open(file, os.O_WRONLY)
        for turn in range(50):
            os.pwrite(fd, bytes([number]) * 1000, (turn * 4 + number) * 1000)
        os.fsync(fd)
        os.close(fd)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert file.read_bytes() == b"".join(bytes([n]) * 1000 for n in range(4)) * 50


def test_a_running_program_sees_what_it_executes(folder: Path) -> None:
    script = folder / "script"
    script.write_bytes(b"#!/bin/sh\necho ran > $1\n")
    script.chmod(0o755)

    assert os.spawnv(os.P_WAIT, script, [str(script), str(folder / "out")]) == 0

    assert (folder / "out").read_text() == "ran\n"


def test_statvfs_tells_of_the_disk(folder: Path) -> None:
    space = os.statvfs(folder)

    assert space.f_namemax == 255
    assert space.f_blocks > space.f_bavail > 0


def test_opens_for_writing_are_counted(shared: MountedStore, folder: Path) -> None:
    before = shared.ask("writers")
    with (folder / "a").open("wb"):
        assert shared.ask("writers") == before + 1
    with (folder / "a").open("rb"):
        assert shared.ask("writers") == before

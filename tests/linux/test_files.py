"""Durable writes and locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kaifs.linux.files import FileLock, LockHeld, lock_owner, read_file, write_durably

HOLDER = """
import sys
from pathlib import Path
from kaifs.linux.files import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire(0, "holder of the test")
print("held", flush=True)
sys.stdin.read()
"""


def test_write_durably_replaces_the_whole_file_and_sets_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old and longer")

    write_durably(target, b"new", mode=0o640)

    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_write_durably_replaces_a_symbolic_link_and_leaves_its_target(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "file").symlink_to(victim)

    write_durably(tmp_path / "file", b"new")

    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()

    with pytest.raises(OSError, match="directory"):
        write_durably(tmp_path / "file", b"new")

    assert os.listdir(tmp_path) == ["file"]


def test_read_file_does_not_wait_for_a_fifo_nor_follow_a_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")

    assert read_file(tmp_path / "fifo", 10) == b""
    with pytest.raises(OSError, match="symbolic"):
        read_file(tmp_path / "link", 10)


def test_a_lock_names_its_holder_and_is_free_when_the_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        expected = f"process {holder.pid} (holder of the test)"
        lock = FileLock(path)

        with pytest.raises(LockHeld) as caught:
            lock.acquire(0.05, "us")
        assert caught.value.owner_text == expected
        assert lock_owner(path) == expected

        holder.kill()
    lock.acquire(5, "us")
    assert lock_owner(path) == f"process {os.getpid()} (us)"
    lock.release()
    assert lock_owner(path) is None


def test_an_adopted_descriptor_keeps_the_lock_until_both_are_closed(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.acquire(0, "first")

    second.adopt(os.dup(first.fd))
    first.release()

    assert lock_owner(tmp_path / "lock") is not None
    second.release()
    assert lock_owner(tmp_path / "lock") is None


def test_adopt_refuses_a_descriptor_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    fd = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(OSError, match="is not"):
        FileLock(tmp_path / "lock").adopt(fd)

    os.close(fd)


def test_the_lock_file_is_not_followed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic"):
        FileLock(tmp_path / "lock").acquire(0, "us")

    assert not (tmp_path / "elsewhere").exists()

"""A folder of files below the segments; errors of the system become ours."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import NoSpaceError, StoreDamagedError, StoreIOError
from kaifs.blocks.device import FileDevice
from tests.store.disks import small_disk


@pytest.fixture
def device(tmp_path: Path) -> Iterator[FileDevice]:
    device = FileDevice(tmp_path)
    yield device
    device.close()


def test_what_is_written_is_read(device: FileDevice) -> None:
    device.create("a")
    device.write("a", 0, b"hello")
    device.write("a", 3, b"p!")
    device.sync("a")
    device.sync("a")

    assert device.read("a", 1, 3) == b"elp"
    assert device.read("a", 3, 100) == b"p!"
    assert device.size("a") == 5
    assert device.names() == ["a"]


def test_a_file_that_is_cut_ends_there(device: FileDevice) -> None:
    device.create("a")
    device.write("a", 0, b"hello")

    device.truncate("a", 2)

    assert device.read("a", 0, 9) == b"he"


def test_files_of_an_earlier_process_are_opened_as_needed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    device = FileDevice(tmp_path)

    assert device.read("a", 0, 9) == b"old"
    device.close()


def test_removing_is_done_once_and_again(device: FileDevice, tmp_path: Path) -> None:
    """Gc may be killed between the commit and this, and does it again."""
    device.create("a")
    (tmp_path / "b").touch()

    for name in ("a", "b", "a"):
        device.remove(name)

    assert device.names() == []


def test_a_missing_file_is_damage(device: FileDevice) -> None:
    with pytest.raises(StoreDamagedError, match="a is missing"):
        device.read("a", 0, 1)


def test_a_symbolic_link_is_not_followed(device: FileDevice, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "a").symlink_to("target")

    with pytest.raises(StoreIOError):
        device.read("a", 0, 1)
    with pytest.raises(StoreIOError):
        device.create("a")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreIOError):
        FileDevice(tmp_path / "none")


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    device = FileDevice(tmp_path)
    device.create("a")

    device.close()
    device.close()


@pytest.fixture
def cut_off(device: FileDevice) -> FileDevice:
    """Return a device whose file `a` was opened for reading only, by somebody else's mistake."""
    device.create("a")
    device.write("a", 0, b"x")
    reader = os.open(f"/proc/self/fd/{device._files['a']}", os.O_RDONLY)
    os.dup2(reader, device._files["a"])
    os.close(reader)
    return device


def test_a_system_that_refuses_is_an_error_of_the_store(cut_off: FileDevice) -> None:
    with pytest.raises(StoreIOError):
        cut_off.write("a", 0, b"y")
    with pytest.raises(StoreIOError):
        cut_off.truncate("a", 0)

    assert cut_off.read("a", 0, 9) == b"x"


def test_a_file_that_is_a_directory_is_an_error(device: FileDevice, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    with pytest.raises(StoreIOError):
        device.remove("a")
    device._files["a"] = os.open(tmp_path / "a", os.O_RDONLY)
    with pytest.raises(StoreIOError):
        device.read("a", 0, 1)


def test_a_file_that_cannot_be_synced_is_an_error(device: FileDevice) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    device._files["a"] = reading

    with pytest.raises(StoreIOError):
        device.sync("a")


def test_what_is_not_in_memory_is_asked_for(device: FileDevice, tmp_path: Path) -> None:
    """Dropped from memory where the file system can do without it; tmpfs cannot."""
    content = os.urandom(1 << 20)
    device.create("a")
    device.write("a", 0, content)
    device.sync("a")
    assert device.is_cached("a", 0, len(content))
    with open(tmp_path / "a", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    device.is_cached("a", 0, len(content))
    device.fetcher([("a", 0, len(content)), ("absent", 0, 1)])()

    assert device.is_cached("a", 0, len(content))
    assert device.read("a", 0, len(content)) == content


@pytest.mark.parametrize(("error", "waits"), [(errno.EAGAIN, True), (errno.EIO, False)])
def test_what_must_wait_is_told_and_what_fails_is_left_to_read(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch, error: int, waits: bool
) -> None:
    device.create("a")
    device.write("a", 0, b"hello")

    def preadv(*arguments: object) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", preadv)
        assert device.is_cached("a", 0, 5) is not waits

    assert device.is_cached("a", 0, 5)


def test_where_the_system_cannot_tell_reads_wait(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    device.create("a")
    device.write("a", 0, b"hello")

    def preadv(*arguments: object) -> int:
        calls.append(arguments)
        raise OSError(errno.EOPNOTSUPP, "not there")

    monkeypatch.setattr(os, "preadv", preadv)

    assert device.is_cached("a", 0, 5)
    assert device.is_cached("a", 0, 5)
    assert len(calls) == 1


def test_a_file_past_the_process_limit_is_no_space(device: FileDevice) -> None:
    device.create("a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        # The first write comes back short, the second one with the error.
        with pytest.raises(NoSpaceError):
            device.write("a", 0, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert device.size("a") == 4096


@pytest.mark.root
def test_a_full_disk_is_no_space_after_as_much_as_fits(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as folder:
        device = FileDevice(folder)
        device.create("a")

        with pytest.raises(NoSpaceError):
            device.write("a", 0, bytes(100_000))

        assert device.size("a") == 65536
        device.truncate("a", 0)
        device.write("a", 0, b"again")
        assert device.read("a", 0, 9) == b"again"
        device.close()

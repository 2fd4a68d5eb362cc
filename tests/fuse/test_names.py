"""Names: directories, renames, links, and everything that may be in a name."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

pytestmark = pytest.mark.fuse


def test_names_of_255_bytes_work_and_of_256_do_not(folder: Path) -> None:
    """Trap 7: the kernel lets longer names through to the server."""
    (folder / ("n" * 255)).mkdir()
    (folder / ("n" * 255) / ("m" * 255)).write_bytes(b"x")

    for action in (
        lambda path: path.touch(),
        lambda path: path.mkdir(),
        lambda path: path.stat(),
        lambda path: path.unlink(),
        lambda path: path.symlink_to("x"),
        lambda path: os.rename(folder / ("n" * 255), path),
    ):
        with pytest.raises(OSError, match="too long") as caught:
            action(folder / ("n" * 256))
        assert caught.value.errno == errno.ENAMETOOLONG


def test_paths_up_to_4095_bytes_work(shared: MountedStore) -> None:
    here = os.getcwd()
    os.chdir(shared.current)
    try:
        name = "p" * 255
        for _ in range(15):
            os.mkdir(name)
            os.chdir(name)
        os.chdir(shared.current)
        path = os.path.join(*([name] * 15))
        path = os.path.join(path, "f" * (4095 - len(path) - 1))
        Path(path).write_bytes(b"deep")

        assert Path(path).read_bytes() == b"deep"
        assert len(path) == 4095
    finally:
        os.chdir(here)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", b" ", b"caf\xc3\xa9", b"-rf", b"a\\b"])
def test_names_are_bytes(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)

    with open(path, "wb") as file:
        file.write(name)

    assert os.listdir(os.fsencode(folder)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name


def test_directories_count_their_subdirectories(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "file").touch()
    assert folder.stat().st_nlink == 4

    os.rename(folder / "a", folder / "b/a")
    assert folder.stat().st_nlink == 3
    assert (folder / "b").stat().st_nlink == 3

    (folder / "b/a").rmdir()
    assert (folder / "b").stat().st_nlink == 2


def test_rmdir_of_a_full_directory_is_refused(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full/file").touch()

    with pytest.raises(OSError, match="not empty"):
        (folder / "full").rmdir()


def test_a_removed_directory_stays_a_working_directory(folder: Path) -> None:
    (folder / "gone").mkdir()
    fd = os.open(folder / "gone", os.O_RDONLY | os.O_DIRECTORY)

    (folder / "gone").rmdir()

    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    with pytest.raises(FileNotFoundError):
        os.mkdir("new", dir_fd=fd)
    os.close(fd)


def test_rename_replaces_a_file_that_stays_open(folder: Path) -> None:
    (folder / "new").write_bytes(b"new")
    (folder / "old").write_bytes(b"old")
    with (folder / "old").open("rb") as old:
        os.rename(folder / "new", folder / "old")

        assert old.read() == b"old"
        assert os.fstat(old.fileno()).st_nlink == 0
    assert (folder / "old").read_bytes() == b"new"
    assert os.listdir(folder) == ["old"]


def test_rename_between_names_of_one_file_does_nothing(folder: Path) -> None:
    (folder / "a").touch()
    os.link(folder / "a", folder / "b")

    os.rename(folder / "a", folder / "b")

    assert sorted(os.listdir(folder)) == ["a", "b"]


def test_rename_of_a_directory_with_open_children(folder: Path) -> None:
    """Trap 5."""
    (folder / "dir/sub").mkdir(parents=True)
    with (folder / "dir/sub/file").open("w+b") as opened:
        opened.write(b"before ")
        opened.flush()

        os.rename(folder / "dir", folder / "moved")

        opened.write(b"after")
    assert (folder / "moved/sub/file").read_bytes() == b"before after"


def test_rename_into_itself_and_over_a_full_directory_is_refused(folder: Path) -> None:
    (folder / "a/b").mkdir(parents=True)
    (folder / "c").mkdir()

    with pytest.raises(OSError, match="Invalid"):
        os.rename(folder / "a", folder / "a/b/a")
    with pytest.raises(OSError, match="not empty"):
        os.rename(folder / "c", folder / "a")
    os.rename(folder / "c", folder / "a/b")


def test_a_listing_ends_although_each_file_is_renamed_to_and_fro_meanwhile(folder: Path) -> None:
    """What a rename has put at the end of the listing again would be met for ever."""
    names = {f"f{number}" for number in range(2000)}
    for name in names:
        (folder / name).touch()
    listed = []

    with os.scandir(folder) as entries:
        for entry in entries:
            listed.append(entry.name)
            os.rename(folder / entry.name, folder / "other")
            os.rename(folder / "other", folder / entry.name)
            assert len(listed) <= len(names)

    assert set(listed) == names


def test_names_that_stay_are_met_once_whatever_is_renamed_over_them(folder: Path) -> None:
    """A name that is there all the time is in the listing, whichever file has it."""
    names = {f"f{number}" for number in range(2000)}
    for name in names:
        (folder / name).touch()
    (folder / "beside").mkdir()
    listed = []

    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "beside":
                continue
            listed.append(entry.name)
            (folder / "beside/new").touch()
            os.rename(folder / "beside/new", folder / entry.name)
            renameat2(folder / entry.name, folder / "f0", RENAME_EXCHANGE)
            assert len(listed) <= len(names)

    assert set(listed) == names


def test_rename_without_replacing(folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")

    with pytest.raises(FileExistsError):
        renameat2(folder / "a", folder / "b", RENAME_NOREPLACE)
    renameat2(folder / "a", folder / "c", RENAME_NOREPLACE)

    assert (folder / "c").read_bytes() == b"a"


def test_exchange_swaps_a_file_and_a_directory(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "dir/sub").mkdir(parents=True)
    (folder / "other").mkdir()

    renameat2(folder / "file", folder / "dir", RENAME_EXCHANGE)
    renameat2(folder / "file", folder / "other", RENAME_EXCHANGE)

    assert (folder / "dir").read_bytes() == b"x"
    assert (folder / "other/sub").is_dir()
    with pytest.raises(FileNotFoundError):
        renameat2(folder / "file", folder / "absent", RENAME_EXCHANGE)


def test_an_unknown_rename_flag_is_refused(folder: Path) -> None:
    (folder / "a").touch()

    with pytest.raises(OSError, match="Invalid"):
        renameat2(folder / "a", folder / "b", 8)


def test_a_listing_has_each_entry_once(folder: Path) -> None:
    names = {f"file-{number}" for number in range(1500)}
    for name in names:
        (folder / name).touch()

    listed = os.listdir(folder)

    assert len(listed) == len(names)
    assert set(listed) == names


def test_a_listing_stays_right_while_entries_come_and_go(folder: Path) -> None:
    """Trap 5: what stays is listed exactly once."""
    for number in range(2000):
        (folder / f"stays-{number}").touch()
        (folder / f"goes-{number}").touch()
    seen: list[str] = []

    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count < 1000:
                (folder / f"comes-{count}").touch()
                (folder / f"goes-{1999 - count}").unlink()
                os.rename(folder / f"stays-{count}", folder / f"stays-{count}")

    stays = [name for name in seen if name.startswith("stays")]
    assert len(stays) == 2000
    assert len(set(seen)) == len(seen)


def test_a_listing_can_be_resumed_and_rewound(folder: Path) -> None:
    for number in range(300):
        (folder / f"{number}").touch()
    fd = os.open(folder, os.O_RDONLY)

    first = os.listdir(fd)
    os.unlink(folder / "7")
    os.lseek(fd, 0, os.SEEK_SET)
    second = os.listdir(fd)

    os.close(fd)
    assert len(first) == 300
    assert set(first) - set(second) == {"7"}


def test_types_in_a_listing_need_no_stat(folder: Path) -> None:
    (folder / "dir").mkdir()
    (folder / "file").touch()
    (folder / "link").symlink_to("file")
    os.mkfifo(folder / "fifo")

    with os.scandir(folder) as entries:
        found = {entry.name: entry for entry in entries}

    assert found["dir"].is_dir(follow_symlinks=False)
    assert found["file"].is_file(follow_symlinks=False)
    assert found["link"].is_symlink()
    assert found["file"].inode() == (folder / "file").stat().st_ino


def test_symbolic_links_keep_any_target(folder: Path) -> None:
    os.symlink(b"\xff/../x" * 500, os.path.join(os.fsencode(folder), b"link"))

    assert os.readlink(os.fsencode(folder / "link")) == b"\xff/../x" * 500
    assert (folder / "link").lstat().st_size == 3000
    assert stat.S_IMODE((folder / "link").lstat().st_mode) == 0o777


def test_a_name_that_was_absent_is_found_once_it_is_made(folder: Path) -> None:
    """Absent names are remembered for ever, and forgotten when the kernel makes them."""
    for _ in range(3):
        assert not (folder / "name").exists()
        (folder / "name").touch()
        assert (folder / "name").exists()
        os.rename(folder / "name", folder / "other")
        assert not (folder / "name").exists()
        os.link(folder / "other", folder / "name")
        assert (folder / "name").exists()
        (folder / "name").unlink()
        (folder / "other").unlink()

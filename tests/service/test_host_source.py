"""Reading a folder of the host."""

import os
import stat
from pathlib import Path

import pytest

from kaifs.base.errors import SourceChangedError, SourceError
from kaifs.service.host_source import HostSource
from kaifs.service.steps import Data, End, Entry, Item, Total


def items(folder: Path, store: Path, *, count: bool = False) -> list[Item]:
    return list(HostSource(folder, store, count=count))


def set_back(path: Path) -> None:
    """Give *path* an old time: the kernel's clock for files ticks every few milliseconds."""
    os.utime(path, ns=(1, 1))


def entries(found: list[Item]) -> dict[bytes, Entry]:
    return {item.path: item for item in found if isinstance(item, Entry)}


def test_a_directory_comes_before_what_is_in_it_by_sorted_names(
    folder: Path, tmp_path: Path
) -> None:
    paths = list(entries(items(folder, tmp_path / "store")))

    assert paths[0] == b""
    assert paths[1:] == sorted(paths[1:], key=lambda path: path.split(b"/"))


def test_the_last_item_is_the_end(folder: Path, tmp_path: Path) -> None:
    assert items(folder, tmp_path / "store")[-1] == End()


def test_a_count_comes_first_if_asked_for(folder: Path, tmp_path: Path) -> None:
    found = items(folder, tmp_path / "store", count=True)

    total = found[0]
    assert isinstance(total, Total)
    assert total.files == len(entries(found)) - 1


def test_special_files_are_told_and_not_opened(folder: Path, tmp_path: Path) -> None:
    """Opening a FIFO would wait for a writer for ever."""
    found = entries(items(folder, tmp_path / "store"))

    assert stat.S_ISFIFO(found[b"pipe"].mode)
    assert stat.S_ISSOCK(found[b"socket"].mode)
    assert found[b"lib/dangling"].target == b"../nowhere"


def test_holes_are_not_read(folder: Path, tmp_path: Path) -> None:
    found = items(folder, tmp_path / "store")

    start = next(n for n, item in enumerate(found) if getattr(item, "path", b"") == b"sparse")
    data = next(item for item in found[start + 1 :] if isinstance(item, Data))
    assert data.offset > 0
    assert b"middle" in data.payload


def test_names_of_one_file_carry_its_data_once(folder: Path, tmp_path: Path) -> None:
    found = items(folder, tmp_path / "store")

    told = entries(found)
    assert told[b"a.txt"].link == told[b"lib/again.txt"].link is not None
    assert [item.payload for item in found if isinstance(item, Data)].count(b"first\n") == 1


@pytest.mark.parametrize("name", ["missing", "a.txt", "nul\0"])
def test_what_is_no_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError):
        items(folder / name, tmp_path / "store")


def test_a_folder_with_the_store_inside_is_refused(tmp_path: Path) -> None:
    """Also if links lead to either."""
    (tmp_path / "top" / "store").mkdir(parents=True)
    os.symlink(tmp_path / "top", tmp_path / "alias")
    os.symlink(tmp_path / "top" / "store", tmp_path / "elsewhere")

    for folder, store in (("top", "top/store"), ("alias", "elsewhere"), ("top/store", "top/store")):
        with pytest.raises(SourceError, match="store"):
            items(tmp_path / folder, tmp_path / store)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """A version is one state of the folder."""
    victim = tmp_path / "source" / "log"
    victim.parent.mkdir()
    victim.write_bytes(os.urandom(3 << 20))
    set_back(victim)
    source = iter(HostSource(victim.parent, tmp_path / "store"))
    while not isinstance(next(source), Data):
        pass

    with victim.open("r+b") as file:
        file.write(b"changed")

    with pytest.raises(SourceChangedError, match="log"):
        list(source)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    victim = tmp_path / "source" / "log"
    victim.parent.mkdir()
    victim.write_bytes(os.urandom(3 << 20))
    set_back(victim)
    source = iter(HostSource(victim.parent, tmp_path / "store"))
    while not isinstance(next(source), Data):
        pass

    os.truncate(victim, 1 << 20)

    with pytest.raises(SourceChangedError, match="log"):
        list(source)


@pytest.mark.parametrize("change", ["z", "new"])
def test_a_name_that_goes_or_comes_meanwhile_is_an_error(tmp_path: Path, change: str) -> None:
    top = tmp_path / "source"
    top.mkdir()
    (top / "a").touch()
    (top / "z").touch()
    set_back(top)
    source = iter(HostSource(top, tmp_path / "store"))
    for path in (b"", b"a"):
        item = next(source)
        assert isinstance(item, Entry)
        assert item.path == path

    if change == "z":
        (top / "z").unlink()
    else:
        (top / "new").touch()

    with pytest.raises(SourceChangedError):
        list(source)


def test_a_link_put_in_the_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    """The walk opens each name without following, below the directory that it has open."""
    top, outside = tmp_path / "source", tmp_path / "outside"
    (top / "a").mkdir(parents=True)
    (top / "b").mkdir()
    (outside / "secret").mkdir(parents=True)
    source = iter(HostSource(top, tmp_path / "store"))
    assert [next(source) for _ in range(2)]

    (top / "b").rmdir()
    os.symlink(outside, top / "b")

    with pytest.raises(SourceChangedError):
        list(source)


def test_nesting_has_no_limit_but_the_descriptors(tmp_path: Path) -> None:
    """Deeper than Python's recursion; paths longer than PATH_MAX."""
    top = here = tmp_path / "source"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    depth = 300
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)

    found = entries(items(here, tmp_path / "store"))

    assert len(found) == depth + 1

"""The index in two copies: what is lost in one is had from the other, and put right."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import NoSpaceError, StoreDamagedError
from kaifs.meta.database import Database, Table
from kaifs.meta.index import CLOSED_NAME, INDEX_FILE, MIRROR_FILE, RETRY_COMMITS, Index
from kaifs.meta.mirror import FRAME_HEADER_SIZE, MIRROR_HEADER_SIZE, Mirror

MAP = 1 << 20


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index with one record."""
    index = Index(tmp_path, map_size=MAP, create=True)
    index.write({Table.NODES: {b"k": b"a value to be found"}})
    yield index
    index.close()


def files(folder: Path) -> tuple[Path, Path]:
    """Return the file of the main copy and of the mirror."""
    return folder / INDEX_FILE, folder / MIRROR_FILE


def flip(path: Path, needle: bytes) -> None:
    """Change one bit, without making a new file of it."""
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(raw.rindex(needle))
        file.write(bytes([raw[raw.rindex(needle)] ^ 1]))


def spoil(path: Path) -> None:
    """Change a bit of the last thing that a file says."""
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    with path.open("r+b") as file:
        file.write(raw)


def value(index: Index) -> bytes | None:
    return index.get(Table.NODES, b"k")


def test_both_copies_have_every_record(index: Index, tmp_path: Path) -> None:
    index.write({Table.NODES: {b"l": b"w", b"k": None}})
    index.close()

    main, mirror = Database(tmp_path, map_size=MAP), Mirror(tmp_path / MIRROR_FILE)
    assert (main.get(Table.NODES, b"l"), main.get(Table.NODES, b"k")) == (b"w", None)
    assert (mirror.find(Table.NODES, b"l"), mirror.find(Table.NODES, b"k")) == (b"w", None)
    assert mirror.records(Table.NODES) == {b"l": b"w"}
    main.close()
    mirror.close()


def test_a_record_damaged_in_one_copy_is_read_from_the_other(index: Index, tmp_path: Path) -> None:
    flip(tmp_path / INDEX_FILE, b"a value to be found")

    assert value(index) == b"a value to be found"


def test_a_record_that_was_had_from_the_mirror_is_put_right_by_the_next_commit(
    index: Index, tmp_path: Path
) -> None:
    main, mirror = files(tmp_path)
    flip(main, b"a value to be found")
    assert value(index) is not None

    index.write({Table.BLOCKS: {b"other": b""}})
    spoil(mirror)

    assert value(index) == b"a value to be found"


def test_what_a_commit_says_of_a_damaged_record_comes_before_what_the_mirror_had(
    index: Index, tmp_path: Path
) -> None:
    flip(tmp_path / INDEX_FILE, b"a value to be found")
    assert value(index) is not None

    index.write({Table.NODES: {b"k": b"newer"}})

    assert value(index) == b"newer"


def test_a_record_damaged_in_both_copies_is_damage(index: Index, tmp_path: Path) -> None:
    main, mirror = files(tmp_path)
    flip(main, b"a value to be found")
    spoil(mirror)

    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="nodes"):
            value(index)
    index.write({Table.NODES: {b"k": b"written again"}})
    assert value(index) == b"written again"


@pytest.mark.parametrize("number", [0, 1], ids=["main", "mirror"])
@pytest.mark.parametrize("where", [0, 20, 60, 90, -40, -1])
def test_a_copy_that_has_changed_since_it_was_closed_is_replaced_before_it_is_opened(
    index: Index, tmp_path: Path, number: int, where: int
) -> None:
    """Also where LMDB itself would trust a page and crash."""
    index.close()
    copy = files(tmp_path)[number]
    raw = bytearray(copy.read_bytes())
    raw[where] ^= 0xFF
    copy.write_bytes(raw)

    again = Index(tmp_path, map_size=MAP)

    assert value(again) == b"a value to be found"
    again.close()
    main, mirror = files(tmp_path)
    assert raw not in (main.read_bytes(), mirror.read_bytes())


@pytest.mark.parametrize("number", [0, 1], ids=["main", "mirror"])
@pytest.mark.parametrize("was_killed", [False, True])
def test_a_copy_that_is_missing_is_made_anew(
    index: Index, tmp_path: Path, number: int, was_killed: bool
) -> None:
    index.close()
    files(tmp_path)[number].unlink()
    if was_killed:
        (tmp_path / CLOSED_NAME).unlink()

    again = Index(tmp_path, map_size=MAP)

    assert value(again) == b"a value to be found"
    again.close()
    assert all(copy.exists() for copy in files(tmp_path))


def test_a_main_copy_that_lmdb_refuses_is_replaced(index: Index, tmp_path: Path) -> None:
    """A process that was killed has left no note of what its files were."""
    index.close()
    (tmp_path / CLOSED_NAME).unlink()
    (tmp_path / INDEX_FILE).write_bytes(b"x" * 8192)

    again = Index(tmp_path, map_size=MAP)

    assert value(again) == b"a value to be found"
    again.close()


def test_a_mirror_that_a_killed_process_left_behind_is_caught_up(tmp_path: Path) -> None:
    """Between the two writes of a commit the main copy alone has it: it counts."""
    index = Index(tmp_path, map_size=MAP, create=True)
    index.write({Table.NODES: {b"k": b"old"}})
    behind = (tmp_path / MIRROR_FILE).read_bytes()
    index.write({Table.NODES: {b"k": b"new"}})
    index.close()
    (tmp_path / CLOSED_NAME).unlink()
    (tmp_path / MIRROR_FILE).write_bytes(behind)

    again = Index(tmp_path, map_size=MAP)
    assert value(again) == b"new"
    flip(tmp_path / INDEX_FILE, b"new")

    assert value(again) == b"new"
    again.close()


@pytest.mark.parametrize("lost", [1, 40, 60])
@pytest.mark.parametrize("way", ["cut", "torn"])
def test_a_commit_that_was_cut_off_in_the_mirror_is_written_again(
    tmp_path: Path, lost: int, way: str
) -> None:
    """Power loss may leave a part of what was appended, or other bytes in its place."""
    index = Index(tmp_path, map_size=MAP, create=True)
    index.write({Table.NODES: {b"k": b"old"}})
    index.write({Table.NODES: {b"k": b"new"}})
    index.close()
    (tmp_path / CLOSED_NAME).unlink()
    raw = (tmp_path / MIRROR_FILE).read_bytes()
    filling = bytes(lost) if way == "torn" else b""
    (tmp_path / MIRROR_FILE).write_bytes(raw[:-lost] + filling)

    again = Index(tmp_path, map_size=MAP)

    assert again.mirror_fault() == ""
    flip(tmp_path / INDEX_FILE, b"new")
    assert value(again) == b"new"
    again.close()


def test_a_mirror_that_has_grown_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaifs.meta.index.SLACK", 2000)
    index = Index(tmp_path, map_size=MAP, create=True)
    largest = 0
    for number in range(60):
        index.write({Table.NODES: {b"k%d" % (number % 3): os.urandom(300)}})
        largest = max(largest, (tmp_path / MIRROR_FILE).stat().st_size)
    last = {key: index.get(Table.NODES, key) for key in index.keys(Table.NODES)}
    index.close()

    assert 3500 < largest < 8000
    mirror = Mirror(tmp_path / MIRROR_FILE)
    assert mirror.records(Table.NODES) == last
    mirror.close()


def test_the_note_goes_before_the_first_change(index: Index, tmp_path: Path) -> None:
    """One that outlived a change would let an older copy replace a newer one."""
    index.close()
    assert (tmp_path / CLOSED_NAME).exists()

    again = Index(tmp_path, map_size=MAP)
    assert value(again) is not None
    assert (tmp_path / CLOSED_NAME).exists()
    again.write({Table.BLOCKS: {b"other": b""}})

    assert not (tmp_path / CLOSED_NAME).exists()
    again.close()


@pytest.mark.parametrize("note", [b"", b"x" * 60, os.urandom(2000)])
def test_a_note_that_is_none_is_ignored(index: Index, tmp_path: Path, note: bytes) -> None:
    index.close()
    (tmp_path / CLOSED_NAME).write_bytes(note)

    again = Index(tmp_path, map_size=MAP)

    assert value(again) == b"a value to be found"
    again.close()


def test_a_mirror_that_cannot_be_written_is_not_read_any_more(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say what was; the next opening makes it anew."""

    def refuse(*_: object) -> None:
        raise StoreDamagedError("no")

    monkeypatch.setattr(Mirror, "append", refuse)
    index.write({Table.NODES: {b"k": b"newer"}})
    monkeypatch.undo()
    index.write({Table.BLOCKS: {b"other": b""}})
    flip(tmp_path / INDEX_FILE, b"newer")
    with pytest.raises(StoreDamagedError):
        value(index)


def test_a_mirror_that_could_not_be_written_is_made_anew_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NoSpaceError("no room")

    index = Index(tmp_path, map_size=MAP, create=True)
    with monkeypatch.context() as full:
        full.setattr(Mirror, "append", refuse)
        index.write({Table.NODES: {b"k": b"newer"}})
    for _ in range(RETRY_COMMITS):
        index.write({Table.BLOCKS: {b"other": b""}})

    flip(tmp_path / INDEX_FILE, b"newer")
    assert value(index) == b"newer"
    index.close()


def test_reads_that_need_the_mirror_wait_for_a_commit_that_is_under_way(
    index: Index, tmp_path: Path
) -> None:
    """Between its two writes the copies differ."""
    flip(tmp_path / INDEX_FILE, b"a value to be found")
    stop = threading.Event()

    def commit() -> None:
        number = 1
        while not stop.is_set():
            number += 1
            index.write({Table.BLOCKS: {b"other": b"%d" % number}})

    writer = threading.Thread(target=commit)
    writer.start()
    try:
        for _ in range(50):
            assert value(index) == b"a value to be found"
    finally:
        stop.set()
        writer.join()


def test_what_is_wrong_in_one_copy_is_told(index: Index, tmp_path: Path) -> None:
    main, mirror = files(tmp_path)
    assert (index.fault(Table.NODES, b"k"), index.mirror_fault()) == ("", "")
    flip(main, b"a value to be found")
    assert "nodes" in index.fault(Table.NODES, b"k")

    spoil(mirror)
    assert "damaged at" in index.mirror_fault()

    index.write({Table.NODES: {b"k": b"again"}})
    index.remake_mirror()
    assert (index.fault(Table.NODES, b"k"), index.mirror_fault()) == ("", "")


def test_of_what_the_main_copy_has_lost_a_new_mirror_has_the_rest(
    index: Index, tmp_path: Path
) -> None:
    index.write({Table.NODES: {b"l": b"sound"}})
    flip(tmp_path / INDEX_FILE, b"a value to be found")

    index.remake_mirror()

    assert index.copies(Table.NODES, b"l") == [b"sound", b"sound"]
    assert index.copies(Table.NODES, b"k") == []


@pytest.fixture
def unchecked(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Index]:
    """Returns a function that opens the index, which was closed, and puts the check off."""
    index.close()
    monkeypatch.setattr("kaifs.meta.index.CHECKED_MAX", 0)
    return lambda: Index(tmp_path, map_size=MAP, check_later=True)


def test_a_check_that_was_put_off_finds_what_is_as_it_was(
    unchecked: Callable[[], Index], tmp_path: Path
) -> None:
    opened = unchecked()
    opened.check()
    opened.check()
    opened.close()

    opened = unchecked()
    opened.write({Table.NODES: {b"k": b"new"}})

    assert value(opened) == b"new"
    assert not (tmp_path / CLOSED_NAME).exists()
    opened.close()


def test_a_small_index_is_checked_at_once(
    unchecked: Callable[[], Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaifs.meta.index.CHECKED_MAX", 1 << 20)
    flip(tmp_path / INDEX_FILE, b"a value to be found")

    opened = unchecked()

    assert value(opened) == b"a value to be found"
    opened.close()


def test_nothing_is_written_to_an_index_that_has_changed_and_the_next_opening_mends_it(
    unchecked: Callable[[], Index], tmp_path: Path
) -> None:
    """What was read off it cannot be trusted; put off, the check is not again."""
    flip(tmp_path / INDEX_FILE, b"a value to be found")
    opened = unchecked()

    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="changed since"):
            opened.check()
        with pytest.raises(StoreDamagedError, match="changed since"):
            opened.write({Table.NODES: {b"k": b"new"}})
    with pytest.raises(StoreDamagedError, match="changed since"):
        opened.remake_mirror()
    opened.close()

    opened = unchecked()
    opened.check()
    assert value(opened) == b"a value to be found"
    opened.write({Table.NODES: {b"k": b"new"}})
    opened.close()


def test_a_mirror_that_has_changed_is_replaced_when_that_is_found(
    unchecked: Callable[[], Index], tmp_path: Path
) -> None:
    mirror = tmp_path / MIRROR_FILE
    # In a frame that is not the last: the log can be opened.
    opened = unchecked()
    opened.write({Table.NODES: {b"l": b"w"}})
    opened.close()
    raw = bytearray(mirror.read_bytes())
    raw[MIRROR_HEADER_SIZE + FRAME_HEADER_SIZE + 2] ^= 1
    with mirror.open("r+b") as file:
        file.write(raw)
    opened = unchecked()

    opened.check()

    assert opened.mirror_fault() == ""
    opened.close()


@pytest.mark.parametrize("name", [INDEX_FILE, MIRROR_FILE])
def test_a_copy_that_cannot_be_opened_is_checked_at_once(
    unchecked: Callable[[], Index], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"")

    opened = unchecked()

    assert value(opened) == b"a value to be found"
    opened.check()
    opened.close()


def test_copies_of_which_one_has_less_are_checked_at_once(
    unchecked: Callable[[], Index], tmp_path: Path
) -> None:
    mirror = tmp_path / MIRROR_FILE
    before = mirror.read_bytes()
    opened = unchecked()
    opened.write({Table.NODES: {b"l": b"w"}})
    opened.close()
    mirror.write_bytes(before)

    opened = unchecked()

    assert opened.mirror_fault() == ""
    opened.write({Table.NODES: {b"m": b"w"}})
    opened.close()

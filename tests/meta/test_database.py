"""LMDB below the store: checked records, one atomic write for each commit, errors of ours."""

import os
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from kaifs.base.errors import NoSpaceError, StoreDamagedError, StoreIOError
from kaifs.meta.database import Database, Table
from tests.store.disks import small_disk


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path, map_size=1 << 20, create=True)
    yield database
    database.close()


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def test_a_record_is_there_until_it_is_deleted(database: Database) -> None:
    assert database.get(Table.NODES, b"k") is None

    database.write({Table.NODES: {b"k": b"v", b"gone": None}, Table.BLOCKS: {b"k": b"w"}})

    assert database.get(Table.NODES, b"k") == b"v"
    assert database.get(Table.BLOCKS, b"k") == b"w"

    database.write({Table.NODES: {b"k": None}})

    assert database.get(Table.NODES, b"k") is None
    assert database.count(Table.BLOCKS) == 1


def test_records_survive_closing(tmp_path: Path) -> None:
    database = Database(tmp_path, map_size=1 << 20, create=True)
    database.write({Table.META: {b"k": b"v"}})
    database.close()

    again = Database(tmp_path, map_size=1 << 20)

    assert again.get(Table.META, b"k") == b"v"
    again.close()


def test_scan_gives_keys_in_order_from_a_start_and_at_most_a_limit(database: Database) -> None:
    database.write({Table.NODES: {number(i): b"" for i in (5, 3, 9, 7)}})

    assert database.scan(Table.NODES) == [number(3), number(5), number(7), number(9)]
    assert database.scan(Table.NODES, number(4), 2) == [number(5), number(7)]
    assert database.scan(Table.NODES, number(10)) == []


def test_keys_with_a_prefix_are_given_alone(database: Database) -> None:
    database.write({Table.VERSIONS: dict.fromkeys([b"a1", b"a2", b"b1"], b"")})

    assert database.keys_with_prefix(Table.VERSIONS, b"a") == [b"a1", b"a2"]
    assert database.keys_with_prefix(Table.VERSIONS, b"b") == [b"b1"]
    assert database.keys_with_prefix(Table.VERSIONS, b"c") == []


def test_a_full_map_is_doubled_until_the_write_fits(database: Database) -> None:
    """The map is address space: a store never fails because too little was reserved."""
    records = {number(i): os.urandom(4000) for i in range(1500)}

    database.write({Table.NODES: records})

    assert database.file_size() > 6_000_000
    assert all(database.get(Table.NODES, key) == value for key, value in records.items())


def test_the_engine_is_the_one_that_the_format_is_made_with(database: Database) -> None:
    """py-lmdb ships two engines, and they do not read each other's files."""
    assert database.engine_version().startswith("0.9.")


def flip(folder: Path, record: bytes) -> None:
    file = folder / "data.mdb"
    raw = bytearray(file.read_bytes())
    position = raw.index(record)
    raw[position] ^= 1
    file.write_bytes(raw)


def test_a_flipped_byte_in_a_record_is_damage_and_others_still_read(tmp_path: Path) -> None:
    database = Database(tmp_path, map_size=1 << 20, create=True)
    database.write({Table.NODES: {b"a": b"healthy record", b"b": b"struck record"}})
    database.close()
    flip(tmp_path, b"struck record")
    database = Database(tmp_path, map_size=1 << 20)

    with pytest.raises(StoreDamagedError, match="nodes 62"):
        database.get(Table.NODES, b"b")

    assert database.get(Table.NODES, b"a") == b"healthy record"
    database.close()


def test_a_folder_without_an_environment_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(StoreIOError):
        Database(tmp_path / "none")


def test_a_file_that_is_no_environment_is_damage(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"x" * 8192)

    with pytest.raises(StoreDamagedError, match="index"):
        Database(tmp_path)


def test_an_environment_that_lacks_a_table_is_damage_and_is_let_go(tmp_path: Path) -> None:
    """LMDB opens a folder once in a process, so one left open would block the next try."""
    lmdb.Environment(str(tmp_path), max_dbs=1, lib_version=0).close()

    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="lacks a table"):
            Database(tmp_path)


def test_a_key_that_lmdb_refuses_is_an_error_and_changes_nothing(database: Database) -> None:
    with pytest.raises(StoreIOError):
        database.write({Table.NODES: {b"good": b"v", bytes(600): b"v"}})

    assert database.count(Table.NODES) == 0


def test_an_environment_opened_twice_in_a_process_is_an_error(
    database: Database, tmp_path: Path
) -> None:
    with pytest.raises(StoreIOError, match="already open"):
        Database(tmp_path)


@pytest.mark.root
def test_a_full_disk_is_no_space_and_the_next_write_finds_all_as_it_was(tmp_path: Path) -> None:
    """A real file system that runs full: one atomic write, or nothing."""
    with small_disk(tmp_path / "disk", "1m") as folder:
        database = Database(folder, create=True)
        database.write({Table.META: {b"k": b"before"}})

        with pytest.raises(NoSpaceError):
            database.write({Table.NODES: {number(i): os.urandom(4000) for i in range(600)}})

        assert database.count(Table.NODES) == 0
        database.write({Table.META: {b"k": b"after"}})
        assert database.get(Table.META, b"k") == b"after"
        database.close()

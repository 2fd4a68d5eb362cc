"""A scrub finds every damaged block and record, and mends what there is a copy of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.base.types import BlockId, SegmentId
from kaifs.blocks.segments import RECORD_HEADER_SIZE, segment_name
from kaifs.meta.database import Table
from kaifs.meta.index import MIRROR_FILE
from kaifs.meta.records import ScrubRecord, ScrubTally
from kaifs.store.scrub import SCRUB_KEY, Scrubbed, find_scrub, put_scrub, scrub
from kaifs.store.store import INDEX_FOLDER, SEGMENT_FOLDER, Store, StoreOptions
from tests.tree.grove import Grove, planted


@pytest.fixture
def grove(tmp_path: Path) -> Iterator[Grove]:
    """A store of several segments, with a payload cache that keeps nothing."""
    options = StoreOptions(segment_size=20_000, block_cache=0)
    with planted(tmp_path / "store", options) as grove:
        for number in range(12):
            grove.put(b"f%d" % number, b"%d " % number * 3000)
        grove.store.commit()
        yield grove


def run(store: Store) -> Scrubbed:
    steps = scrub(store)
    while True:
        try:
            step = next(steps)
        except StopIteration as stop:
            found: Scrubbed = stop.value
            return found
        if not isinstance(step, Scrubbed):
            step.run()


def block_of(grove: Grove, path: bytes) -> BlockId:
    tree = grove.current
    return tree.content.extents(tree.resolve(path))[0].block


def hurt(grove: Grove, block: BlockId, position: int) -> None:
    """Flip a bit of a block's record, *position* bytes after its header."""
    record = grove.store.payload.record(block)
    path = grove.path / SEGMENT_FOLDER / segment_name(record.segment)
    with path.open("r+b") as file:
        file.seek(record.offset + RECORD_HEADER_SIZE + position)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


def overwrite(path: Path, place: int, payload: bytes) -> None:
    """Write *payload* into a file where it is."""
    with path.open("r+b") as file:
        file.seek(place)
        file.write(payload)


def test_a_healthy_store_is_read_whole(grove: Grove) -> None:
    found = run(grove.store)

    assert (found.damaged, found.healed, found.healed_records) == ([], [], 0)
    assert found.lost_records == []
    assert found.total * 0.9 < found.size <= found.total


def test_a_damaged_block_is_named(grove: Grove) -> None:
    block = block_of(grove, b"f5")
    hurt(grove, block, 77)

    found = run(grove.store)

    assert (found.damaged, found.healed) == ([block], [])


def test_a_damaged_block_is_healed_from_one_that_was_written_since(grove: Grove) -> None:
    """Bytes that meet a damaged block are written anew; the old block gets them too."""
    block = block_of(grove, b"f5")
    hurt(grove, block, 77)
    grove.put(b"again", b"5 " * 3000)
    assert block_of(grove, b"again") != block

    found = run(grove.store)

    assert (found.damaged, found.healed) == ([], [block])
    grove.store.commit()
    grove.reopen()
    tree = grove.current
    assert tree.read(tree.resolve(b"f5"), 0, 6000) == b"5 " * 3000
    grove.check()


def test_what_follows_a_damaged_header_is_read_all_the_same(grove: Grove) -> None:
    record = grove.store.payload.record(block_of(grove, b"f0"))
    behind = next(
        block
        for block in map(block_of, [grove] * 12, [b"f%d" % one for one in range(12)])
        if grove.store.payload.record(block).segment == record.segment
        and grove.store.payload.record(block).offset > record.offset
    )
    hurt(grove, block_of(grove, b"f0"), -10)
    hurt(grove, behind, 9)

    found = run(grove.store)

    assert behind in found.damaged
    hurt(grove, block_of(grove, b"f0"), -10)
    grove.check()


def test_a_record_that_one_copy_of_the_index_has_is_healed(grove: Grove) -> None:
    path = grove.path / INDEX_FOLDER / "data.mdb"
    record = grove.store.database.get(Table.AGENTS, b"a")
    assert record is not None
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(raw.index(record) + 1)
        file.write(b"\xc1")

    found = run(grove.store)

    assert (found.healed_records, found.lost_records) == (1, [])
    grove.put(b"f", b"something to commit")
    grove.store.commit()
    assert grove.store.database.fault(Table.AGENTS, b"a") == ""


def test_a_record_that_no_copy_has_is_named(grove: Grove) -> None:
    folder = grove.path / INDEX_FOLDER
    record = grove.store.database.get(Table.AGENTS, b"a")
    assert record is not None
    place = (folder / "data.mdb").read_bytes().index(record) + 1
    overwrite(folder / "data.mdb", place, b"\xc1")
    overwrite(folder / MIRROR_FILE, 100, b"\xc1\xc1")

    assert run(grove.store).lost_records == [f"agents {b'a'.hex()}"]

    overwrite(folder / "data.mdb", place, record[1:2])


def test_where_a_block_was_before_is_of_no_interest(grove: Grove) -> None:
    block = block_of(grove, b"f5")
    hurt_place = grove.store.payload.record(block)
    assert grove.store.payload.move(block)
    path = grove.path / SEGMENT_FOLDER / segment_name(hurt_place.segment)
    overwrite(path, hurt_place.offset + RECORD_HEADER_SIZE + 9, b"?")
    grove.store.commit()

    found = run(grove.store)

    assert (found.damaged, found.healed) == ([], [])


def test_a_damaged_mirror_is_written_anew(grove: Grove) -> None:
    path = grove.path / INDEX_FOLDER / MIRROR_FILE
    with path.open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"?")

    found = run(grove.store)

    assert found.is_mirror_remade
    assert not run(grove.store).is_mirror_remade


def test_what_is_known_of_scrubs_is_not_worth_a_failure(grove: Grove) -> None:
    record = ScrubRecord(7, ScrubTally(1, 2, 3), 8, SegmentId(9))
    put_scrub(grove.store, record)
    assert find_scrub(grove.store) == record

    grove.store.pending.put(Table.META, SCRUB_KEY, b"\xc1")

    assert find_scrub(grove.store) == ScrubRecord()


def test_others_may_write_while_it_runs(grove: Grove) -> None:
    steps = scrub(grove.store)
    for number, step in enumerate(steps):
        if not isinstance(step, Scrubbed):
            step.run()
        grove.put(b"new%d" % number, b"n" * 5000)
        if number % 3 == 0:
            grove.store.commit()

    grove.check()

"""Blocks are shared when they are equal byte for byte, and never trusted unread."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.base.digest import checksum
from kaifs.base.errors import ChecksumMismatchError, StoreIOError
from kaifs.base.types import BlockId
from kaifs.blocks.device import FileDevice
from kaifs.meta.database import Table
from kaifs.store import payload
from kaifs.store.payload import PATIENCE_BYTES, ColdBlockError, block_key, split_ids
from kaifs.store.store import SEGMENT_FOLDER, Store, StoreOptions


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.create(tmp_path / "store", options=StoreOptions(block_cache=1000))
    yield store
    store.close(commit=False)


def strike(store: Store, block: BlockId) -> None:
    """Flip a byte of the stored bytes of *block* on the disk."""
    record = store.payload.record(block)
    path = store.path / SEGMENT_FOLDER / f"{record.segment:010d}.seg"
    with path.open("r+b") as file:
        file.seek(record.offset + 48)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    store.payload.abandon()


def test_equal_bytes_are_one_block(store: Store) -> None:
    first = store.payload.put(b"hello")

    assert store.payload.put(b"hello") == first
    assert store.payload.put(b"other") != first
    assert store.payload.read(first) == b"hello"


def test_a_hit_after_a_commit_appends_nothing(store: Store) -> None:
    store.payload.put(b"hello")
    store.commit()
    before = dict(store.segments.sizes)

    store.payload.put(b"hello")

    assert store.segments.sizes == before


def test_another_payload_with_the_same_digest_is_only_a_second_id(store: Store) -> None:
    """xxh3 is no proof: an agent may know how to make two payloads collide."""
    stranger = store.payload.put(b"stranger")
    digest = checksum(b"hello")
    store.pending.put(Table.DIGESTS, digest, block_key(stranger))

    block = store.payload.put(b"hello")

    assert block != stranger
    assert store.payload.read(block) == b"hello"
    assert split_ids(store.pending.get(Table.DIGESTS, digest)) == [stranger, block]
    assert store.payload.put(b"hello") == block

    store.payload.forget(block)

    assert split_ids(store.pending.get(Table.DIGESTS, digest)) == [stranger]


def test_a_damaged_block_is_never_leaned_on(store: Store) -> None:
    """Writing the same bytes anew gives a healthy block, and that is found first from then on."""
    damaged = store.payload.put(b"hello")
    strike(store, damaged)

    block = store.payload.put(b"hello")

    assert block != damaged
    assert store.payload.read(block) == b"hello"
    assert split_ids(store.pending.get(Table.DIGESTS, checksum(b"hello"))) == [block, damaged]
    with pytest.raises(ChecksumMismatchError, match="is damaged"):
        store.payload.read(damaged)


class BadSector(FileDevice):
    """A disk that cannot read one place any more."""

    struck: tuple[int, int] | None = None

    def read(self, name: str, offset: int, size: int) -> bytes:
        if self.struck is not None and self.struck[0] <= offset < self.struck[1]:
            raise StoreIOError("bad sector")
        return super().read(name, offset, size)


def test_a_block_on_a_bad_sector_does_not_stop_writing(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path).close()
    device = BadSector(path / SEGMENT_FOLDER)
    store = Store.open(path, device=device)
    lost = store.payload.put(b"hello")
    record = store.payload.record(lost)
    device.struck = (record.offset, record.offset + 56)
    store.payload.abandon()

    block = store.payload.put(b"hello")

    assert block != lost
    assert store.payload.read(block) == b"hello"
    assert not store.payload.move(lost)
    store.close()


class ColdDevice(FileDevice):
    """A disk whose blocks come into memory when they have been asked for so many times."""

    asks = 0

    def is_cached(self, name: str, offset: int, size: int) -> bool:
        self.asks -= 1
        return self.asks < 0


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[tuple[Store, ColdDevice]]:
    path = tmp_path / "cold"
    Store.create(path).close()
    device = ColdDevice(path / SEGMENT_FOLDER)
    store = Store.open(path, device=device)
    yield store, device
    store.close()


def test_who_does_not_wait_is_told_that_the_disk_takes_its_time(
    cold: tuple[Store, ColdDevice],
) -> None:
    store, device = cold
    block = store.payload.put(b"hello")
    device.asks = 1_000_000

    with pytest.raises(ColdBlockError):
        store.payload.read(block, wait=False)

    store.payload.fetcher([block])()
    assert store.payload.read(block) == b"hello"
    assert store.payload.read(block, wait=False) == b"hello", "kept in memory"
    store.payload.fetcher([block])()


def test_a_small_block_is_waited_for_a_moment(
    cold: tuple[Store, ColdDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, device = cold
    monkeypatch.setattr(payload, "PATIENCE_NS", 60 * 10**9)
    small = store.payload.put(b"hello")
    large = store.payload.put(random.Random(0).randbytes(PATIENCE_BYTES + 1))

    device.asks = 3
    assert store.payload.read(small, wait=False) == b"hello"
    device.asks = 1
    with pytest.raises(ColdBlockError):
        store.payload.read(large, wait=False)
    device.asks = 0
    assert len(store.payload.read(large, wait=False)) == PATIENCE_BYTES + 1


def test_a_missing_block_is_damage(store: Store) -> None:
    with pytest.raises(ChecksumMismatchError, match="block 77 is missing"):
        store.payload.read(BlockId(77))


def test_a_forgotten_block_is_gone_from_index_and_digests(store: Store) -> None:
    block = store.payload.put(b"hello")
    live = sum(store.payload.live.values())
    store.payload.read(block)

    freed = store.payload.forget(block)

    assert sum(store.payload.live.values()) == live - freed
    assert store.payload.find_record(block) is None
    assert store.pending.get(Table.DIGESTS, checksum(b"hello")) is None
    assert store.payload.put(b"hello") != block


def test_forgetting_a_block_that_no_digest_leads_to_leaves_the_digests(store: Store) -> None:
    block = store.payload.put(b"hello")
    store.pending.delete(Table.DIGESTS, checksum(b"hello"))

    store.payload.forget(block)

    assert store.pending.keys(Table.DIGESTS) == []


def test_a_moved_block_keeps_its_id_and_its_bytes(store: Store) -> None:
    block = store.payload.put(b"hello")
    before = store.payload.record(block)

    assert store.payload.move(block)

    after = store.payload.record(block)
    assert after.offset > before.offset
    store.payload.abandon()
    assert store.payload.read(block) == b"hello"


def test_a_damaged_block_stays_where_it_is(store: Store) -> None:
    block = store.payload.put(b"hello")
    strike(store, block)
    before = store.payload.record(block)

    assert not store.payload.move(block)
    assert store.payload.record(block) == before


def test_the_cache_keeps_its_budget(store: Store) -> None:
    blocks = [store.payload.put(bytes([n]) * 400) for n in range(5)]

    for block in [*blocks, *blocks]:
        store.payload.read(block)

    assert store.payload.cached_bytes <= 1000
    assert [store.payload.read(block)[:1] for block in blocks] == [bytes([n]) for n in range(5)]


def test_known_places_of_blocks_are_forgotten_when_they_are_too_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaifs.store.payload._RECORD_CACHE", 2)
    blocks = [store.payload.put(bytes([n]) * 400) for n in range(5)]

    assert [store.payload.read(block)[:1] for block in blocks] == [bytes([n]) for n in range(5)]


def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "small", options=StoreOptions(segment_size=1000))

    blocks = [store.payload.put(bytes([n]) * 600) for n in range(6)]
    store.commit()

    assert len(store.segments.sizes) == 3
    assert [store.payload.read(block) for block in blocks] == [bytes([n]) * 600 for n in range(6)]
    store.close()
    store = Store.open(tmp_path / "small", options=StoreOptions(segment_size=1000))
    assert [store.payload.read(block) for block in blocks] == [bytes([n]) * 600 for n in range(6)]
    store.close()


def test_compressed_blocks_come_back_whatever_the_store_is_opened_with(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "zstd", options=StoreOptions(zstd_level=3))
    block = store.payload.put(b"text " * 1000)
    assert store.payload.record(block).stored_size < 1000
    store.close()

    store = Store.open(tmp_path / "zstd")

    assert store.payload.read(block) == b"text " * 1000
    assert store.payload.put(b"text " * 1000) == block
    store.close()

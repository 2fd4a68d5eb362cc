"""On a full disk what frees room goes on, and what takes some is refused before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kaifs.base.errors import NoSpaceError
from kaifs.base.types import TOP_INO, Ino
from kaifs.blocks.chunking import CHUNK_MAX
from kaifs.store.gc import collect_now
from kaifs.store.spare import SPARE_NAME, Spare
from kaifs.store.store import RUN_FOLDER, StoreOptions
from tests.store.disks import small_disk
from tests.tree.grove import FILE, Grove, listing

pytestmark = pytest.mark.root

OPTIONS = StoreOptions(journal=True, segment_size=1 << 20, map_size=8 << 20)


@pytest.fixture
def grove(tmp_path: Path) -> Iterator[Grove]:
    """A store on a disk of 32 MiB."""
    with small_disk(tmp_path / "disk", "32m") as folder:
        grove = Grove(folder / "store", OPTIONS)
        grove.store.commit()
        yield grove
        grove.store.close(commit=False)


def make(grove: Grove, name: bytes, payload: bytes) -> Ino:
    """Make a file as a mount does: a change is refused, or journaled whole."""
    grove.store.check_room()
    ino = grove.current.make(TOP_INO, name, FILE, 0, 0, grove.now_ns)
    grove.store.flush_journal()
    grove.current.write(ino, 0, payload, grove.now_ns)
    grove.store.flush_journal()
    return ino


def fill(grove: Grove) -> int:
    """Write files until the disk is full, and then names until the kept room is used."""
    count = 0
    for size in (200_000, 2000, 0):
        with suppress(NoSpaceError):
            while count < 1_000_000:
                count += 1
                make(grove, b"f%d" % count, os.urandom(size))
    with pytest.raises(NoSpaceError):
        grove.store.check_room()
    return count


def test_names_can_be_deleted_and_gc_gives_the_room_back(grove: Grove) -> None:
    fill(grove)
    spare = grove.path / RUN_FOLDER / SPARE_NAME
    assert not spare.exists()
    tree = grove.current
    names = [entry.name for entry in tree.entries(TOP_INO)]
    assert len(names) > 100
    for name in names:
        tree.reap(tree.unlink(TOP_INO, name, grove.now_ns))
        grove.store.flush_journal()
    grove.store.commit()
    collect_now(grove.store)
    grove.store.commit()

    make(grove, b"again", os.urandom(5_000_000))

    assert spare.exists()
    grove.check()
    grove.reopen()
    assert sorted(listing(grove.current)) == [b"", b"again"]


def test_a_segment_that_is_half_alive_is_compacted_in_the_kept_room(grove: Grove) -> None:
    fill(grove)
    tree = grove.current
    for number, entry in enumerate(list(tree.entries(TOP_INO))):
        if number % 3:
            tree.reap(tree.unlink(TOP_INO, entry.name, grove.now_ns))
            grove.store.flush_journal()
    grove.store.commit()
    before = listing(tree)

    collect_now(grove.store)

    make(grove, b"again", os.urandom(5_000_000))
    assert listing(tree).keys() == before.keys() | {b"again"}
    grove.check()


def test_what_was_acknowledged_on_a_full_disk_survives(grove: Grove, tmp_path: Path) -> None:
    count = fill(grove)
    tree = grove.current
    tree.reap(tree.unlink(TOP_INO, b"f1", grove.now_ns))
    grove.store.flush_journal()
    before = listing(tree)
    grove.store.close(commit=False)
    # The next process finds a disk that is just as full.
    grove.store = Grove.opened(grove.path, OPTIONS).store
    grove.reopen(commit=False)

    assert listing(grove.current) == before
    assert count > 10
    grove.check()


def test_a_clean_end_gives_the_room_back(grove: Grove) -> None:
    spare = grove.path / RUN_FOLDER / SPARE_NAME
    size = grove.store.segments.segment_size // 2 + CHUNK_MAX
    assert spare.stat().st_size == size
    assert spare.stat().st_blocks * 512 >= size

    grove.store.close()

    assert not spare.exists()
    grove.store = Grove.opened(grove.path, OPTIONS).store


def test_room_that_is_not_there_cannot_be_kept(grove: Grove) -> None:
    disk = os.statvfs(grove.path)
    with (grove.path.parent / "other").open("wb") as other:
        os.posix_fallocate(other.fileno(), 0, disk.f_bavail * disk.f_frsize - 65536)
    spare = Spare(grove.path / "elsewhere", 1 << 20)

    assert not spare.keep()
    assert not spare.release()
    (grove.path.parent / "other").unlink()
    assert spare.keep()
    assert spare.keep()
    assert spare.release()

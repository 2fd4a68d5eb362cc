"""A store is made, opened by one process at a time, and changed in epochs."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kaifs.base.errors import (
    FormatError,
    KaifsError,
    NoSpaceError,
    StoreBusyError,
    StoreDamagedError,
    StoreIOError,
    StoreNotEmptyError,
    StoreNotFoundError,
)
from kaifs.base.types import TOP_INO
from kaifs.meta.database import Table
from kaifs.meta.index import INDEX_FILE, MIRROR_FILE
from kaifs.store.store import (
    INDEX_FOLDER,
    SEGMENT_FOLDER,
    Store,
    StoreOptions,
)
from kaifs.store.superblock import SUPERBLOCK_NAME, Superblock
from tests.store.disks import small_disk
from tests.tree.grove import Grove, listing, planted


def test_a_new_store_is_empty_and_nobody_elses_business(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "deep" / "store")

    assert store.agents() == []
    assert store.root_ids() == []
    assert len(store.uuid) == 32
    assert store.epoch == 0
    assert not store.is_dirty
    assert (tmp_path / "deep" / "store").stat().st_mode & 0o777 == 0o700
    store.close()


def test_two_stores_have_two_identities(tmp_path: Path) -> None:
    stores = [Store.create(tmp_path / name) for name in "ab"]

    assert stores[0].uuid != stores[1].uuid
    for store in stores:
        store.close()


def test_a_store_is_made_only_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()

    for path in ("full", "file", "file/below"):
        with pytest.raises(StoreNotEmptyError):
            Store.create(tmp_path / path)

    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"]


def test_a_place_where_the_system_makes_no_folder_is_an_error_of_the_system() -> None:
    with pytest.raises(StoreIOError):
        Store.create(Path("/proc/kaifs-store"))


@pytest.mark.root
def test_a_disk_without_room_for_a_store_is_no_space(tmp_path: Path) -> None:
    for number, size in enumerate(["4k", "28k", "1m,nr_inodes=2", "1m,nr_inodes=7"]):
        with small_disk(tmp_path / f"disk{number}", size) as folder:
            with pytest.raises(NoSpaceError):
                Store.create(folder / "store")

            assert not any(folder.glob("store/*")), "it can be tried again"


def test_no_store_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path)


def test_a_store_is_open_once(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")

    with pytest.raises(StoreBusyError, match=f"process {os.getpid()}"):
        Store.open(tmp_path / "store", wait_s=0)

    store.close()
    Store.open(tmp_path / "store", wait_s=0).close()


def test_an_inherited_lock_is_taken_over(tmp_path: Path) -> None:
    """The command that mounts takes the lock, and hands it to the daemon without a gap."""
    store = Store.create(tmp_path / "store")
    inherited = os.dup(store.lock_fd)
    store.close()

    with pytest.raises(StoreBusyError):
        Store.open(tmp_path / "store", wait_s=0)
    store = Store.open(tmp_path / "store", lock_fd=inherited)

    assert store.lock_fd == inherited
    store.close()


def test_a_descriptor_that_is_no_lock_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()

    with (tmp_path / "other").open("w") as other, pytest.raises(StoreIOError):
        Store.open(tmp_path / "store", lock_fd=other.fileno())


# --- what cannot be opened ------------------------------------------------------------------


def flip(path: Path, needle: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(needle)] ^= 1
    path.write_bytes(raw)


def index_copies(path: Path) -> list[Path]:
    return [path / INDEX_FOLDER / INDEX_FILE, path / INDEX_FOLDER / MIRROR_FILE]


def other_uuid(path: Path) -> None:
    (path / SUPERBLOCK_NAME).unlink()
    Superblock(bytes(16), 0).write(path)


def unknown_feature(path: Path) -> None:
    (path / SUPERBLOCK_NAME).unlink()
    Superblock(bytes(16), 0, incompat=4).write(path)


def without_counters(path: Path) -> None:
    store = Store.open(path)
    store.database.write({Table.META: {b"counters": None}})
    store.close(commit=False)


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lambda path: flip(path / SUPERBLOCK_NAME, b"\x02\0\0\0"), FormatError, "version 3"),
        (unknown_feature, FormatError, "0x4"),
        (lambda path: flip(path / SUPERBLOCK_NAME, b"KAIFS"), StoreDamagedError, "superblock"),
        (other_uuid, StoreDamagedError, "another store"),
        (without_counters, StoreDamagedError, "no counters"),
        (
            lambda path: [copy.write_bytes(b"x" * 99) for copy in index_copies(path)],
            StoreDamagedError,
            "index",
        ),
        (
            lambda path: next((path / SEGMENT_FOLDER).iterdir()).unlink(),
            StoreDamagedError,
            "missing",
        ),
        (
            lambda path: os.truncate(next((path / SEGMENT_FOLDER).iterdir()), 65),
            StoreDamagedError,
            "65 of",
        ),
        (lambda path: (path / SEGMENT_FOLDER).rename(path / "x"), StoreIOError, "segments"),
        (lambda path: (path / INDEX_FOLDER).rename(path / "x"), StoreIOError, "index"),
    ],
    ids=[
        "other format version",
        "unknown feature",
        "damaged superblock",
        "another store's superblock",
        "no counters",
        "no index",
        "missing segment",
        "short segment",
        "no segments",
        "no index folder",
    ],
)
def test_what_cannot_be_opened_is_told_each_time_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], object], error: type[KaifsError], text: str
) -> None:
    path = tmp_path / "store"
    with planted(path) as grove:
        grove.put(b"f", bytes(10_000))
        grove.store.commit()
    damage(path)
    before = {one: one.read_bytes() for one in path.rglob("*.seg")}

    for _ in range(2):  # what was opened before it failed is let go: the second try tells the same
        with pytest.raises(error, match=text):
            Store.open(path, wait_s=0)

    assert {one: one.read_bytes() for one in path.rglob("*.seg")} == before


def test_a_byte_that_flipped_in_both_copies_of_the_index_is_damage_when_it_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    with planted(path) as grove:
        grove.put(b"f", b"a payload that stands in a node")
        grove.store.commit()
    main, mirror = index_copies(path)
    flip(main, b"a payload that stands")
    os.truncate(mirror, mirror.stat().st_size - 9)

    store = Store.open(path)
    with pytest.raises(StoreDamagedError, match="nodes"):
        store.nodes.get(store.root(store.get_agent("a").head).top)
    store.close()


# --- epochs ----------------------------------------------------------------------------------


def test_nothing_is_there_after_closing_that_was_not_committed(grove: Grove) -> None:
    grove.put(b"kept", b"x" * 5000)
    grove.store.commit()
    grove.put(b"lost", b"y" * 5000)
    assert grove.store.is_dirty

    grove.reopen(commit=False)

    assert list(listing(grove.current)) == [b"", b"kept"]
    assert not grove.store.is_dirty


def test_closing_commits(grove: Grove) -> None:
    grove.put(b"f", b"x" * 5000)

    grove.reopen()

    assert grove.current.read(grove.current.resolve(b"f"), 0, 9999) == b"x" * 5000


def test_each_commit_is_one_epoch(grove: Grove) -> None:
    first = grove.store.epoch

    grove.store.commit()
    grove.store.commit()

    assert grove.store.epoch == first + 2
    grove.reopen(commit=False)
    assert grove.store.epoch == first + 2


def test_what_changes_while_a_commit_is_written_belongs_to_the_next(grove: Grove) -> None:
    """The commit of a daemon is written in a thread; programs go on meanwhile."""
    grove.put(b"first", b"1" * 5000)
    commit = grove.store.prepare_commit()
    grove.put(b"second", b"2" * 5000)
    grove.current.unlink(TOP_INO, b"first", grove.now_ns)
    seen = listing(grove.current)

    grove.store.write_commit(commit)
    grove.store.finish_commit(commit)

    assert listing(grove.current) == seen
    assert grove.store.is_dirty
    grove.reopen(commit=False)
    assert list(listing(grove.current)) == [b"", b"first"]


def test_abandoning_goes_back_to_the_last_commit(grove: Grove) -> None:
    grove.put(b"kept")
    grove.store.commit()
    before, space = listing(grove.current), grove.store.space()
    grove.put(b"lost", os.urandom(200_000))
    grove.seal("1.0.0")

    grove.store.abandon()

    assert listing(grove.current) == before
    assert grove.store.versions(grove.agent.agent_id) == []
    assert grove.store.space() == space
    assert not grove.store.is_dirty


def test_after_abandoning_all_goes_on(grove: Grove) -> None:
    """Also where the epoch that is forgotten had made the first segment."""
    grove.put(b"lost", os.urandom(5000))

    grove.store.abandon()
    grove.store.add_agent("a", 0, 0, grove.forest.new_tree(0o755, 0, 0).root)
    grove.store.commit()
    grove.put(b"f", b"z" * 5000)
    grove.store.commit()

    assert grove.current.read(grove.current.resolve(b"f"), 0, 9999) == b"z" * 5000


def test_space_counts_segments_and_index(grove: Grove) -> None:
    grove.put(b"f", os.urandom(100_000))
    grove.store.commit()

    space = grove.store.space()

    on_disk = sum(one.stat().st_size for one in (grove.path / SEGMENT_FOLDER).iterdir())
    assert space.segments == on_disk
    assert 100_000 < space.live < space.segments
    assert space.stored == space.segments + space.index
    assert space.index <= sum(copy.stat().st_size for copy in index_copies(grove.path))


def test_a_tiny_map_grows(tmp_path: Path) -> None:
    with planted(tmp_path / "store", StoreOptions(map_size=256 << 10)) as grove:
        for number in range(3000):
            grove.put(b"d%d/f%d" % (number % 10, number), os.urandom(300))
        grove.store.commit()
        before = listing(grove.current)

        grove.reopen()

        assert listing(grove.current) == before
        assert grove.store.space().index > 1 << 20


@pytest.mark.root
@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_runs_full_loses_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path, seed: int
) -> None:
    """Whatever fails, a write or a commit, the tree stays as it was and the next commit has all."""
    random_ = random.Random(seed)
    with small_disk(tmp_path / "disk", "3m") as folder:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(random_.randrange(1 << 20, 2 << 20)))
        with planted(folder / "store") as grove:
            failures = 0
            while failures < 3:
                size = random_.choice([300, 40_000])
                try:
                    grove.put(b"f%d" % grove.now_ns, random_.randbytes(size))
                    if random_.random() < 0.3:
                        grove.store.commit()
                except NoSpaceError:
                    failures += 1
            before = listing(grove.current)
            grove.check()

            ballast.unlink()
            grove.store.commit()
            grove.reopen(commit=False)

            assert listing(grove.current) == before


def test_an_index_is_checked_when_asked_to(tmp_path: Path) -> None:
    """Whether or not that was put off."""
    path = tmp_path / "store"
    Store.create(path).close()

    store = Store.open(path, options=StoreOptions(check_later=True))

    store.check_index()
    store.close()

"""Whatever happens to the process or the disk, what was committed is there, byte for byte."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kaifs.base.errors import NoSpaceError, StoreIOError
from kaifs.blocks.device import FileDevice
from kaifs.store.gc import CommitWanted, collect
from kaifs.store.store import SEGMENT_FOLDER, StoreOptions
from kaifs.tree.manifest import Manifests, manifest_hash
from tests.tree.grove import Grove, listing, planted
from tests.tree.load import COUNTER, OPTIONS, Load, files_of

PROJECT = Path(__file__).parents[2]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.tree.load", *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)


def check_versions(grove: Grove) -> None:
    for version in grove.store.versions(grove.agent.agent_id):
        assert manifest_hash(Manifests().render(grove.forest.tree(version.root))) == version.hash


# --- killed processes ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_process_killed_while_it_writes_loses_nothing_that_it_committed(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "store"
    Grove(path, OPTIONS).store.close()
    told = 0

    with start("work", path, seed) as process:
        assert process.stdout is not None
        for _ in range(random.Random(seed).randrange(1, 40)):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            told = int(line)

    grove = Grove.opened(path, OPTIONS)
    found = files_of(grove)
    load = Load(seed)
    while load.commits < int(found[COUNTER]):
        load.go_on(None)
    # It may have committed once more and been killed before it told.
    assert told <= load.commits <= told + 1
    assert found == load.files
    check_versions(grove)
    grove.check()
    grove.put(b"after", b"all goes on")
    grove.reopen()
    grove.check()
    grove.store.close()


KILLS = 16
"""Steps of gc at which a process is killed, evenly spread from the first to the last."""


@pytest.fixture(scope="module")
def wasteful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Load, int]:
    """Return a store with much to free, what it holds, and how many steps gc takes in it."""
    folder = tmp_path_factory.mktemp("wasteful")
    load = Load(5)
    with planted(folder / "store", OPTIONS) as grove:
        for _ in range(12):
            load.go_on(grove)
        for version in grove.store.versions(grove.agent.agent_id)[:2]:
            grove.store.remove_version(grove.agent.agent_id, version.label)
        grove.store.commit()
    shutil.copytree(folder / "store", folder / "copy")
    with start("collect", folder / "copy", -1) as process:
        out, _ = process.communicate()
    return folder / "store", load, int(out)


@pytest.mark.parametrize("part", range(KILLS))
def test_a_process_killed_in_any_step_of_gc_loses_nothing(
    tmp_path: Path, wasteful: tuple[Path, Load, int], part: int
) -> None:
    original, load, steps = wasteful
    assert steps > 2 * KILLS
    shutil.copytree(original, tmp_path / "store")

    with start("collect", tmp_path / "store", part * (steps - 1) // (KILLS - 1)) as process:
        process.communicate()

    assert process.returncode == -signal.SIGKILL
    grove = Grove.opened(tmp_path / "store", OPTIONS)
    assert files_of(grove) == load.files
    check_versions(grove)
    grove.check()
    grove.store.close()


def test_gc_given_up_at_each_step_and_begun_anew_comes_to_its_end(tmp_path: Path) -> None:
    with planted(tmp_path / "store", OPTIONS) as grove:
        load = Load(6)
        for _ in range(12):
            load.go_on(grove)
        for steps in range(30):
            collecting = collect(grove.store)
            for _, step in zip(range(steps), collecting, strict=False):
                if isinstance(step, CommitWanted):
                    grove.store.commit()
            collecting.close()
            if steps % 3 == 0:
                grove.reopen()
            assert files_of(grove) == load.files
            check_versions(grove)
            grove.check()


# --- torn files ------------------------------------------------------------------------------


def last_segment(grove: Grove) -> Path:
    return max((grove.path / SEGMENT_FOLDER).iterdir())


@pytest.mark.parametrize("size", [1, 47, 48, 100, 5000])
def test_bytes_that_no_commit_named_are_cut_off(tmp_path: Path, size: int) -> None:
    grove = Grove(tmp_path / "store")
    grove.put(b"f", b"x" * 5000)
    grove.store.close()
    segment = last_segment(grove)
    before = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(os.urandom(size))
    stray = segment.with_name("0000000099.seg")
    stray.write_bytes(os.urandom(size))

    grove = Grove.opened(tmp_path / "store")

    assert segment.stat().st_size == before
    assert not stray.exists()
    assert files_of(grove) == {b"f": b"x" * 5000}
    grove.put(b"g", b"y" * 5000)
    grove.reopen()
    assert files_of(grove) == {b"f": b"x" * 5000, b"g": b"y" * 5000}
    grove.check()
    grove.store.close()


def test_a_commit_that_was_prepared_and_not_written_is_not_there(grove: Grove) -> None:
    """The segments are synced first: bytes without a name are cut off at the next start."""
    grove.put(b"f", b"x" * 5000)
    grove.store.commit()
    grove.put(b"g", b"y" * 5000)

    commit = grove.store.prepare_commit()
    grove.store.segments.sync(commit.segments)
    grove.reopen(commit=False)

    assert files_of(grove) == {b"f": b"x" * 5000}


# --- full and failing disks ------------------------------------------------------------------


class SmallDevice(FileDevice):
    """A disk with room for so many more bytes; what fits of a write is written."""

    room = 1 << 60

    def write(self, name: str, offset: int, payload: bytes) -> None:
        fits = payload[: self.room]
        self.room -= len(fits)
        super().write(name, offset, fits)
        if len(fits) < len(payload):
            raise NoSpaceError("no room")


class FailingDevice(FileDevice):
    """A disk of which the next syncs fail."""

    failures = 0

    def sync(self, name: str) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreIOError("cannot sync")
        super().sync(name)


@pytest.mark.parametrize("room", [0, 1, 48, 63, 64, 100, 5_000, 70_000, 1_100_000])
def test_a_write_that_finds_no_room_leaves_the_file_as_it_was(tmp_path: Path, room: int) -> None:
    path = tmp_path / "store"
    Grove(path).store.close()
    device = SmallDevice(path / SEGMENT_FOLDER)
    grove = Grove.opened(path, device=device)
    ino = grove.put(b"f", b"old" * 2000)
    before, inode = listing(grove.current), grove.current.inode(ino)
    device.room = room

    with pytest.raises(NoSpaceError):
        grove.current.write(ino, 100, os.urandom(2_500_000), grove.now_ns)

    assert grove.current.inode(ino) == inode
    assert listing(grove.current) == before
    grove.check()
    device.room = 1 << 60
    grove.store.commit()
    grove.put(b"g", b"new" * 2000)
    grove.reopen()
    assert files_of(grove) == {b"f": b"old" * 2000, b"g": b"new" * 2000}
    grove.check()
    grove.store.close()


def test_a_seal_that_finds_no_room_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Grove(path).store.close()
    device = SmallDevice(path / SEGMENT_FOLDER)
    grove = Grove.opened(path, device=device)
    ino = grove.put(b"f", os.urandom(900_000))
    grove.current.write(ino, 5, os.urandom(900_000), grove.now_ns)
    before, roots = listing(grove.current), grove.store.root_ids()
    device.room = 200_000

    with pytest.raises(NoSpaceError):
        grove.seal("1.0.0")

    assert listing(grove.current) == before
    assert grove.store.root_ids() == roots
    device.room = 1 << 60
    grove.seal("1.0.0")
    grove.check()
    grove.store.close()


def test_a_commit_that_fails_is_made_again_with_all_that_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Grove(path).store.close()
    device = FailingDevice(path / SEGMENT_FOLDER)
    grove = Grove.opened(path, device=device)
    grove.put(b"f", b"x" * 5000)
    device.failures = 2

    for _ in range(2):
        with pytest.raises(StoreIOError):
            grove.store.commit()
        grove.put(b"g", b"y" * 5000)
    assert grove.store.is_dirty
    grove.store.commit()
    grove.reopen(commit=False)

    assert files_of(grove) == {b"f": b"x" * 5000, b"g": b"y" * 5000}
    grove.check()
    grove.store.close()


def test_an_epoch_whose_blocks_cannot_be_synced_is_not_named_by_the_index(tmp_path: Path) -> None:
    """Blocks first, then the transaction that names them (I4)."""
    path = tmp_path / "store"
    Grove(path).store.close()
    device = FailingDevice(path / SEGMENT_FOLDER)
    grove = Grove.opened(path, device=device)
    grove.put(b"f", b"x" * 5000)
    epoch = grove.store.epoch
    device.failures = 1

    with pytest.raises(StoreIOError):
        grove.store.commit()
    grove.store.close(commit=False)

    grove = Grove.opened(path)
    assert grove.store.epoch == epoch
    assert files_of(grove) == {}
    grove.check()
    grove.store.close()


class LossyDevice(FileDevice):
    """A disk that keeps, when the power fails, nothing but what was synced."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept = {name: self.size(name) for name in self.names()}

    def sync(self, name: str) -> None:
        super().sync(name)
        self.kept[name] = self.size(name)

    def truncate(self, name: str, size: int) -> None:
        super().truncate(name, size)
        self.kept[name] = min(self.kept.get(name, 0), size)

    def remove(self, name: str) -> None:
        super().remove(name)
        self.kept.pop(name, None)

    def fail_power(self) -> None:
        for name in self.names():
            if name in self.kept:
                super().truncate(name, self.kept[name])
            else:
                super().remove(name)


@pytest.mark.parametrize("seed", range(5))
def test_after_a_power_failure_the_last_commit_is_there(tmp_path: Path, seed: int) -> None:
    """Whether the power fails before the commit, between its two steps, or after it."""
    path = tmp_path / "store"
    Grove(path, OPTIONS).store.close()
    noise = random.Random(seed)
    load = Load(seed)
    for _ in range(6):
        device = LossyDevice(path / SEGMENT_FOLDER)
        grove = Grove.opened(path, OPTIONS, device)
        assert files_of(grove) == load.files
        check_versions(grove)
        grove.check()
        for _ in range(noise.randrange(1, 5)):
            load.go_on(grove)
            grove.store.commit()
        kept, epoch = copy.deepcopy(load), grove.store.epoch
        load.go_on(grove)
        moment = noise.randrange(3)
        if grove.store.epoch > epoch or moment == 2:
            kept = load  # gc has committed it
        commit = grove.store.prepare_commit()
        if moment == 1:
            grove.store.segments.sync(commit.segments)
        elif moment == 2:
            grove.store.write_commit(commit)
        # Some of what was not synced may be on the disk all the same.
        if noise.random() < 0.7:
            device.fail_power()
        grove.store.close(commit=False)
        load = kept


def test_segments_that_gc_emptied_are_deleted_after_a_commit_that_failed_first(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    Grove(path, OPTIONS).store.close()
    device = FailingDevice(path / SEGMENT_FOLDER)
    grove = Grove.opened(path, OPTIONS, device)
    for _ in range(3):
        for number in range(10):
            grove.put(b"f%d" % number, os.urandom(30_000))
    grove.store.commit()
    full = grove.store.space().segments
    before = files_of(grove)
    commits = 0
    for step in collect(grove.store):
        if isinstance(step, CommitWanted):
            commits += 1
            if commits == 3:
                grove.put(b"later", os.urandom(9000))
                before = files_of(grove)
                device.failures = 1
                with pytest.raises(StoreIOError):
                    grove.store.commit()
            grove.store.commit()

    assert grove.store.space().segments < full / 2
    assert files_of(grove) == before
    grove.check()
    grove.reopen()
    assert files_of(grove) == before
    grove.store.close()


def test_options_are_of_a_process_and_not_of_a_store(tmp_path: Path) -> None:
    """Compression, sizes of segments and caches may change from one opening to the next."""
    load = Load(9)
    path = tmp_path / "store"
    Grove(path).store.close()
    for options in (
        StoreOptions(zstd_level=3, segment_size=50_000),
        StoreOptions(node_cache=1, block_cache=1),
        StoreOptions(zstd_level=1, map_size=1 << 18),
    ):
        grove = Grove.opened(path, options)
        assert files_of(grove) == load.files
        for _ in range(4):
            load.go_on(grove)
        grove.check()
        grove.store.close()

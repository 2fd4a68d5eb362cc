"""The journal: what was flushed to it is there after the process has died, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import ChecksumMismatchError, NoSpaceError, StoreDamagedError, StoreIOError
from kaifs.base.types import TOP_INO, SegmentId
from kaifs.blocks.device import FileDevice
from kaifs.blocks.segments import RECORD_JOURNAL, Segments, segment_name
from kaifs.meta.database import Database
from kaifs.meta.records import Answer, RootKind, RootState
from kaifs.store import replay
from kaifs.store.gc import collect_now
from kaifs.store.journal import SEQUENCE_STEP
from kaifs.store.store import SEGMENT_FOLDER, Store, StoreOptions
from kaifs.tree.fsck import check
from kaifs.tree.tree import Tree
from tests.store.disks import RefusingDevice
from tests.tree.grove import DIRECTORY, FILE, Grove, listing

OPTIONS = StoreOptions(journal=True)
PLAIN = StoreOptions()


@pytest.fixture
def grove(tmp_path: Path) -> Iterator[Grove]:
    """A store with a journal; what is in it has been committed."""
    grove = Grove(tmp_path / "store", OPTIONS)
    grove.put(b"old", b"was there")
    grove.store.commit()
    yield grove
    grove.store.close(commit=False)


def died(grove: Grove) -> Path:
    """Return a copy of the store as a process leaves it that dies now."""
    folder = grove.path.parent / f"died{len(list(grove.path.parent.iterdir()))}"
    shutil.copytree(grove.path, folder)
    return folder


def files(grove: Grove) -> dict[bytes, tuple[object, ...]]:
    return listing(grove.current)


def found(path: Path) -> dict[bytes, tuple[object, ...]]:
    """Return what the next process finds, checked, and found again by the one after it."""
    grove = Grove.opened(path, PLAIN)
    grove.check()
    seen = files(grove)
    # A process that dies before it has changed anything.
    grove.store.close(commit=False)
    grove = Grove.opened(path, PLAIN)
    assert files(grove) == seen
    grove.store.close()
    return seen


def last_segment(path: Path) -> Path:
    return max((path / SEGMENT_FOLDER).iterdir())


def records(store: Store) -> list[int]:
    """Return the numbers of the journal records in all segments."""
    return [
        header.block
        for segment, size in sorted(store.segments.sizes.items())
        for _, header in store.segments.scan(segment, size)
        if header.kind == RECORD_JOURNAL
    ]


# --- what survives ----------------------------------------------------------------------------


def test_what_was_flushed_is_there_without_a_commit(grove: Grove) -> None:
    grove.put(b"d/inline", b"few bytes")
    grove.put(b"d/block", os.urandom(9000))
    tree = grove.current
    top = tree.resolve(b"d")
    tree.symlink(top, b"link", b"inline", 0, 0, 1)
    tree.link(tree.resolve(b"d/block"), TOP_INO, b"second", 2)
    tree.setxattr(top, b"user.a", b"1", 3)
    tree.unlink(TOP_INO, b"old", 4)
    grove.store.flush_journal()

    path = died(grove)

    assert found(path) == files(grove)


def test_what_was_not_flushed_is_not_there(grove: Grove) -> None:
    before = files(grove)
    grove.put(b"new", os.urandom(9000))

    assert found(died(grove)) == before


def test_nothing_is_written_when_nothing_has_changed(grove: Grove) -> None:
    before = dict(grove.store.segments.sizes)

    grove.store.flush_journal()
    clone = grove.forest.clone(grove.current)
    grove.forest.drop(clone.root.root_id)
    grove.store.flush_journal()

    assert grove.store.segments.sizes == before


def test_the_answer_to_the_last_change_survives_with_it(grove: Grove) -> None:
    """Also a death right after the replay, which ends with a commit."""
    grove.put(b"new", b"content")
    grove.store.flush_journal((7, 12, b"reply"))
    # Nothing has changed: who asks again is answered again the usual way.
    grove.store.flush_journal((7, 14, b"other"))
    # Not by a request.
    grove.put(b"newer", b"content")
    grove.store.flush_journal()

    path = died(grove)

    for _ in range(2):
        store = Store.open(path)
        assert store.answer == Answer(7, 12, b"reply")
        store.close(commit=False)


def test_an_answer_to_what_was_lost_is_lost(grove: Grove) -> None:
    grove.put(b"new", b"content")
    grove.store.flush_journal((7, 12, b"reply"))
    path = died(grove)
    with last_segment(path).open("r+b") as file:
        file.truncate(last_segment(path).stat().st_size - 1)

    store = Store.open(path)

    assert store.answer is None
    store.close(commit=False)


def test_a_file_that_somebody_has_open_is_gone_after_a_crash(grove: Grove) -> None:
    tree = grove.current
    ino = tree.unlink(TOP_INO, b"old", 1)
    grove.store.flush_journal()
    assert tree.orphans() == [ino]

    assert found(died(grove)) == files(grove)


def test_every_file_that_somebody_has_open_is_gone_after_a_crash_however_often_there_was_one(
    grove: Grove,
) -> None:
    """The journal is told once that the tree has files without a name."""
    tree = grove.current
    for name in (b"a", b"b", b"c"):
        grove.put(name, b"open")
    for number, name in enumerate((b"a", b"b", b"c", b"old")):
        tree.unlink(TOP_INO, name, 1)
        grove.store.flush_journal()
        assert found(died(grove)) == files(grove)
        if number == 1:
            grove.store.commit()


def test_snapshot_rollback_and_seal_survive_without_a_commit(grove: Grove) -> None:
    grove.put(b"f", b"one" * 1000)
    grove.seal("1.0.0")
    grove.put(b"f", b"two" * 1000)
    snapshot = grove.snapshot("s")
    grove.put(b"f", b"in the snapshot", snapshot)
    grove.snapshot("sealed", read_only=True)
    grove.store.flush_journal()
    grove.rollback("1.0.0")
    grove.put(b"g", b"after the rollback")
    grove.store.flush_journal()

    other = Grove.opened(died(grove), PLAIN)

    other.check()
    assert files(other) == files(grove)
    for name in ("s", "sealed"):
        ours = grove.forest.tree(grove.store.get_snapshot(grove.agent, name).root)
        theirs = other.forest.tree(other.store.get_snapshot(other.agent, name).root)
        assert theirs.is_writable == ours.is_writable
        assert listing(theirs) == listing(ours)
    assert listing(other.version("1.0.0")) == listing(grove.version("1.0.0"))
    assert other.agent == grove.agent
    other.store.close()


def switch(grove: Grove, tree: Tree) -> None:
    old = grove.agent.head
    grove.store.switch_head(grove.agent, tree.root, "")
    grove.forest.drop(old)


def test_a_tree_that_was_built_without_an_epoch_is_in_the_journal_when_it_shows(
    grove: Grove,
) -> None:
    """It is cloned, changed, an epoch has something in between, it is changed again."""
    built = grove.forest.clone(grove.current)
    grove.put(b"a/b", b"first", built)
    grove.store.commit()
    built.reap(built.unlink(TOP_INO, b"old", 5))
    built.reap(built.unlink(built.resolve(b"a"), b"b", 5))
    grove.put(b"a/c", os.urandom(5000), built)
    assert grove.store.wants_commit(built.root)
    switch(grove, built)
    grove.store.flush_journal()

    path = died(grove)

    assert found(path) == files(grove)
    assert b"a/c" in files(grove)


def test_a_tree_that_an_epoch_has_needs_nothing_in_the_journal(grove: Grove) -> None:
    built = grove.forest.new_tree(0o755, 0, 0)
    for number in range(500):
        grove.put(b"f%d" % number, b"x", built)
    assert grove.store.wants_commit(built.root)
    grove.store.commit()
    assert not grove.store.wants_commit(built.root)
    before = sum(grove.store.segments.sizes.values())

    switch(grove, built)
    grove.store.flush_journal()

    assert sum(grove.store.segments.sizes.values()) - before < 1000
    assert found(died(grove)) == files(grove)


def test_two_trees_that_come_to_be_one_survive(grove: Grove) -> None:
    """A seal lets its source share what was made canonical, before the version shows."""
    for number in range(40):
        grove.put(b"f%d" % number, os.urandom(600))
    grove.store.flush_journal()
    grove.seal("1.0.0")
    grove.put(b"f3", b"later")
    grove.store.flush_journal()

    other = Grove.opened(died(grove), PLAIN)

    other.check()
    assert files(other) == files(grove)
    assert listing(other.version("1.0.0")) == listing(grove.version("1.0.0"))
    other.store.close()


def test_what_was_dropped_stays_dropped(grove: Grove) -> None:
    snapshot = grove.snapshot("s")
    grove.store.flush_journal()
    grove.store.remove_snapshot(grove.agent.agent_id, "s")
    grove.forest.drop(snapshot.root.root_id)
    grove.store.flush_journal()

    other = Grove.opened(died(grove), PLAIN)

    assert other.store.root_ids() == grove.store.root_ids()
    other.check()
    other.store.close()


def test_ids_are_not_given_twice_after_a_crash(grove: Grove) -> None:
    grove.snapshot("s")
    grove.put(b"f", os.urandom(5000))
    grove.store.flush_journal()
    store = grove.store

    other = Store.open(died(grove))

    assert other.next_root >= store.next_root
    assert other.next_slot == store.next_slot
    assert other.payload.next_block == store.payload.next_block
    other.close()


def test_blocks_of_the_tail_are_found_by_deduplication(grove: Grove) -> None:
    payload = os.urandom(5000)
    grove.put(b"f", payload)
    grove.store.flush_journal()

    other = Grove.opened(died(grove), PLAIN)
    before = dict(other.store.segments.sizes)
    other.put(b"again", payload)

    assert other.store.segments.sizes == before
    other.store.close(commit=False)


# --- torn tails -------------------------------------------------------------------------------


def test_a_record_torn_at_any_byte_counts_as_not_there(grove: Grove) -> None:
    """Every byte is tried on the segment alone, some with a whole store."""
    grove.put(b"first", b"1")
    grove.store.flush_journal()
    before = files(grove)
    start = last_segment(grove.path).stat().st_size
    grove.put(b"second", b"2")
    grove.store.flush_journal()
    path = died(grove)
    whole = last_segment(path).read_bytes()

    for size in range(start, len(whole)):
        if size - start > 2 and size % 23 and len(whole) - size > 9:
            check_torn(path.with_name("segment"), whole[:size], start)
            continue
        torn = path.with_name("torn")
        shutil.copytree(path, torn)
        last_segment(torn).write_bytes(whole[:size])
        store = Store.open(torn)
        assert store.recovery.records == 1, size
        assert store.recovery.cut == size - start
        assert bool(store.recovery.reason) == (size > start)
        store.close(commit=False)
        if size in (start, start + 1, len(whole) - 1):
            assert found(torn) == before
        shutil.rmtree(torn)
    assert found(path) == files(grove)


def check_torn(folder: Path, raw: bytes, start: int) -> None:
    folder.mkdir(exist_ok=True)
    number = SegmentId(1)
    (folder / segment_name(number)).write_bytes(raw)
    segments = Segments(FileDevice(folder), b"", segment_size=1)
    segments.sizes[number] = start
    with pytest.raises(ChecksumMismatchError):
        list(segments.tail(number))
    segments.close()


def test_a_flipped_byte_ends_the_replay_wherever_it_is(grove: Grove) -> None:
    states = [files(grove)]
    marks = [last_segment(grove.path).stat().st_size]
    for number in range(4):
        grove.put(b"f%d" % number, os.urandom(600))
        grove.store.flush_journal()
        states.append(files(grove))
        marks.append(last_segment(grove.path).stat().st_size)
    path = died(grove)
    whole = last_segment(path).read_bytes()

    for position in range(marks[0], marks[-1], 61):
        flipped = path.with_name("flipped")
        shutil.copytree(path, flipped)
        raw = bytearray(whole)
        raw[position] ^= 0x10
        last_segment(flipped).write_bytes(raw)
        survived = max(index for index, mark in enumerate(marks) if mark <= position)
        other = Grove.opened(flipped, PLAIN)
        # Padding is in no checksum.
        if files(other) != states[-1]:
            assert files(other) == states[survived], position
            assert other.store.recovery.reason
        other.store.close(commit=False)
        shutil.rmtree(flipped)


def small_segments(grove: Grove) -> Grove:
    """Return the grove with segments that are soon full."""
    grove.options = StoreOptions(journal=True, segment_size=3000)
    grove.reopen()
    return grove


def test_a_tail_in_many_segments_is_replayed_in_order(grove: Grove) -> None:
    grove = small_segments(grove)
    for number in range(20):
        grove.put(b"f", b"%d" % number * 900)
        grove.store.flush_journal()
    assert len(grove.store.segments.sizes) > 5

    assert found(died(grove)) == files(grove)


def test_what_comes_after_a_broken_segment_does_not_count(grove: Grove) -> None:
    grove = small_segments(grove)
    states = [files(grove)]
    for number in range(20):
        grove.put(b"f%d" % number, os.urandom(900))
        grove.store.flush_journal()
        states.append(files(grove))
    path = died(grove)
    segments = sorted((path / SEGMENT_FOLDER).iterdir())
    middle = segments[len(segments) // 2]
    raw = bytearray(middle.read_bytes())
    raw[70] ^= 1
    middle.write_bytes(raw)

    other = Grove.opened(path, PLAIN)

    assert files(other) in states[1:-1]
    assert other.store.recovery.reason
    assert not segments[-1].exists()
    other.check()
    other.store.close()


def test_a_missing_segment_of_the_tail_ends_the_replay(grove: Grove) -> None:
    grove = small_segments(grove)
    states = [files(grove)]
    for number in range(20):
        grove.put(b"f%d" % number, os.urandom(900))
        grove.store.flush_journal()
        states.append(files(grove))
    path = died(grove)
    sorted((path / SEGMENT_FOLDER).iterdir())[-4].unlink()

    other = Grove.opened(path, PLAIN)

    assert files(other) in states[1:-1]
    assert other.store.recovery.reason
    other.check()
    other.store.close()


def test_a_segment_that_could_not_be_begun_is_no_end(grove: Grove) -> None:
    """The next one has the number after its."""
    grove.put(b"f", b"1")
    grove.store.flush_journal()
    grove.store.segments.retire_active()
    number = grove.store.next_segment
    grove.store._ids.segment += 1
    grove.put(b"g", b"2")
    grove.store.flush_journal()
    path = died(grove)
    (path / SEGMENT_FOLDER / segment_name(SegmentId(number))).write_bytes(b"KAIFSS")

    assert found(path) == files(grove)


def test_what_was_cut_off_is_not_taken_for_what_came_later(grove: Grove) -> None:
    """Power loss may undo the cut: the old bytes are there again, and sound."""
    for name in (b"a", b"b", b"c"):
        grove.put(name, b"")
        grove.store.flush_journal()
    path = died(grove)
    whole = last_segment(path).read_bytes()
    first = found_records(path)[-3]
    raw = bytearray(whole)
    raw[first + 60] ^= 1
    last_segment(path).write_bytes(raw)
    again = Grove.opened(path, OPTIONS)
    assert again.store.sequence % SEQUENCE_STEP == 0
    again.put(b"x", b"")
    again.store.flush_journal()
    again.store.close(commit=False)
    segment = last_segment(path)
    new = segment.read_bytes()
    # The new record lies where the first old one was; the others are back behind it.
    segment.write_bytes(new + whole[len(new) :])

    assert sorted(found(path)) == [b"", b"old", b"x"]


def found_records(path: Path) -> list[int]:
    """Return the positions of journal records in the last segment of a store."""
    segments = Segments(FileDevice(path / SEGMENT_FOLDER), b"", segment_size=1)
    name = last_segment(path)
    places = [
        offset
        for offset, header in segments.scan(SegmentId(int(name.stem)), name.stat().st_size)
        if header.kind == RECORD_JOURNAL
    ]
    segments.close()
    return places


# --- dying in a replay ------------------------------------------------------------------------


def test_a_replay_that_is_cut_short_anywhere_is_made_again(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    grove = small_segments(grove)
    for number in range(30):
        grove.put(b"f%d" % number, os.urandom(900))
        grove.store.flush_journal()
    path = died(grove)
    # So that epochs are committed in the middle, too.
    for name in ("GATHERED_MAX", "NODES_MAX", "BLOCKS_MAX"):
        monkeypatch.setattr(replay, name, 5)
    with last_segment(path).open("ab") as segment:
        segment.write(b"torn")
    steps = count_steps(path, monkeypatch, None)
    assert steps > 15

    for step in range(steps):
        copy = path.with_name("copy")
        shutil.copytree(path, copy)
        count_steps(copy, monkeypatch, step)
        assert found(copy) == files(grove), step
        shutil.rmtree(copy)


def test_who_goes_on_after_a_crash_writes_no_epoch_first(grove: Grove) -> None:
    """So a mount answers after the replay alone, however slow the disk is."""
    grove = small_segments(grove)
    for number in range(30):
        grove.put(b"f%d" % number, os.urandom(900))
        grove.store.flush_journal()
    epoch = grove.store.epoch
    path = died(grove)

    successor = Grove.opened(path, OPTIONS)

    assert successor.store.recovery.records == 30
    assert successor.store.epoch == epoch
    assert successor.store.is_dirty
    assert files(successor) == files(grove)
    successor.store.close(commit=False)


def test_a_row_of_crashes_without_an_epoch_between_loses_nothing(grove: Grove) -> None:
    """Each goes on with the journal of the one before."""
    grove = small_segments(grove)
    path = grove.path
    for life in range(5):
        for number in range(7):
            grove.put(b"f%d" % (life + number), os.urandom(900))
            grove.store.flush_journal()
        snapshot = grove.forest.clone(grove.current)
        grove.store.flush_journal()
        path = died(grove)
        seen = files(grove)
        grove.forest.drop(snapshot.root.root_id)
        grove.store.close(commit=False)
        grove = Grove.opened(path, OPTIONS)
        grove.forest.recover()
        grove.store.check_tail()
        assert files(grove) == seen
    # What was replayed gets on disk with the next epoch, and names of its segments too.
    assert grove.store.segments.unsynced() >= {max(grove.store.segments.sizes)}
    grove.store.commit()
    seen = files(grove)
    grove.store.close(commit=False)
    store = Store.open(path)
    assert store.recovery.records == 0
    store.close(commit=False)
    assert found(path) == seen


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_sync_after_a_crash_puts_what_was_replayed_on_disk(
    grove: Grove, is_torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that died may have acknowledged it and not synced it."""
    grove = small_segments(grove)
    for number in range(30):
        grove.put(b"f%d" % number, os.urandom(900))
        grove.store.flush_journal()
    sizes = dict(grove.store.segments.sizes)
    tails = {one for one in sizes if sizes[one] != grove.store._committed[0].get(one)}
    assert len(tails) > 2
    path = died(grove)
    if is_torn:
        with last_segment(path).open("ab") as segment:
            segment.write(b"torn")
    synced, names = set[str](), set[str]()
    original = FileDevice.sync

    def sync(device: FileDevice, name: str) -> None:
        names.update(device._unsynced_names & {name})
        original(device, name)
        synced.add(name)

    monkeypatch.setattr(FileDevice, "sync", sync)

    successor = Store.open(path, options=OPTIONS)
    assert bool(synced) == is_torn
    taken = successor.prepare_sync()
    successor.write_sync(taken)
    successor.end_sync(taken, is_durable=True)

    assert synced >= {segment_name(segment) for segment in tails}
    # The first of the tail was there at the last epoch.
    assert names >= {segment_name(segment) for segment in sorted(tails)[1:]}
    successor.close(commit=False)


class _DiedError(BaseException):
    """Nothing of the process goes on."""


def count_steps(path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None) -> int:
    """Open a store; die before the step *stop* that changes or syncs a file. Return the steps."""
    count = 0

    def stepped(original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            nonlocal count
            if count == stop:
                raise _DiedError
            count += 1
            original(*args)

        return call

    with monkeypatch.context() as patched:
        for name in ("truncate", "remove", "sync", "write"):
            patched.setattr(FileDevice, name, stepped(getattr(FileDevice, name)))
        patched.setattr(Database, "write", stepped(Database.write))
        if stop is None:
            copy = path.with_name("count")
            shutil.copytree(path, copy)
            Store.open(copy).close(commit=False)
            shutil.rmtree(copy)
        else:
            with pytest.raises(_DiedError):
                Store.open(path)
    return count


def test_memory_of_a_replay_is_bounded(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        grove.put(b"f%d" % number, os.urandom(600))
        grove.store.flush_journal()
    path = died(grove)
    monkeypatch.setattr(replay, "GATHERED_MAX", 100)
    monkeypatch.setattr(replay, "BLOCKS_MAX", 20)

    store = Store.open(path)

    assert store.epoch > grove.store.epoch + 5
    assert store.recovery.records == 300
    store.close(commit=False)
    assert found(path) == files(grove)


# --- beside commits ---------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after", "failed"])
def test_what_is_flushed_while_a_commit_is_written_survives(grove: Grove, moment: str) -> None:
    grove.put(b"before", b"1" * 900)
    commit = grove.store.prepare_commit()
    grove.put(b"meanwhile", b"2" * 900)
    grove.current.unlink(TOP_INO, b"old", 7)
    grove.store.flush_journal()
    if moment == "after":
        grove.store.write_commit(commit)
    elif moment == "failed":
        grove.store.fail_commit(commit)
        grove.put(b"later", b"3")
        grove.store.flush_journal()

    assert found(died(grove)) == files(grove)


def test_a_clean_end_leaves_no_tail(grove: Grove) -> None:
    grove.put(b"f", b"1")
    grove.store.flush_journal()

    grove.reopen()

    assert grove.store.recovery == replay.Recovery()


def test_gc_between_two_crashes_loses_nothing(grove: Grove) -> None:
    grove = small_segments(grove)
    for number in range(12):
        grove.put(b"f%d" % (number % 5), os.urandom(900))
        grove.store.flush_journal()
    before = files(grove)
    collect_now(grove.store)
    grove.put(b"g", os.urandom(800))
    grove.store.flush_journal()

    other = Grove.opened(died(grove), OPTIONS)
    collect_now(other.store)
    other.check()

    assert files(other) == files(grove)
    assert files(other).keys() == before.keys() | {b"g"}
    other.store.close()


def test_numbers_of_records_follow_each_other_over_commits(grove: Grove) -> None:
    before = len(records(grove.store))
    for number in range(6):
        grove.put(b"f", b"%d" % number)
        grove.store.flush_journal()
        if number % 2:
            grove.store.commit()

    numbers = records(grove.store)[before:]

    assert numbers == list(range(numbers[0], numbers[0] + 6))


# --- a disk that refuses ----------------------------------------------------------------------


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[tuple[Grove, RefusingDevice]]:
    path = tmp_path / "store"
    Grove(path, OPTIONS).store.close()
    device = RefusingDevice(path / SEGMENT_FOLDER)
    grove = Grove.opened(path, OPTIONS, device)
    grove.put(b"old", b"was there")
    grove.store.commit()
    yield grove, device
    grove.store.close(commit=False)


def test_what_could_not_be_flushed_goes_with_the_next_record(
    refusing: tuple[Grove, RefusingDevice],
) -> None:
    grove, device = refusing
    before = files(grove)
    grove.put(b"f", b"1")
    device.refuses = True
    for _ in range(2):
        with pytest.raises(NoSpaceError):
            grove.store.flush_journal()
    assert found(died(grove)) == before
    device.refuses = False

    grove.put(b"g", b"2")
    grove.store.flush_journal()

    assert found(died(grove)) == files(grove)


def test_an_epoch_takes_what_could_not_be_flushed(refusing: tuple[Grove, RefusingDevice]) -> None:
    """While it is written nothing can be flushed: replay without it would miss what it holds."""
    grove, device = refusing
    grove.put(b"f", b"1")
    device.refuses = True
    commit = grove.store.prepare_commit()
    device.refuses = False
    grove.put(b"g", b"2")
    with pytest.raises(NoSpaceError):
        grove.store.flush_journal()

    grove.store.write_commit(commit)
    grove.store.finish_commit(commit)
    grove.store.flush_journal()

    assert found(died(grove)) == files(grove)


def test_what_an_epoch_held_is_flushed_when_the_epoch_fails(
    refusing: tuple[Grove, RefusingDevice],
) -> None:
    grove, device = refusing
    grove.put(b"f", b"1")
    device.refuses = True
    commit = grove.store.prepare_commit()
    device.refuses = False
    grove.put(b"g", b"2")
    grove.store.fail_commit(commit)
    grove.store.flush_journal()

    assert found(died(grove)) == files(grove)


def test_what_a_failed_write_left_behind_does_not_end_a_later_replay(
    refusing: tuple[Grove, RefusingDevice],
) -> None:
    """The segment is given up with the torn bytes at its end, and the next one goes on."""
    grove, device = refusing
    grove.put(b"f", b"1")
    device.refuses = True
    with pytest.raises(NoSpaceError):
        grove.store.flush_journal()
    device.refuses = False
    grove.store.segments.retire_active()
    grove.put(b"g", b"2")
    grove.store.flush_journal()

    assert found(died(grove)) == files(grove)


def test_a_disk_that_cannot_be_read_cuts_nothing_off(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    grove.put(b"f", b"1")
    grove.store.flush_journal()
    path = died(grove)

    def fail(*args: object) -> bytes:
        raise StoreIOError("Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(FileDevice, "read", fail)
        with pytest.raises(StoreIOError):
            Store.open(path)

    assert found(path) == files(grove)


def test_a_tree_that_cannot_be_read_cuts_nothing_off(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    grove.put(b"f", b"1")
    grove.store.flush_journal()
    path = died(grove)

    def fail(*args: object) -> None:
        raise StoreDamagedError("node 1 is missing")

    with monkeypatch.context() as patched:
        patched.setattr("kaifs.store.bulk.apply", fail)
        with pytest.raises(StoreDamagedError, match="node 1"):
            Store.open(path)

    assert found(path) == files(grove)


# --- what is on the way to the disk ---------------------------------------------------------------


def test_a_segment_that_gc_has_emptied_is_deleted_after_the_sync_that_has_it_open(
    grove: Grove,
) -> None:
    grove.put(b"f", os.urandom(9000))
    grove.store.flush_journal()
    segment = grove.store.segments.active
    assert segment is not None
    sync = grove.store.prepare_sync()
    assert segment in sync.segments
    grove.current.unlink(TOP_INO, b"f", 9)
    grove.current.reap(grove.current.root.next_ino)
    for orphan in grove.current.orphans():
        grove.current.reap(orphan)

    collect_now(grove.store, compact_below=1.1)

    assert segment not in grove.store.segments.sizes
    assert (grove.path / SEGMENT_FOLDER / segment_name(segment)).exists()
    grove.store.write_sync(sync)
    grove.store.end_sync(sync, is_durable=True)
    assert not (grove.path / SEGMENT_FOLDER / segment_name(segment)).exists()
    grove.check()
    grove.reopen()


def test_everything_flushed_is_synced_once(grove: Grove) -> None:
    grove.put(b"f", os.urandom(9000))
    grove.store.flush_journal()
    sync = grove.store.prepare_sync()
    grove.put(b"g", os.urandom(9000))
    grove.store.flush_journal()
    grove.store.write_sync(sync)
    grove.store.end_sync(sync, is_durable=True)

    assert grove.store.prepare_sync().segments == sync.segments, "it grew meanwhile"
    grove.store.end_sync(sync, is_durable=False)
    assert grove.store.prepare_sync().segments == sync.segments


def test_kinds_of_roots_survive(grove: Grove) -> None:
    tree = grove.forest.new_tree(0o750, 7, 8)
    tree.make(TOP_INO, b"d", DIRECTORY, 1, 2, 3)
    tree.make(TOP_INO, b"f", FILE, 1, 2, 3)
    grove.store.set_root_state(tree.root, RootState.WRITABLE)
    grove.store.add_agent("second", 7, 8, tree.root)
    grove.store.flush_journal()

    other = Grove.opened(died(grove), PLAIN)
    agent = other.store.get_agent("second")

    assert agent == grove.store.get_agent("second")
    theirs, ours = other.store.root(agent.head).record(), tree.root.record()
    assert theirs.kind is RootKind.HEAD
    fields = [name for name in ours.__struct_fields__ if name not in ("top", "generation")]
    assert {name: getattr(theirs, name) for name in fields} == {
        name: getattr(ours, name) for name in fields
    }
    other.store.close()


# --- fsck -------------------------------------------------------------------------------------


def test_fsck_reads_the_journal_that_a_crash_would_need(grove: Grove) -> None:
    grove.put(b"f", b"1" * 700)
    grove.store.flush_journal()
    grove.put(b"g", b"2")
    grove.store.flush_journal()
    grove.check()
    segment = last_segment(grove.path)
    raw = bytearray(segment.read_bytes())
    raw[found_records(grove.path)[-1] + 50] ^= 1
    segment.write_bytes(raw)

    findings = check(grove.store)

    assert [finding.number for finding in findings] == [22]
    # With the next epoch nothing needs it any more.
    grove.store.commit()
    grove.check()


@pytest.mark.parametrize("size", [-1, -100])
def test_fsck_finds_that_the_journal_is_shorter_than_it_was(grove: Grove, size: int) -> None:
    grove.put(b"f", b"1")
    grove.store.flush_journal()
    segment = last_segment(grove.path)
    os.truncate(segment, segment.stat().st_size + size)

    assert [finding.number for finding in check(grove.store)] == [22]


def test_fsck_finds_a_record_that_is_missing(grove: Grove) -> None:
    grove = small_segments(grove)
    grove.put(b"f", b"1")
    grove.store.flush_journal()
    grove.store.sequence += 1
    grove.put(b"g", b"1")
    grove.store.flush_journal()

    assert [finding.number for finding in check(grove.store)] == [22]

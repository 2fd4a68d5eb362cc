"""gc frees what no root reaches, and nothing else, whatever happens while it runs."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import TOP_INO, RootId
from kaifs.meta.database import Table
from kaifs.meta.node import Branch
from kaifs.store.gc import CommitWanted, Freed, Marks, collect, collect_now
from kaifs.store.nodes import node_key
from kaifs.store.store import SEGMENT_FOLDER, StoreOptions
from tests.tree.grove import Grove, listing, planted

SMALL_SEGMENTS = StoreOptions(segment_size=100_000)


def test_marks_are_a_set_of_ids() -> None:
    marks = Marks(100)

    assert [marks.add(number) for number in (0, 7, 8, 99, 7)] == [True, True, True, True, False]
    assert [number for number in range(100) if number in marks] == [0, 7, 8, 99]


def fill(grove: Grove, count: int = 40, size: int = 10_000, seed: int = 1) -> None:
    noise = random.Random(seed)
    for number in range(count):
        grove.put(b"f%d" % number, noise.randbytes(size))


def test_nothing_is_freed_where_all_is_reachable(grove: Grove) -> None:
    fill(grove)
    grove.snapshot("s")
    collect_now(grove.store)  # what making the trees left behind
    before = grove.store.space()

    freed = collect_now(grove.store)

    assert (freed.nodes, freed.blocks, freed.segments) == (0, 0, 0)
    assert freed.marked > 0
    assert grove.store.space().segments == before.segments


def test_what_a_snapshot_alone_had_is_freed_after_it_is_gone(tmp_path: Path) -> None:
    with planted(tmp_path / "store", SMALL_SEGMENTS) as grove:
        fill(grove)
        tree = grove.snapshot("s")
        for number in range(40):
            grove.put(b"f%d" % number, os.urandom(10_000), tree)
        grove.store.commit()
        full = grove.store.space().segments
        before = listing(grove.current)
        grove.store.remove_snapshot(grove.agent.agent_id, "s")
        grove.reopen()

        freed = collect_now(grove.store)

        assert freed.blocks == 40
        assert freed.segments >= 4
        assert grove.store.space().segments == full - freed.size
        assert grove.store.space().segments < full * 0.6
        on_disk = sum(one.stat().st_size for one in (grove.path / SEGMENT_FOLDER).iterdir())
        assert on_disk == grove.store.space().segments
        grove.reopen()
        assert listing(grove.current) == before


def test_segments_that_are_mostly_dead_are_compacted(tmp_path: Path) -> None:
    with planted(tmp_path / "store", SMALL_SEGMENTS) as grove:
        fill(grove)
        for number in range(40):
            if number % 4:
                grove.current.reap(grove.current.unlink(TOP_INO, b"f%d" % number, grove.now_ns))
        before = listing(grove.current)

        freed = collect_now(grove.store)

        assert freed.blocks == 30
        assert freed.moved >= 50_000
        assert grove.store.space().segments < 200_000
        grove.reopen()
        assert listing(grove.current) == before


def test_a_segment_that_is_mostly_alive_is_left_alone(tmp_path: Path) -> None:
    with planted(tmp_path / "store", SMALL_SEGMENTS) as grove:
        fill(grove, 20)
        grove.current.reap(grove.current.unlink(TOP_INO, b"f3", grove.now_ns))

        freed = collect_now(grove.store)

        assert (freed.blocks, freed.segments, freed.moved) == (1, 0, 0)


def test_the_segment_that_is_appended_to_can_be_freed_too(grove: Grove) -> None:
    fill(grove)
    for number in range(40):
        grove.current.reap(grove.current.unlink(TOP_INO, b"f%d" % number, grove.now_ns))

    collect_now(grove.store)

    assert grove.store.space().segments == 0
    grove.put(b"f", b"x" * 5000)
    grove.reopen()
    assert grove.current.read(grove.current.resolve(b"f"), 0, 1) == b"x"


def strike(grove: Grove, path: bytes, place: int) -> None:
    """Flip a byte of the record of the block of *path*: of its header or of its payload."""
    tree = grove.current
    block = tree.content.extents(tree.resolve(path))[0].block
    record = grove.store.payload.record(block)
    with (grove.path / SEGMENT_FOLDER / f"{record.segment:010d}.seg").open("r+b") as file:
        file.seek(record.offset + place)
        old = file.read(1)
        file.seek(record.offset + place)
        file.write(bytes([old[0] ^ 1]))


@pytest.mark.parametrize("place", [3, 60], ids=["header", "payload"])
def test_a_damaged_block_keeps_its_segment_and_does_not_stop_gc(tmp_path: Path, place: int) -> None:
    """A segment is deleted only when no block is in it, damaged ones included."""
    grove = Grove(tmp_path / "store", SMALL_SEGMENTS)
    fill(grove)
    for number in range(40):
        if number % 4:
            grove.current.reap(grove.current.unlink(TOP_INO, b"f%d" % number, grove.now_ns))
    grove.store.commit()
    strike(grove, b"f0", place)

    freed = collect_now(grove.store)

    assert freed.blocks == 30
    assert freed.segments >= 3
    healthy = [b"f%d" % number for number in range(4, 40, 4)]
    assert all(len(grove.current.read(grove.current.resolve(one), 0, 99)) == 99 for one in healthy)
    assert grove.store.payload.find_record(
        grove.current.content.extents(grove.current.resolve(b"f0"))[0].block
    )
    grove.store.close()


def test_a_missing_node_stops_gc_before_anything_is_freed(tmp_path: Path) -> None:
    """What hangs below it cannot be known, so nothing may be taken for dead."""
    grove = Grove(tmp_path / "store")
    fill(grove, 300, 10)
    fill(grove, 300, 10, seed=2)
    grove.store.commit()
    top = grove.store.nodes.get(grove.current.root.top)
    assert isinstance(top, Branch)
    grove.store.database.write({Table.NODES: {node_key(top.children[0]): None}})
    grove.reopen()
    before = grove.store.database.count(Table.NODES)

    with pytest.raises(StoreDamagedError):
        collect_now(grove.store)

    assert grove.store.database.count(Table.NODES) == before
    assert grove.store.payload.revived is None
    grove.store.close()


def test_the_steps_are_small_and_ask_for_commits(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaifs.store.gc.STEP", 4)
    fill(grove, 1000, 10)
    steps = list(collect(grove.store))

    assert sum(isinstance(step, CommitWanted) for step in steps) == 3
    assert sum(isinstance(step, Freed) for step in steps) > 3


# --- changes between the steps --------------------------------------------------------------


def rewrite(grove: Grove, noise: random.Random) -> None:
    grove.put(b"f%d" % noise.randrange(40), noise.randbytes(noise.choice([100, 10_000])))


def revive(grove: Grove, noise: random.Random) -> None:
    """Write what a file that is gone had: a dedup hit on a block that gc takes for dead."""
    grove.put(b"again%d" % noise.randrange(9), random.Random(1).randbytes(10_000))


def vanish(grove: Grove, noise: random.Random) -> None:
    name = b"f%d" % noise.randrange(40)
    if grove.current.find(TOP_INO, name):
        grove.current.reap(grove.current.unlink(TOP_INO, name, grove.now_ns))


def rewrite_snapshots(grove: Grove, noise: random.Random) -> None:
    for snapshot in grove.store.snapshots(grove.agent.agent_id):
        tree = grove.forest.tree(snapshot.root)
        for _ in range(4):
            grove.put(b"g%d" % noise.randrange(90), noise.randbytes(100), tree)
        for number in range(noise.randrange(40)):
            if tree.find(TOP_INO, b"g%d" % number):
                tree.reap(tree.unlink(TOP_INO, b"g%d" % number, grove.now_ns))


def snap(grove: Grove, noise: random.Random) -> None:
    name = f"s{noise.randrange(3)}"
    if grove.store.find_snapshot(grove.agent.agent_id, name):
        grove.store.remove_snapshot(grove.agent.agent_id, name)
    else:
        grove.snapshot(name)


def seal_and_roll_back(grove: Grove, noise: random.Random) -> None:
    label = f"1.0.{grove.now_ns}"
    grove.seal(label)
    rewrite(grove, noise)
    grove.rollback(label)


def save(grove: Grove, noise: random.Random) -> None:
    grove.store.commit()


CHANGES: list[Callable[[Grove, random.Random], None]] = [
    rewrite, rewrite_snapshots, revive, vanish, snap, seal_and_roll_back, save,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_whatever_changes_between_the_steps_gc_loses_nothing(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaifs.store.gc.STEP", 5)
    noise = random.Random(seed)
    with planted(tmp_path / "store", StoreOptions(segment_size=50_000, node_cache=1)) as grove:
        fill(grove)
        for _ in range(3):
            vanish(grove, noise)
            for step in collect(grove.store):
                if isinstance(step, CommitWanted):
                    grove.store.commit()
                noise.choice(CHANGES)(grove, noise)
            seen = {root: listing(grove.forest.tree(root)) for root in owned(grove)}
            grove.check()
            grove.reopen()
            assert {root: listing(grove.forest.tree(root)) for root in owned(grove)} == seen


def test_a_block_that_is_written_again_while_gc_takes_it_for_dead_stays(grove: Grove) -> None:
    payload = os.urandom(5000)
    grove.put(b"f", payload)
    grove.current.reap(grove.current.unlink(TOP_INO, b"f", grove.now_ns))
    collecting = collect(grove.store)
    assert isinstance(next(collecting), CommitWanted)
    grove.store.commit()

    ino = grove.put(b"again", payload)
    for step in collecting:
        if isinstance(step, CommitWanted):
            grove.store.commit()

    grove.reopen()
    assert grove.current.read(ino, 0, 5000) == payload


def test_a_tree_that_was_not_open_when_gc_began_is_frozen_too(grove: Grove) -> None:
    """Its nodes are its own, so without that they would change under the eyes of gc."""
    tree = grove.snapshot("s")
    for number in range(400):
        grove.put(b"f%d" % number, b"x", tree)
    root_id = tree.root.root_id
    grove.reopen()
    collecting = collect(grove.store)
    next(collecting)
    grove.store.commit()

    tree = grove.forest.tree(root_id)
    for number in range(1000):
        grove.put(b"g%d" % number, b"y", tree)
    before = listing(tree)
    for step in collecting:
        if isinstance(step, CommitWanted):
            grove.store.commit()

    grove.reopen()
    assert listing(grove.forest.tree(root_id)) == before


def owned(grove: Grove) -> list[RootId]:
    store, agent = grove.store, grove.agent
    versions = [version.root for version in store.versions(agent.agent_id)]
    snapshots = [snapshot.root for snapshot in store.snapshots(agent.agent_id)]
    return [agent.head, *versions, *snapshots]


def test_gc_given_up_after_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kaifs.store.gc.STEP", 5)
    with planted(tmp_path / "store", StoreOptions(segment_size=50_000)) as grove:
        fill(grove)
        steps = 0
        done = False
        while not done:
            steps += 1
            fill(grove, 30, seed=steps)
            before = listing(grove.current)
            collecting = collect(grove.store)
            for _ in range(steps):
                step = next(collecting, None)
                done = step is None
                if isinstance(step, CommitWanted):
                    grove.store.commit()
            collecting.close()

            grove.check()
            grove.reopen(commit=steps % 2 == 0)
            if steps % 2 == 0:
                assert listing(grove.current) == before
            else:
                grove.check()
        assert steps > 10

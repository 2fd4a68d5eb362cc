"""What a verb costs depends on what changed, not on how much there is: nodes are counted."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kaifs.store.gc import collect_now
from kaifs.store.store import StoreOptions
from kaifs.tree.diff import Difference, diff
from kaifs.tree.tree import Tree
from tests.tree.grove import Grove, listing, planted

DIRECTORY_SIZE = 100
SIZES = [100, 100_000]


def visits(grove: Grove, call: Callable[[], object]) -> int:
    before = grove.store.nodes.visits
    call()
    return grove.store.nodes.visits - before


def plant(path: Path, files: int) -> Grove:
    grove = Grove(path)
    tree = grove.current
    for number in range(files // DIRECTORY_SIZE):
        directory = grove.put(b"d%d/0" % number, b"0") and tree.resolve(b"d%d" % number)
        for entry in range(1, DIRECTORY_SIZE):
            ino = tree.make(directory, b"%d" % entry, 0o644, 0, 0, 1)
            tree.write(ino, 0, b"%d" % entry, 1)
    grove.seal("1.0.0")
    grove.store.commit()
    return grove


@pytest.fixture(scope="module")
def groves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Grove]]:
    groves = {size: plant(tmp_path_factory.mktemp("costs") / "store", size) for size in SIZES}
    yield groves
    for grove in groves.values():
        grove.store.close(commit=False)


@pytest.fixture(params=SIZES)
def planted_grove(request: pytest.FixtureRequest, groves: dict[int, Grove]) -> Grove:
    grove: Grove = groves[request.param]
    return grove


@pytest.mark.slow
def test_the_trees_have_the_size_they_should(planted_grove: Grove) -> None:
    files = planted_grove.current.root.inodes - 1
    assert files in [size + size // DIRECTORY_SIZE for size in SIZES]


@pytest.mark.slow
def test_a_snapshot_visits_no_more_than_one_path(planted_grove: Grove) -> None:
    """The path is that to the list of orphans, which is empty."""
    name = f"s{planted_grove.now_ns}"

    assert visits(planted_grove, lambda: planted_grove.snapshot(name)) <= 8
    assert planted_grove.store.nodes.dirty_count <= 1


@pytest.mark.slow
def test_a_rollback_visits_no_more_than_one_path(planted_grove: Grove) -> None:
    planted_grove.put(b"d0/1", b"changed")

    assert visits(planted_grove, lambda: planted_grove.rollback("1.0.0")) <= 4


@pytest.mark.slow
def test_a_diff_of_one_file_visits_a_few_paths(planted_grove: Grove) -> None:
    planted_grove.put(b"d0/7", b"changed")
    old, new = planted_grove.version("1.0.0"), planted_grove.current
    found: list[Difference] = []

    count = visits(planted_grove, lambda: found.extend(diff(old, new)))

    assert [(one.status, one.path) for one in found] == [("M", b"d0/7")]
    assert count <= 60
    planted_grove.rollback("1.0.0")


@pytest.mark.slow
def test_a_seal_after_one_change_costs_the_same_in_a_large_tree(groves: dict[int, Grove]) -> None:
    """One file and the directory it is in; a level more of the B+tree is all that size adds."""
    costs = {}
    for size, grove in groves.items():
        grove.rollback("1.0.0")
        grove.put(b"d0/50", b"changed")
        label = f"1.1.{grove.now_ns}"
        costs[size] = visits(grove, lambda grove=grove, label=label: grove.seal(label))  # type: ignore[misc]
        grove.rollback("1.0.0")

    # A directory of a hundred entries: an inode each, along one path each.
    assert costs[SIZES[0]] <= DIRECTORY_SIZE * 3
    assert costs[SIZES[1]] <= costs[SIZES[0]] * 2


@pytest.mark.slow
def test_writing_and_reading_one_file_visits_one_path_for_each_key(planted_grove: Grove) -> None:
    grove = planted_grove
    tree: Tree = grove.current
    ino = tree.resolve(b"d0/9")

    assert visits(grove, lambda: tree.read(ino, 0, 10)) <= 12
    assert visits(grove, lambda: tree.write(ino, 0, b"y", 1)) <= 40
    grove.rollback("1.0.0")


# --- room ------------------------------------------------------------------------------------


def churn(grove: Grove, noise: random.Random, versions: int) -> int:
    """Make versions with one file in a hundred rewritten in each; return the bytes written."""
    changed = 0
    for number in range(versions):
        for _ in range(3):
            payload = noise.randbytes(noise.randrange(1024, 60 * 1024))
            changed += len(payload)
            grove.put(b"d%d/%d" % divmod(noise.randrange(300), 30), payload)
        grove.seal(f"1.{number}.0")
        grove.store.commit()
    return changed


@pytest.mark.parametrize("collected", [False, True], ids=["as it is", "after gc"])
def test_a_hundred_versions_take_little_more_than_one_copy_and_what_changed(
    tmp_path: Path, *, collected: bool
) -> None:
    noise = random.Random(7)
    with planted(tmp_path / "store", StoreOptions(segment_size=4 << 20)) as grove:
        once = 0
        for number in range(300):
            payload = noise.randbytes(noise.randrange(1024, 60 * 1024))
            once += len(payload)
            grove.put(b"d%d/%d" % divmod(number, 30), payload)
        grove.store.commit()

        changed = churn(grove, noise, 100)
        if collected:
            collect_now(grove.store)

        assert len(grove.store.versions(grove.agent.agent_id)) == 100
        assert grove.store.space().stored <= 1.2 * (once + changed)


def test_versions_that_are_taken_away_give_their_room_back(tmp_path: Path) -> None:
    noise = random.Random(7)
    with planted(tmp_path / "store", StoreOptions(segment_size=1 << 20)) as grove:
        for number in range(100):
            grove.put(b"d%d/%d" % divmod(number, 10), noise.randbytes(20_000))
        for number in range(10):
            for file in range(100):
                grove.put(b"d%d/%d" % divmod(file, 10), noise.randbytes(20_000))
            grove.seal(f"1.{number}.0")
        before = listing(grove.current)
        for number in range(9):
            grove.store.remove_version(grove.agent.agent_id, f"1.{number}.0")
        grove.reopen()

        collect_now(grove.store)

        assert grove.store.space().segments <= 1.2 * 100 * 20_000
        assert listing(grove.current) == before
        # The pages of the index that are free are used again.
        index = grove.store.space().index
        for _ in range(5):
            grove.put(b"d0/0", os.urandom(20_000))
            grove.store.commit()
        assert grove.store.space().index <= index * 1.5

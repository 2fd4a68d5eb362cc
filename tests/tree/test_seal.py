"""Sealing makes an immutable tree in canonical blocks, and the source shares them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from kaifs.base.errors import ChecksumMismatchError
from kaifs.base.types import TOP_INO
from kaifs.blocks.chunking import CHUNK_MAX, cut
from kaifs.meta.records import RootKind, RootState
from kaifs.store.store import SEGMENT_FOLDER
from kaifs.tree.manifest import Manifests, manifest_hash
from kaifs.tree.seal import seal
from tests.tree.grove import Grove, assert_known, exhaust, listing


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_is_sealed_never_changes_and_the_source_does(grove: Grove) -> None:
    grove.put(b"f", b"first")

    sealed = grove.seal("1.0.0")
    grove.put(b"f", b"second")

    assert sealed.tree.root.state is RootState.SEALED
    assert sealed.hash == manifest_hash(Manifests().render(sealed.tree))
    assert sealed.tree.read(sealed.tree.resolve(b"f"), 0, 9) == b"first"
    assert grove.current.read(grove.current.resolve(b"f"), 0, 9) == b"second"


@pytest.mark.parametrize("size", [0, 1, 512, 513, 131_072, 131_073, 3_000_000])
def test_each_file_has_its_digest_and_the_chunks_of_its_bytes(grove: Grove, size: int) -> None:
    payload = noise(size)
    ino = grove.put(b"f")
    for start in range(0, size, 70_001):
        grove.current.write(ino, start, payload[start : start + 70_001], grove.now_ns)

    tree = grove.seal("1.0.0").tree

    assert tree.inode(ino).sha256 == hashlib.sha256(payload).digest()
    assert tree.read(ino, 0, size) == payload
    assert [tree.content.load(one) for one in tree.content.extents(ino)] == list(cut(payload))


def test_each_run_of_a_sparse_file_is_cut_for_itself(grove: Grove) -> None:
    """The same bytes are the same block, also behind a hole and a large run."""
    ino = grove.put(b"f", noise(2 * CHUNK_MAX))
    other = grove.put(b"other", noise(100_000, 2))
    grove.current.write(ino, 5_000_000, noise(100_000, 2), grove.now_ns)
    grove.current.truncate(ino, 9_000_000, grove.now_ns)

    tree = grove.seal("1.0.0").tree

    assert tree.content.extents(ino)[-1].block == tree.content.extents(other)[0].block
    assert tree.inode(ino).allocated == 2 * CHUNK_MAX + 100_000
    whole = tree.read(ino, 0, 9_000_000)
    assert tree.inode(ino).sha256 == hashlib.sha256(whole).digest()


def test_the_source_shares_every_node_with_what_was_sealed(grove: Grove) -> None:
    for number in range(300):
        grove.put(b"d/f%d" % number, noise(2000, number))

    tree = grove.seal("1.0.0").tree

    assert grove.current.root.top == tree.root.top


def test_a_source_with_orphans_shares_the_blocks(grove: Grove) -> None:
    """Its orphans are held by processes; the version is without them."""
    ino = grove.put(b"f", noise(2_000_000))
    gone = grove.put(b"gone", b"held")
    grove.current.unlink(TOP_INO, b"gone", grove.now_ns)

    tree = grove.seal("1.0.0").tree

    assert tree.orphans() == []
    assert grove.current.read(gone, 0, 9) == b"held"
    assert grove.current.content.extents(ino) == tree.content.extents(ino)
    assert grove.current.inode(ino).sha256 == tree.inode(ino).sha256


def test_what_changes_while_it_is_sealed_is_in_the_source_alone(grove: Grove) -> None:
    same, changed, gone, resized = (
        grove.put(name, noise(600_000)) for name in (b"a", b"b", b"c", b"d")
    )
    before = listing(grove.current)
    steps = seal(grove.forest, grove.manifests, grove.current, None)

    next(steps)
    grove.current.write(changed, 5, b"changed", grove.now_ns)
    grove.current.reap(grove.current.unlink(TOP_INO, b"c", grove.now_ns))
    grove.current.truncate(resized, 700_000, grove.now_ns)
    sealed = exhaust(steps)
    grove.add_version("1.0.0", sealed)

    assert listing(sealed.tree) == before
    assert grove.current.read(changed, 5, 7) == b"changed"
    assert not grove.current.inode(changed).sha256
    assert not grove.current.inode(resized).sha256
    assert grove.current.find(TOP_INO, b"c") is None
    assert gone not in [entry.ino for entry in grove.current.walk()]
    assert grove.current.inode(same).sha256 == sealed.tree.inode(same).sha256
    assert grove.current.content.extents(same) == sealed.tree.content.extents(same)


def test_only_what_differs_from_the_base_is_read(grove: Grove) -> None:
    for number in range(20):
        grove.put(b"d%d/f" % number, noise(5000, number))
    first = grove.seal("1.0.0").tree
    grove.put(b"d3/f", noise(777, 99))

    read = list(seal(grove.forest, grove.manifests, grove.current, first))

    assert sum(read) == 777
    root = grove.forest.tree(max(grove.store.root_ids())).root
    grove.forest.drop(root.root_id)


def test_a_base_of_another_lineage_is_no_base(grove: Grove) -> None:
    grove.put(b"f", b"x")
    grove.seal("1.0.0")
    other = grove.forest.new_tree(0o755, 0, 0)
    grove.put(b"g", b"y", other)

    sealed = exhaust(seal(grove.forest, grove.manifests, other, grove.version("1.0.0")))

    assert_known(grove, sealed)
    for tree in (other, sealed.tree):
        grove.forest.drop(tree.root.root_id)


def test_a_sealed_tree_can_be_sealed_again(grove: Grove) -> None:
    """A tag: the same content under another label."""
    grove.put(b"f", b"x")
    first = grove.seal("1.0.0")

    second = exhaust(seal(grove.forest, grove.manifests, first.tree, first.tree))
    grove.add_version("1.0.1", second)

    assert second.hash == first.hash
    assert first.tree.root.kind is RootKind.VERSION


@pytest.mark.parametrize("moment", [0, 1, 2, 5])
def test_a_seal_that_is_given_up_leaves_nothing(grove: Grove, moment: int) -> None:
    for number in range(4):
        grove.put(b"f%d" % number, noise(5000, number))
    before, roots = listing(grove.current), grove.store.root_ids()
    steps = seal(grove.forest, grove.manifests, grove.current, None)
    for _ in range(moment):
        next(steps, None)

    if moment < 5:
        steps.close()
        assert grove.store.root_ids() == roots
    else:
        grove.forest.drop(max(grove.store.root_ids()))
    assert listing(grove.current) == before


def test_a_damaged_block_stops_a_seal_and_nothing_is_left(tmp_path: Path) -> None:
    grove = Grove(tmp_path / "store")
    grove.put(b"a", noise(5000))
    ino = grove.put(b"b", noise(5000, 2))
    record = grove.store.payload.record(grove.current.content.extents(ino)[0].block)
    with (grove.path / SEGMENT_FOLDER / f"{record.segment:010d}.seg").open("r+b") as file:
        file.seek(record.offset + 100)
        file.write(b"struck by a cosmic ray")
    grove.store.payload.abandon()
    roots = grove.store.root_ids()

    with pytest.raises(ChecksumMismatchError):
        grove.seal("1.0.0")

    assert grove.store.root_ids() == roots
    assert grove.current.is_writable
    grove.store.close()

"""A file agrees with a bytearray, whatever is written, cut and sealed."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kaifs.base.errors import (
    FileTooLargeError,
    InvalidOperationError,
    IsDirectoryError,
    PastEndError,
)
from kaifs.base.types import FILE_SIZE_MAX, TOP_INO
from kaifs.blocks.chunking import CHUNK_MAX, INLINE_MAX
from kaifs.tree.seal import canonicalise
from tests.tree.grove import FILE, Grove, exhaust, planted

BLOCK = 4096
offsets = st.integers(0, 20_000) | st.sampled_from([0, 1, BLOCK, 3 * BLOCK, INLINE_MAX])
sizes = st.sampled_from([0, 1, 100, INLINE_MAX, INLINE_MAX + 1, BLOCK, 9000])


class FileMachine(RuleBasedStateMachine):
    """One file and a bytearray; what is covered is a bytearray too."""

    grove: ClassVar[Grove]

    def __init__(self) -> None:
        super().__init__()
        self.tree = self.grove.current
        self.ino = self.tree.make(TOP_INO, b"f", FILE, 0, 0, self.grove.now_ns)
        self.model = bytearray()
        self.covered = bytearray()
        self.count = 0
        self.kept: list[tuple[int, bytes]] = []

    def teardown(self) -> None:
        for root_id, content in self.kept:
            tree = self.grove.forest.tree(root_id)  # type: ignore[arg-type]  # ids in a list
            assert tree.read(self.ino, 0, 1 << 20) == content
            self.grove.forest.drop(tree.root.root_id)
        self.grove.check()
        self.tree.reap(self.tree.unlink(TOP_INO, b"f", self.grove.now_ns))

    @rule(offset=offsets, size=sizes)
    def write(self, offset: int, size: int) -> None:
        self.count += 1
        payload = (b"%d " % self.count * size)[:size]
        assert self.tree.write(self.ino, offset, payload, self.grove.now_ns) == size
        if size:
            for mirror, filling in ((self.model, payload), (self.covered, b"\1" * size)):
                mirror.extend(bytes(max(0, offset - len(mirror))))
                mirror[offset : offset + size] = filling

    @rule(size=st.sampled_from([1, 30, 300]))
    def append(self, size: int) -> None:
        self.write(len(self.model), size)

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        self.tree.truncate(self.ino, size, self.grove.now_ns)
        for mirror in (self.model, self.covered):
            del mirror[size:]
            mirror.extend(bytes(size - len(mirror)))

    @rule(start=offsets, size=sizes)
    def punch(self, start: int, size: int) -> None:
        stop = min(start + size, len(self.model))
        if start < stop:
            gone = self.tree.content.punch(self.ino, start, stop)
            assert gone == sum(self.covered[start:stop])
            inode = self.tree.inode(self.ino)
            self.tree.set_content(self.ino, self.tree.content.extents(self.ino), inode.size, b"")
            for mirror in (self.model, self.covered):
                mirror[start:stop] = bytes(stop - start)

    @rule(start=offsets, size=sizes, clear=st.booleans(), keep_size=st.booleans())
    def allocate(self, start: int, size: int, clear: bool, keep_size: bool) -> None:
        if not size:
            return
        stop = start + size
        self.tree.allocate(self.ino, start, stop, None, clear=clear, keep_size=keep_size)
        for mirror in (self.model, self.covered):
            if not keep_size:
                mirror.extend(bytes(max(0, stop - len(mirror))))
            if clear and start < len(mirror):
                mirror[start:stop] = bytes(min(stop, len(mirror)) - start)

    @rule(start=offsets, size=sizes, offset=offsets)
    def copy(self, start: int, size: int, offset: int) -> None:
        size = max(min(size, len(self.model) - start), 0)
        if start < offset + size and offset < start + size:
            return
        assert self.tree.copy_range(self.tree, self.ino, start, self.ino, offset, size, 1) == size
        for mirror in (self.model, self.covered) if size else ():
            copied = mirror[start : start + size]
            mirror.extend(bytes(max(0, offset - len(mirror))))
            mirror[offset : offset + size] = copied

    @rule()
    def canonicalise(self) -> None:
        exhaust(canonicalise(self.tree, self.ino))

    @rule()
    def clone(self) -> None:
        clone = self.grove.forest.clone(self.tree)
        self.kept.append((clone.root.root_id, bytes(self.model)))

    @rule()
    def commit(self) -> None:
        self.grove.store.commit()

    @rule(offset=offsets, size=offsets)
    def read(self, offset: int, size: int) -> None:
        assert self.tree.read(self.ino, offset, size) == self.model[offset : offset + size]

    @rule(offset=offsets)
    def seek(self, offset: int) -> None:
        if offset >= len(self.model):
            for seek in (self.tree.seek_data, self.tree.seek_hole):
                with pytest.raises(PastEndError):
                    seek(self.ino, offset)
            return
        data = self.covered.find(1, offset)
        hole = self.covered.find(0, offset)
        assert self.tree.seek_hole(self.ino, offset) == (len(self.model) if hole < 0 else hole)
        if data < 0:
            with pytest.raises(PastEndError):
                self.tree.seek_data(self.ino, offset)
        else:
            assert self.tree.seek_data(self.ino, offset) == data

    @invariant()
    def agrees(self) -> None:
        inode = self.tree.inode(self.ino)
        assert inode.size == len(self.model)
        assert inode.allocated == sum(self.covered)
        assert self.tree.read(self.ino, 0, inode.size + 9) == self.model


def test_a_file_agrees_with_a_bytearray(tmp_path: Path) -> None:
    with planted(tmp_path / "store") as grove:
        run_state_machine_as_test(type("Machine", (FileMachine,), {"grove": grove}))


def test_a_large_write_is_cut_into_blocks_of_the_greatest_size(grove: Grove) -> None:
    ino = grove.put(b"f", bytes(2 * CHUNK_MAX + 600))

    lengths = [extent.length for extent in grove.current.content.extents(ino)]

    assert lengths == [CHUNK_MAX, CHUNK_MAX, 600]


def test_small_appends_join_until_they_are_too_long_to_be_inline(grove: Grove) -> None:
    """A log that grows by lines must not have an extent for each."""
    ino = grove.put(b"log")

    for number in range(100):
        grove.current.write(ino, number * 30, b"x" * 30, grove.now_ns)

    assert len(grove.current.content.extents(ino)) == 6


def test_appending_to_another_files_end_joins_nothing(grove: Grove) -> None:
    first, second = grove.put(b"a", b"x" * 100), grove.put(b"b")

    grove.current.write(second, 100, b"y" * 10, grove.now_ns)

    assert [one.length for one in grove.current.content.extents(first)] == [100]
    assert [one.offset for one in grove.current.content.extents(second)] == [100]


def test_data_and_holes_are_found_from_any_place(grove: Grove) -> None:
    """SEEK_DATA and SEEK_HOLE of lseek(2)."""
    ino = grove.put(b"f", b"x" * 1000)
    tree = grove.current
    tree.write(ino, 5000, b"y" * 1000, grove.now_ns)
    tree.truncate(ino, 9000, grove.now_ns)

    assert [tree.seek_data(ino, place) for place in (0, 999, 1000, 5500)] == [0, 999, 5000, 5500]
    places = (0, 1000, 3000, 5000, 7000)
    assert [tree.seek_hole(ino, place) for place in places] == [1000, 1000, 3000, 6000, 7000]
    with pytest.raises(PastEndError):
        tree.seek_data(ino, 6000)


def test_a_copied_range_shares_its_block_and_stores_nothing(grove: Grove) -> None:
    """From a sealed version into current; unaligned parts lead into the middle of a block."""
    tree = grove.current
    grove.put(b"f", bytes(range(256)) * 400)
    sealed = grove.seal("1.0.0").tree
    source, before = sealed.resolve(b"f"), grove.store.space().segments
    target = grove.put(b"g", b"-" * 1000)

    assert tree.copy_range(sealed, source, 777, target, 500, 90_001, grove.now_ns) == 90_001

    assert tree.read(target, 0, 100_000) == b"-" * 500 + sealed.read(source, 777, 90_001)
    assert {one.block for one in tree.content.extents(target, 1000)} == {
        one.block for one in sealed.content.extents(source)
    }
    assert grove.store.space().segments - before < 2000


def test_a_whole_copy_keeps_the_digest_and_a_part_does_not(grove: Grove) -> None:
    """A seal then need not read it again."""
    tree = grove.current
    grove.put(b"f", b"x" * 5000)
    sealed = grove.seal("1.0.0").tree
    source = sealed.resolve(b"f")
    whole, part, longer = grove.put(b"a"), grove.put(b"b"), grove.put(b"c", b"y" * 6000)

    tree.copy_range(sealed, source, 0, whole, 0, 1 << 40, grove.now_ns)
    tree.copy_range(sealed, source, 0, part, 0, 4096, grove.now_ns)
    tree.copy_range(sealed, source, 0, longer, 0, 5000, grove.now_ns)

    assert tree.inode(whole).sha256 == sealed.inode(source).sha256 != b""
    assert tree.inode(part).sha256 == tree.inode(longer).sha256 == b""


def test_a_range_past_the_end_copies_nothing_and_changes_nothing(grove: Grove) -> None:
    tree = grove.current
    source, target = grove.put(b"f", b"x" * 100), grove.put(b"g", b"y")
    before = tree.inode(target)

    assert tree.copy_range(tree, source, 100, target, 0, 10, grove.now_ns) == 0

    assert tree.inode(target) == before


def test_only_files_have_ranges(grove: Grove) -> None:
    tree = grove.current
    file = grove.put(b"f", b"x")
    fifo = tree.make(TOP_INO, b"fifo", stat.S_IFIFO, 0, 0, grove.now_ns)
    for target, error in ((TOP_INO, IsDirectoryError), (fifo, InvalidOperationError)):
        with pytest.raises(error):
            tree.allocate(target, 0, 1, None)
        with pytest.raises(error):
            tree.copy_range(tree, file, 0, target, 0, 1, None)
        with pytest.raises(error):
            tree.copy_range(tree, target, 0, file, 0, 1, None)
    for change in (
        lambda: tree.allocate(file, FILE_SIZE_MAX, FILE_SIZE_MAX + 1, None),
        lambda: tree.copy_range(tree, file, 0, file, FILE_SIZE_MAX, 1, None),
    ):
        with pytest.raises(FileTooLargeError):
            change()

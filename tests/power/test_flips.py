"""A byte that flips on the disk is found wherever it counts, and only what it touches is refused.

`KAIFS_FLIPS` says how many bytes flip, one at a time (200); 10,000 is the long form. A failure
names its seed and place.
"""

from __future__ import annotations

import logging
import os
import random
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from kaifs.base.errors import KaifsError
from kaifs.blocks.segments import RECORD_HEADER_SIZE, SEGMENT_HEADER_SIZE, segment_name
from kaifs.meta.database import Table
from kaifs.meta.index import INDEX_FILE, MIRROR_FILE
from kaifs.meta.records import BLOCK
from kaifs.store.store import INDEX_FOLDER, SEGMENT_FOLDER, Store, StoreOptions
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from tests.service.desk import Desk

FLIPS = int(os.environ.get("KAIFS_FLIPS", "200"))
OPTIONS = StoreOptions(map_size=1 << 24)
INDEX_LOG = "kaifs.meta.index"


@dataclass(frozen=True, slots=True)
class Content:
    """What every path of every tree holds."""

    files: dict[str, bytes]
    damaged: frozenset[str]
    """Paths that are refused."""


def read_all(store: Store) -> Content:
    """Read every file of every tree."""
    forest = Forest(store)
    files: dict[str, bytes] = {}
    damaged = set()
    for agent in store.agents():
        trees = {agent.name: agent.head}
        for version in store.versions(agent.agent_id):
            trees[f"{agent.name}@{version.label}"] = version.root
        for name, root in trees.items():
            tree = forest.tree(root)
            for found in tree.walk():
                if stat.S_ISREG(found.inode.mode):
                    path = f"{name}:{os.fsdecode(found.path)}"
                    try:
                        files[path] = tree.read(found.ino, 0, found.inode.size)
                    except KaifsError:
                        damaged.add(path)
    return Content(files, frozenset(damaged))


@pytest.fixture
def store_path(tmp_path: Path, folder: Path) -> Path:
    """A closed store with two versions, large and small files, with freed blocks between them."""
    noise = random.Random(7)
    desk = Desk(tmp_path / "store")
    for number in range(40):
        (folder / f"small-{number}").write_bytes(noise.randbytes(noise.randrange(1, 9000)))
    desk.take("bot", "1.0.0", folder)
    for number in range(20):
        desk.write("bot", b"small-%d" % number, noise.randbytes(5000))
        desk.write("bot", b"small-%d" % number, noise.randbytes(300_000 if number == 7 else 3000))
    desk.store.commit()
    desk.run("seal", agent="bot", label="1.1.0")
    desk.run("snapshot", reference="bot", name="snap")
    desk.run("gc")  # what is in the index then is what trees name
    desk.store.close()
    return tmp_path / "store"


def live_ranges(store: Store) -> dict[str, list[tuple[int, int]]]:
    """Return which bytes of each segment count: its header, and every record of a block."""
    ranges = {segment_name(one): [(0, SEGMENT_HEADER_SIZE)] for one in store.segments.sizes}
    for key in store.pending.keys(Table.BLOCKS):
        record = BLOCK.decode(store.pending.get(Table.BLOCKS, key) or b"")
        start = record.offset
        stop = start + RECORD_HEADER_SIZE + record.stored_size
        ranges[segment_name(record.segment)].append((start, stop))
    return ranges


def places(store: Path) -> list[Path]:
    """Return the files whose bytes may flip."""
    index = store / INDEX_FOLDER
    segments = sorted((store / SEGMENT_FOLDER).iterdir())
    return [*segments, index / INDEX_FILE, index / MIRROR_FILE]


@pytest.mark.slow
def test_a_flipped_byte_is_found_where_it_counts_and_hides_nothing_else(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a segment: fsck or the read of the file tells. In the index: the other copy takes over."""
    store = Store.open(store_path, options=OPTIONS)
    whole, live = read_all(store), live_ranges(store)
    store.close()
    assert not whole.damaged
    failures = []
    touched = 0

    for seed in range(FLIPS):
        noise = random.Random(seed)
        path = noise.choice(places(store_path))
        offset, bit = noise.randrange(path.stat().st_size), 1 << noise.randrange(8)
        counts = path.parent.name == INDEX_FOLDER or any(
            start <= offset < stop for start, stop in live[path.name]
        )
        touched += counts
        where = f"seed {seed}: {path.name} byte {offset} bit {bit}"
        _flip(path, offset, bit)
        caplog.clear()
        with caplog.at_level(logging.WARNING, INDEX_LOG):
            store = Store.open(store_path, options=OPTIONS)
        try:
            findings, found = check(store), read_all(store)
        finally:
            store.close(commit=False)
        if path.parent.name == INDEX_FOLDER:
            was_healed = any(record.message == "index_replaced" for record in caplog.records)
            if findings or found != whole or not was_healed:
                failures.append(f"{where}: {findings} {sorted(found.damaged)}")
            continue
        _flip(path, offset, bit)
        if counts != bool(findings or found.damaged):
            failures.append(f"{where}: counts {counts}, {findings}, {sorted(found.damaged)}")
        for name, payload in found.files.items():
            if payload != whole.files[name]:
                failures.append(f"{where}: {name} gives other bytes")
        if len(found.damaged) > 3:
            failures.append(f"{where}: refuses {sorted(found.damaged)}")

    assert not failures, "\n".join(failures[:20])
    assert touched > FLIPS // 2, "most bytes count"


def _flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ bit]))

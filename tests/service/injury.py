"""Damage to a store: what a disk does, and what somebody does who knows the format."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import zstandard
from msgspec.structs import replace as replaced

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import BlockId, Ino
from kaifs.blocks.segments import RECORD_HEADER_SIZE, segment_name
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.index import INDEX_FILE, MIRROR_FILE
from kaifs.meta.node import ZSTD_MAGIC, Leaf, decode_node, encode_node
from kaifs.meta.records import INODE, VERSION, InodeRecord, VersionRecord
from kaifs.service.alerts import Alert
from kaifs.service.verify import Result, Validation
from kaifs.store.nodes import node_key
from kaifs.store.store import INDEX_FOLDER, SEGMENT_FOLDER
from kaifs.tree.fsck import check
from kaifs.tree.tree import Tree
from tests.service.desk import Desk


class Injured:
    """A store that is hurt on the disk, below all caches; it listens to alerts."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.alerts: list[Alert] = []
        self.is_index_hurt = False
        """Whether fsck has reason to complain."""
        desk.context = replace(desk.context, alert=self.alerts.append)

    def close(self) -> None:
        """Close the store; every invariant holds but those that were broken on purpose."""
        self.desk.store.commit()
        if not self.is_index_hurt:
            assert check(self.desk.store) == []
        self.desk.store.close()

    # --- verbs -------------------------------------------------------------------------

    def verify(self, *references: str, **options: Any) -> dict[str, Validation]:
        """Verify, and return what was found by reference."""
        return {one.reference: one for one in self.result(*references, **options).validations}

    def result(self, *references: str, **options: Any) -> Result:
        result: Result = self.desk.run("verify", references=references, **options)
        return result

    def labels(self, agent: str = "bot") -> list[str]:
        """Return the labels that are shown, growing."""
        agent_id = self.desk.store.get_agent(agent).agent_id
        return [version.label for version in self.desk.store.versions(agent_id)]

    def version(self, label: str, agent: str = "bot") -> VersionRecord:
        store = self.desk.store
        return store.get_version(store.get_agent(agent), label)

    # --- segments ----------------------------------------------------------------------

    def flip_content(self, root_label: str, path: bytes, position: int = 0) -> None:
        """Flip a bit of a file's first block where it is on the disk. Twice: it is healed."""
        tree = self.desk.forest.tree(self.version(root_label).root)
        flip_content(self.desk, tree, path, position)

    # --- index -------------------------------------------------------------------------

    def flip_in_index(self, payload: bytes, *, both: bool = True) -> None:
        """Flip a byte of each record with *payload*, in the main copy of the index or in both."""
        store = self.desk.store
        store.commit()
        self.is_index_hurt = True
        records = list(self._records_with(payload))
        assert records, "it is somewhere"
        folder = self.desk.path / INDEX_FOLDER
        raw = (folder / INDEX_FILE).read_bytes()
        for record in records:
            for found in re.finditer(re.escape(record), raw):
                flip(folder / INDEX_FILE, found.start() + len(record) // 2)
        if both:
            # What is damaged at one place can be had from no place of the mirror.
            flip(folder / MIRROR_FILE, (folder / MIRROR_FILE).stat().st_size - 3)
        self.forget()

    def _records_with(self, payload: bytes) -> Iterator[bytes]:
        database = self.desk.store.database
        for table in Table:
            for key in database.keys(table):
                record = b""
                with suppress(StoreDamagedError):
                    record = database.get(table, key) or b""
                is_packed = record[:4] == ZSTD_MAGIC
                plain = zstandard.decompress(record) if is_packed else record
                if payload in plain or payload in record:
                    yield record

    def forge_inode(
        self, label: str, path: bytes, change: Callable[[InodeRecord], InodeRecord], **where: Any
    ) -> None:
        """Change an inode where it is, with a right checksum."""
        ino = self.desk.forest.tree(self.version(label).root).resolve(path)
        self.forge_key(
            label,
            keys.inode_key(ino),
            lambda value: INODE.encode(change(INODE.decode(value))),
            **where,
        )

    def forge_target(self, label: str, path: bytes, target: bytes, **where: Any) -> None:
        """Change where a symbolic link leads, with a right checksum."""
        ino = self.desk.forest.tree(self.version(label).root).resolve(path)
        self.forge_key(label, keys.extent_key(ino, 0), lambda value: b"\0" + target, **where)

    def forge_key(
        self, label: str, key: bytes, change: Callable[[bytes], bytes], *, both: bool = True
    ) -> None:
        """Change the value of one key of a version's tree in one copy of the index or in both."""
        store = self.desk.store
        store.commit()
        node_id = store.root(self.version(label).root).top
        while True:
            record = store.database.get(Table.NODES, node_key(node_id))
            assert record is not None
            node = decode_node(node_id, record)
            if isinstance(node, Leaf):
                break
            below = [
                child for low, child in zip(node.keys, node.children, strict=True) if low <= key
            ]
            node_id = below[-1] if below else node.children[0]
        index = node.keys.index(key)
        node.values[index] = change(node.values[index])
        self.forge(Table.NODES, node_key(node_id), encode_node(node), both=both)

    def forge_version(self, label: str, *, both: bool = True, **fields: Any) -> None:
        """Change a version's record where it is, with a right checksum."""
        version = replaced(self.version(label), **fields)
        key = version.agent_id.to_bytes(8, "big") + label.encode()
        self.forge(Table.VERSIONS, key, VERSION.encode(version), both=both)

    def forge(self, table: Table, key: bytes, record: bytes, *, both: bool = True) -> None:
        self.desk.store.commit()
        database = self.desk.store.database
        changes = {table: {key: record}}
        if both:
            database.write(changes)
        else:
            database._main.write(changes)
            self.is_index_hurt = True
        self.forget()

    def forget(self) -> None:
        """Let the store read everything anew, as a process does that starts."""
        store = self.desk.store
        store.nodes.abandon(store.nodes.next_node)
        store.payload.abandon()
        self.desk.forest.manifests.__init__()  # type: ignore[misc]


def flip(path: Path, position: int) -> None:
    """Flip a bit of a file where it is."""
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, position)[0]
        os.pwrite(fd, bytes([byte ^ 0x20]), position)
    finally:
        os.close(fd)


def flip_block(desk: Desk, block: BlockId, position: int = 0) -> None:
    """Flip a bit of a block's payload where it is on the disk."""
    record = desk.store.payload.record(block)
    path = desk.path / SEGMENT_FOLDER / segment_name(record.segment)
    flip(path, record.offset + RECORD_HEADER_SIZE + position)
    desk.store.payload.abandon()


def flip_content(desk: Desk, tree: Tree, path: bytes, position: int = 0) -> None:
    """Flip a bit of a file's first block where it is on the disk."""
    flip_block(desk, tree.content.extents(tree.resolve(path))[0].block, position)


def first_ino(desk: Desk, label: str, path: bytes) -> Ino:
    """Return the inode number of *path* in a version of `bot`."""
    store = desk.store
    version = store.get_version(store.get_agent("bot"), label)
    return desk.forest.tree(version.root).resolve(path)

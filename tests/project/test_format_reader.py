"""FORMAT.md is enough to read a store: a reader written from it finds every file and byte."""

import ast
import inspect
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
import xxhash
import zstandard

from kaifs.meta.records import (
    AgentRecord,
    BlockRecord,
    CounterRecord,
    InodeRecord,
    RootKind,
    RootRecord,
    RootState,
    SnapshotRecord,
    VersionRecord,
)
from kaifs.service.context import Caller, Context
from kaifs.service.embedded import run
from kaifs.service.seal import Params
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.forest import Forest


class StoreReader:
    """Reads versions by what FORMAT.md says. Nothing of kaifs is used here."""

    def __init__(self, store: Path) -> None:
        raw = (store / "superblock").read_bytes()
        fields = struct.unpack("<8sII16sQQQq56x8s", raw)
        magic, version, order, self.uuid, _, _, incompat, _, own = fields
        assert (magic, version, order, incompat) == (b"KAIFSSUP", 2, 0x01020304, 0)
        assert own == xxhash.xxh3_64_digest(raw[:-8])
        self.segments = store / "segments"
        self.env = lmdb.Environment(
            str(store / "index"), readonly=True, lock=False, max_dbs=16, lib_version=0
        )
        assert self.record("meta", b"counters")[0] == self.uuid

    def record(self, table: str, key: bytes) -> Any:
        database = self.env.open_db(table.encode(), create=False)
        with self.env.begin() as txn:
            value = txn.get(key, db=database)
        assert value is not None, f"{table} {key.hex()} is missing"
        assert value[:8] == xxhash.xxh3_64_digest(value[8:])
        packed = value[8:12] == b"\x28\xb5\x2f\xfd"
        record = zstandard.ZstdDecompressor().decompress(value[8:]) if packed else value[8:]
        return msgspec.msgpack.decode(record)

    def version(self, agent: str, label: str) -> Any:
        (agent_id, *_) = self.record("agents", agent.encode())
        return self.record("versions", agent_id.to_bytes(8, "big") + label.encode())

    def files(self, agent: str, label: str) -> dict[bytes, bytes]:
        _, top, _, _, state, *_ = self.record(
            "roots", self.version(agent, label)[2].to_bytes(8, "big")
        )
        assert state == 1, "a version is sealed"
        keys: dict[tuple[int, int], list[tuple[bytes, bytes]]] = {}
        for key, value in self._items(top):
            keys.setdefault(struct.unpack_from(">QB", key), []).append((key[9:], value))
        return dict(self._walk(keys, 1, b""))

    def _items(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        kind, _, keys, rest = self.record("nodes", node.to_bytes(8, "big"))
        for key, below in zip(keys, rest, strict=True):
            yield from [(key, below)] if kind == "L" else self._items(below)

    def _walk(self, keys: Any, ino: int, path: bytes) -> Iterator[tuple[bytes, bytes]]:
        mode, _, _, _, size, *_ = msgspec.msgpack.decode(keys[ino, 0][0][1])
        if mode >> 12 == 0o10:
            content = bytearray(size)
            for offset, extent in keys.get((ino, 5), []):
                start, piece = int.from_bytes(offset, "big"), self._piece(extent)
                content[start : start + len(piece)] = piece
            assert len(content) == size
            yield path, bytes(content)
        for name, dentry in keys.get((ino, 3), []):
            child, _, _ = struct.unpack(">QQB", dentry)
            yield from self._walk(keys, child, path + b"/" + name)

    def _piece(self, extent: bytes) -> bytes:
        if extent[0] == 0:
            return extent[1:]
        _, block, start, length = struct.unpack("<BQII", extent)
        payload = self._block(block)
        assert start + length <= len(payload)
        return payload[start : start + length]

    def _block(self, block: int) -> bytes:
        record = self.record("blocks", block.to_bytes(8, "big"))
        segment, offset, stored_size, size, codec, checksum = record
        assert codec == 0, "this reader has no zstd"
        with (self.segments / f"{segment:010d}.seg").open("rb") as file:
            head = file.read(64)
            assert struct.unpack("<8sII16sQ16x8s", head)[3:5] == (self.uuid, segment)
            assert head[-8:] == xxhash.xxh3_64_digest(head[:-8])
            file.seek(offset)
            header, payload = file.read(48), file.read(stored_size)
        magic, kind, *_, named, _, own = struct.unpack("<IBBHIIQ16s8s", header)
        assert (magic, kind, named) == (0x4B424C4B, 1, block)
        assert own == xxhash.xxh3_64_digest(header[:-8])
        assert (len(payload), xxhash.xxh3_128_digest(payload)) == (size, checksum)
        return payload

    def journal(self) -> list[Any]:
        """Return the journal records past the last commit, by their numbers."""
        counters = self.record("meta", b"counters")
        first_new, number, fresh = counters[6], counters[9], counters[4]
        committed = {}
        for path in self.segments.glob("*.seg"):
            if int(path.stem) < first_new:
                key = int(path.stem).to_bytes(8, "big")
                committed[int(path.stem)] = self.record("segments", key)[0]
        last = max(committed, default=0)
        starts = {last: committed[last]} if last else {}
        for path in self.segments.glob("*.seg"):
            if int(path.stem) >= first_new and path.stat().st_size >= 64:
                starts[int(path.stem)] = 64
        found = []
        for segment, start in sorted(starts.items()):
            raw = (self.segments / f"{segment:010d}.seg").read_bytes()
            while start < len(raw):
                header, start = raw[start : start + 48], start + 48
                magic, kind, codec, _, stored, size, named, checksum, own = struct.unpack(
                    "<IBBHIIQ16s8s", header
                )
                assert (magic, codec, stored) == (0x4B424C4B, 0, size)
                assert own == xxhash.xxh3_64_digest(header[:-8])
                payload = raw[start : start + stored]
                assert checksum == xxhash.xxh3_128_digest(payload)
                start += -(-stored // 8) * 8
                if kind == 1:
                    fresh = max(fresh, named + 1)
                elif kind == 2:
                    assert named == number, "each has the number after the one before"
                    number += 1
                    found.append(msgspec.msgpack.decode(payload))
                    assert found[-1][1] == fresh, "every block is before the record that names it"
                    assert found[-1][0] <= counters[1]
        return found


CONTENT = {
    b"/empty": b"",
    b"/inline": b"a few bytes",
    b"/block": bytes(range(256)) * 300,
    b"/chunks": b"".join(i.to_bytes(4, "big") * 64 for i in range(12_000)),
    b"/lib/same-as-block": bytes(range(256)) * 300,
    b"/lib/deep/\xff name": b"not UTF-8",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the versions 1.0.0 and 1.1.0 of `bot`, closed."""
    path = tmp_path_factory.mktemp("format") / "store"
    store = Store.create(path)
    forest = Forest(store)
    tree = forest.new_tree(0o755, 0, 0)
    store.add_agent("bot", 0, 0, tree.root)
    for directory in (b"lib", b"lib/deep"):
        above, _, name = directory.rpartition(b"/")
        tree.make(tree.resolve(above), name, 0o40755, 0, 0, 1)
    for name, content in CONTENT.items():
        above, _, last = name.rpartition(b"/")
        ino = tree.make(tree.resolve(above), last, 0o100644, 0, 0, 1)
        tree.write(ino, 0, content, 1)
    sparse = tree.make(tree.resolve(b""), b"sparse", 0o100600, 0, 0, 1)
    tree.write(sparse, 2_000_000, b"x" * 1000, 1)
    tree.truncate(sparse, 3_000_000, 1)
    for number in range(300):
        tree.make(tree.resolve(b"lib"), b"%d" % number, 0o100644, 0, 0, 1)
    context = Context(store, forest, Caller(0, 0))
    run(context, VERBS["seal"], Params(agent="bot", label="1.0.0"))
    tree.write(tree.resolve(b"inline"), 0, b"A", 2)
    run(context, VERBS["seal"], Params(agent="bot", label="1.1.0"))
    store.close()
    return path


def expected(**changed: bytes) -> dict[bytes, bytes]:
    """Return what 1.0.0 holds, with *changed* at the top."""
    found = CONTENT | {b"/sparse": bytes(2_000_000) + b"x" * 1000 + bytes(999_000)}
    found |= {b"/lib/%d" % number: b"" for number in range(300)}
    return found | {b"/" + name.encode(): content for name, content in changed.items()}


def test_reader_finds_every_file_and_byte(store: Path) -> None:
    assert StoreReader(store).files("bot", "1.0.0") == expected()


def test_reader_sees_the_later_version_apart_from_the_first(store: Path) -> None:
    assert StoreReader(store).files("bot", "1.1.0") == expected(inline=b"A few bytes")


def test_version_s_record_is_the_json_that_the_format_describes(store: Path) -> None:
    reader = StoreReader(store)
    _, label, _, record, digest, *_ = reader.version("bot", "1.1.0")

    fields = msgspec.json.decode(record)

    assert " ".join(sorted(fields)) == (
        "dependencies hash metadata parent parentHash treeDigest version"
    )
    assert (fields["version"], fields["hash"], fields["parent"]) == (label, digest, "1.0.0")


def test_reader_finds_in_the_journal_what_was_not_committed(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", options=StoreOptions(journal=True, segment_size=4000))
    forest = Forest(store)
    tree = forest.new_tree(0o755, 0, 0)
    store.add_agent("bot", 0, 0, tree.root)
    ino = tree.make(tree.resolve(b""), b"committed", 0o100644, 0, 0, 1)
    store.commit()
    for number in range(5):
        tree.write(ino, 0, bytes([number]) * 3000, 1)
        store.flush_journal()
    snapshot = forest.clone(tree)
    store.set_root_state(snapshot.root, RootState.SEALED)
    child = tree.make(tree.resolve(b""), b"new", 0o100644, 0, 0, 1)
    tree.unlink(tree.resolve(b""), b"new", 2)
    store.flush_journal()
    store.close(commit=False)

    *writes, last = StoreReader(tmp_path / "store").journal()

    assert len(writes) == 5
    extent = struct.pack(">QBQ", ino, 5, 0)
    for record in writes:
        ((tag, root, _, inodes, size, _, pairs),) = record[5]
        assert (tag, root, inodes, size) == (0, tree.root.root_id, 2, 3000)
        # Of a key that stands there twice the last value counts.
        assert dict(zip(pairs[::2], pairs[1::2], strict=True))[extent][0] == 1
    changed: dict[bytes, bytes | None] = {}
    for step in last[5]:
        if step[0] == 0:
            changed |= zip(step[6][::2], step[6][1::2], strict=True)
    assert [2, snapshot.root.root_id, tree.root.root_id] in last[5]
    assert changed[struct.pack(">QB", 1, 3) + b"new"] is None
    assert [5, tree.root.root_id, True] in last[5], "a file without a name is unfinished"
    states = {step[1][0]: step[1][4] for step in last[5] if step[0] == 6}
    assert states[snapshot.root.root_id] == 1
    assert child in {int.from_bytes(key[:8], "big") for key in changed}


@pytest.mark.parametrize(
    ("heading", "column", "record"),
    [
        ("Counters", 1, CounterRecord),
        ("Blocks", 1, BlockRecord),
        ("Roots", 1, RootRecord),
        ("Agents, versions, snapshots", 1, AgentRecord),
        ("Agents, versions, snapshots", 2, VersionRecord),
        ("Agents, versions, snapshots", 3, SnapshotRecord),
        ("Inodes", 1, InodeRecord),
    ],
)
def test_every_field_of_a_record_has_its_row(
    heading: str, column: int, record: type[msgspec.Struct]
) -> None:
    """Fields are told by position, so the rows must be as many, numbered from 0."""
    text = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()
    section = re.split(r"^##+ ", text.partition(f"### {heading}\n")[2], flags=re.MULTILINE)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line[:3].strip("| ")]
    numbers = [row[0].strip() for row in rows if row[0].strip().isdigit() and row[column].strip()]

    assert numbers == [str(number) for number in range(len(record.__struct_fields__))]


def test_numbers_of_states_and_kinds_are_those_of_the_format() -> None:
    """FORMAT.md gives them in a table, which the comparison of constants does not reach."""
    states = {state.name.lower(): state.value for state in RootState}
    kinds = {kind.name.lower(): kind.value for kind in RootKind}

    assert states == {"writable": 0, "sealed": 1, "superseded": 2, "building": 3}
    assert kinds == {"head": 0, "version": 1, "snapshot": 2, "none": 3, "quarantined": 4}


def test_reader_uses_nothing_of_kaifs() -> None:
    names = {
        node.id
        for node in ast.walk(ast.parse(inspect.getsource(StoreReader)))
        if isinstance(node, ast.Name)
    }
    ours = {name for name, value in globals().items() if _is_ours(value)}

    assert not names & ours


def _is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == "kaifs"

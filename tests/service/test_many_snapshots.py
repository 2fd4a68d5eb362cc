"""Snapshots in numbers: free until written, and none of them sees another."""

import stat

from kaifs.base.types import TOP_INO
from kaifs.tree.fsck import check
from kaifs.tree.tree import Tree
from tests.service.desk import Desk
from tools.bench.product import many_files

FILES = 2000
COUNT = 200
FIRST = b"d000000/f00"
SECOND = b"d000001/f07"


def payload_size(desk: Desk) -> int:
    """Return the bytes of all segments."""
    desk.store.commit()
    return sum(path.stat().st_size for path in (desk.path / "segments").glob("*.seg"))


def snapshot(desk: Desk, number: int) -> Tree:
    """Return the tree of a snapshot."""
    agent = desk.store.get_agent("bot")
    return desk.forest.tree(desk.store.get_snapshot(agent, f"n{number}").root)


def write(tree: Tree, path: bytes, payload: bytes) -> None:
    ino = tree.resolve(path)
    tree.truncate(ino, 0, 7)
    tree.write(ino, 0, payload, 7)


def test_many_snapshots_store_nothing_until_written_and_are_independent(desk: Desk) -> None:
    """In both directions: none sees what current or another writes, nobody sees what it writes."""
    desk.run("import", items=many_files(FILES), agent="bot", label="1.0.0")
    original = desk.read(desk.current("bot"), FIRST)
    before = payload_size(desk)

    for number in range(COUNT):
        reference = "bot@1.0.0" if number % 2 else "bot"
        desk.run("snapshot", reference=reference, name=f"n{number}")

    assert payload_size(desk) == before
    own = desk.run("snapshots", agent="bot").snapshots
    assert [one.own_bytes for one in own] == [0] * COUNT

    for number in range(COUNT):
        write(snapshot(desk, number), FIRST, b"of %d\n" % number)
    write(desk.current("bot"), SECOND, b"of current\n")
    desk.store.commit()
    desk.reopen()

    for number in range(COUNT):
        tree = snapshot(desk, number)
        assert desk.read(tree, FIRST) == b"of %d\n" % number
        assert desk.read(tree, SECOND) == b"file 7 of folder 1\n"
    assert desk.read(desk.current("bot"), FIRST) == original
    assert desk.read(desk.current("bot"), SECOND) == b"of current\n"
    version = desk.store.get_version(desk.store.get_agent("bot"), "1.0.0")
    assert desk.read(desk.forest.tree(version.root), FIRST) == original
    assert check(desk.store) == []


def test_what_one_snapshot_loses_the_others_keep(desk: Desk) -> None:
    desk.run("import", items=many_files(FILES), agent="bot", label="1.0.0")
    for number in range(3):
        desk.run("snapshot", reference="bot@1.0.0", name=f"n{number}")

    tree = snapshot(desk, 1)
    folder = tree.resolve(b"d000000")
    tree.unlink(folder, b"f00", 7)
    tree.make(TOP_INO, b"new", stat.S_IFREG | 0o644, 0, 0, 7)
    desk.run("discard", reference="n0")
    desk.run("gc")

    assert desk.read(snapshot(desk, 2), FIRST) == b"file 0 of folder 0\n"
    assert snapshot(desk, 2).find(TOP_INO, b"new") is None
    assert desk.read(desk.current("bot"), FIRST) == b"file 0 of folder 0\n"

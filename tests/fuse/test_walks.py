"""Walks through a tree: which listings the kernel is made to ask for again, and what it gets."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from msgspec import structs

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import KernelNode
from kaifs.fuse import protocol as p
from kaifs.fuse import walks
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.kernel_requests import Features, Request, Requests
from kaifs.fuse.protocol import Opcode
from kaifs.fuse.walks import IN_ROW, LAPSE_S, Listing, Listings, Walks
from kaifs.views.attributes import Attributes
from kaifs.views.namespace import FoldersIn, Namespace
from tests.fuse.conftest import MountedStore
from tests.fuse.test_handlers import FILE, handlers_of
from tests.views.conftest import USER, Site, walk

PID = 100
DIRECTORY = stat.S_IFDIR | 0o755
FOLDERS = ("a", "b", "c")
"""Beside each other in current; each has a folder `below` and a file in it."""


class Tree:
    """Some folders, a file in each, and what is dropped of them."""

    def __init__(self, site: Site) -> None:
        self.handlers: Handlers = handlers_of(site)
        self.namespace: Namespace = self.handlers.namespace
        self.dropped: list[KernelNode] = []
        self.walks = Walks(self.namespace, self.dropped.extend)
        self.current = walk(self.namespace, "bot/current").node
        self.files: dict[str, Attributes] = {}
        self.folders: dict[str, KernelNode] = {}
        for name in FOLDERS:
            folder = self.handlers.mkdir_nowait(self.current, name.encode(), DIRECTORY, USER).node
            below = self.handlers.mkdir_nowait(folder, b"below", DIRECTORY, USER).node
            self.folders |= {name: folder, f"{name}/below": below}
            self.files[name] = self.handlers.mknod(folder, b"file", FILE, 0, USER)

    def ask(self, file: str, times: int = IN_ROW, pid: int = PID) -> None:
        """Let a program ask for a file's attributes, so many times more than once."""
        for _ in range(times + 1):
            self.walks.asked(pid, self.files[file])

    def nodes(self, *names: str) -> list[KernelNode]:
        return [self.folders[name] for name in names]


@pytest.fixture
def tree(site: Site) -> Tree:
    return Tree(site)


def test_who_asks_for_what_was_told_walks(tree: Tree) -> None:
    """The listings ahead are below the file's folder, beside it and below that, and so on up."""
    tree.ask("a", IN_ROW - 1)
    assert not tree.dropped
    assert not tree.walks.is_walking(PID)

    tree.walks.asked(PID, tree.files["a"])

    assert tree.walks.is_walking(PID)
    assert tree.dropped == tree.nodes("a/below", "b", "c", "b/below", "c/below")


def test_what_is_new_makes_no_walk(tree: Tree) -> None:
    for ctime_ns in range(3 * IN_ROW):
        tree.walks.asked(PID, structs.replace(tree.files["a"], ctime_ns=ctime_ns))

    assert not tree.dropped


def test_two_programs_in_turns_are_no_row(tree: Tree) -> None:
    for _ in range(2 * IN_ROW):
        tree.walks.asked(PID, tree.files["a"])
        tree.walks.asked(PID + 1, tree.files["a"])

    assert not tree.dropped


def test_only_what_the_kernel_knows_is_dropped(tree: Tree) -> None:
    tree.handlers.forget(tree.folders["b"], 1)

    tree.ask("a")

    assert tree.dropped == tree.nodes("a/below", "c", "c/below")


def test_a_walk_looks_at_a_folder_once(tree: Tree) -> None:
    tree.ask("a")
    tree.dropped.clear()

    tree.ask("a")
    tree.ask("b")

    assert not tree.dropped


def test_whoever_walks_and_lists_has_two_levels_below_dropped(tree: Tree) -> None:
    """What goes with a listing that is dropped, attributes, the listing above it brings again."""
    tree.ask("a")
    tree.dropped.clear()
    names = ["new", "new/leaf", "new/below", "new/below/lowest"]
    for name in names:
        above, _, last = name.rpartition("/")
        parent = tree.folders[above] if above else tree.current
        made = tree.handlers.mkdir_nowait(parent, last.encode(), DIRECTORY, USER)
        tree.folders[name] = made.node
    top = Listing(b"", folders=tree.nodes("b", "new"), parents=tree.nodes("b", "new"))

    tree.walks.listed(PID, tree.current, top)

    assert tree.dropped == tree.nodes("new", "new/leaf", "new/below")
    tree.dropped.clear()
    below, parents = tree.nodes("new/leaf", "new/below"), tree.nodes("new/below")
    tree.walks.listed(PID, tree.folders["new"], Listing(b"", folders=below, parents=parents))
    assert tree.dropped == tree.nodes("new/below/lowest")
    tree.dropped.clear()
    tree.walks.listed(PID, tree.current, top)
    assert tree.dropped == tree.nodes("new"), "it was asked for, so the kernel has it again"


def test_a_listing_without_attributes_tells_of_folders_as_well(tree: Tree) -> None:
    """The kernel asks so for all of a large directory but its first part."""
    requests = Requests(
        tree.handlers,
        Features(),
        AsyncMock(),
        lambda _node: None,
        lambda _node: None,
        lambda _unique, _node, _offset: False,
    )
    tree.handlers.drop_listings = tree.dropped.extend
    request = Request(memoryview(bytearray(p.BODY + p.READ_IN.size)))
    request.pid, request.node = PID, tree.files["a"].node
    for _ in range(IN_ROW + 1):
        requests.table[Opcode.GETATTR](request)
    new = tree.handlers.mkdir_nowait(tree.current, b"new", DIRECTORY, USER).node
    leaf = tree.handlers.mkdir_nowait(new, b"leaf", DIRECTORY, USER).node
    tree.dropped.clear()
    p.READ_IN.pack_into(request.view, p.BODY, 0, 0, 4096)
    request.node = tree.current

    requests.table[Opcode.READDIR](request)

    assert {new, leaf} <= set(tree.dropped)


def test_a_walk_without_a_sign_of_it_is_over(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(walks, "monotonic", lambda: now)
    tree.ask("a")
    dropped = tree.dropped.copy()
    now += LAPSE_S

    assert tree.walks.is_walking(PID)
    now += 0.001
    assert not tree.walks.is_walking(PID)
    tree.dropped.clear()
    tree.ask("a")
    assert tree.dropped == dropped


def test_the_oldest_of_too_many_walks_is_forgotten(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "WALKS_MAX", 2)

    for pid in range(3):
        tree.ask("a", pid=pid)

    assert [tree.walks.is_walking(pid) for pid in range(3)] == [False, True, True]


def test_memory_and_time_are_bounded(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "ASKED_MAX", 1)
    tree.walks.asked(PID, tree.files["a"])
    tree.walks.asked(PID, tree.files["b"])
    for _ in range(IN_ROW):
        tree.walks.asked(PID, tree.files["a"])
    assert not tree.dropped

    monkeypatch.setattr(walks, "ENTRIES_MAX", 2)
    tree.ask("a")
    assert tree.dropped == tree.nodes("a/below")


def test_a_walk_that_sees_too_much_begins_anew(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "SEEN_MAX", 2)
    tree.ask("a")
    tree.walks.listed(PID, tree.folders["b"], Listing(b""))
    tree.dropped.clear()

    tree.ask("a")

    assert set(tree.nodes("a/below", "c")) <= set(tree.dropped)


def test_damage_ahead_does_not_fail_who_asks_for_a_file(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Namespace, node: KernelNode, limit: int) -> FoldersIn:
        raise StoreDamagedError("node 1 is missing")

    monkeypatch.setattr(Namespace, "folders_in", broken)

    tree.ask("a")

    assert tree.walks.is_walking(PID)
    assert not tree.dropped


class Replies:
    """Counts how often a reply is made."""

    def __init__(self, reply: bytes, nodes: Sequence[KernelNode], *, is_known: bool = True) -> None:
        self._listing = Listing(reply, nodes, is_known=is_known)
        self.made = 0

    def make(self, node: KernelNode, cookie: int, room: int) -> Listing:
        self.made += 1
        return self._listing


def test_a_listing_is_made_once_as_long_as_nothing_changes(tree: Tree) -> None:
    file = tree.files["a"].node
    listings, replies = Listings(tree.handlers), Replies(b"reply", [file])
    before = tree.namespace.known.told().pages

    def get(place: int = 0) -> bytes:
        return listings.get(tree.current, place, 4096, replies.make).reply

    assert [get(), get(), get()] == [b"reply"] * 3
    assert replies.made == 1
    assert tree.namespace.known.told().pages != before, "the kernel counts each time"
    get(1)
    assert replies.made == 2
    tree.handlers.mknod(tree.folders["a"], b"other", FILE, 0, USER)
    get()
    assert replies.made == 3


@pytest.mark.parametrize("where", ["virtual", "lent"])
def test_a_listing_that_can_change_in_other_ways_is_not_kept(tree: Tree, where: str) -> None:
    node = KernelNode(1)
    if where == "lent":
        node = tree.current
        tree.namespace.lend({tree.namespace.stamp(tree.folders["a"])[0]})  # type: ignore[index,arg-type]
    listings, replies = Listings(tree.handlers), Replies(b"reply", [])

    for _ in range(3):
        listings.get(node, 0, 4096, replies.make)

    assert replies.made == 3


def test_a_listing_with_damage_in_it_is_not_kept(tree: Tree) -> None:
    listings, replies = Listings(tree.handlers), Replies(b"reply", [], is_known=False)

    for _ in range(3):
        listings.get(tree.current, 0, 4096, replies.make)

    assert replies.made == 3


def test_listings_stay_within_their_room(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "LISTINGS_MAX", 2000)
    listings, replies = Listings(tree.handlers), Replies(bytes(400), [])

    for place in (0, 1, 2, 0):
        listings.get(tree.current, place, 4096, replies.make)

    assert replies.made == 4


# --- mounted ---------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[MountedStore]:
    options = {"transport": "kernel", "agent": "bot", "view": "current"}
    mounted = MountedStore(tmp_path, options)
    yield mounted
    mounted.end()


@pytest.mark.fuse
def test_the_second_walk_asks_by_the_folder_and_sees_what_has_changed(
    mounted: MountedStore,
) -> None:
    top = mounted.mountpoint
    folders = [top / f"folder-{number:02}" for number in range(20)]
    for folder in folders:
        folder.mkdir()
        for number in range(IN_ROW + 1):
            (folder / f"file-{number}").write_bytes(b"1")

    def read(folder: Path) -> list[int]:
        sizes = []
        for name in sorted(os.listdir(folder)):
            fd = os.open(folder / name, os.O_RDONLY)
            sizes.append(os.fstat(fd).st_size)
            os.read(fd, 10)
            os.close(fd)
        return sizes

    # The first listing brings attributes, the second does not come: they are asked for.
    for folder in 2 * folders:
        read(folder)
    # Told again what has not changed: a walk, and what is ahead is dropped.
    read(folders[0])
    mounted.ask("known")
    before = mounted.counts()

    for folder in folders[1:]:
        assert read(folder) == [1] * (IN_ROW + 1)

    spent = mounted.counts() - before
    assert spent["READDIRPLUS"] >= len(folders) - 1
    # One for each folder itself.
    assert spent["GETATTR"] <= len(folders)
    # Once more, from what was kept, but for what has changed.
    (folders[3] / "file-0").write_bytes(b"22")
    (folders[4] / "file-0").unlink()
    read(folders[0])
    mounted.ask("known")
    for folder in folders[1:]:
        changed = {3: [2] + [1] * IN_ROW, 4: [1] * IN_ROW}
        assert read(folder) == changed.get(folders.index(folder), [1] * (IN_ROW + 1))

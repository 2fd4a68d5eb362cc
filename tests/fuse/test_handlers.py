"""What handlers add to the name space: what the connection knows and waits for."""

import os
import stat

import pytest

from kaifs.base.errors import NoEntryError
from kaifs.base.types import KernelNode
from kaifs.fuse.handlers import Handlers
from kaifs.views.numbers import ROOT_NODE
from tests.views.conftest import USER, Site, walk

FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755


class Waits:
    """Counts what the handlers wait for."""

    def __init__(self) -> None:
        self.commits = 0
        self.barriers = 0

    async def commit(self) -> None:
        self.commits += 1

    async def barrier(self) -> None:
        self.barriers += 1


def handlers_of(site: Site, waits: Waits | None = None) -> Handlers:
    waits = waits or Waits()
    return Handlers(site.namespace(), waits.commit, waits.barrier)


def lookups_of(handlers: Handlers, node: KernelNode) -> int:
    """Return how often *node* was named, by forgetting it."""
    count = 0
    while node in handlers.namespace.known:
        handlers.forget(node, 1)
        count += 1
    return count


async def test_every_reply_that_names_a_node_counts_once(site: Site) -> None:
    """Else the kernel's FORGET finds nothing, or an inode is never reaped."""
    handlers = handlers_of(site)
    current = walk(handlers.namespace, "bot/current").node

    made, _ = handlers.create(current, b"file", FILE, USER)
    handlers.lookup(current, b"file")
    handlers.link(made.node, current, b"hard")
    fifo = handlers.mknod(current, b"fifo", stat.S_IFIFO | 0o600, 0, USER)
    link = handlers.symlink(current, b"link", b"x", USER)
    folder = await handlers.mkdir(current, b"dir", FOLDER, USER)

    assert lookups_of(handlers, made.node) == 3
    assert lookups_of(handlers, fifo.node) == 1
    assert lookups_of(handlers, link.node) == 1
    assert lookups_of(handlers, folder.node) == 1
    handlers.getattr(current)
    handlers.lookup(current, b"absent")
    assert len(handlers.namespace.known) == 0


def test_a_listing_counts_all_but_dot_and_dot_dot(site: Site) -> None:
    handlers = handlers_of(site)
    current = walk(handlers.namespace, "bot/current").node
    file = handlers.mknod(current, b"file", FILE, 0, USER).node

    entries = list(handlers.readdir(current, 0))
    handlers.listed([entry.attributes.node for entry in entries if entry.counted])

    assert handlers.namespace.known.nodes() == [file]
    assert lookups_of(handlers, file) == 2


def test_a_handle_tells_the_inode_and_whether_it_may_write(site: Site) -> None:
    handlers = handlers_of(site)
    current = walk(handlers.namespace, "bot/current").node
    made, first = handlers.create(current, b"file", FILE, USER)
    handlers.write(first, 0, b"content")

    second = handlers.open(made.node, os.O_RDWR, USER)
    reader = handlers.open(made.node, os.O_RDONLY, USER)

    assert handlers.read(reader, 0, 100) == handlers.read(second, 0, 100) == b"content"
    assert handlers.written_nodes() == [made.node]
    assert handlers.written_paths() == [b"bot/current/file"]
    for handle in (reader, first):
        handlers.release(handle)
    assert handlers.written_nodes() == [made.node]
    handlers.release(second)
    assert handlers.written_nodes() == []
    handlers.namespace.forget_all()


def test_traffic_is_counted_also_when_it_fails(site: Site) -> None:
    handlers = handlers_of(site)

    with pytest.raises(NoEntryError):
        handlers.read(1 << 40, 0, 1)
    with pytest.raises(NoEntryError):
        handlers.write(1 << 40, 0, b"x")
    handlers.statfs()

    assert handlers.background_seen == 2
    assert handlers.statfs_seen == 1


async def test_only_a_new_snapshot_waits_for_the_barrier(site: Site) -> None:
    waits = Waits()
    handlers = handlers_of(site, waits)

    await handlers.mkdir(ROOT_NODE, b"agent", FOLDER, USER)
    await handlers.mkdir(walk(handlers.namespace, "bot/current").node, b"dir", FOLDER, USER)
    assert waits.barriers == 0
    await handlers.mkdir(walk(handlers.namespace, "bot/@snapshots").node, b"s", FOLDER, USER)
    await handlers.fsync()

    assert waits.barriers == 1
    assert waits.commits == 1

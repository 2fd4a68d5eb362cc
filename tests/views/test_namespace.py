"""The name space without a kernel."""

import os
import stat

import pytest

from kaifs.base.errors import (
    CrossViewError,
    NoAttributeError,
    NoEntryError,
    NotPermittedError,
    SealedError,
)
from kaifs.base.types import Ino, KernelNode, RootId, kernel_node
from kaifs.tree.tree import AttributeChange
from kaifs.views.attributes import FOREVER_S
from kaifs.views.namespace import Namespace
from kaifs.views.numbers import ROOT_NODE
from tests.views.conftest import USER, Site, listing, walk

FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755


def test_an_absent_name_in_a_tree_may_be_remembered(namespace: Namespace) -> None:
    current = walk(namespace, "bot/current").node

    assert namespace.lookup(current, b"absent") is None


@pytest.mark.parametrize("path", ["", "bot", "bot/@versions", "bot/@snapshots", "bot/@meta"])
def test_an_absent_name_in_a_folder_may_not(namespace: Namespace, path: str) -> None:
    """A verb can make it at any time."""
    node = walk(namespace, path).node if path else ROOT_NODE

    for name in (b"absent", b"\xff", b"9.9.9", b"1.0.0.json"):
        with pytest.raises(NoEntryError):
            namespace.lookup(node, name)


def test_names_are_remembered_for_ever(namespace: Namespace) -> None:
    assert walk(namespace, "bot/current").entry_timeout_s == FOREVER_S
    assert walk(namespace, "bot/current").attr_timeout_s == FOREVER_S


def test_dot_and_dot_dot_lead_up_to_the_root(namespace: Namespace) -> None:
    """File handles that outlive the kernel's cache are resolved by them."""
    current = walk(namespace, "bot/current")
    folder = namespace.make(current.node, b"dir", FOLDER, USER)
    node = folder.node

    path = []
    for _ in range(5):
        here = namespace.lookup(node, b".")
        above = namespace.lookup(node, b"..")
        assert here is not None
        assert above is not None
        path.append(here.node)
        node = above.node

    bot = walk(namespace, "bot").node
    assert path == [folder.node, current.node, bot, ROOT_NODE, ROOT_NODE]


def test_a_listing_goes_on_behind_any_cookie(site: Site, namespace: Namespace) -> None:
    for label in ("1.0.0", "1.0.1", "2.0.0-rc.1"):
        site.actions.seal("bot", label)
    current = walk(namespace, "bot/current").node
    for name in (b"a", b"b", b"c"):
        namespace.make(current, name, FILE, USER)

    for path in ("bot", "bot/@versions", "bot/@meta", "bot/@snapshots", "bot/current"):
        node = walk(namespace, path).node
        entries = list(namespace.readdir(node, 0))
        cookies = [entry.cookie for entry in entries]
        assert cookies == sorted(set(cookies))
        for index, cookie in enumerate(cookies):
            rest = [entry.name for entry in namespace.readdir(node, cookie)]
            assert rest == [entry.name for entry in entries[index + 1 :]]


def test_only_named_entries_are_counted(namespace: Namespace) -> None:
    counted = {entry.name: entry.counted for entry in namespace.readdir(ROOT_NODE, 0)}

    assert counted == {b".": False, b"..": False, b"bot": True}


def test_an_unlinked_file_is_reaped_when_the_kernel_forgets_it(
    site: Site, namespace: Namespace
) -> None:
    current = walk(namespace, "bot/current").node
    file = namespace.make(current, b"file", FILE, USER).node
    namespace.remember(file)
    namespace.remember(file)

    namespace.unlink(current, b"file")

    assert namespace.getattr(file).nlink == 0
    namespace.forget(file, 1)
    assert namespace.write(file, 0, b"x") == 1
    namespace.forget(file, 1)
    with pytest.raises(NoEntryError):
        namespace.getattr(file)


def test_an_unlinked_file_that_nobody_knows_is_reaped_at_once(namespace: Namespace) -> None:
    current = walk(namespace, "bot/current").node
    file = namespace.make(current, b"file", FILE, USER).node
    folder = namespace.make(current, b"dir", FOLDER, USER).node

    namespace.unlink(current, b"file")
    namespace.rmdir(current, b"dir", USER)

    for node in (file, folder):
        with pytest.raises(NoEntryError):
            namespace.getattr(node)


def test_what_a_rename_displaces_is_kept_for_who_has_it_open(namespace: Namespace) -> None:
    current = walk(namespace, "bot/current").node
    namespace.make(current, b"new", FILE, USER)
    old = namespace.make(current, b"old", FILE, USER).node
    namespace.remember(old)

    namespace.rename(current, b"new", current, b"old", 0, USER)

    assert namespace.getattr(old).nlink == 0
    namespace.forget_all()
    with pytest.raises(NoEntryError):
        namespace.getattr(old)


def test_the_last_forget_of_a_root_is_told(site: Site, namespace: Namespace) -> None:
    current = walk(namespace, "bot/current").node
    file = namespace.make(current, b"file", FILE, USER).node
    for node in (current, file):
        namespace.remember(node)

    namespace.forget(file, 1)
    assert site.forgotten == []
    namespace.forget(current, 1)

    assert site.forgotten == [current >> 36]


def test_a_superseded_view_stays_readable_and_refuses_changes(
    site: Site, namespace: Namespace
) -> None:
    current = walk(namespace, "bot/current").node
    file = namespace.make(current, b"file", FILE, USER).node
    namespace.write(file, 0, b"content")
    site.actions.seal("bot", "1.0.0")
    before = namespace.getattr(file)

    site.actions.rollback("bot", "1.0.0")

    again = walk(namespace, "bot/current/file")
    assert again.node != file
    assert again.st_ino == before.st_ino
    assert namespace.read(file, 0, 100) == b"content"
    for change in (
        lambda: namespace.write(file, 0, b"x"),
        lambda: namespace.open(file, os.O_RDWR, USER),
        lambda: namespace.setattr(file, AttributeChange(mode=0)),
        lambda: namespace.unlink(current, b"file"),
    ):
        with pytest.raises(SealedError):
            change()
    assert namespace.getxattr(current, b"user.kaifs.status") == b"superseded"


def test_a_read_only_mount_changes_nothing(site: Site) -> None:
    namespace = site.namespace(read_only=True)
    current = walk(namespace, "bot/current").node
    snapshots = walk(namespace, "bot/@snapshots").node

    for change in (
        lambda: namespace.make(current, b"file", FILE, USER),
        lambda: namespace.make(ROOT_NODE, b"agent", FOLDER, USER),
        lambda: namespace.make(snapshots, b"snapshot", FOLDER, USER),
        lambda: namespace.rmdir(ROOT_NODE, b"bot", USER),
        lambda: namespace.setattr(current, AttributeChange(mode=0)),
        lambda: namespace.setxattr(current, b"user.x", b""),
    ):
        with pytest.raises(SealedError):
            change()


def test_made_agents_and_snapshots_belong_to_the_caller(site: Site, namespace: Namespace) -> None:
    namespace.make(ROOT_NODE, b"new", FOLDER, USER)
    snapshots = walk(namespace, "new/@snapshots").node
    namespace.make(snapshots, b"try", FOLDER, USER)

    agent = site.store.get_agent("new")
    snapshot = site.store.get_snapshot(agent, "try")
    assert (agent.uid, agent.gid) == (snapshot.uid, snapshot.gid) == (USER.uid, USER.gid)
    assert not namespace.acting


def test_views_do_not_mix(site: Site, namespace: Namespace) -> None:
    site.actions.snapshot("bot", "try")
    current = walk(namespace, "bot/current").node
    other = walk(namespace, "bot/@snapshots/try").node
    file = namespace.make(current, b"file", FILE, USER).node

    with pytest.raises(CrossViewError):
        namespace.rename(current, b"file", other, b"file", 0, USER)
    with pytest.raises(CrossViewError):
        namespace.link(file, other, b"file")


def test_marks_can_be_neither_set_nor_seen(namespace: Namespace) -> None:
    current = walk(namespace, "bot/current").node
    file = namespace.make(current, b"file", FILE, USER).node

    with pytest.raises(NotPermittedError):
        namespace.setxattr(current, b"user.kaifs.agent", b"x")
    with pytest.raises(NotPermittedError):
        namespace.removexattr(file, b"user.kaifs.agent")
    with pytest.raises(NoAttributeError):
        namespace.getxattr(file, b"user.kaifs.agent")
    assert namespace.getxattr(current, b"user.kaifs.agent") == b"bot"
    assert namespace.listxattr(current) == []


def test_nodes_of_nothing_are_absent(namespace: Namespace) -> None:
    """A file handle from another time or another store names anything."""
    for node in (kernel_node(RootId(77), Ino(1)), KernelNode((1 << 36) - 1), KernelNode(5 << 32)):
        with pytest.raises(NoEntryError):
            namespace.getattr(node)


def test_paths_of_nodes(site: Site, namespace: Namespace) -> None:
    site.actions.snapshot("bot", "try")
    current = walk(namespace, "bot/current").node
    folder = namespace.make(current, b"dir", FOLDER, USER).node
    file = namespace.make(folder, b"file", FILE, USER).node
    snapshot = walk(namespace, "bot/@snapshots/try").node

    assert namespace.path_of(file) == b"bot/current/dir/file"
    assert namespace.path_of(snapshot) == b"bot/@snapshots/try"
    assert site.namespace("bot").path_of(file) == b"current/dir/file"
    assert site.namespace("bot", "current").path_of(file) == b"dir/file"
    namespace.remember(file)
    namespace.unlink(folder, b"file")
    assert namespace.path_of(file) is None
    namespace.forget_all()


def test_a_mount_of_one_agent(site: Site) -> None:
    namespace = site.namespace("bot")

    assert listing(namespace, "") == ["current", "@versions", "@snapshots", "@meta"]
    assert namespace.getattr(ROOT_NODE).node == ROOT_NODE
    above = namespace.lookup(walk(namespace, "current").node, b"..")
    assert above is not None
    assert above.node == ROOT_NODE


def test_a_mount_of_one_view_shows_plain_inode_numbers(site: Site) -> None:
    namespace = site.namespace("bot", "current")

    made = namespace.make(ROOT_NODE, b"file", FILE, USER)

    assert made.st_ino == 2
    assert namespace.getattr(ROOT_NODE).st_ino == 1
    assert [entry.name for entry in namespace.readdir(ROOT_NODE, 0)] == [b".", b"..", b"file"]


@pytest.mark.parametrize(
    ("agent", "view"),
    [("none", ""), ("bot", "@versions/1.0.0"), ("bot", "@snapshots/x"), ("bot", "nonsense")],
)
def test_a_mount_of_what_is_not_there(site: Site, agent: str, view: str) -> None:
    with pytest.raises(NoEntryError):
        site.namespace(agent, view).scope_node()

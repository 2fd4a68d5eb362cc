"""Which names a change makes wrong."""

import stat

from kaifs.store.changes import Change
from kaifs.views.numbers import ROOT_NODE
from kaifs.views.stale import StaleName, stale_names, switched_names
from tests.views.conftest import USER, Site, walk


def test_each_change_names_exactly_what_is_wrong(site: Site) -> None:
    namespace = site.namespace()
    folders = {
        name: walk(namespace, f"bot/{name}").node for name in ("@versions", "@snapshots", "@meta")
    }
    bot = walk(namespace, "bot").node
    changes: list[Change] = []
    site.store.on_change = changes.append

    site.actions.seal("bot", "1.0.0")
    version = site.store.get_version(site.store.get_agent("bot"), "1.0.0")
    site.store.sign_version(version, b"signature")
    site.actions.snapshot("bot", "a")
    site.actions.rename_snapshot("bot", "a", "b", USER)
    site.actions.discard("bot", "b")
    site.actions.rollback("bot", "1.0.0")
    site.actions.make_agent("new", USER)

    assert [stale_names(namespace, change) for change in changes] == [
        [
            StaleName(folders["@versions"], b"1.0.0"),
            StaleName(folders["@meta"], b"1.0.0.json"),
            StaleName(folders["@meta"], b"1.0.0.json.sig"),
            StaleName(folders["@meta"], b"1.0.0.mtree"),
        ],
        [StaleName(folders["@meta"], b"1.0.0.json.sig")],
        [StaleName(folders["@snapshots"], b"a")],
        [StaleName(folders["@snapshots"], b"a"), StaleName(folders["@snapshots"], b"b")],
        [StaleName(folders["@snapshots"], b"b")],
        [StaleName(bot, b"current")],
        [StaleName(ROOT_NODE, b"new")],
    ]


def test_a_mount_of_current_alone_has_its_old_and_new_names_wrong(site: Site) -> None:
    namespace = site.namespace("bot", "current")
    namespace.make(ROOT_NODE, b"both", stat.S_IFREG | 0o644, USER)
    namespace.make(ROOT_NODE, b"old", stat.S_IFREG | 0o644, USER)
    site.actions.seal("bot", "1.0.0")
    assert switched_names(namespace) == []
    namespace.unlink(ROOT_NODE, b"old")
    namespace.make(ROOT_NODE, b"new", stat.S_IFREG | 0o644, USER)
    changes: list[Change] = []
    site.store.on_change = changes.append

    site.actions.rollback("bot", "1.0.0")

    stale = stale_names(namespace, changes[-1])
    assert stale == [StaleName(ROOT_NODE, name) for name in (b"both", b"new", b"old")]
    assert stale_names(site.namespace("bot"), changes[-1]) == [StaleName(ROOT_NODE, b"current")]
    # Who takes over does not know of which switch the kernel has not heard: the names of what is there.
    assert switched_names(namespace) == stale
    assert switched_names(site.namespace("bot")) == [StaleName(ROOT_NODE, b"current")]
    assert switched_names(site.namespace("bot", "@versions/1.0.0")) == []

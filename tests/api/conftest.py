"""A store with `bot@1.0.0`, with a daemon and without."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.api.versions import AgentVersionManager
from kaifs.daemon import lifecycle
from kaifs.store.store import Store
from kaifs.tree.fsck import check


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small folder to import."""
    folder = tmp_path / "source"
    (folder / "lib").mkdir(parents=True)
    (folder / "a.txt").write_text("first\n")
    (folder / "lib" / "x.py").write_text("x = 1\n")
    return folder


@pytest.fixture
def versions(tmp_path: Path, source: Path) -> Iterator[AgentVersionManager]:
    """The versions of `bot`, in a store that nobody serves."""
    store = tmp_path / "store"
    Store.create(store).close()
    manager = AgentVersionManager("bot", store)
    manager.import_version(source, "1.0.0", {"author": "ci", "tags": ["first"]})
    yield manager
    opened = Store.open(store)
    assert check(opened) == []
    opened.close()


@pytest.fixture(params=["embedded", "daemon"])
def served_versions(
    request: pytest.FixtureRequest, versions: AgentVersionManager, tmp_path: Path
) -> Iterator[AgentVersionManager]:
    """The same, with a daemon and without."""
    if request.param == "embedded":
        yield versions
        return
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    lifecycle.mount(versions.store, mountpoint, [])
    yield versions
    lifecycle.umount(mountpoint)

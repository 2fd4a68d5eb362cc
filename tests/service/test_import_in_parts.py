"""An import makes durable what it has built so far, and shows nothing before all is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import SourceError
from kaifs.meta.records import RootState
from kaifs.service import import_
from kaifs.service.embedded import run_embedded
from kaifs.service.host_source import HostSource
from kaifs.service.import_ import Params
from kaifs.service.steps import Commit, Item, Step, Want
from kaifs.store.store import Store
from kaifs.tree.fsck import check
from tests.service.desk import Desk


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose import is made durable several times on its way."""
    monkeypatch.setattr(import_, "_COMMIT_NODES", 4)
    top = tmp_path / "large"
    for folder in range(8):
        (top / f"d{folder}").mkdir(parents=True)
        for number in range(40):
            (top / f"d{folder}" / f"f{number}").write_bytes(os.urandom(20))
    (top / "big").write_bytes(os.urandom(1 << 16) * 40)
    return top


def cut(folder: Path, store: Path, count: int) -> Iterator[Item]:
    """Yield the first *count* items of *folder*, and no end."""
    for number, item in enumerate(HostSource(folder, store)):
        if number == count:
            return
        yield item


class Importing:
    """An import that a test drives step by step, as the daemon does."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self._items = iter(HostSource(folder, desk.path))
        self.steps = import_.run(desk.context, Params(agent="bot", label="1.0.0"))
        self._answer: Item | None = None
        self.dirty: list[int] = []
        """Changed nodes before each commit."""

    def commits(self) -> Iterator[int]:
        """Go on to the end. Yield the inodes built so far after each commit."""
        while (step := self._step()) is not None:
            if isinstance(step, Commit):
                self.dirty.append(self.desk.store.nodes.dirty_count)
                self.desk.store.commit()
                building = [
                    self.desk.store.root(root_id).inodes for root_id in self.desk.store.root_ids()
                ]
                yield max(building)

    def _step(self) -> Step | None:
        try:
            step = self.steps.send(self._answer)
        except StopIteration:
            return None
        self._answer = next(self._items, None) if isinstance(step, Want) else None
        return step


def test_what_was_changed_is_bounded_between_two_commits(desk: Desk, large: Path) -> None:
    """Memory does not grow with the folder, and the version is the whole of it."""
    importing = Importing(desk, large)
    commits = len(list(importing.commits()))

    assert commits > 5
    assert max(importing.dirty) <= 12
    (version,) = desk.store.versions(desk.store.get_agent("bot").agent_id)
    assert version.inodes == 1 + 8 + 8 * 40 + 1
    assert desk.store.root(version.root).state is RootState.SEALED
    assert desk.take("other", "1.0.0", large).hash == version.hash


def test_nothing_shows_before_the_end_and_a_crash_leaves_nothing(
    desk: Desk, large: Path, tmp_path: Path
) -> None:
    """After each commit: while items come, and when the tree is sealed but no version yet."""
    sizes = []
    for number, inodes in enumerate(Importing(desk, large).commits()):
        sizes.append(inodes)
        assert desk.store.agents() == []

        found = desk.crashed(tmp_path / f"crash-{number}")

        assert found.store.agents() == []
        assert found.store.root_ids() == []
        assert check(found.store) == []
        found.store.close()
    assert sizes[-1] == 1 + 8 + 8 * 40 + 1, "the last commit is of a tree that is whole"


@pytest.mark.parametrize("version", [None, "0.9.0"])
def test_an_import_that_fails_on_its_way_leaves_the_store_as_it_was(
    desk: Desk, large: Path, folder: Path, version: str | None
) -> None:
    if version is not None:
        desk.take("bot", version, folder)
    before = desk.state()

    with pytest.raises(SourceError):
        desk.run("import", items=cut(large, desk.path, 500), agent="bot", label="1.0.0")

    assert desk.state() == before
    assert desk.store.unfinished_roots() == []


def test_without_a_daemon_it_leaves_nothing_either(large: Path, tmp_path: Path) -> None:
    """What was durable already is dropped before the process ends."""
    path = tmp_path / "store"
    Store.create(path).close()
    items = cut(large, path, 500)

    with pytest.raises(SourceError):
        run_embedded(path, "import", Params(agent="bot", label="1.0.0"), source=items)

    store = Store.open(path)
    assert (store.agents(), store.root_ids(), store.unfinished_roots()) == ([], [], [])
    assert check(store) == []
    store.close()


def test_gc_frees_what_a_failed_import_has_stored(desk: Desk, large: Path) -> None:
    with pytest.raises(SourceError):
        desk.run("import", items=cut(large, desk.path, 500), agent="bot", label="1.0.0")
    assert desk.store.space().live > 0

    desk.run("gc")

    assert desk.store.space().live == 0

"""Status, gc, fsck, init, and who may do what."""

import os
from pathlib import Path
from typing import Any

import pytest

from kaifs.base.errors import AccessDeniedError, StoreNotEmptyError
from kaifs.service.init import create_store
from kaifs.service.space import measure
from kaifs.store.superblock import FORMAT_VERSION
from kaifs.tree.tree import AttributeChange
from tests.service.desk import STRANGER, Desk


@pytest.fixture
def bot(desk: Desk, folder: Path) -> Desk:
    """A store with `bot@1.0.0`."""
    desk.take("bot", "1.0.0", folder)
    return desk


def test_init_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "x").touch()

    with pytest.raises(StoreNotEmptyError):
        create_store(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_init_makes_folders_on_the_way(tmp_path: Path) -> None:
    made = create_store(tmp_path / "a" / "b")

    assert made.path == str(tmp_path / "a" / "b")


def test_status_tells_shared_bytes_once(bot: Desk) -> None:
    bot.run("seal", agent="bot", label="1.1.0")

    found = bot.run("status")

    (agent,) = found.space.agents
    assert found.store.format_version == FORMAT_VERSION
    assert found.space.logical == 3 * agent.versions[0].logical == agent.logical
    assert found.space.unique < agent.versions[0].logical
    assert [version.version for version in agent.versions] == ["1.1.0", "1.0.0"]


def test_what_only_one_owner_reaches_is_its_own(bot: Desk) -> None:
    bot.write("bot", b"own", os.urandom(100_000))
    bot.store.commit()
    agent = bot.store.get_agent("bot")

    measured = finished(measure(bot.store))

    assert 100_000 <= measured.roots[agent.head] < 101_000
    assert all(size == 0 for root, size in measured.roots.items() if root != agent.head)
    # Beside headers all that is stored is this agent's.
    live = bot.store.space().live
    assert 0.95 * live < measured.agents[agent.agent_id] < live


def test_what_one_agent_has_in_several_trees_is_the_agents_alone(bot: Desk, folder: Path) -> None:
    """And what two agents have is nobody's."""
    (folder / "mine").write_bytes(os.urandom(50_000))
    bot.take("other", "1.0.0", folder)
    bot.run("seal", agent="other", label="1.1.0")
    bot.store.commit()
    other = bot.store.get_agent("other")

    measured = finished(measure(bot.store))

    assert 50_000 <= measured.agents[other.agent_id] < 51_000
    assert measured.agents[bot.store.get_agent("bot").agent_id] == 0
    assert set(measured.roots.values()) == {0}


def test_what_was_measured_holds_until_something_changes(bot: Desk) -> None:
    bot.store.commit()
    first = finished(measure(bot.store))

    assert list(measure(bot.store)) == []
    assert finished(measure(bot.store)) == first
    bot.write("bot", b"own", os.urandom(100_000))
    bot.store.commit()
    assert finished(measure(bot.store)) != first
    (bot.path / "run" / "space").write_bytes(b"nonsense")
    assert finished(measure(bot.store)) != first


def test_measuring_goes_on_when_the_tree_changes_under_it(bot: Desk) -> None:
    tree = bot.current("bot")
    top = tree.resolve(b"")
    for number in range(3000):
        tree.make(top, b"f%d" % number, 0o644, 0, 0, 1)
    bot.store.commit()
    steps = measure(bot.store)
    next(steps)
    for number in range(3000):
        tree.reap(tree.unlink(top, b"f%d" % number, 2))

    assert finished(steps).agents.keys() == {bot.store.get_agent("bot").agent_id}


def test_a_status_measures_if_it_is_asked_to_or_if_that_is_quick(
    bot: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_measured(measure: str) -> bool:
        (agent,) = bot.run("status", measure=measure).space.agents
        assert agent.logical > 0
        return agent.unique is not None and agent.versions[0].unique is not None

    assert not is_measured("never")
    assert is_measured("auto")
    monkeypatch.setattr("kaifs.service.space.QUICK", 0)
    assert not is_measured("auto")
    assert is_measured("always")
    bot.store.commit()
    assert is_measured("always")
    assert is_measured("auto"), "nothing has changed since"


def finished(steps: Any) -> Any:
    """Run a generator to its end and return its result."""
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


def test_gc_gives_back_what_was_discarded(bot: Desk) -> None:
    bot.run("snapshot", reference="bot", name="snap")
    tree = bot.forest.tree(bot.store.get_snapshot(bot.store.get_agent("bot"), "snap").root)
    ino = tree.make(tree.resolve(b""), b"own", 0o644, 0, 0, 0)
    for number in range(20):
        tree.write(ino, number << 20, os.urandom(1 << 20), 0)
    bot.store.commit()
    before = bot.store.space().stored
    bot.run("discard", reference="snap")
    bot.store.commit()
    bot.reopen()

    freed = bot.run("gc")

    assert freed.blocks >= 20
    assert before - bot.store.space().stored > 15 << 20
    assert len(bot.read(bot.current("bot"), b"big")) > 1 << 20


def test_fsck_of_a_sound_store_finds_nothing(bot: Desk) -> None:
    found = bot.run("fsck")

    assert found.is_clean
    assert found.findings == ()


@pytest.mark.parametrize(
    ("verb", "params"),
    [
        ("seal", {"agent": "bot"}),
        ("rollback", {"agent": "bot", "version": "1.0.0"}),
        ("snapshot", {"reference": "bot"}),
        ("discard", {"reference": "snap"}),
        ("remove", {"reference": "bot@1.0.0"}),
        ("import", {"agent": "bot", "label": "2.0.0"}),
        ("import", {"agent": "new", "label": "2.0.0"}),
        ("gc", {}),
        ("fsck", {}),
        ("export", {"reference": "bot@1.0.0"}),
        ("manifest", {"reference": "bot@1.0.0"}),
        ("diff", {"old": "bot@1.0.0", "new": "bot"}),
        ("show", {"reference": "bot@1.0.0", "has_files": True}),
    ],
)
def test_a_stranger_is_refused(bot: Desk, verb: str, params: dict[str, Any]) -> None:
    """What changes something, and what would show files that modes keep closed."""
    bot.run("snapshot", reference="bot", name="snap")
    tree = bot.current("bot")
    bot.write("bot", b"secret", b"")
    tree.set_attributes(tree.resolve(b"secret"), AttributeChange(mode=0o600), 0)
    bot.run("seal", agent="bot", label="1.5.0")
    params = {key: _closed(value) for key, value in params.items()}
    before = bot.state()

    with pytest.raises(AccessDeniedError):
        bot.run(verb, caller=STRANGER, items=iter(()), **params)

    assert bot.state() == before


def test_a_stranger_may_list_what_the_folders_mode_opens(bot: Desk) -> None:
    assert len(bot.run("list", caller=STRANGER, agent="bot").versions) == 1
    assert bot.run("show", caller=STRANGER, reference="bot@1.0.0").version.version == "1.0.0"


def test_the_owner_of_an_agent_may_work_on_it(bot: Desk) -> None:
    """Though the store is another's."""
    tree = bot.forest.new_tree(0o755, STRANGER.uid, STRANGER.gid)
    bot.store.add_agent("theirs", STRANGER.uid, STRANGER.gid, tree.root, 0o700)

    bot.run("seal", caller=STRANGER, agent="theirs")
    made = bot.run("snapshot", caller=STRANGER, reference="theirs")
    bot.run("discard", caller=STRANGER, reference=made.id)


def _closed(value: Any) -> Any:
    """Lead a reference to the version that holds the closed file."""
    return "bot@1.5.0" if value == "bot@1.0.0" else value

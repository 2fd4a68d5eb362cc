"""Snapshots: make, list, discard."""

import re
from pathlib import Path

import msgspec
import pytest

from kaifs.base.errors import (
    ArgumentValueError,
    BadNameError,
    SealedError,
    SnapshotExistsError,
    SnapshotNotFoundError,
)
from kaifs.service.isolation import Limits
from tests.service.desk import STRANGER, Desk


@pytest.fixture
def bot(desk: Desk, folder: Path) -> Desk:
    """A store with `bot@1.0.0`."""
    desk.take("bot", "1.0.0", folder)
    return desk


def test_a_snapshot_and_current_do_not_see_each_others_edits(bot: Desk) -> None:
    """Also those made before the snapshot."""
    bot.write("bot", b"a.txt", b"before\n")

    bot.run("snapshot", reference="bot", name="snap")

    agent = bot.store.get_agent("bot")
    snapshot = bot.forest.tree(bot.store.get_snapshot(agent, "snap").root)
    ino = snapshot.resolve(b"a.txt")
    snapshot.write(ino, 0, b"inside", bot.clock.now_ns())
    bot.write("bot", b"big", b"outside")
    assert bot.read(snapshot, b"a.txt") == b"inside\n"
    assert bot.read(bot.current("bot"), b"a.txt") == b"before\n"
    assert len(bot.read(snapshot, b"big")) > 1 << 20


def test_a_snapshot_is_told_in_the_specifications_words(bot: Desk) -> None:
    made = bot.run("snapshot", reference="bot@1.0.0")

    assert re.fullmatch(r"s-[a-z2-7]{10}", made.id)
    assert made.agent_id == "bot"
    assert made.version == "1.0.0"
    assert made.status == "ready"
    assert made.path == f"bot/@snapshots/{made.id}"
    assert made.isolation.environment == {"NODE_ENV": "sandbox", "KAI_ISOLATION_MODE": "true"}
    assert made.isolation.network_mode == "none"
    assert (made.isolation.resources.memory, made.isolation.resources.cpu) == ("512m", "0.5")
    assert made.isolation.permissions.allowed_paths == ("/agent",)


@pytest.mark.parametrize("reference", ["bot", "bot@1.0.0", "bot/@snapshots/first"])
def test_a_read_only_snapshot_cannot_be_changed(bot: Desk, reference: str) -> None:
    """Of something unsealed too, whose digests nobody knows yet."""
    bot.run("snapshot", reference="bot", name="first")
    bot.write("bot", b"new", b"new")

    bot.run("snapshot", reference=reference, name="fixed", read_only=True)

    agent = bot.store.get_agent("bot")
    tree = bot.forest.tree(bot.store.get_snapshot(agent, "fixed").root)
    with pytest.raises(SealedError):
        tree.unlink(tree.resolve(b""), b"a.txt", 0)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory="much"),
        Limits(memory="0"),
        Limits(memory=""),
        Limits(memory="15m"),
        Limits(storage="-1g"),
        Limits(cpus="0"),
        Limits(cpus="0.001"),
        Limits(pids="3"),
        Limits(pids="1.5"),
        Limits(env=("A",)),
        Limits(allow=("relative",)),
        Limits(allow=("/a/../b",)),
        Limits(allow=("/proc",)),
        Limits(deny_syscall=("no such",)),
        Limits(image="without-container"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(bot: Desk, limits: Limits) -> None:
    """When the snapshot is made, not when something is to run; and nothing is made."""
    before = bot.state()

    with pytest.raises(ArgumentValueError):
        bot.run("snapshot", reference="bot", limits=limits)

    assert bot.state() == before


def test_limits_are_kept_as_they_were_asked_for(bot: Desk) -> None:
    limits = Limits(
        container=True,
        network=True,
        memory="1g",
        cpus="2",
        storage="10m",
        pids="7",
        env=("A=b", "NODE_ENV=mine"),
        allow=("/usr/local", "/var/cache:rw"),
        deny_syscall=("mount",),
    )

    made = bot.run("snapshot", reference="bot", name="snap", limits=limits, read_only=True)
    bot.store.commit()
    bot.reopen()

    isolation = bot.run("show", reference="snap").snapshot.isolation
    assert isolation == made.isolation
    assert isolation.environment == {
        "NODE_ENV": "mine",
        "KAI_ISOLATION_MODE": "true",
        "A": "b",
    }
    assert isolation.network_mode == "bridge"
    resources = isolation.resources
    assert (resources.memory, resources.cpu, resources.storage, resources.pids) == (
        "1g",
        "2",
        "10m",
        "7",
    )
    assert isolation.permissions.read_only
    assert isolation.permissions.allowed_paths == ("/agent", "/usr/local", "/var/cache:rw")
    assert isolation.permissions.blocked_syscalls == ("mount",)
    assert (isolation.container, isolation.image) == (True, "kai-agent-runtime")


def test_what_was_asked_for_by_name_is_noted_also_if_it_is_the_default(bot: Desk) -> None:
    """Whoever asks for a limit gets it or E103; `required` is what tells it from a default."""
    made = bot.run("snapshot", reference="bot", limits=Limits(memory="512m", pids="9"))

    assert made.isolation.required == ("memory", "pids")
    assert bot.run("snapshot", reference="bot").isolation.required == ()


def test_values_of_variables_are_told_to_who_may_run_something_alone(bot: Desk) -> None:
    limits = Limits(env=("TOKEN=secret", "NODE_ENV=mine"))
    bot.run("snapshot", reference="bot", name="snap", limits=limits)

    for shown in (
        bot.run("show", caller=STRANGER, reference="snap").snapshot,
        bot.run("snapshots", caller=STRANGER).snapshots[0],
    ):
        assert b"secret" not in msgspec.json.encode(shown)
        assert shown.isolation.environment == {"KAI_ISOLATION_MODE": "true"}
        assert shown.isolation.hidden_variables == ("NODE_ENV", "TOKEN")
    owned = bot.run("show", reference="snap").snapshot.isolation
    assert owned.environment["TOKEN"] == "secret"


def test_a_name_that_is_taken_or_bad_is_refused(bot: Desk) -> None:
    bot.run("snapshot", reference="bot", name="snap")

    with pytest.raises(SnapshotExistsError):
        bot.run("snapshot", reference="bot", name="snap")
    with pytest.raises(BadNameError):
        bot.run("snapshot", reference="bot", name="a/b")


def test_a_list_tells_age_and_own_bytes(bot: Desk) -> None:
    bot.run("snapshot", reference="bot", name="snap")
    tree = bot.forest.tree(bot.store.get_snapshot(bot.store.get_agent("bot"), "snap").root)
    ino = tree.make(tree.resolve(b""), b"own", 0o644, 0, 0, bot.clock.now_ns())
    tree.write(ino, 0, bytes(range(256)) * 400, bot.clock.now_ns())
    bot.clock.advance_ns(60_000_000_000)

    (listed,) = bot.run("snapshots", agent="bot").snapshots

    assert listed.id == "snap"
    assert 60 <= listed.age_seconds < 65
    assert 256 * 400 <= listed.own_bytes < 256 * 401
    assert bot.run("snapshots").snapshots[0].id == "snap"


def test_a_discarded_snapshot_is_gone(bot: Desk) -> None:
    bot.run("snapshot", reference="bot", name="snap")

    bot.run("discard", reference="snap")

    assert bot.run("snapshots").snapshots == ()
    with pytest.raises(SnapshotNotFoundError):
        bot.run("discard", reference="bot/@snapshots/snap")


def test_making_a_snapshot_touches_no_node(bot: Desk) -> None:
    """O(1): no node is made, whatever the tree's size."""
    bot.store.commit()
    before = bot.store.nodes.next_node

    bot.run("snapshot", reference="bot@1.0.0", name="snap")
    bot.run("snapshot", reference="bot", name="other")

    assert bot.store.nodes.next_node == before

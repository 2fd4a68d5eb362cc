"""What is set aside: out of the way, kept, given back when it is whole, and what current does."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kaifs.base.errors import (
    AccessDeniedError,
    ArgumentValueError,
    BadReferenceError,
    InvalidVersionError,
    KaifsError,
    NotInQuarantineError,
    StillDamagedError,
    VersionExistsError,
)
from kaifs.base.types import TOP_INO
from kaifs.meta.database import Table
from kaifs.service.verbs import VERBS
from kaifs.store.nodes import node_key
from kaifs.store.quarantine import quarantine_json
from kaifs.store.registry import root_key
from tests.service.desk import STRANGER, Desk
from tests.service.injury import Injured, flip_block, flip_content

pytestmark = pytest.mark.logs_errors
"""What is set aside is logged as an error."""


@pytest.fixture
def hurt(tmp_path: Path) -> Iterator[Injured]:
    """`bot` with 1.0.0, 1.1.0, and 2.0.0, which is current; each has a file of its own."""
    desk = Desk(tmp_path / "store")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "shared").write_bytes(os.urandom(4000))
    (folder / "own").write_bytes(os.urandom(4000))
    desk.take("bot", "1.0.0", folder)
    for label in ("1.1.0", "2.0.0"):
        desk.write("bot", b"own", os.urandom(4000))
        desk.run("seal", agent="bot", label=label)
    hurt = Injured(desk)
    yield hurt
    hurt.close()


def add(hurt: Injured, reference: str, reason: str = "for a test", **options: Any) -> Any:
    return hurt.desk.run("quarantine-add", reference=reference, reason=reason, **options)


def test_what_is_in_quarantine_is_told_with_reason_time_and_place(hurt: Injured) -> None:
    hurt.flip_content("1.1.0", b"own")
    hurt.verify()

    (told,) = hurt.desk.run("quarantine-list").versions

    assert (told.agent, told.version) == ("bot", "1.1.0")
    assert told.reason == "verification found damage"
    assert told.original_path == "bot/@versions/1.1.0"
    assert told.quarantined_at.startswith("2023-")
    assert "own: block in segment" in told.errors[0]
    record = hurt.desk.store.quarantined(hurt.desk.store.get_agent("bot").agent_id)[0]
    note = msgspec.json.decode(quarantine_json(record))
    assert note == {
        "reason": told.reason,
        "quarantinedAt": told.quarantined_at,
        "originalPath": told.original_path,
        "errors": list(told.errors),
    }


@pytest.mark.parametrize(
    ("verb", "params"),
    [
        ("rollback", {"agent": "bot", "version": "1.1.0"}),
        ("snapshot", {"reference": "bot@1.1.0"}),
        ("seal", {"agent": "bot", "label": "3.0.0", "source": "bot@1.1.0"}),
        ("export", {"reference": "bot@1.1.0"}),
        ("manifest", {"reference": "bot@1.1.0"}),
        ("show", {"reference": "bot@1.1.0"}),
        ("diff", {"old": "bot@1.0.0", "new": "bot@1.1.0"}),
    ],
)
def test_what_is_in_quarantine_is_used_for_nothing(
    hurt: Injured, verb: str, params: dict[str, Any]
) -> None:
    """And the refusal says why, and what can be done."""
    add(hurt, "bot@1.1.0", "it smells")
    before = hurt.desk.state()

    with pytest.raises(InvalidVersionError) as refusal:
        hurt.desk.run(verb, **params)

    assert hurt.desk.state() == before
    assert "bot@1.1.0 is in quarantine: it smells; 'kaifs quarantine release" in str(refusal.value)


def test_what_is_in_quarantine_is_nobodys_parent(hurt: Injured) -> None:
    """Current goes on; what it has uncommitted is not lost, for a rollback keeps it."""
    add(hurt, "bot@2.0.0")
    hurt.desk.write("bot", b"new", b"new")

    with pytest.raises(InvalidVersionError):
        hurt.desk.run("seal", agent="bot", label="3.0.0")
    done = hurt.desk.run("rollback", agent="bot", version="1.1.0")

    backup = done.steps[0].details.version
    assert backup == "2.0.1-rollback.1"
    assert "parent" not in msgspec.json.decode(hurt.version(backup).record)


def test_its_label_stays_taken(hurt: Injured, tmp_path: Path) -> None:
    add(hurt, "bot@1.1.0")

    for label in ("1.1.0", "1.1.0+again"):
        with pytest.raises(VersionExistsError):
            hurt.desk.run("seal", agent="bot", label=label)
    assert hurt.desk.run("seal", agent="bot", source="bot@1.0.0").version == "2.0.1"


def test_gc_keeps_what_is_in_quarantine(hurt: Injured) -> None:
    add(hurt, "bot@1.1.0")

    hurt.desk.run("gc")
    hurt.desk.run("quarantine-release", reference="bot@1.1.0")

    assert hurt.verify("bot@1.1.0", full=True)["bot@1.1.0"].valid


def test_a_version_is_released_only_when_it_is_whole_again(hurt: Injured) -> None:
    hurt.flip_content("1.1.0", b"own", 5)
    block = hurt.desk.forest.tree(hurt.version("1.1.0").root)
    damaged = block.content.extents(block.resolve(b"own"))[0].block
    hurt.verify()

    with pytest.raises(StillDamagedError) as refusal:
        hurt.desk.run("quarantine-release", reference="bot@1.1.0")
    assert "own: block in segment" in str(refusal.value)
    assert hurt.labels() == ["1.0.0", "2.0.0"]
    flip_block(hurt.desk, damaged, 5)
    hurt.desk.run("quarantine-release", reference="bot@1.1.0")

    assert hurt.labels() == ["1.0.0", "1.1.0", "2.0.0"]
    assert hurt.desk.run("quarantine-list").versions == ()
    hurt.desk.run("rollback", agent="bot", version="1.1.0")


def test_a_forged_record_is_not_released_though_it_is_well_formed(hurt: Injured) -> None:
    hurt.verify()
    record = msgspec.json.decode(hurt.version("2.0.0").record)
    record["metadata"]["notes"] = "forged"
    hurt.forge_version("2.0.0", record=msgspec.json.encode(record, order="sorted"))
    hurt.verify()

    with pytest.raises(StillDamagedError):
        hurt.desk.run("quarantine-release", reference="bot@2.0.0")


def test_an_unreadable_record_cannot_be_released_but_removed(hurt: Injured) -> None:
    hurt.flip_in_index(hurt.version("1.1.0").record[:40])
    hurt.verify()

    with pytest.raises(StillDamagedError):
        hurt.desk.run("quarantine-release", reference="bot@1.1.0")
    hurt.desk.run("remove", reference="bot@1.1.0")

    assert hurt.desk.run("quarantine-list").versions == ()
    hurt.desk.run("seal", agent="bot", label="1.1.0", source="bot@1.0.0")


def test_what_is_verified_by_name_in_quarantine_stays_there(hurt: Injured) -> None:
    add(hurt, "bot@1.1.0")

    found = hurt.verify("bot@1.1.0")["bot@1.1.0"]

    assert (found.valid, found.quarantined) == (True, True)
    assert "bot@1.1.0" not in hurt.verify()


def test_quarantine_and_release_are_for_owners(hurt: Injured) -> None:
    with pytest.raises(AccessDeniedError):
        add(hurt, "bot@1.1.0", caller=STRANGER)
    add(hurt, "bot@1.1.0")
    for verb in ("quarantine-release", "remove"):
        with pytest.raises(AccessDeniedError):
            hurt.desk.run(verb, caller=STRANGER, reference="bot@1.1.0")

    assert hurt.desk.run("quarantine-list", caller=STRANGER).versions[0].version == "1.1.0"


@pytest.mark.parametrize(
    ("reference", "reason", "error"),
    [
        ("bot", "x", BadReferenceError),
        ("bot@9.9.9", "x", InvalidVersionError),
        ("none@1.0.0", "x", KaifsError),
        ("bot@1.1.0", " ", ArgumentValueError),
        ("bot@1.1.0", "x" * 5000, ArgumentValueError),
    ],
)
def test_what_cannot_be_set_aside_is_refused(
    hurt: Injured, reference: str, reason: str, error: type[KaifsError]
) -> None:
    before = hurt.desk.state()

    with pytest.raises(error):
        add(hurt, reference, reason)

    assert hurt.desk.state() == before


def test_what_is_not_in_quarantine_cannot_be_released(hurt: Injured) -> None:
    with pytest.raises(NotInQuarantineError):
        hurt.desk.run("quarantine-release", reference="bot@1.1.0")


def test_a_version_is_set_aside_once(hurt: Injured) -> None:
    add(hurt, "bot@1.1.0")

    with pytest.raises(InvalidVersionError):
        add(hurt, "bot@1.1.0")

    assert len(hurt.alerts) == 1


# --- current -----------------------------------------------------------------------------------


def test_current_goes_on_unless_its_policy_says_otherwise(hurt: Injured) -> None:
    hurt.flip_content("2.0.0", b"own")
    head = hurt.desk.store.get_agent("bot").head

    result = hurt.result()

    assert result.fallbacks == ()
    assert hurt.desk.store.get_agent("bot").head == head
    assert [alert.event for alert in hurt.alerts] == ["quarantined"]


def test_current_falls_back_to_the_last_good_version(hurt: Injured) -> None:
    """Over one that is damaged too; what was uncommitted is kept."""
    hurt.desk.run("policy", agent="bot", on_damage="fallback")
    hurt.desk.write("bot", b"new", b"uncommitted")
    hurt.flip_content("1.1.0", b"own")
    hurt.flip_content("2.0.0", b"own")

    (fallback,) = hurt.result().fallbacks

    agent = hurt.desk.store.get_agent("bot")
    assert (fallback.agent, fallback.version, agent.version) == ("bot", "1.0.0", "1.0.0")
    assert fallback.backup == "2.0.1-rollback.1"
    assert hurt.labels() == ["1.0.0", "2.0.1-rollback.1"]
    assert hurt.desk.current("bot").find(TOP_INO, b"new") is None
    assert [alert.event for alert in hurt.alerts] == ["quarantined", "quarantined", "fallback"]


def test_what_cannot_be_sealed_as_a_backup_is_kept_as_a_snapshot(hurt: Injured) -> None:
    hurt.desk.run("policy", agent="bot", on_damage="fallback")
    ino = hurt.desk.write("bot", b"new", os.urandom(5000))
    flip_content(hurt.desk, hurt.desk.current("bot"), b"new")

    (fallback,) = hurt.result("bot").fallbacks

    assert (fallback.version, fallback.backup) == ("2.0.0", "damaged-1")
    agent = hurt.desk.store.get_agent("bot")
    snapshot = hurt.desk.store.get_snapshot(agent, "damaged-1")
    assert hurt.desk.forest.tree(snapshot.root).find(TOP_INO, b"new") == ino
    assert hurt.verify("bot")["bot"].valid


def test_where_no_version_is_good_current_goes_on_and_that_is_told(hurt: Injured) -> None:
    hurt.desk.run("policy", agent="bot", on_damage="fallback")
    hurt.flip_content("1.0.0", b"shared")
    head = hurt.desk.store.get_agent("bot").head

    result = hurt.result()

    assert result.fallbacks == ()
    assert hurt.desk.store.get_agent("bot").head == head
    assert hurt.alerts[-1].event == "fallback_failed"
    assert "bot has no version that is good" in hurt.alerts[-1].reason


# --- whole or not at all -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "params"),
    [
        ("quarantine-add", {"reference": "bot@1.1.0", "reason": "x"}),
        ("verify", {"references": ("bot@1.1.0",)}),
        ("quarantine-release", {"reference": "bot@1.0.0"}),
    ],
)
def test_a_process_that_dies_at_any_step_leaves_the_whole_change_or_none(
    hurt: Injured, tmp_path: Path, verb: str, params: dict[str, Any]
) -> None:
    """At each step an epoch may be taken; what the next process finds is checked after each."""
    hurt.flip_content("1.1.0", b"own")
    add(hurt, "bot@1.0.0")
    hurt.desk.store.commit()
    outcomes: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    found = VERBS[verb]
    steps = found.run(hurt.desk.context, found.params(**params))
    for number, step in enumerate(steps):
        if hasattr(step, "run"):
            step.run()
        hurt.desk.store.commit()
        with_next = hurt.desk.crashed(tmp_path / f"crash-{number}")
        after = Injured(with_next)
        agent_id = with_next.store.get_agent("bot").agent_id
        aside = tuple(one.label for one in with_next.store.quarantined(agent_id))
        outcomes.add((tuple(after.labels()), aside))
        after.close()

    whole = {
        "quarantine-add": (("2.0.0",), ("1.0.0", "1.1.0")),
        "verify": (("2.0.0",), ("1.0.0", "1.1.0")),
        "quarantine-release": (("1.0.0", "1.1.0", "2.0.0"), ()),
    }[verb]
    assert whole in outcomes
    assert outcomes <= {(("1.1.0", "2.0.0"), ("1.0.0",)), whole}


# --- containment -------------------------------------------------------------------------------


def test_damaged_records_take_down_nothing_else(hurt: Injured, tmp_path: Path) -> None:
    """A version's, an agent's, a snapshot's: the store opens, and the rest is listed and used."""
    folder = tmp_path / "project"
    hurt.desk.take("other", "1.0.0", folder)
    hurt.desk.run("snapshot", reference="bot", name="kept")
    hurt.desk.run("snapshot", reference="bot", name="lost")
    store = hurt.desk.store
    store.commit()
    agent = store.get_agent("bot")
    for table, key in (
        (Table.AGENTS, b"other"),
        (Table.SNAPSHOTS, agent.agent_id.to_bytes(8, "big") + b"lost"),
        (Table.VERSIONS, agent.agent_id.to_bytes(8, "big") + b"1.0.0"),
    ):
        record = store.database.get(table, key)
        assert record is not None
        hurt.flip_in_index(record)
    hurt.desk.reopen()

    assert [one.agent for one in hurt.desk.run("list").agents] == ["bot"]
    assert [one.id for one in hurt.desk.run("snapshots").snapshots] == ["kept"]
    assert hurt.labels() == ["1.1.0", "2.0.0"]
    assert hurt.desk.run("seal", agent="bot").version == "2.0.1"
    hurt.desk.run("rollback", agent="bot", version="1.1.0")


@pytest.mark.parametrize("what", ["a node", "a version's root", "a head's root"])
def test_damaged_trees_take_down_nothing_else(hurt: Injured, tmp_path: Path, what: str) -> None:
    """The store opens; what has nothing to do with the damage is listed, measured and used."""
    store = hurt.desk.store
    hurt.desk.take("other", "1.0.0", tmp_path / "project")
    store.commit()
    if what == "a node":
        key = node_key(store.root(hurt.version("1.1.0").root).top)
        table = Table.NODES
    else:
        head = store.get_agent("other").head
        key = root_key(hurt.version("1.1.0").root if what == "a version's root" else head)
        table = Table.ROOTS
    record = store.database.get(table, key)
    assert record is not None
    hurt.flip_in_index(record)
    hurt.desk.reopen()
    hurt = Injured(hurt.desk)

    found = {one.reference: one.valid for one in hurt.result().validations}

    expected = {"bot@1.0.0": True, "bot@1.1.0": what == "a head's root", "bot@2.0.0": True}
    assert found == {**expected, "other@1.0.0": True}
    uses: list[tuple[str, dict[str, Any]]] = [
        ("list", {}),
        ("list", {"agent": "bot"}),
        ("log", {"agent": "bot"}),
        ("snapshots", {}),
        ("status", {}),
        ("quarantine-list", {}),
        ("seal", {"agent": "bot"}),
        ("rollback", {"agent": "bot", "version": "1.0.0"}),
    ]
    for verb, params in uses:
        hurt.desk.run(verb, **params)

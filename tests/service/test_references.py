"""How a user names a tree."""

from pathlib import Path

import pytest

from kaifs.base.errors import (
    AgentNotFoundError,
    AmbiguousReferenceError,
    BadLabelError,
    BadNameError,
    BadReferenceError,
    InvalidVersionError,
    KaifsError,
    SnapshotNotFoundError,
)
from kaifs.service.names import generate_snapshot_name
from kaifs.service.reference import resolve, resolve_snapshot, resolve_version
from kaifs.store.registry import check_agent_name, check_snapshot_name
from tests.service.desk import Desk


@pytest.fixture
def stocked(desk: Desk, folder: Path) -> Desk:
    """Two agents; each has a snapshot `same`, the first one also `only` and `s-abc`."""
    for agent in ("bot", "other"):
        desk.take(agent, "1.0.0", folder)
        desk.run("snapshot", reference=agent, name="same")
    desk.run("snapshot", reference="bot@1.0.0", name="only")
    desk.run("snapshot", reference="bot@1.0.0", name="s-abc")
    return desk


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bot", "bot"),
        ("bot@1.0.0", "bot@1.0.0"),
        ("bot/@snapshots/same", "bot/@snapshots/same"),
        ("only", "bot/@snapshots/only"),
        ("s-abc", "bot/@snapshots/s-abc"),
    ],
)
def test_each_form_leads_to_its_tree(stocked: Desk, text: str, shown: str) -> None:
    target = resolve(stocked.store, text)

    assert str(target) == shown
    assert target.label == "1.0.0"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nobody", AgentNotFoundError),
        ("nobody@1.0.0", AgentNotFoundError),
        ("bot@9.9.9", InvalidVersionError),
        ("bot@", BadLabelError),
        ("bot@latest", BadLabelError),
        ("bot@1.0.0@2.0.0", BadLabelError),
        ("bot/", BadReferenceError),
        ("bot/current", BadReferenceError),
        ("bot/@snapshots/", BadReferenceError),
        ("bot/@snapshots/none", SnapshotNotFoundError),
        ("bot/@snapshots/a/b", BadNameError),
        ("s-nothing", SnapshotNotFoundError),
        ("", BadNameError),
        ("..", BadNameError),
        ("same", AmbiguousReferenceError),
    ],
)
def test_what_leads_nowhere_is_refused(stocked: Desk, text: str, error: type[KaifsError]) -> None:
    with pytest.raises(error):
        resolve(stocked.store, text)


def test_an_ambiguous_id_lists_the_candidates(stocked: Desk) -> None:
    with pytest.raises(AmbiguousReferenceError) as caught:
        resolve(stocked.store, "same")

    assert caught.value.details["candidates"] == ["bot/@snapshots/same", "other/@snapshots/same"]


def test_an_agent_comes_before_a_snapshot_of_its_name(stocked: Desk) -> None:
    stocked.run("snapshot", reference="bot", name="other")

    assert resolve(stocked.store, "other").snapshot is None


def test_a_version_or_a_snapshot_can_be_asked_for(stocked: Desk) -> None:
    assert resolve_version(stocked.store, "bot@1.0.0")[1].label == "1.0.0"
    assert resolve_snapshot(stocked.store, "only")[1].name == "only"
    with pytest.raises(BadReferenceError):
        resolve_version(stocked.store, "bot")
    with pytest.raises(BadReferenceError):
        resolve_snapshot(stocked.store, "bot")
    with pytest.raises(SnapshotNotFoundError):
        resolve_snapshot(stocked.store, "nobody")


def test_generated_names_are_never_an_agents() -> None:
    name = generate_snapshot_name()

    check_snapshot_name(name)
    assert len(name) == 12
    with pytest.raises(BadNameError):
        check_agent_name(name)

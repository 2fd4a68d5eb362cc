"""The steps of a rollback that fails, and rollbacks of rollbacks."""

import logging
from typing import Any

import msgspec
import pytest

from kaifs.base.errors import (
    AccessDeniedError,
    BarrierError,
    InvalidVersionError,
    KaifsError,
    RollbackValidationError,
)
from kaifs.meta.records import RootState
from kaifs.service.rollback import Params, failed_steps
from kaifs.service.verbs import VERBS
from tests.service.desk import STRANGER, Desk


@pytest.fixture
def bot(desk: Desk) -> Desk:
    """A store with `bot@1.0.0`, `bot@1.1.0` and something uncommitted."""
    desk.store.add_agent("bot", 0, 0, _empty(desk))
    desk.write("bot", b"a.txt", b"first\n")
    desk.run("seal", agent="bot", label="1.0.0")
    desk.write("bot", b"a.txt", b"second\n")
    desk.run("seal", agent="bot", label="1.1.0")
    desk.write("bot", b"a.txt", b"uncommitted\n")
    return desk


def _empty(desk: Desk) -> Any:
    tree = desk.forest.new_tree(0o755, 0, 0)
    desk.store.set_root_state(tree.root, RootState.WRITABLE)
    return tree.root


def told(error: KaifsError) -> list[tuple[str, bool]]:
    """Return the steps in the details of *error*."""
    return [(step.step, step.success) for step in failed_steps(error)]


@pytest.mark.parametrize("label", ["9.9.9", "not-a-label"])
def test_what_is_refused_at_once_has_the_last_step_alone(bot: Desk, label: str) -> None:
    before = bot.state()

    with pytest.raises(KaifsError) as caught:
        bot.run("rollback", agent="bot", version=label)

    assert told(caught.value) == [("rollback_failed", False)]
    assert failed_steps(caught.value)[0].error == str(caught.value)
    assert bot.state() == before


def test_a_stranger_s_rollback_is_a_step_too(bot: Desk) -> None:
    with pytest.raises(AccessDeniedError) as caught:
        bot.run("rollback", caller=STRANGER, agent="bot", version="1.0.0")

    assert told(caught.value) == [("rollback_failed", False)]


def test_a_target_that_is_not_valid_is_refused_before_the_switch(bot: Desk) -> None:
    agent = bot.store.get_agent("bot")
    version = bot.store.get_version(agent, "1.0.0")
    bot.store.remove_version(agent.agent_id, "1.0.0")
    clone = bot.forest.clone(bot.forest.tree(version.root))
    bot.store.set_root_state(clone.root, RootState.SEALED)
    forged = msgspec.structs.replace(version, root=clone.root.root_id, hash="0" * 64)
    bot.store.add_version(forged)
    before = bot.state()

    with pytest.raises(RollbackValidationError) as caught:
        bot.run("rollback", agent="bot", version="1.0.0")

    assert told(caught.value) == [("validate_rollback", False), ("rollback_failed", False)]
    assert bot.state() == before


def test_what_cannot_be_flushed_is_a_failed_backup_and_the_switch_is_undone(bot: Desk) -> None:
    head = bot.store.get_agent("bot").head
    steps = VERBS["rollback"].run(bot.context, Params(agent="bot", version="1.0.0"))
    next(steps)

    with pytest.raises(BarrierError) as caught:
        steps.throw(BarrierError("a mount"))

    assert told(caught.value) == [("backup_current", False), ("rollback_failed", False)]
    agent = bot.store.get_agent("bot")
    assert (agent.head, agent.version, agent.backup) == (head, "1.1.0", "")
    assert bot.read(bot.current("bot"), b"a.txt") == b"uncommitted\n"


def test_a_target_that_goes_while_it_is_switched_to_fails_the_validation(bot: Desk) -> None:
    head = bot.store.get_agent("bot").head
    steps = VERBS["rollback"].run(bot.context, Params(agent="bot", version="1.0.0"))
    next(steps)
    bot.store.put_agent(msgspec.structs.replace(bot.store.get_agent("bot"), version="1.1.0"))

    with pytest.raises(RollbackValidationError) as caught:
        next(steps)

    assert told(caught.value) == [("validate_rollback", False), ("rollback_failed", False)]
    assert bot.store.get_agent("bot").head == head


def test_each_step_is_logged(bot: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kaifs.service.rollback")
    bot.run("rollback", agent="bot", version="1.0.0")
    with pytest.raises(InvalidVersionError):
        bot.run("rollback", agent="bot", version="9.9.9")

    logged = [vars(record) for record in caplog.records]
    assert [(fields["target"], fields["step"], fields["success"]) for fields in logged] == [
        ("bot@1.0.0", "backup_current", True),
        ("bot@1.0.0", "update_symlink", True),
        ("bot@1.0.0", "validate_rollback", True),
        ("bot@9.9.9", "rollback_failed", False),
    ]
    assert logged[0]["details"]["version"] == "1.1.1-rollback.1"
    assert "E101" in logged[3]["error"]


def test_a_rollback_of_a_rollback_shows_what_was_uncommitted(bot: Desk) -> None:
    first = bot.run("rollback", agent="bot", version="1.0.0")
    backup = first.steps[0].details.version
    bot.write("bot", b"a.txt", b"again\n")

    second = bot.run("rollback", agent="bot", version=backup)
    assert bot.read(bot.current("bot"), b"a.txt") == b"uncommitted\n"
    third = bot.run("rollback", agent="bot", version=second.steps[0].details.version)

    assert bot.read(bot.current("bot"), b"a.txt") == b"again\n"
    assert (second.previous_version, third.previous_version) == ("1.0.0", backup)
    # Nothing was uncommitted.
    assert third.steps[0].details.version is None

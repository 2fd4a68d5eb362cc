"""A version that comes to nothing leaves nothing."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kaifs.base.errors import (
    AgentNotFoundError,
    InvalidVersionError,
    KaifsError,
    VersionExistsError,
)
from kaifs.service import seal
from kaifs.service.seal import Params
from kaifs.tree.fsck import check
from tests.service.desk import Desk


@pytest.fixture
def bot(desk: Desk, folder: Path) -> Desk:
    """`bot@1.0.0`, and files in current that are not sealed yet."""
    desk.take("bot", "1.0.0", folder)
    for number in range(5):
        desk.write("bot", b"new%d" % number, b"x" * 2000)
    return desk


def test_a_seal_that_is_given_up_at_any_step_changes_nothing(bot: Desk) -> None:
    """Ctrl-C, or a client that hangs up."""
    before = bot.state()
    for number in range(100):
        steps = seal.run(bot.context, Params(agent="bot", label="2.0.0"))
        told = list(islice(steps, number))
        steps.close()
        if len(told) < number:
            break

        assert bot.state() == before
    assert number > 3
    assert bot.store.get_agent("bot").version == "2.0.0", "the last one was let go on to its end"


def test_a_label_that_is_taken_meanwhile_is_refused_and_the_tree_dropped(bot: Desk) -> None:
    """Two seals at a time: requests of a mount are served between the steps of one."""
    steps = seal.run(bot.context, Params(agent="bot", label="2.0.0"))
    next(steps)
    bot.run("seal", agent="bot", label="2.0.0")
    bot.store.commit()
    before = bot.store.root_ids()

    with pytest.raises(VersionExistsError):
        list(steps)

    # What the first has been building was there before, and is gone.
    assert len(bot.store.root_ids()) == len(before) - 1
    assert bot.store.unfinished_roots() == []
    assert check(bot.store) == []


@pytest.mark.parametrize(
    ("verb", "params", "refused"),
    [
        ("seal", {"agent": "nobody"}, AgentNotFoundError),
        ("seal", {"agent": "../etc"}, KaifsError),
        ("seal", {"agent": "bot", "source": "bot@9.9.9"}, InvalidVersionError),
        ("seal", {"agent": "bot", "source": "bot@"}, KaifsError),
        ("show", {"reference": "nobody@1.0.0"}, AgentNotFoundError),
        ("show", {"reference": "bot@1.0"}, KaifsError),
        ("show", {"reference": "bot@9.9.9"}, InvalidVersionError),
        ("show", {"reference": ""}, KaifsError),
        ("show", {"reference": "bot@1.0.0@2"}, KaifsError),
        ("show", {"reference": "bot\0@1.0.0"}, KaifsError),
        ("show", {"reference": "\udcff"}, KaifsError),
        ("manifest", {"reference": "bot@9.9.9"}, InvalidVersionError),
        ("manifest", {"reference": "bot/@snapshots/none"}, KaifsError),
        ("manifest", {"reference": "x" * 5000}, KaifsError),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    bot: Desk, verb: str, params: dict[str, Any], refused: type[KaifsError]
) -> None:
    before = bot.state()

    with pytest.raises(refused) as found:
        bot.run(verb, **params)

    assert "\n" not in str(found.value)
    assert bot.state() == before

"""Scrub: what is damaged is healed from a copy, or every tree that holds it is named."""

from pathlib import Path

import pytest

from kaifs.base.errors import AccessDeniedError
from tests.service.desk import STRANGER, Desk
from tests.service.injury import flip_content

PAYLOAD = b"a payload that fills a block " * 500


@pytest.fixture
def bot(desk: Desk, tmp_path: Path) -> Desk:
    """`bot@1.0.0`, a snapshot of it, and another agent that shares nothing with them."""
    for name, payload in (("source", PAYLOAD), ("other", PAYLOAD[::-1])):
        (tmp_path / name / "lib").mkdir(parents=True)
        (tmp_path / name / "lib" / "big").write_bytes(payload)
        (tmp_path / name / "small").write_bytes(name.encode() * 900)
    desk.take("bot", "1.0.0", tmp_path / "source")
    desk.take("other", "1.0.0", tmp_path / "other")
    desk.run("snapshot", reference="bot@1.0.0", name="snap")
    desk.store.commit()
    return desk


def test_a_healthy_store_has_nothing_to_tell(bot: Desk) -> None:
    found = bot.run("scrub")

    assert (found.damaged_blocks, found.healed_blocks, found.validations) == (0, 0, ())
    assert found.read_bytes > 2 * len(PAYLOAD)


@pytest.mark.logs_errors
def test_everything_that_holds_a_damaged_block_is_named_and_nothing_else(bot: Desk) -> None:
    flip_content(bot, bot.current("bot"), b"lib/big")

    found = bot.run("scrub")

    assert found.damaged_blocks == 1
    named = {one.reference: one for one in found.validations}
    assert set(named) == {"bot", "bot@1.0.0", "bot/@snapshots/snap"}
    assert not any(one.valid for one in named.values())
    assert "lib/big" in named["bot@1.0.0"].errors[0]
    assert named["bot@1.0.0"].quarantined


def test_a_block_with_a_twin_is_healed_and_nobody_is_set_aside(bot: Desk) -> None:
    flip_content(bot, bot.current("bot"), b"lib/big")
    bot.write("bot", b"lib/again", PAYLOAD)

    found = bot.run("scrub")

    assert (found.damaged_blocks, found.healed_blocks, found.validations) == (0, 1, ())
    bot.store.payload.abandon()
    assert bot.read(bot.current("bot"), b"lib/big") == PAYLOAD
    assert bot.run("verify", references=("bot@1.0.0",), full=True).validations[0].valid


def test_only_the_owner_of_the_store_scrubs_it(bot: Desk) -> None:
    with pytest.raises(AccessDeniedError):
        bot.run("scrub", caller=STRANGER)

"""Seal, list, show, manifest, rollback, remove."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kaifs.base.errors import (
    BadLabelError,
    InvalidVersionError,
    KaifsError,
    RollbackValidationError,
    VersionExistsError,
    VersionInUseError,
)
from kaifs.meta.records import RootState
from kaifs.service import embedded
from kaifs.service.record import Description, decode_record
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.steps import Flush
from kaifs.service.switching import finish_due_backups
from kaifs.service.verbs import VERBS
from kaifs.tree.fsck import check
from tests.service.desk import OWNER, Desk


@pytest.fixture
def bot(desk: Desk, folder: Path) -> Desk:
    """A store with `bot@1.0.0`."""
    desk.take("bot", "1.0.0", folder)
    return desk


def labels(desk: Desk) -> list[str]:
    return [version.version for version in desk.run("list", agent="bot").versions]


def finished(steps: Any) -> Any:
    """Run a verb to its end and return its result."""
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return stop.value


def record_of(desk: Desk, label: str) -> bytes:
    return desk.store.get_version(desk.store.get_agent("bot"), label).record


# --- seal --------------------------------------------------------------------------------


def test_a_seal_is_what_current_was_and_current_moves_on(bot: Desk) -> None:
    bot.write("bot", b"a.txt", b"second\n")

    made = bot.run("seal", agent="bot", label="1.1.0")
    bot.write("bot", b"a.txt", b"third\n")

    version = bot.store.get_version(bot.store.get_agent("bot"), "1.1.0")
    assert bot.read(bot.forest.tree(version.root), b"a.txt") == b"second\n"
    assert bot.store.get_agent("bot").version == "1.1.0"
    assert made.parent == "1.0.0"
    assert made.hash == version.hash


def test_a_record_holds_what_was_said_and_its_parents_hash(bot: Desk) -> None:
    said = Description(
        author="ann",
        commit_hash="abc",
        snapshot_type="release",
        notes="new",
        tags=("x", "y"),
    )

    bot.run("seal", agent="bot", label="2.0.0", description=said)

    record = decode_record(record_of(bot, "2.0.0"))
    assert record.metadata.author == "ann"
    assert record.metadata.commit_hash == "abc"
    assert record.metadata.snapshot_type == "release"
    assert record.metadata.notes == "new"
    assert record.metadata.tags == ("x", "y")
    assert record.parent == "1.0.0"
    assert record.parent_hash == hashlib.sha256(record_of(bot, "1.0.0")).hexdigest()


@pytest.mark.parametrize(
    ("bump", "label"), [("patch", "1.0.1"), ("minor", "1.1.0"), ("major", "2.0.0")]
)
def test_without_a_label_a_part_grows(bot: Desk, bump: str, label: str) -> None:
    assert bot.run("seal", agent="bot", bump=bump).version == label


def test_a_bump_goes_on_until_a_label_is_free(bot: Desk) -> None:
    """After a rollback the next label may be there already."""
    bot.run("seal", agent="bot")
    bot.run("rollback", agent="bot", version="1.0.0")

    assert bot.run("seal", agent="bot").version == "1.0.2"


def test_an_agent_without_a_version_starts_at_the_bottom(desk: Desk) -> None:
    tree = desk.forest.new_tree(0o755, OWNER.uid, OWNER.gid)
    desk.store.add_agent("bot", OWNER.uid, OWNER.gid, tree.root)

    made = desk.run("seal", agent="bot", bump="minor")

    assert (made.version, made.parent) == ("0.1.0", None)


def test_sealing_another_tree_moves_current_and_keeps_what_was_uncommitted(bot: Desk) -> None:
    """`--from REF`."""
    bot.run("seal", agent="bot", label="1.1.0")
    bot.write("bot", b"a.txt", b"uncommitted\n")

    made = bot.run("seal", agent="bot", label="2.0.0", source="bot@1.0.0")

    assert made.parent == "1.0.0"
    assert made.hash == decode_record(record_of(bot, "1.0.0")).hash
    assert bot.store.get_agent("bot").version == "2.0.0"
    assert bot.read(bot.current("bot"), b"a.txt") == b"first\n"
    backup = bot.store.get_version(bot.store.get_agent("bot"), "1.1.1-rollback.1")
    assert bot.read(bot.forest.tree(backup.root), b"a.txt") == b"uncommitted\n"


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"label": "1.0.0"}, VersionExistsError),
        ({"label": "1.0.0+b"}, VersionExistsError),
        ({"label": "v2"}, BadLabelError),
        ({"label": "2.0.0", "source": "bot@3.0.0"}, InvalidVersionError),
    ],
)
def test_a_seal_that_is_refused_changes_nothing(
    bot: Desk, params: dict[str, Any], error: type[KaifsError]
) -> None:
    before = bot.state()

    with pytest.raises(error):
        bot.run("seal", agent="bot", **params)

    assert bot.state() == before


# --- list, show, manifest --------------------------------------------------------------------


def test_versions_are_listed_by_precedence_newest_first(bot: Desk) -> None:
    for label in ("1.10.0", "1.9.0", "1.10.0-rc.1"):
        bot.run("seal", agent="bot", label=label)

    assert labels(bot) == ["1.10.0", "1.10.0-rc.1", "1.9.0", "1.0.0"]


def test_a_list_says_what_is_current_and_its_size(bot: Desk, folder: Path) -> None:
    (only,) = bot.run("list", agent="bot").versions

    files = {os.stat(path).st_ino: path for path in folder.rglob("*") if path.is_file()}
    assert only.is_current
    assert only.size == sum(path.stat().st_size for path in files.values())
    assert json.loads(msgspec.json.encode(only)).keys() == {
        "version",
        "metadata",
        "isCurrent",
        "size",
    }


def test_show_adds_the_files_if_asked(bot: Desk) -> None:
    shown = bot.run("show", reference="bot@1.0.0", has_files=True)

    by_path = {file.path: file for file in shown.files}
    assert by_path["a.txt"].hash == hashlib.sha256(b"first\n").hexdigest()
    assert by_path["lib/x.py"].permissions == "0755"
    assert by_path["not-utf8-\\xff"].size == 2
    assert "lib/dangling" not in by_path


def test_show_of_an_agent_is_its_currents_version(bot: Desk) -> None:
    assert bot.run("show", reference="bot").version.version == "1.0.0"


def test_the_hash_is_the_manifests_sha256(bot: Desk) -> None:
    text = bytearray()

    found = bot.run("manifest", reference="bot@1.0.0", output=text)

    version = decode_record(record_of(bot, "1.0.0"))
    assert found.hash == version.hash == hashlib.sha256(text).hexdigest()


def test_the_manifest_of_current_is_that_of_its_next_version(bot: Desk) -> None:
    bot.write("bot", b"new", b"new")
    before = bot.store.root_ids()

    found = bot.run("manifest", reference="bot")

    assert bot.store.root_ids() == before
    assert bot.run("seal", agent="bot").hash == found.hash


# --- rollback --------------------------------------------------------------------------------


def test_a_rollback_shows_the_old_version_and_keeps_all_others(bot: Desk) -> None:
    bot.write("bot", b"a.txt", b"second\n")
    bot.run("seal", agent="bot", label="1.1.0")

    done = bot.run("rollback", agent="bot", version="1.0.0")

    assert bot.read(bot.current("bot"), b"a.txt") == b"first\n"
    assert labels(bot) == ["1.1.0", "1.0.0"]
    assert (done.success, done.target_version, done.previous_version) == (True, "1.0.0", "1.1.0")
    assert [(step.step, step.success) for step in done.steps] == [
        ("backup_current", True),
        ("update_symlink", True),
        ("validate_rollback", True),
    ]


def test_what_was_uncommitted_becomes_a_version(bot: Desk) -> None:
    for number in (1, 2):
        bot.write("bot", b"a.txt", b"uncommitted %d\n" % number)

        done = bot.run("rollback", agent="bot", version="1.0.0")

        label = f"1.0.1-rollback.{number}"
        backup = bot.store.get_version(bot.store.get_agent("bot"), label)
        assert done.steps[0].details.version == label
        assert bot.read(bot.forest.tree(backup.root), b"a.txt") == b"uncommitted %d\n" % number
        assert decode_record(backup.record).metadata.snapshot_type == "rollback"
        assert bot.read(bot.current("bot"), b"a.txt") == b"first\n"


def test_what_the_kernel_still_held_is_in_the_backup(bot: Desk) -> None:
    """Dirty pages arrive in the old tree at the barrier after the switch."""
    old = bot.current("bot")
    ino = old.resolve(b"a.txt")
    steps = VERBS["rollback"].run(bot.context, RollbackParams(agent="bot", version="1.0.0"))
    assert isinstance(next(steps), Flush)

    old.write(ino, 0, b"late!", bot.clock.now_ns())
    done = finished(steps)

    backup = done.steps[0].details.version
    version = bot.store.get_version(bot.store.get_agent("bot"), backup)
    assert bot.read(bot.forest.tree(version.root), b"a.txt") == b"late!\n"
    assert not old.is_writable


def test_a_rollback_given_up_after_the_switch_is_undone(bot: Desk) -> None:
    """A client that hangs up, or a barrier that fails."""
    bot.write("bot", b"a.txt", b"uncommitted\n")
    steps = VERBS["rollback"].run(bot.context, RollbackParams(agent="bot", version="1.0.0"))
    next(steps)

    steps.close()

    assert bot.read(bot.current("bot"), b"a.txt") == b"uncommitted\n"
    assert labels(bot) == ["1.0.0"]
    bot.write("bot", b"a.txt", b"still writable\n")


@pytest.fixture
def crashed(bot: Desk, tmp_path: Path) -> Iterator[Callable[[], Desk]]:
    """Begins a rollback to 1.0.0, dies between the switch and the backup, and starts again."""
    begun = []

    def crash() -> Desk:
        steps = VERBS["rollback"].run(bot.context, RollbackParams(agent="bot", version="1.0.0"))
        next(steps)
        bot.store.commit()
        begun.append((steps, bot.crashed(tmp_path / "crashed")))
        return begun[0][1]

    yield crash
    for steps, desk in begun:
        desk.store.commit()
        assert check(desk.store) == []
        desk.store.close()
        steps.close()


def test_a_crash_between_switch_and_backup_loses_nothing(
    bot: Desk, crashed: Callable[[], Desk]
) -> None:
    """The agent's record says that a backup is due; the next open seals it."""
    bot.write("bot", b"a.txt", b"uncommitted\n")
    after = crashed()

    finish_due_backups(after.context)

    assert after.read(after.current("bot"), b"a.txt") == b"first\n"
    version = after.store.get_version(after.store.get_agent("bot"), "1.0.1-rollback.1")
    assert after.read(after.forest.tree(version.root), b"a.txt") == b"uncommitted\n"


def test_a_crash_after_a_switch_of_a_clean_current_makes_no_backup(
    bot: Desk, crashed: Callable[[], Desk]
) -> None:
    bot.run("seal", agent="bot", label="1.1.0")
    after = crashed()

    finish_due_backups(after.context)

    assert labels(after) == ["1.1.0", "1.0.0"]


def test_an_embedded_verb_finishes_what_a_dead_process_left(
    bot: Desk, crashed: Callable[[], Desk]
) -> None:
    bot.write("bot", b"a.txt", b"uncommitted\n")
    after = crashed()
    after.store.close()

    made = embedded.run_embedded(after.path, "seal", VERBS["seal"].params(agent="bot"))

    after.reopen()
    assert made.version == "1.0.1"
    assert labels(after) == ["1.0.1", "1.0.1-rollback.1", "1.0.0"]


def test_a_rollback_to_a_version_whose_record_lies_is_refused(bot: Desk) -> None:
    bot.run("seal", agent="bot", label="1.1.0")
    agent = bot.store.get_agent("bot")
    version = bot.store.get_version(agent, "1.0.0")
    bot.store.remove_version(agent.agent_id, "1.0.0")
    clone = bot.forest.clone(bot.forest.tree(version.root))
    bot.store.set_root_state(clone.root, RootState.SEALED)
    forged = msgspec.structs.replace(version, root=clone.root.root_id, hash="0" * 64)
    bot.store.add_version(forged)
    before = bot.state()

    with pytest.raises(RollbackValidationError):
        bot.run("rollback", agent="bot", version="1.0.0")

    assert bot.state() == before


@pytest.mark.parametrize("label", ["9.9.9", "1.0.0+b"])
def test_a_rollback_to_nowhere_changes_nothing(bot: Desk, label: str) -> None:
    before = bot.state()

    with pytest.raises(InvalidVersionError):
        bot.run("rollback", agent="bot", version=label)

    assert bot.state() == before


# --- remove ----------------------------------------------------------------------------------


def test_a_version_that_nothing_came_from_can_go(bot: Desk) -> None:
    bot.run("seal", agent="bot", label="1.1.0")
    bot.run("rollback", agent="bot", version="1.0.0")

    bot.run("remove", reference="bot@1.1.0")

    assert labels(bot) == ["1.0.0"]


def test_the_current_version_stays_even_by_force(bot: Desk) -> None:
    for force in (False, True):
        with pytest.raises(VersionInUseError):
            bot.run("remove", reference="bot@1.0.0", force=force)


def test_what_something_came_from_goes_by_force_only(bot: Desk) -> None:
    bot.run("snapshot", reference="bot@1.0.0", name="snap")
    bot.run("seal", agent="bot", label="1.1.0")

    with pytest.raises(VersionInUseError) as caught:
        bot.run("remove", reference="bot@1.0.0")

    assert caught.value.details["neededBy"] == ["bot@1.1.0", "bot/@snapshots/snap"]
    bot.run("remove", reference="bot@1.0.0", force=True)
    assert labels(bot) == ["1.1.0"]

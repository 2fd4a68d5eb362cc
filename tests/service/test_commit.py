"""Commit and rebase: only what passed, merged, sealed with its evidence, all or nothing."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kaifs.base.errors import (
    BadReferenceError,
    BarrierError,
    MergeConflictError,
    SealedError,
    SnapshotNotFoundError,
    SnapshotStateError,
    VersionExistsError,
)
from kaifs.service.record import Description, decode_record
from kaifs.service.steps import Flush, Item, Step
from kaifs.service.switching import finish_due_backups
from kaifs.service.verbs import VERBS
from kaifs.tree.fsck import check
from kaifs.tree.tree import Tree
from tests.service.desk import Desk
from tests.service.lab import Lab, suite


@pytest.fixture
def lab(desk: Desk, tmp_path: Path) -> Lab:
    """`bot@1.0.0` with `a.txt` and `lib/x.py`, and its snapshot `snap`."""
    folder = tmp_path / "project"
    (folder / "lib").mkdir(parents=True)
    (folder / "a.txt").write_text("one\n")
    (folder / "lib" / "x.py").write_text("x = 1\n")
    desk.take("bot", "1.0.0", folder)
    desk.run("snapshot", reference="bot", name="snap")
    return Lab(desk, tmp_path)


def edit(tree: Tree, path: bytes, payload: bytes) -> None:
    """Put *payload* into a file, which is made if need be."""
    folder, _, name = path.rpartition(b"/")
    parent = tree.resolve(folder)
    ino = tree.find(parent, name)
    if ino is None:
        ino = tree.make(parent, name, 0o644, 0, 0, 7)
    tree.truncate(ino, 0, 7)
    tree.write(ino, 0, payload, 7)


def passed(lab: Lab, path: bytes = b"a.txt", payload: bytes = b"snapshot\n") -> None:
    """Change the snapshot and let its tests pass."""
    edit(lab.snapshot("bot", "snap"), path, payload)
    assert lab.test("snap", suite=suite("true"), source="suite.toml").success


def record(desk: Desk, label: str) -> Any:
    agent = desk.store.get_agent("bot")
    return decode_record(desk.store.get_version(agent, label).record)


def test_what_passed_becomes_the_next_version(lab: Lab) -> None:
    desk = lab.desk
    passed(lab)

    result = desk.run("commit", reference="snap")

    assert (result.success, result.snapshot_id, result.agent_id) == (True, "snap", "bot")
    assert (result.version, result.backup) == ("1.0.1", None)
    assert desk.store.get_agent("bot").version == "1.0.1"
    assert desk.read(desk.current("bot"), b"a.txt") == b"snapshot\n"
    with pytest.raises(SnapshotNotFoundError):
        desk.run("show", reference="bot/@snapshots/snap")
    made = record(desk, "1.0.1")
    assert made.parent == "1.0.0"
    assert made.metadata.snapshot_type == "auto"
    assert made.metadata.notes == "Committed snapshot snap"
    assert made.metadata.evidence.command == ("true",)
    assert made.metadata.evidence.suite == "suite.toml"
    assert (made.metadata.evidence.passed_tests, made.metadata.evidence.total_tests) == (1, 1)


def test_the_record_with_evidence_is_canonical(lab: Lab) -> None:
    """Also the one number in it that is no whole one."""
    passed(lab)
    lab.desk.run("commit", reference="snap")
    agent = lab.desk.store.get_agent("bot")

    stored = lab.desk.store.get_version(agent, "1.0.1").record

    plain = msgspec.json.decode(stored)
    assert b" " not in stored.replace(b"Committed snapshot snap", b"")
    assert list(plain["metadata"]) == sorted(plain["metadata"])
    evidence = plain["metadata"]["evidence"]
    assert list(evidence) == sorted(evidence)
    assert round(evidence["durationS"], 3) == evidence["durationS"]
    assert plain["metadata"]["evidence"]["isolation"]["resources"]["memory"] == "512m"


def test_label_and_description_are_the_users(lab: Lab) -> None:
    passed(lab)

    description = Description(notes="mine", author="me", snapshot_type="release")
    result = lab.desk.run("commit", reference="snap", label="2.0.0-rc.1", description=description)

    assert result.version == "2.0.0-rc.1"
    metadata = record(lab.desk, "2.0.0-rc.1").metadata
    assert (metadata.notes, metadata.author, metadata.snapshot_type) == ("mine", "me", "release")


def test_bump_and_taken_labels(lab: Lab) -> None:
    passed(lab)
    with pytest.raises(VersionExistsError):
        lab.desk.run("commit", reference="snap", label="1.0.0")

    assert lab.desk.run("commit", reference="snap", bump="minor").version == "1.1.0"


@pytest.mark.parametrize("state", ["ready", "test_failed", "changed"])
def test_only_what_passed_unchanged_is_committed(lab: Lab, state: str) -> None:
    if state == "test_failed":
        lab.test("snap", suite=suite("false"))
    if state == "changed":
        passed(lab)
        edit(lab.snapshot("bot", "snap"), b"a.txt", b"later\n")
    before = lab.desk.state()

    shown = "ready" if state == "changed" else state
    with pytest.raises(SnapshotStateError, match=f"Cannot commit snapshot with status: {shown}"):
        lab.desk.run("commit", reference="snap")

    assert lab.desk.state() == before


def test_what_current_changed_meanwhile_stays(lab: Lab) -> None:
    """Sealed or not: the snapshot's changes are merged onto it."""
    desk = lab.desk
    edit(desk.current("bot"), b"lib/x.py", b"x = 2\n")
    desk.run("seal", agent="bot", label="1.0.1")
    edit(desk.current("bot"), b"new.txt", b"uncommitted\n")
    passed(lab)

    result = desk.run("commit", reference="snap")

    assert (result.version, result.backup) == ("1.0.2", None)
    current = desk.current("bot")
    assert desk.read(current, b"a.txt") == b"snapshot\n"
    assert desk.read(current, b"lib/x.py") == b"x = 2\n"
    assert desk.read(current, b"new.txt") == b"uncommitted\n"
    assert record(desk, "1.0.2").parent == "1.0.1"
    assert [version.label for version in desk.store.versions(1)] == ["1.0.0", "1.0.1", "1.0.2"]


def test_conflicts_are_listed_and_nothing_is_changed(lab: Lab) -> None:
    desk = lab.desk
    passed(lab)
    snapshot, current = lab.snapshot("bot", "snap"), desk.current("bot")
    edit(current, b"a.txt", b"current\n")
    snapshot.unlink(snapshot.resolve(b"lib"), b"x.py", 9)
    edit(current, b"lib/x.py", b"x = 3\n")
    lab.test("snap", suite=suite("true"))
    before = desk.state()

    with pytest.raises(MergeConflictError) as refused:
        desk.run("commit", reference="snap")

    assert refused.value.details["conflicts"] == [
        "modify/modify: a.txt",
        "modify/delete: lib/x.py",
    ]
    assert desk.state() == before
    assert desk.read(desk.current("bot"), b"a.txt") == b"current\n"


def test_rebase_brings_currents_changes_and_asks_for_new_tests(lab: Lab) -> None:
    desk = lab.desk
    passed(lab)
    edit(desk.current("bot"), b"lib/x.py", b"x = 2\n")

    rebased = desk.run("rebase", reference="snap")

    assert rebased.snapshot.status == "ready"
    assert rebased.suite == suite("true")
    assert rebased.source == "suite.toml"
    tree = lab.snapshot("bot", "snap")
    assert desk.read(tree, b"a.txt") == b"snapshot\n"
    assert desk.read(tree, b"lib/x.py") == b"x = 2\n"
    with pytest.raises(SnapshotStateError):
        desk.run("commit", reference="snap")
    lab.test("snap", suite=rebased.suite)
    assert desk.run("commit", reference="snap").version == "1.0.1"
    changes = desk.run("diff", old="bot@1.0.0", new="bot@1.0.1").changes
    assert [(one.status, one.path) for one in changes] == [("M", "a.txt"), ("M", "lib/x.py")]


def test_a_rebase_with_conflicts_changes_nothing(lab: Lab) -> None:
    passed(lab)
    edit(lab.desk.current("bot"), b"a.txt", b"current\n")
    before = lab.desk.state()

    with pytest.raises(MergeConflictError):
        lab.desk.run("rebase", reference="snap")

    assert lab.desk.state() == before
    assert lab.desk.run("show", reference="snap").snapshot.status == "test_passed"


def test_what_is_read_only_is_not_rebased_but_can_be_committed(lab: Lab) -> None:
    desk = lab.desk
    desk.run("snapshot", reference="bot", name="fixed", read_only=True)
    lab.test("fixed", suite=suite("true"))

    with pytest.raises(SealedError):
        desk.run("rebase", reference="fixed")

    assert desk.run("commit", reference="fixed").version == "1.0.1"


def test_a_snapshot_of_a_snapshot_is_committed_with_the_changes_of_both(lab: Lab) -> None:
    """What was tested has both, so what is sealed has both."""
    desk = lab.desk
    edit(lab.snapshot("bot", "snap"), b"outer", b"outer\n")
    desk.run("snapshot", reference="snap", name="inner")
    edit(lab.snapshot("bot", "inner"), b"inner", b"inner\n")
    assert [
        (one.status, one.path) for one in desk.run("diff", old="snap", new="inner").changes
    ] == [("A", "inner")]
    lab.test("inner", suite=suite("true"))

    desk.run("commit", reference="inner")

    seen = [entry.path for entry in desk.current("bot").walk()]
    assert b"inner" in seen
    assert b"outer" in seen


def test_the_base_outlives_its_version(lab: Lab) -> None:
    """A snapshot of a version that was taken away can still be merged."""
    desk = lab.desk
    desk.run("seal", agent="bot", label="1.1.0")
    desk.run("snapshot", reference="bot@1.0.0", name="old")
    desk.run("remove", reference="bot@1.0.0", force=True)
    desk.store.commit()
    desk.reopen()
    edit(lab.snapshot("bot", "old"), b"new", b"new\n")
    lab.test("old", suite=suite("true"))

    desk.run("commit", reference="old")

    assert desk.read(desk.current("bot"), b"new") == b"new\n"


def test_a_snapshot_is_compared_with_what_it_was_made_from(lab: Lab) -> None:
    """Also one of unsealed work, for which no reference stands; whatever current does later."""
    desk = lab.desk
    edit(desk.current("bot"), b"unsealed", b"unsealed\n")
    desk.run("snapshot", reference="bot", name="work")
    edit(desk.current("bot"), b"later", b"later\n")
    edit(lab.snapshot("bot", "work"), b"mine", b"mine\n")

    changes = desk.run("diff", old="work").changes

    assert [(one.status, one.path) for one in changes] == [("A", "mine")]
    with pytest.raises(BadReferenceError):
        desk.run("diff", old="bot@1.0.0")


# --- all or nothing ------------------------------------------------------------------------


class Steps:
    """A verb under way, with the steps at which something can happen."""

    def __init__(self, desk: Desk, verb: str, **params: Any) -> None:
        found = VERBS[verb]
        self._steps: Generator[Step, Item | None, Any] = found.run(
            desk.context, found.params(**params)
        )

    def to_flush(self) -> None:
        """Go on until the verb asks for a barrier."""
        while not isinstance(next(self._steps), Flush):
            pass

    def to_end(self) -> Any:
        """Go on to the result."""
        try:
            while True:
                next(self._steps)
        except StopIteration as end:
            return end.value

    def fail(self, error: BaseException) -> None:
        self._steps.throw(error)

    def close(self) -> None:
        self._steps.close()


def test_late_writes_to_current_become_a_backup(lab: Lab) -> None:
    """What the kernel still held when current was switched; the barrier brings it."""
    desk = lab.desk
    passed(lab)
    old = desk.current("bot")
    steps = Steps(desk, "commit", reference="snap")
    steps.to_flush()
    edit(desk.forest.tree(old.root.root_id), b"late.txt", b"late\n")

    result = steps.to_end()

    assert result.version == "1.0.1"
    assert result.backup == "1.0.1-rollback.1"
    backup = desk.store.get_version(desk.store.get_agent("bot"), result.backup)
    assert desk.read(desk.forest.tree(backup.root), b"late.txt") == b"late\n"
    assert b"late.txt" not in [entry.path for entry in desk.current("bot").walk()]


def test_a_write_while_the_merge_is_sealed_is_merged_too(lab: Lab) -> None:
    desk = lab.desk
    passed(lab, payload=bytes(range(256)) * 5000)
    steps = Steps(desk, "commit", reference="snap")
    next(steps._steps)
    edit(desk.current("bot"), b"meanwhile.txt", b"meanwhile\n")

    result = steps.to_end()

    assert result.backup is None
    assert desk.read(desk.current("bot"), b"meanwhile.txt") == b"meanwhile\n"
    assert len(desk.read(desk.current("bot"), b"a.txt")) == 256 * 5000


def test_a_change_of_the_snapshot_while_it_is_sealed_stops_the_commit(lab: Lab) -> None:
    desk = lab.desk
    passed(lab, payload=bytes(range(256)) * 5000)
    before = desk.state()
    steps = Steps(desk, "commit", reference="snap")
    next(steps._steps)
    edit(lab.snapshot("bot", "snap"), b"meanwhile.txt", b"untested\n")

    with pytest.raises(SnapshotStateError):
        steps.to_end()

    assert msgspec.json.decode(desk.state())[1:] == msgspec.json.decode(before)[1:]


@pytest.mark.parametrize("error", [BarrierError(""), KeyboardInterrupt(), GeneratorExit()])
def test_a_barrier_that_fails_undoes_the_commit(lab: Lab, error: BaseException) -> None:
    desk = lab.desk
    passed(lab)
    edit(desk.current("bot"), b"new.txt", b"uncommitted\n")
    steps = Steps(desk, "commit", reference="snap")
    steps.to_flush()

    with pytest.raises(type(error)):
        steps.fail(error)

    agent = desk.store.get_agent("bot")
    assert (agent.version, agent.backup) == ("1.0.0", "")
    assert [version.label for version in desk.store.versions(agent.agent_id)] == ["1.0.0"]
    assert desk.read(desk.current("bot"), b"a.txt") == b"one\n"
    assert desk.read(desk.current("bot"), b"new.txt") == b"uncommitted\n"
    assert desk.run("show", reference="snap").snapshot.status == "test_passed"
    assert desk.run("commit", reference="snap").version == "1.0.1"


def test_a_crash_leaves_all_of_the_commit_or_nothing(lab: Lab, tmp_path: Path) -> None:
    """At every step at which a durable state can be taken."""
    desk = lab.desk
    passed(lab, payload=bytes(range(256)) * 5000)
    edit(desk.current("bot"), b"new.txt", b"uncommitted\n")
    desk.store.commit()
    steps = Steps(desk, "commit", reference="snap")
    outcomes = []
    for number, _ in enumerate(steps._steps):
        desk.store.commit()
        after = desk.crashed(tmp_path / f"crashed-{number}")
        finish_due_backups(after.context)
        after.store.commit()

        labels = [version.label for version in after.store.versions(1)]
        snapshots = [snapshot.name for snapshot in after.store.snapshots(1)]
        current = after.current("bot")
        is_done = "1.0.1" in labels
        assert snapshots == ([] if is_done else ["snap"])
        assert after.store.get_agent("bot").version == ("1.0.1" if is_done else "1.0.0")
        assert (after.read(current, b"a.txt") == b"one\n") is not is_done
        assert after.read(current, b"new.txt") == b"uncommitted\n"
        assert check(after.store) == []
        after.store.close()
        outcomes.append(is_done)
    assert True in outcomes
    assert False in outcomes

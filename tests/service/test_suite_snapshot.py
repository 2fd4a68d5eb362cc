"""Tests in a snapshot: states, evidence, output, and what makes a result void."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import (
    AccessDeniedError,
    SnapshotStateError,
    SuiteError,
    SuiteRunError,
)
from kaifs.service.context import Caller
from kaifs.service.evidence import Evidence
from kaifs.service.isolation import Limits
from kaifs.service.record import decode_record
from kaifs.service.steps import Data, End, Item
from kaifs.service.suite_runner import SuiteProgress
from kaifs.service.verbs import VERBS
from kaifs.tree.tree import AttributeChange
from tests.service.desk import STRANGER, Desk
from tests.service.lab import Lab, suite


@pytest.fixture
def lab(desk: Desk, tmp_path: Path) -> Lab:
    """`bot@1.0.0` with a snapshot `snap`."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    desk.take("bot", "1.0.0", folder)
    desk.run("snapshot", reference="bot", name="snap")
    return Lab(desk, tmp_path)


def status(desk: Desk) -> str:
    found: str = desk.run("show", reference="bot/@snapshots/snap").snapshot.status
    (listed,) = desk.run("snapshots").snapshots
    assert listed.status == found
    return found


def evidence(desk: Desk) -> Evidence | None:
    found: Evidence | None = desk.run("show", reference="snap").evidence
    return found


def test_a_result_is_kept_with_its_evidence(lab: Lab) -> None:
    desk = lab.desk
    assert status(desk) == "ready"
    tests = suite("grep one a.txt", "echo second")

    result = lab.test("snap", suite=tests, source="tests.toml")

    assert (result.success, result.passed_tests, result.total_tests) == (True, 2, 2)
    assert (result.status, result.snapshot_id, result.agent_id) == ("test_passed", "snap", "bot")
    assert status(desk) == "test_passed"
    desk.store.commit()
    desk.reopen()
    assert status(desk) == "test_passed"
    found = evidence(desk)
    assert found is not None
    assert found.command == ("grep one a.txt", "echo second")
    assert (found.suite, found.suite_hash) == ("tests.toml", tests.hash)
    assert (found.passed_tests, found.total_tests, found.failures) == (2, 2, ())
    assert found.limits.memory == "512m"
    assert found.isolation.network_mode == "none"
    log = desk.run("show", reference="snap", has_log=True).log
    assert b"one\n=== 2: ok" in log
    assert found.output_hash == hashlib.sha256(log).hexdigest()
    assert found.output_bytes == len(log)


def test_the_evidence_has_names_of_variables_and_not_their_values(lab: Lab) -> None:
    """A version's record is for ever, and everybody reads it."""
    limits = Limits(env=("TOKEN=secret",))
    lab.desk.run("snapshot", reference="bot", name="hush", limits=limits)
    lab.test("hush", suite=suite("true"))

    made = lab.desk.run("commit", reference="hush")

    agent = lab.desk.store.get_agent("bot")
    record = lab.desk.store.get_version(agent, made.version).record
    assert b"secret" not in record
    found = decode_record(record).metadata.evidence
    assert isinstance(found, Evidence)
    assert found.isolation.hidden_variables == ("TOKEN",)


def test_the_evidence_says_what_could_not_be_enforced(lab: Lab) -> None:
    """What was asked for is one thing, what the machine had another."""
    lab.unenforced = ("memory: no control group",)

    result = lab.test("snap", suite=suite("true", "true"))

    found = evidence(lab.desk)
    assert found is not None
    assert result.unenforced == found.unenforced == ("memory: no control group",)
    assert found.limits.memory == "512m"


def test_failures_are_told_and_kept(lab: Lab) -> None:
    result = lab.test("snap", suite=suite("true", "echo broken; false"))

    assert (result.success, result.status) == (False, "test_failed")
    assert [(one.test, one.error) for one in result.failures] == [("2", "exit status 1: broken")]
    found = evidence(lab.desk)
    assert found is not None
    assert found.failures == result.failures
    assert status(lab.desk) == "test_failed"


def test_the_state_is_testing_meanwhile(lab: Lab) -> None:
    seen: list[str] = []

    def look(progress: SuiteProgress) -> None:
        del progress
        seen.append(status(lab.desk))

    lab.test("snap", look, suite=suite("true"))

    assert seen == ["testing", "testing"]


def test_a_snapshot_is_tested_once_at_a_time(lab: Lab) -> None:
    def again(progress: SuiteProgress) -> None:
        del progress
        with pytest.raises(SnapshotStateError, match="running"):
            lab.test("snap", suite=suite("true"))

    assert lab.test("snap", again, suite=suite("true")).success


@pytest.mark.parametrize("change", ["write", "chmod", "add", "xattr", "touch", "rename"])
def test_any_change_makes_it_ready_again(lab: Lab, change: str) -> None:
    """The evidence stays; it speaks of what was tested."""
    lab.test("snap", suite=suite("true"))
    tree, now_ns = lab.snapshot("bot", "snap"), lab.desk.clock.now_ns() + 1
    ino, top = tree.resolve(b"a.txt"), tree.resolve(b"")

    match change:
        case "write":
            tree.write(ino, 0, b"O", None)
        case "chmod":
            tree.set_attributes(ino, AttributeChange(mode=0o600), now_ns)
        case "add":
            tree.make(top, b"new", 0o644, 0, 0, now_ns)
        case "xattr":
            tree.setxattr(ino, b"user.x", b"", now_ns)
        case "touch":
            tree.set_attributes(ino, AttributeChange(mtime_ns=5, ctime_ns=5), now_ns)
        case _:
            tree.rename(top, b"a.txt", top, b"b.txt", now_ns)

    assert status(lab.desk) == "ready"
    assert evidence(lab.desk) is not None


def test_reading_and_sealing_change_nothing(lab: Lab) -> None:
    """An atime, and the same bytes in canonical blocks with their digest."""
    tree = lab.snapshot("bot", "snap")
    ino = tree.make(tree.resolve(b""), b"new", 0o644, 0, 0, lab.desk.clock.now_ns())
    tree.write(ino, 0, bytes(range(256)) * 2000, None)
    lab.test("snap", suite=suite("true"))

    inode = tree.inode(ino)
    atime = AttributeChange(atime_ns=inode.atime_ns + 1, ctime_ns=inode.ctime_ns)
    tree.set_attributes(ino, atime, inode.ctime_ns)
    lab.desk.run("seal", agent="bot", label="9.0.0", source="snap")

    assert tree.inode(ino).sha256
    assert status(lab.desk) == "test_passed"


def test_what_the_tests_write_is_part_of_what_passed(lab: Lab) -> None:
    tree = lab.snapshot("bot", "snap")

    def write(progress: SuiteProgress) -> None:
        if progress.running is None:
            tree.make(tree.resolve(b""), b"by the tests", 0o644, 0, 0, 1)

    lab.test("snap", write, suite=suite("true"))

    assert status(lab.desk) == "test_passed"


def test_a_tree_that_says_how_is_tested_without_a_suite(lab: Lab) -> None:
    with pytest.raises(SuiteError):
        lab.test("snap")
    assert status(lab.desk) == "ready"
    tree = lab.snapshot("bot", "snap")
    ino = tree.make(tree.resolve(b""), b"agent.toml", 0o644, 0, 0, 1)
    tree.write(ino, 0, b'test = "cat a.txt"', None)

    result = lab.test("snap")

    assert (result.success, result.suite) == (True, "agent.toml")


def test_a_real_pytest_suite_counts_by_its_report(lab: Lab) -> None:
    """And leaves neither bytecode nor a cache in the tree."""
    tree = lab.snapshot("bot", "snap")
    ino = tree.make(tree.resolve(b""), b"test_it.py", 0o644, 0, 0, 1)
    tree.write(ino, 0, b"def test_a(): pass\ndef test_b(): assert 0\n", None)

    result = lab.test("snap")

    assert (result.passed_tests, result.total_tests) == (1, 2)
    assert [one.test for one in result.failures] == ["pytest: test_it.test_b"]
    assert not list(Path(lab._folder, "run-1").rglob("*cache*"))


class Gone(Exception):
    """Whoever asked went away."""


def test_an_asker_that_goes_away_leaves_test_error(lab: Lab) -> None:
    def leave(progress: SuiteProgress) -> None:
        raise Gone

    with pytest.raises(Gone):
        lab.test("snap", leave, suite=suite("true"))

    assert status(lab.desk) == "test_error"
    assert lab.test("snap", suite=suite("true")).success


def test_a_connection_that_closes_leaves_test_error(lab: Lab) -> None:
    steps = VERBS["test"].run(
        lab.desk.context, VERBS["test"].params(reference="snap", suite=suite("true"))
    )
    next(steps)
    next(steps)

    steps.close()

    assert status(lab.desk) == "test_error"


def _items(*items: Item) -> Iterator[Item]:
    yield from items


@pytest.mark.parametrize(
    "items",
    [
        (),
        (End(),),
        (Data(0, b"nonsense"), End()),
        (Data(5, b"x"), End()),
        (Data(0, b"\x83\xa6result\x84"), End()),
    ],
)
def test_a_report_that_cannot_be_is_refused(lab: Lab, items: tuple[Item, ...]) -> None:
    with pytest.raises(SuiteRunError):
        lab.desk.run("test", items=_items(*items), reference="snap", suite=suite("true"))

    assert status(lab.desk) == "test_error"


def test_a_test_that_died_is_an_error_at_the_next_start(lab: Lab, tmp_path: Path) -> None:
    desk = lab.desk
    steps = VERBS["test"].run(
        desk.context, VERBS["test"].params(reference="snap", suite=suite("true"))
    )
    next(steps)
    desk.store.commit()

    after = desk.crashed(tmp_path / "crashed")

    assert status(after) == "test_error"
    after.store.close()
    steps.close()


def test_a_new_run_replaces_the_result(lab: Lab) -> None:
    lab.test("snap", suite=suite("echo first"))
    roots = len(lab.desk.store.root_ids())

    lab.test("snap", suite=suite("false"))

    assert len(lab.desk.store.root_ids()) == roots
    assert status(lab.desk) == "test_failed"
    assert b"first" not in lab.desk.run("show", reference="snap", has_log=True).log


def test_a_discarded_snapshot_leaves_nothing(lab: Lab) -> None:
    """Neither the tested tree nor the output; and a renamed one keeps both."""
    desk = lab.desk
    desk.run("discard", reference="snap")
    before = len(desk.store.root_ids())
    desk.run("snapshot", reference="bot", name="snap")
    lab.test("snap", suite=suite("echo kept"))
    store = desk.store
    snapshot = store.rename_snapshot(store.get_snapshot(store.get_agent("bot"), "snap"), "other")
    assert b"kept" in desk.run("show", reference="other", has_log=True).log
    root = snapshot.root

    desk.run("discard", reference="other")
    desk.store.commit()
    desk.reopen()

    assert desk.store.find_output(root) is None
    assert len(desk.store.root_ids()) <= before


def test_own_bytes_count_what_is_kept_for_the_snapshot(lab: Lab) -> None:
    """Its tested tree shares all of it; that makes it nobody else's."""
    tree = lab.snapshot("bot", "snap")
    ino = tree.make(tree.resolve(b""), b"own", 0o644, 0, 0, 1)
    tree.write(ino, 0, bytes(range(256)) * 400, None)

    lab.test("snap", suite=suite("true"))

    (listed,) = lab.desk.run("snapshots").snapshots
    assert listed.own_bytes == 256 * 400


def test_what_is_kept_for_snapshots_is_the_agents_own(lab: Lab, tmp_path: Path) -> None:
    """Clones to compare with belong to no agent by themselves, but take nothing from one."""
    big = tmp_path / "big"
    big.mkdir()
    (big / "data").write_bytes(bytes(range(256)) * 1000)
    lab.desk.take("other", "1.0.0", big)
    lab.desk.run("snapshot", reference="other@1.0.0", name="mine")
    lab.desk.run("snapshot", reference="other", name="work")
    lab.test("mine", suite=suite("true"))

    agents = {agent.agent: agent for agent in lab.desk.run("status").space.agents}

    assert agents["other"].unique >= 256 * 1000


def test_only_its_owner_tests_a_snapshot(lab: Lab) -> None:
    with pytest.raises(AccessDeniedError):
        lab.desk.run("test", caller=STRANGER, reference="snap", suite=suite("true"))
    with pytest.raises(AccessDeniedError):
        lab.desk.run("commit", caller=Caller(4711, 4711), reference="snap")
    assert status(lab.desk) == "ready"

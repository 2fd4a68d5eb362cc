"""The specification's SnapshotIsolationManager, as a program uses it."""

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import kaifs
from kaifs import (
    CommitResult,
    IsolatedSnapshot,
    IsolationConfig,
    KaifsError,
    SnapshotIsolationManager,
    SnapshotOptions,
    TestCase,
    TestResult,
    TestSuite,
    VersionErrorCode,
)
from kaifs.base.errors import (
    AgentNotFoundError,
    ArgumentValueError,
    InvalidVersionError,
    MergeConflictError,
    SnapshotExistsError,
    SnapshotIsolationError,
    SnapshotNotFoundError,
    SnapshotStateError,
    StoreNotFoundError,
    SuiteError,
)
from kaifs.daemon import lifecycle
from kaifs.service.embedded import run_embedded
from kaifs.service.host_source import HostSource
from kaifs.service.import_ import Params as ImportParams
from kaifs.service.suite_runner import SuiteProgress
from kaifs.store.store import Store
from kaifs.tree.fsck import check

ROOT = Path(__file__).parents[2]
FAIR = TestSuite(test=(TestCase(name="fair", command="test -f a.txt"),))
UNFAIR = TestSuite(test=(TestCase(name="unfair", command=("sh", "-c", "echo no; exit 3")),))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[SnapshotIsolationManager]:
    """A store with `bot@1.0.0` that nobody serves."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.txt").write_text("first\n")
    store = tmp_path / "store"
    Store.create(store).close()
    source = iter(HostSource(folder, store))
    run_embedded(store, "import", ImportParams(agent="bot", label="1.0.0"), source=source)
    yield SnapshotIsolationManager(store)
    opened = Store.open(store)
    assert check(opened) == []
    opened.close()


@pytest.fixture(params=["embedded", "daemon"])
def served(
    request: pytest.FixtureRequest, manager: SnapshotIsolationManager, tmp_path: Path
) -> Iterator[SnapshotIsolationManager]:
    """The same, with a daemon and without."""
    if request.param == "embedded":
        yield manager
        return
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    lifecycle.mount(manager.store, mountpoint, [])
    yield manager
    lifecycle.umount(mountpoint)


# --- the package ------------------------------------------------------------------------------


def test_import_alone_loads_nothing() -> None:
    program = (
        "import sys, kaifs\n"
        "print([n for n in sys.modules if n.startswith(('kaifs.', 'msgspec', 'trio', 'lmdb'))])\n"
        "kaifs.SnapshotOptions\n"
        "print({'argparse', 'pyfuse3', 'rich', 'trio'} & set(sys.modules))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\nset()\n"


def test_every_name_is_there_and_documented() -> None:
    assert set(kaifs.__all__) <= set(dir(kaifs))
    for name in kaifs.__all__:
        found = getattr(kaifs, name)
        assert name.startswith("__") or inspect.getdoc(found)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kaifs.no_such_name


def test_every_method_of_the_manager_is_documented_and_typed() -> None:
    for name, method in inspect.getmembers(SnapshotIsolationManager, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name
            assert "return" in method.__annotations__, name


def test_the_package_is_typed() -> None:
    assert (ROOT / "kaifs" / "py.typed").exists()


# --- snapshots --------------------------------------------------------------------------------


def test_options_are_the_specification_s(served: SnapshotIsolationManager) -> None:
    made = served.create_isolated_snapshot(
        "bot",
        "1.0.0",
        SnapshotOptions(
            network_access=True,
            memory_limit="1g",
            cpu_limit="2",
            storage_limit="2g",
            pids_limit="64",
            environment={"A": "b=c"},
            read_only=True,
            allowed_paths=("/agent", "/srv:rw"),
            blocked_syscalls=("mkdir",),
        ),
        name="snap",
    )

    assert isinstance(made, IsolatedSnapshot)
    assert isinstance(made.isolation, IsolationConfig)
    assert (made.id, made.agent_id, made.version, made.status) == ("snap", "bot", "1.0.0", "ready")
    isolation = made.isolation
    assert isolation.environment == {
        "NODE_ENV": "sandbox",
        "KAI_ISOLATION_MODE": "true",
        "A": "b=c",
    }
    assert isolation.network_mode == "bridge"
    resources = isolation.resources
    assert (resources.memory, resources.cpu, resources.storage) == ("1g", "2", "2g")
    assert isolation.permissions.read_only
    assert isolation.permissions.allowed_paths == ("/agent", "/srv:rw")
    assert isolation.permissions.blocked_syscalls == ("mkdir",)
    assert served.get_snapshot("snap") == made


def test_defaults_are_the_specification_s(manager: SnapshotIsolationManager) -> None:
    made = manager.create_isolated_snapshot("bot")

    assert made.id.startswith("s-")
    assert made.isolation == IsolationConfig()


def test_snapshots_are_listed_and_thrown_away(served: SnapshotIsolationManager) -> None:
    for name in ("b", "a"):
        served.create_isolated_snapshot("bot", "1.0.0", name=name)

    assert [one.id for one in served.list_snapshots("bot")] == ["a", "b"]
    served.rollback_snapshot("a")
    assert [one.id for one in served.list_snapshots()] == ["b"]


def test_failures_are_classes_with_codes(manager: SnapshotIsolationManager, tmp_path: Path) -> None:
    manager.create_isolated_snapshot("bot", name="snap")

    with pytest.raises(InvalidVersionError) as caught:
        manager.create_isolated_snapshot("bot", "9.9.9")
    assert isinstance(caught.value, KaifsError)
    assert caught.value.code == VersionErrorCode.INVALID_VERSION
    with pytest.raises(AgentNotFoundError):
        manager.create_isolated_snapshot("nobody", "1.0.0")
    with pytest.raises(SnapshotExistsError):
        manager.create_isolated_snapshot("bot", name="snap")
    with pytest.raises(ArgumentValueError):
        manager.create_isolated_snapshot("bot", options=SnapshotOptions(memory_limit="much"))
    with pytest.raises(ArgumentValueError):
        manager.create_isolated_snapshot("bot", options=SnapshotOptions(environment={"": "x"}))
    with pytest.raises(SnapshotNotFoundError):
        manager.get_snapshot("bot@1.0.0")
    with pytest.raises(SnapshotNotFoundError):
        manager.rollback_snapshot("bot/@snapshots/none")
    with pytest.raises(SnapshotStateError):
        manager.commit_snapshot("snap")
    with pytest.raises(SnapshotStateError):
        manager.test_log("snap")
    with pytest.raises(SuiteError):
        manager.test_in_snapshot("snap", tmp_path / "none.toml")
    with pytest.raises(StoreNotFoundError):
        SnapshotIsolationManager(tmp_path / "none").list_snapshots()
    assert [one.id for one in manager.list_snapshots()] == ["snap"]


def test_the_store_is_the_one_of_the_environment(
    manager: SnapshotIsolationManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAIFS_STORE", str(manager.store))

    assert SnapshotIsolationManager().store == manager.store
    assert SnapshotIsolationManager(str(manager.store)).list_snapshots() == ()


# --- what runs --------------------------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.root
def test_the_whole_way_of_a_change(served: SnapshotIsolationManager) -> None:
    snapshot = served.create_isolated_snapshot("bot", "1.0.0")
    told: list[SuiteProgress] = []

    assert served.run_in_snapshot(snapshot.id, ["sh", "-c", "echo new >b.txt; exit 5"]) == 5
    failed = served.test_in_snapshot(snapshot.id, UNFAIR)
    assert served.get_snapshot(snapshot.id).status == "test_failed"
    with pytest.raises(SnapshotStateError):
        served.commit_snapshot(snapshot.id)
    passed = served.test_in_snapshot(snapshot.id, FAIR, source="mine", on_progress=told.append)
    done = served.commit_snapshot(snapshot.id)

    assert isinstance(failed, TestResult)
    assert (failed.success, failed.passed_tests, failed.total_tests) == (False, 0, 1)
    assert [(one.test, one.error) for one in failed.failures] == [("unfair", "exit status 3: no")]
    assert (passed.success, passed.suite) == (True, "mine")
    assert [(one.done, one.total, one.running) for one in told] == [(0, 1, "fair"), (1, 1, None)]
    assert isinstance(done, CommitResult)
    assert (done.success, done.version, done.snapshot_id) == (True, "1.0.1", snapshot.id)
    assert served.list_snapshots() == ()


@pytest.mark.fuse
@pytest.mark.root
def test_a_suite_is_read_from_a_file(manager: SnapshotIsolationManager, tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.write_text('{"test": [{"name": "one", "command": "echo seen"}]}')
    manager.create_isolated_snapshot("bot", name="snap")

    result = manager.test_in_snapshot("snap", path)

    assert (result.success, result.suite) == (True, str(path))
    assert b"seen" in manager.test_log("snap")


@pytest.mark.fuse
@pytest.mark.root
def test_what_cannot_be_enforced_is_an_isolation_error(manager: SnapshotIsolationManager) -> None:
    manager.create_isolated_snapshot(
        "bot", options=SnapshotOptions(allowed_paths=("/no/such/folder",)), name="snap"
    )

    with pytest.raises(SnapshotIsolationError) as caught:
        manager.test_in_snapshot("snap", FAIR)

    assert caught.value.code == VersionErrorCode.SNAPSHOT_ISOLATION_FAILED
    assert manager.get_snapshot("snap").status == "test_error"


@pytest.mark.fuse
@pytest.mark.root
def test_conflicts_are_in_the_details(manager: SnapshotIsolationManager) -> None:
    for name in ("a", "b"):
        manager.create_isolated_snapshot("bot", name=name)
        manager.run_in_snapshot(name, ["sh", "-c", f"echo {name} >a.txt"])
        manager.test_in_snapshot(name, FAIR)
    manager.commit_snapshot("a", label="2.0.0")

    with pytest.raises(MergeConflictError) as caught:
        manager.commit_snapshot("b")
    with pytest.raises(MergeConflictError):
        manager.rebase_snapshot("b")

    assert caught.value.details["conflicts"] == ["modify/modify: a.txt"]


@pytest.mark.fuse
@pytest.mark.root
def test_a_lent_snapshot_goes_in_the_end_unless_it_was_there(
    manager: SnapshotIsolationManager,
) -> None:
    with manager.lend_snapshot("bot@1.0.0") as made:
        assert manager.run_in_snapshot(made.id, ["true"]) == 0
    assert manager.list_snapshots() == ()

    with manager.lend_snapshot("bot", keep=True) as kept:
        pass
    with manager.lend_snapshot(kept.id) as found:
        assert found == kept
    with pytest.raises(ArgumentValueError), manager.lend_snapshot(kept.id, SnapshotOptions()):
        pass
    assert [one.id for one in manager.list_snapshots()] == [kept.id]


@pytest.mark.fuse
@pytest.mark.root
def test_threads_test_different_snapshots_at_once(manager: SnapshotIsolationManager) -> None:
    """One daemon is there for all of them, and ends with the last."""
    names = [f"s{number}" for number in range(4)]
    for name in names:
        manager.create_isolated_snapshot("bot", name=name)
    results: dict[str, TestResult] = {}
    before = set(os.listdir("/proc/self/fd"))

    def test(name: str) -> None:
        results[name] = manager.test_in_snapshot(name, FAIR if name != "s2" else UNFAIR)

    threads = [threading.Thread(target=test, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert {name: result.success for name, result in results.items()} == {
        "s0": True,
        "s1": True,
        "s2": False,
        "s3": True,
    }
    assert set(os.listdir("/proc/self/fd")) == before

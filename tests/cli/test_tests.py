"""run, test, commit and snapshot --test, with local processes in a sandbox's place."""

import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from kaifs.api import session
from kaifs.api.session import OnUnenforced, ignore_unenforced
from kaifs.base.errors import SnapshotIsolationError
from kaifs.cli.main import main
from kaifs.service.isolation import IsolatedSnapshot
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from tests.service.lab import LocalExecutor


class LocalSession(LocalExecutor):
    """Runs commands in a folder of its own, in no sandbox at all."""

    def run_foreground(
        self, command: Sequence[str], on_unenforced: OnUnenforced = ignore_unenforced
    ) -> int:
        try:
            return subprocess.run(command, cwd=self._folder, check=False).returncode
        except FileNotFoundError:
            return 127


class Bench:
    """The command in this process, with a stand-in for the sandbox."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.store = folder / "store"
        self.folder = folder / "agent"
        self.folder.mkdir()
        self.sessions: list[IsolatedSnapshot] = []
        self._capfd = capfd

    @contextmanager
    def open_session(self, store: Path, snapshot: IsolatedSnapshot) -> Iterator[LocalSession]:
        del store
        self.sessions.append(snapshot)
        yield LocalSession(self.folder)

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._capfd.readouterr()
        status = main(["--store", str(self.store), *map(str, arguments)])
        out, err = self._capfd.readouterr()
        return status, out, err

    def suite(self, *commands: str) -> Path:
        path = self.folder.parent / "suite.toml"
        path.write_text(
            "".join(
                f"[[test]]\nname = 't{number}'\ncommand = {json.dumps(command)}\n"
                for number, command in enumerate(commands, 1)
            )
        )
        return path

    def edit(self, name: bytes, payload: bytes, snapshot: str | None = None) -> None:
        """Write a file of bot's current, or of a snapshot."""
        store = Store.open(self.store)
        agent = store.get_agent("bot")
        root = agent.head if snapshot is None else store.get_snapshot(agent, snapshot).root
        tree = Forest(store).tree(root)
        top = tree.resolve(b"")
        ino = tree.find(top, name)
        if ino is None:
            ino = tree.make(top, name, stat.S_IFREG | 0o644, os.getuid(), os.getgid(), 1)
        tree.write(ino, 0, payload, 1)
        store.close()


@pytest.fixture
def bench(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A store with `bot@1.0.0`, and a snapshot `snap`."""
    bench = Bench(tmp_path, capfd)
    monkeypatch.setattr(session, "open_session", bench.open_session)
    monkeypatch.setattr(session, "prepare", lambda store: nullcontext())
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("one\n")
    assert bench("init")[0] == 0
    assert bench("import", "bot", source, "--as", "1.0.0")[0] == 0
    assert bench("snapshot", "bot", "--name", "snap")[0] == 0
    yield bench
    store = Store.open(bench.store)
    assert check(store) == []
    store.close()


def test_the_output_is_the_specification_s(bench: Bench) -> None:
    passing = bench("test", "snap", "--suite", bench.suite("true", "true"))
    failing = bench("test", "snap", "--suite", bench.suite("true", "echo no; exit 4"))

    assert passing == (
        0,
        "Running tests in snapshot snap...\n✅ All tests passed (2/2)\n",
        "",
    )
    assert failing == (
        1,
        "Running tests in snapshot snap...\n❌ Tests failed (1/2)\n  ❌ t2: exit status 4: no\n",
        "",
    )


def test_json_is_the_specification_s_test_result(bench: Bench) -> None:
    status, out, err = bench("test", "snap", "--json", "--suite", bench.suite("false"))

    document = json.loads(out)
    assert status == 1
    assert document["success"] is False
    assert (document["passedTests"], document["totalTests"]) == (0, 1)
    assert document["failures"] == [{"test": "t1", "error": "exit status 1"}]
    assert document["status"] == "test_failed"
    assert err.startswith("❌ Tests failed (0/1)\n")


def test_a_commit_before_tests_is_refused_and_after_gives_a_version(bench: Bench) -> None:
    status, out, err = bench("commit", "snap")
    assert (status, out) == (1, "")
    assert err.startswith("kaifs: E142:")
    assert "Cannot commit snapshot with status: ready" in err
    bench("test", "snap", "--suite", bench.suite("echo hello"))

    status, out, err = bench("commit", "snap", "--json", "--as", "2.0.0")

    document = json.loads(out)
    assert (status, err) == (0, "")
    assert (document["success"], document["version"]) == (True, "2.0.0")
    assert (document["snapshotId"], document["agentId"]) == ("snap", "bot")
    assert document["timestamp"].endswith("Z")
    status, out, _ = bench("show", "bot@2.0.0")
    assert "Tests:    passed (1/1)" in out
    assert "Command:  echo hello" in out
    evidence = json.loads(bench("show", "bot@2.0.0", "--json")[1])["metadata"]["evidence"]
    assert evidence["suite"].endswith("suite.toml")
    assert evidence["limits"]["memory"] == "512m"


def test_output_is_kept_and_shown(bench: Bench) -> None:
    bench("test", "snap", "--suite", bench.suite("seq 100", "printf 'a\\033[31mb'"))

    _, log, _ = bench("test", "snap", "--log")
    _, shown, _ = bench("show", "snap")

    assert "\n100\n=== t2: ok" in log
    assert log.endswith("a\x1b[31mb")
    assert "Status:   test_passed" in shown
    assert "\x1b" not in shown
    assert shown.endswith("a [31mb\n")
    assert json.loads(bench("show", "snap", "--json")[1])["log"] == log


def test_no_output_is_an_error(bench: Bench) -> None:
    status, out, err = bench("test", "snap", "--log")

    assert (status, out) == (1, "")
    assert "no output" in err


def test_conflicts_are_listed(bench: Bench) -> None:
    bench.edit(b"a.txt", b"ours")
    bench.edit(b"a.txt", b"them", "snap")
    bench.edit(b"b.txt", b"ours")
    bench.edit(b"b.txt", b"them", "snap")
    bench("test", "snap", "--suite", bench.suite("true"))

    status, out, err = bench("commit", "snap")
    as_json = json.loads(bench("commit", "snap", "--json", "-q")[1])

    assert (status, out) == (1, "")
    assert err.splitlines()[:2] == ["  modify/modify: a.txt", "  add/add: b.txt"]
    assert err.splitlines()[2].startswith("kaifs: E143:")
    assert as_json["error"]["code"] == "E143"
    assert as_json["error"]["details"]["conflicts"] == [
        "modify/modify: a.txt",
        "add/add: b.txt",
    ]


def test_rebase_tests_again_by_the_same_suite_and_commits(bench: Bench) -> None:
    bench.edit(b"a.txt", b"them", "snap")
    bench("test", "snap", "--suite", bench.suite("true"))
    bench.edit(b"b.txt", b"ours")

    status, out, _ = bench("commit", "snap", "--rebase")

    assert status == 0
    assert out.splitlines() == [
        "✅ Snapshot rebased: snap",
        "Running tests in snapshot snap...",
        "✅ All tests passed (1/1)",
        "✅ Snapshot committed: bot@1.0.1",
    ]
    assert len(bench.sessions) == 2


def test_rebase_does_not_commit_what_fails_then(bench: Bench) -> None:
    bench("test", "snap", "--suite", bench.suite("true"))

    status, out, _ = bench("commit", "snap", "--rebase", "--suite", bench.suite("false"))

    assert status == 1
    assert "committed" not in out
    assert "test_failed" in bench("snapshots")[1]


def test_snapshot_can_test_at_once(bench: Bench) -> None:
    status, out, _ = bench(
        "snapshot", "bot", "--name", "b", "--test", "--suite", bench.suite("true")
    )
    assert status == 0
    assert out.splitlines()[-1] == "✅ All tests passed (1/1)"

    status, out, _ = bench(
        "snapshot", "bot", "--name", "c", "--json", "--test", "--test-suite", bench.suite("false")
    )
    document = json.loads(out)
    assert status == 1
    assert (document["id"], document["status"]) == ("c", "test_failed")
    assert document["tests"]["totalTests"] == 1


def test_a_snapshot_that_cannot_be_tested_is_not_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refuse(store: Path, snapshot: IsolatedSnapshot) -> Iterator[LocalSession]:
        raise SnapshotIsolationError("memory cannot be limited here")
        yield

    monkeypatch.setattr(session, "open_session", refuse)

    status, _, err = bench(
        "snapshot", "bot", "--name", "b", "--test", "--suite", bench.suite("true")
    )
    assert status == 1
    assert err.startswith("kaifs: E103:")
    assert bench("show", "bot/@snapshots/b")[0] == 1
    status, _, err = bench("snapshot", "bot", "--test", "--suite", "/nonexistent.toml")
    assert status == 1
    assert err.startswith("kaifs: E141:")
    assert bench("snapshot", "bot", "--suite", bench.suite("true"))[0] == 1


def test_run_gives_the_command_s_exit_status(bench: Bench) -> None:
    assert bench("run", "snap", "--", "sh", "-c", "echo out; exit 9")[:2] == (9, "out\n")
    assert bench("run", "snap", "--", "no-such-command")[0] == 127
    assert bench("run", "no-such-snapshot", "--", "true")[0] == 125
    assert bench("run", "snap", "--", "echo", "--", "-n", "--keep")[1] == "-- -n --keep\n"
    assert bench("run", "snap", "--memory", "1g", "--", "true")[0] == 125


def test_run_of_a_version_makes_a_snapshot_and_discards_it(bench: Bench) -> None:
    status, _, _ = bench("run", "bot@1.0.0", "--memory", "1g", "--", "true")

    assert status == 0
    assert bench.sessions[0].isolation.resources.memory == "1g"
    assert bench.sessions[0].version == "1.0.0"
    assert [one["id"] for one in json.loads(bench("snapshots", "--json")[1])] == ["snap"]


def test_run_can_keep_its_snapshot(bench: Bench) -> None:
    status, _, err = bench("run", "--keep", "bot", "--", "true")

    assert status == 0
    assert bench.sessions[0].id in err
    assert len(json.loads(bench("snapshots", "--json")[1])) == 2


@pytest.mark.fuse
def test_a_daemon_keeps_the_same_states(bench: Bench) -> None:
    """Also what comes through the mount counts, and who goes away leaves test_error."""
    mountpoint = bench.store.parent / "mnt"
    mountpoint.mkdir()
    snapshot = mountpoint / "bot" / "@snapshots" / "snap"
    assert bench("mount", bench.store, mountpoint)[0] == 0
    try:
        (snapshot / "a.txt").write_text("changed\n")
        assert bench("test", "snap", "--suite", bench.suite("true"))[0] == 0
        assert os.getxattr(snapshot, "user.kaifs.status") == b"test_passed"
        (snapshot / "a.txt").write_text("again\n")
        os.sync()
        assert os.getxattr(snapshot, "user.kaifs.status") == b"ready"
        assert bench("commit", "snap")[0] == 1

        child = os.fork()
        if child == 0:
            # Ended in the middle of its tests, as by SIGKILL: nothing is said to anybody.
            session.open_session = lambda store, snapshot: os._exit(0)
            main(["--store", str(bench.store), "test", "snap", "--suite", str(bench.suite("true"))])
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert bench("test", "snap", "--log")[0] == 0
        until_status(bench, "test_error")

        (mountpoint / "bot" / "current" / "b.txt").write_text("current\n")
        assert bench("test", "snap", "--suite", bench.suite("true"))[0] == 0
        assert bench("commit", "snap")[0] == 0
        assert os.listdir(snapshot.parent) == []
        current = mountpoint / "bot" / "current"
        assert (current / "a.txt").read_text() == "again\n"
        assert (current / "b.txt").read_text() == "current\n"
        assert os.getxattr(current, "user.kaifs.version") == b"1.0.1"
    finally:
        assert bench("umount", mountpoint)[0] == 0


def until_status(bench: Bench, wanted: str) -> None:
    """Wait for the daemon to notice."""
    until = time.monotonic() + 10
    while json.loads(bench("snapshots", "--json")[1])[0]["status"] != wanted:
        assert time.monotonic() < until
        time.sleep(0.02)

"""run, test, commit and discard through real sandboxes, with a daemon and without one."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kaifs.linux.mounts import mounts
from kaifs.linux.processes import ProcessId, identify, is_running
from kaifs.sandbox.janitor import find_group_folders, find_processes
from kaifs.store.superblock import read_superblock
from tests.cli.conftest import Done, Shell
from tests.daemon.site import wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

HAS_PYTEST = (
    subprocess.run(
        ["/usr/bin/python3", "-c", "import pytest"], check=False, capture_output=True
    ).returncode
    == 0
)
JUNIT = """<testsuite name="s" tests="3" failures="1" errors="0" skipped="0">
<testcase classname="c" name="one"/><testcase classname="c" name="two"/>
<testcase classname="c" name="three"><failure message="no luck">trace</failure></testcase>
</testsuite>"""


class Workshop:
    """A store with `bot@1.0.0`, and commands on it."""

    def __init__(self, kaifs: Shell, mountpoint: Path | None) -> None:
        self.kaifs = kaifs
        self.mountpoint = mountpoint
        self._folder = kaifs.store.parent

    def run(self, *arguments: str, given: bytes = b"") -> Done:
        """Run `kaifs run`, with *given* on its standard input."""
        process = self.kaifs.start("run", *arguments, stdin=subprocess.PIPE)
        out, err = process.communicate(given, timeout=60)
        return Done(process.returncode, out.decode(errors="replace"), err.decode(), out)

    def shell(self, reference: str, script: str) -> Done:
        """Run a shell's script in a snapshot."""
        return self.run(reference, "--", "sh", "-c", script)

    def snapshot(self, name: str, *options: str) -> str:
        """Make a snapshot of bot."""
        self.kaifs.fine("snapshot", "bot", "--name", name, "-q", *options)
        return name

    def statuses(self) -> dict[str, str]:
        """Return the state of each snapshot."""
        found = json.loads(self.kaifs.fine("snapshots", "--json"))
        return {one["id"]: one["status"] for one in found}

    def suite(self, *commands: str, suffix: str = ".toml", **more: Any) -> Path:
        """Write a suite file; *more* goes into each test."""
        tests = [
            {"name": f"t{number}", "command": command, **more}
            for number, command in enumerate(commands, 1)
        ]
        path = self._folder / f"suite{suffix}"
        if suffix == ".toml":
            path.write_text(
                "".join(
                    "[[test]]\n"
                    + "".join(f"{key} = {_toml(value)}\n" for key, value in test.items())
                    for test in tests
                )
            )
        else:
            # What is JSON is YAML too.
            path.write_text(json.dumps({"test": tests}))
        return path

    def test(self, name: str, *commands: str, **options: Any) -> Done:
        """Run `kaifs test` with a suite of *commands*."""
        return self.kaifs("test", name, "--suite", self.suite(*commands, **options))

    @property
    def label(self) -> str:
        """What the janitor knows the store's sandboxes by."""
        return read_superblock(self.kaifs.store).uuid.hex()


def _toml(value: Any) -> str:
    """Return *value* as TOML has it: where it differs from JSON is in tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture(params=["embedded", "daemon"])
def shop(request: pytest.FixtureRequest, bot: Shell, tmp_path: Path) -> Iterator[Workshop]:
    """A store, served or not; in the end nothing of a sandbox is left."""
    mountpoint = None
    if request.param == "daemon":
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        bot.fine("mount", bot.store, mountpoint)
    shop = Workshop(bot, mountpoint)
    try:
        yield shop
        assert find_processes(shop.label) == []
        assert find_group_folders(shop.label) == []
    finally:
        if mountpoint is not None:
            assert bot("umount", mountpoint).status == 0
    assert [entry for entry in mounts() if tmp_path in entry.mountpoint.parents] == []


# --- run --------------------------------------------------------------------------------------


def test_the_exit_status_is_the_command_s_or_says_why_there_is_none(shop: Workshop) -> None:
    assert shop.run("bot", "--", "true").status == 0
    assert shop.shell("bot", "exit 42").status == 42
    assert shop.shell("bot", "kill -9 $$").status == 137
    assert shop.run("bot", "--", "/agent/a.txt").status == 126
    assert shop.run("bot", "--", "no-such-command").status == 127
    assert shop.run("no-such-agent", "--", "true").status == 125
    assert shop.run("bot@9.9.9", "--", "true").status == 125
    assert shop.run("bot").status == 125


def test_the_streams_are_the_caller_s(shop: Workshop) -> None:
    payload = os.urandom(300_000)

    done = shop.run("bot", "--", "sh", "-c", "cat; echo end >&2", given=payload)

    assert (done.status, done.raw, done.err) == (0, payload, "end\n")


def test_a_command_sees_the_agent_s_files_at_agent_and_nothing_of_the_store(
    shop: Workshop,
) -> None:
    done = shop.shell("bot@1.0.0", f"pwd; cat lib/x.py; ls {shlex.quote(str(shop.kaifs.store))}")

    assert done.out == "/agent\nx = 1\n"
    assert done.status != 0


def test_a_version_s_snapshot_goes_with_its_command(shop: Workshop) -> None:
    assert shop.shell("bot@1.0.0", "echo new >a.txt").status == 0
    assert shop.run("bot", "--", "no-such-command").status == 127

    assert shop.statuses() == {}
    assert shop.shell("bot", "cat a.txt").out == "first\n"


def test_keep_keeps_it_with_what_was_written(shop: Workshop) -> None:
    done = shop.run("--keep", "bot", "--", "sh", "-c", "echo new >a.txt")

    (name,) = shop.statuses()
    assert done.err == f"kaifs: kept as bot/@snapshots/{name}\n"
    assert shop.shell(name, "cat a.txt").out == "new\n"
    assert shop.run("--keep", name, "--", "true").status == 125
    assert shop.run("--memory", "1g", name, "--", "true").status == 125


def test_what_a_snapshot_s_command_writes_stays_in_the_snapshot(shop: Workshop) -> None:
    name = shop.snapshot("a")

    assert shop.shell(name, "echo new >b.txt; chmod 600 b.txt; ln -s b.txt c").status == 0

    assert shop.shell(name, "cat c; stat -c %a,%U b.txt").out == "new\n600,agent\n"
    assert shop.kaifs("diff", "bot", "bot/@snapshots/a").out == "A\tb.txt\nA\tc\n"
    if shop.mountpoint is not None:
        status = (shop.mountpoint / "bot" / "@snapshots" / "a" / "b.txt").stat()
        assert (status.st_uid, status.st_size) == (os.getuid(), 4)


def test_read_only_is_read_only(shop: Workshop) -> None:
    done = shop.run("--read-only", "bot", "--", "sh", "-c", "cat a.txt; echo x >a.txt")

    assert done.out == "first\n"
    assert "Read-only file system" in done.err
    assert done.status != 0


def test_environment_is_the_specification_s_and_what_was_asked_for(shop: Workshop) -> None:
    done = shop.run("--env", "A=b c", "--env", "NODE_ENV=mine", "bot", "--", "env")

    lines = done.out.splitlines()
    assert "A=b c" in lines
    assert "NODE_ENV=mine" in lines
    assert "KAI_ISOLATION_MODE=true" in lines
    assert not any(line.startswith("KAIFS_STORE") for line in lines)
    assert shop.run("--env", "A", "bot", "--", "true").status == 125


def test_allowed_folders_are_shown_as_asked(shop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "in").write_text("told\n")
    folder.chmod(0o777)
    tmp_path.chmod(0o755)

    read = shop.run("--allow", str(folder), "bot", "--", "cat", f"{folder}/in")
    refused = shop.run("--allow", str(folder), "bot", "--", "touch", f"{folder}/x")
    written = shop.run("--allow", f"{folder}:rw", "bot", "--", "touch", f"{folder}/y")
    hidden = shop.run("bot", "--", "cat", f"{folder}/in")

    assert (read.status, read.out) == (0, "told\n")
    assert refused.status != 0
    assert written.status == 0
    assert [path.name for path in folder.iterdir()] != ["in"]
    assert not (folder / "x").exists()
    assert hidden.status != 0


def test_the_store_cannot_be_allowed(shop: Workshop) -> None:
    for path in (shop.kaifs.store, shop.kaifs.store.parent):
        done = shop.run("--allow", str(path), "bot", "--", "true")

        assert done.status == 125
        assert done.err.startswith(("kaifs: E103", "kaifs: E140"))
    assert shop.statuses() == {}


def test_a_denied_system_call_fails(shop: Workshop) -> None:
    done = shop.run("--deny-syscall", "mkdir", "bot", "--", "mkdir", "x")

    assert done.status == 1
    assert "Operation not permitted" in done.err
    assert shop.run("--deny-syscall", "no_such_call", "bot", "--", "true").status == 125


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--memory", "many"), "E140"),
        (("--memory", "1k"), "E140"),
        (("--cpus", "0"), "E140"),
        (("--pids", "1"), "E140"),
        (("--storage", "0"), "E140"),
        (("--image", "x"), "E140"),
        (("--allow", "relative"), "E140"),
        (("--allow", "/no/such/folder"), "E103"),
    ],
)
def test_what_cannot_be_enforced_is_refused_and_nothing_runs(
    shop: Workshop, tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    done = shop.run(*options, "bot", "--", "touch", "x")

    assert done.status == 125
    assert done.err.startswith(f"kaifs: {code}:"), done.err
    assert len(done.err.splitlines()) == 1
    assert shop.statuses() == {}


def test_limits_are_the_kernel_s_answer(shop: Workshop) -> None:
    written = shop.run(
        "--storage", "1m", "bot", "--", "dd", "if=/dev/zero", "of=x", "bs=1M", "count=4"
    )
    hog = shop.run(
        "--memory", "32m", "bot", "--", "perl", "-e", "my $x = 'x' x (128 << 20); print 1"
    )

    assert written.status != 0
    assert "quota exceeded" in written.err
    assert (hog.status, hog.out) != (0, "1")


def test_two_commands_do_not_share_a_snapshot_and_do_share_the_store(shop: Workshop) -> None:
    """Without a mount the second uses the daemon of the first, and outlives it."""
    name = shop.snapshot("a")
    first = shop.kaifs.start(
        "run", name, "--", "sh", "-c", "echo up; read line", stdin=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == b"up\n"
    second = shop.kaifs.start(
        "run", "bot", "--", "sh", "-c", "echo up; read line; cat a.txt", stdin=subprocess.PIPE
    )
    assert second.stdout is not None
    assert second.stdout.readline() == b"up\n"

    busy = shop.run(name, "--", "true")
    first.communicate(b"\n", timeout=60)
    out, err = second.communicate(b"\n", timeout=60)

    assert busy.status == 125
    assert busy.err.startswith("kaifs: E103:")
    assert (first.returncode, second.returncode, out, err) == (0, 0, b"first\n", b"")


def test_an_interrupt_ends_the_command_and_what_it_started(shop: Workshop) -> None:
    process = shop.kaifs.start("run", "bot", "--", "sh", "-c", "echo up; sleep 1000 & sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    process.send_signal(2)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert shop.statuses() == {}


# --- test ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".json"])
def test_a_suite_gives_state_counts_and_log(shop: Workshop, suffix: str) -> None:
    name = shop.snapshot("a")

    failed = shop.test(name, "echo fine", "echo why; exit 3", suffix=suffix)
    assert shop.statuses() == {"a": "test_failed"}
    log = shop.kaifs.fine("test", name, "--log")
    passed = shop.test(name, "test -f a.txt", suffix=suffix, env={"A": "1"}, timeout=30)

    assert failed.status == 1
    assert "Tests failed (1/2)" in failed.out
    assert "t2: exit status 3: why" in failed.out
    assert "fine" in log
    assert "why" in log
    assert passed.status == 0
    assert shop.statuses() == {"a": "test_passed"}


def test_a_case_is_judged_by_status_output_and_time(shop: Workshop) -> None:
    name = shop.snapshot("a")

    slow = shop.test(name, "sleep 100", timeout=0.5)
    status = shop.test(name, "exit 4", expectExit=4)
    right = shop.test(name, "echo $WORD", env={"WORD": "hello"}, expectOutput="^hel+o$")
    wrong = shop.test(name, "echo no", expectOutput="yes")

    assert (slow.status, status.status, right.status, wrong.status) == (1, 0, 0, 1)
    assert "timed out after 0.5 s" in slow.out


def test_junit_reports_are_counted(shop: Workshop) -> None:
    name = shop.snapshot("a")
    report = shlex.quote(JUNIT)

    done = shop.kaifs(
        "test",
        name,
        "--json",
        "--suite",
        shop.suite(f'printf %s {report} >"$KAIFS_REPORTS/r.xml"; exit 1'),
    )

    document = done.document
    assert (document["passedTests"], document["totalTests"]) == (2, 3)
    assert len(document["failures"]) == 1
    assert "three" in document["failures"][0]["test"]
    assert "no luck" in document["failures"][0]["error"]
    assert shop.shell(name, "ls -A").out == "a.txt\nlib\n"


def test_without_a_suite_the_tree_says(shop: Workshop) -> None:
    name = shop.snapshot("a")
    nothing = shop.kaifs("test", name)
    manifest = "[[test]]\nname = 'own'\ncommand = 'test -f a.txt'\n"
    assert shop.shell(name, f"printf %s {shlex.quote(manifest)} >agent.toml").status == 0

    done = shop.kaifs("test", name, "--json")

    assert nothing.status == 1
    assert nothing.err.startswith("kaifs: E141:")
    assert done.status == 0
    assert done.document["suite"] == "agent.toml"


@pytest.mark.skipif(not HAS_PYTEST, reason="the system's python3 has no pytest")
def test_pytest_is_detected_and_counted(shop: Workshop) -> None:
    name = shop.snapshot("a")
    script = "printf 'def test_a(): pass\\ndef test_b(): assert 0\\n' >test_it.py"
    assert shop.shell(name, script).status == 0

    document = shop.kaifs("test", name, "--json").document

    assert (document["suite"], document["passedTests"], document["totalTests"]) == ("pytest", 1, 2)


def test_tests_that_cannot_run_are_a_test_error(shop: Workshop) -> None:
    name = shop.snapshot("a", "--allow", "/no/such/folder")

    done = shop.test(name, "true")

    assert done.status == 1
    assert done.err.startswith("kaifs: E103:")
    assert shop.statuses() == {"a": "test_error"}


def test_a_snapshot_is_made_and_tested_at_once(shop: Workshop) -> None:
    done = shop.kaifs("snapshot", "bot", "--json", "--test", "--suite", shop.suite("false"))

    assert done.status == 1
    assert done.document["status"] == "test_failed"
    assert list(shop.statuses().values()) == ["test_failed"]


# --- commit -------------------------------------------------------------------------------------


def test_the_whole_way_of_a_change(shop: Workshop) -> None:
    """Break it: refused. Mend it: the next version, with the evidence in its record."""
    name = shop.snapshot("a")
    suite = shop.suite("grep -q 'x = 1' lib/x.py")
    untested = shop.kaifs("commit", name)
    shop.shell(name, "echo 'x = 2' >lib/x.py")
    broken = shop.kaifs("test", name, "--suite", suite)
    failed = shop.kaifs("commit", name)
    shop.shell(name, "echo 'x = 1' >lib/x.py; echo new >b.txt")
    mended = shop.kaifs("test", name, "--suite", suite)

    done = shop.kaifs("commit", name, "--json")

    assert (untested.status, broken.status, failed.status, mended.status) == (1, 1, 1, 0)
    assert "status: ready" in untested.err
    assert "status: test_failed" in failed.err
    assert done.status == 0
    assert (done.document["version"], done.document["snapshotId"]) == ("1.0.1", "a")
    assert shop.statuses() == {}
    record = json.loads(shop.kaifs.fine("show", "bot@1.0.1", "--json"))
    evidence = record["metadata"]["evidence"]
    assert evidence["success"] is True
    assert evidence["command"] == ["grep -q 'x = 1' lib/x.py"]
    assert (evidence["passedTests"], evidence["totalTests"]) == (1, 1)
    assert evidence["isolation"]["networkMode"] == "none"
    assert len(evidence["suiteHash"]) == len(evidence["outputHash"]) == 64
    assert shop.run("bot", "--", "cat", "b.txt").out == "new\n"


def test_a_write_after_the_tests_takes_the_result_back(shop: Workshop) -> None:
    name = shop.snapshot("a")
    assert shop.test(name, "true").status == 0
    assert shop.shell(name, "cat a.txt").status == 0
    assert shop.statuses() == {"a": "test_passed"}

    shop.shell(name, "echo more >>a.txt")

    assert shop.statuses() == {"a": "ready"}
    done = shop.kaifs("commit", name)
    assert done.status == 1
    assert "something changed" in done.err


def test_conflicts_are_listed_and_nothing_changes(shop: Workshop) -> None:
    for name in ("a", "b"):
        shop.snapshot(name)
        shop.shell(name, f"echo {name} >a.txt; echo {name} >{name}.txt")
        assert shop.test(name, "true").status == 0
    shop.kaifs.fine("commit", "a")
    before = shop.kaifs.fine("list", "bot", "--json")

    done = shop.kaifs("commit", "b")

    assert done.status == 1
    assert done.err.splitlines()[0] == "  modify/modify: a.txt"
    assert done.err.splitlines()[1].startswith("kaifs: E143:")
    assert shop.kaifs.fine("list", "bot", "--json") == before
    assert shop.statuses() == {"b": "test_passed"}


def test_rebase_merges_tests_again_and_commits(shop: Workshop) -> None:
    for name in ("a", "b"):
        shop.snapshot(name)
        shop.shell(name, f"echo {name} >{name}.txt")
        assert shop.test(name, "test -f a.txt").status == 0
    shop.kaifs.fine("commit", "a")

    done = shop.kaifs("commit", "b", "--rebase", "--as", "2.0.0")

    assert done.status == 0, done.err
    assert "Tests" in done.out or "tests" in done.out
    assert shop.shell("bot@2.0.0", "cat a.txt b.txt").out == "a\nb\n"


# --- discard, nesting, folders --------------------------------------------------------------------


def test_discard_kills_what_runs_in_it(shop: Workshop) -> None:
    name = shop.snapshot("a")
    script = "sleep 1000 & setsid sleep 1000 & echo up; sleep 1000"
    process = shop.kaifs.start("run", name, "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    shop.kaifs.fine("discard", name)

    process.communicate(timeout=30)
    assert process.returncode == 137
    assert shop.statuses() == {}


def test_discard_ends_tests(shop: Workshop) -> None:
    name = shop.snapshot("a")
    suite = shop.suite("sleep 1000")
    process = shop.kaifs.start("test", name, "--suite", suite)
    wait_until(lambda: _has_state(shop, "testing"))

    shop.kaifs.fine("discard", name)

    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith((b"kaifs: E144:", b"kaifs: E124:")), err


def _has_state(shop: Workshop, state: str) -> bool:
    return (shop.kaifs.store / "run" / "daemon.json").exists() and state in shop.kaifs(
        "snapshots"
    ).out


def test_a_snapshot_of_a_snapshot_is_independent(shop: Workshop) -> None:
    outer = shop.snapshot("outer")
    shop.shell(outer, "echo outer >b.txt")
    shop.kaifs.fine("snapshot", outer, "--name", "inner", "-q")

    shop.shell("inner", "echo inner >>b.txt")
    shop.shell(outer, "echo more >c.txt")

    assert shop.shell("inner", "cat b.txt; ls").out == "outer\ninner\na.txt\nb.txt\nlib\n"
    assert shop.shell(outer, "cat b.txt; ls").out == "outer\na.txt\nb.txt\nc.txt\nlib\n"
    shop.kaifs.fine("discard", outer)
    assert shop.shell("inner", "cat b.txt").out == "outer\ninner\n"
    assert shop.test("inner", "test -f b.txt").status == 0
    shop.kaifs.fine("commit", "inner")
    assert shop.shell("bot", "cat b.txt").out == "outer\ninner\n"


def test_a_snapshot_made_with_mkdir_has_the_default_limits(shop: Workshop) -> None:
    if shop.mountpoint is None:
        pytest.skip("needs a mount")
    folder = shop.mountpoint / "bot" / "@snapshots" / "made"
    folder.mkdir()
    (folder / "b.txt").write_text("new\n")

    done = shop.shell("made", "cat b.txt; echo $NODE_ENV; echo in >c.txt")

    assert done.out == "new\nsandbox\n"
    assert (folder / "c.txt").read_text() == "in\n"
    isolation = json.loads(shop.kaifs.fine("show", "made", "--json"))["isolation"]
    assert isolation["resources"] == {
        "memory": "512m",
        "cpu": "0.5",
        "storage": "1g",
        "pids": "512",
    }
    folder.rmdir()
    assert shop.statuses() == {}


def test_rmdir_kills_what_runs_in_it(shop: Workshop) -> None:
    if shop.mountpoint is None:
        pytest.skip("needs a mount")
    name = shop.snapshot("a")
    process = shop.kaifs.start("run", name, "--", "sh", "-c", "echo up; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    (shop.mountpoint / "bot" / "@snapshots" / name).rmdir()

    process.communicate(timeout=30)
    assert process.returncode == 137


def test_no_daemon_is_left_without_a_mount(shop: Workshop) -> None:
    shop.run("bot", "--", "true")
    shop.run("--allow", "/no/such/folder", "bot", "--", "true")

    document = json.loads(shop.kaifs.fine("status", "--json"))

    assert (document["daemon"] is None) == (shop.mountpoint is None)


def test_a_warden_that_is_killed_leaves_nothing(shop: Workshop) -> None:
    name = shop.snapshot("a")
    process = shop.kaifs.start("test", name, "--suite", shop.suite("sleep 1000"))
    wait_until(lambda: _has_state(shop, "testing"))
    inside = _children(process.pid)

    process.kill()
    process.communicate(timeout=30)

    wait_until(lambda: not any(map(is_running, inside)))
    wait_until(lambda: shop.statuses() == {"a": "test_error"})
    assert shop.test(name, "true").status == 0


def _children(pid: int) -> list[ProcessId]:
    listing = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in listing if (found := identify(int(child))) is not None]

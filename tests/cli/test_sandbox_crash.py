"""SIGKILL of daemon, warden or sandbox while something is done with a snapshot.

Whatever dies, and when: the states are some that the lifecycle has, the store is
sound, and nothing is left over of the sandbox. As in `tests/daemon/test_crash.py`
it says nothing about a loss of power.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kaifs.base.errors import KaifsError
from kaifs.control.client import find_daemon
from kaifs.control.info import read_info
from kaifs.daemon import lifecycle
from kaifs.linux.mounts import mounts
from kaifs.linux.processes import ProcessId, identify, send_signal, wait_end
from kaifs.meta.records import SnapshotRecord
from kaifs.sandbox.janitor import clean, find_group_folders, find_processes
from kaifs.service.record import decode_record
from kaifs.store.store import Store
from kaifs.store.superblock import read_superblock
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from tests.cli.conftest import Shell
from tests.daemon.site import wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_CRASH_ROUNDS", "6"))
"""`KAIFS_CRASH_ROUNDS=100` is the long form: so many for each operation, with and without mount."""
DELAY_MAX_S = 1.0
"""An operation here takes about as long; many of the kills come in the middle."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is interrupted."""

    verb: tuple[str, ...]
    """`NAME`, `SUITE` stand for the snapshot and for a suite file."""
    begins: str | None
    """State of the snapshot before; None if there is none."""
    states: frozenset[str | None]
    """States that it may have after."""


OPERATIONS = {
    "snapshot": Operation(("snapshot", "bot", "--name", "NAME"), None, frozenset({None, "ready"})),
    # A sandbox that is killed is a test that failed; whoever asked is told so.
    "test": Operation(
        ("test", "NAME", "--suite", "SUITE"),
        "ready",
        frozenset({"ready", "test_error", "test_passed", "test_failed"}),
    ),
    "commit": Operation(("commit", "NAME"), "test_passed", frozenset({"test_passed", None})),
    "discard": Operation(("discard", "NAME"), "running", frozenset({"ready", None})),
}


class Scene:
    """A store that is mounted or not, and what is done to it."""

    def __init__(self, kaifs: Shell, mountpoint: Path | None) -> None:
        self.kaifs = kaifs
        self.mountpoint = mountpoint
        self.label = read_superblock(kaifs.store).uuid.hex()
        self.token = f"1{secrets.randbelow(10**9):09}"
        """Seconds that commands in sandboxes sleep: by it they are told from all others."""
        self.suite = kaifs.store.parent / "suite.toml"
        # Long enough to be hit, and writing all the time.
        self.suite.write_text(
            "[[test]]\nname = 'one'\ncommand = 'for i in 1 2 3 4 5; do echo $i >f$i; sync; done'\n"
            "[[test]]\nname = 'two'\ncommand = 'sleep 0.2; test -f a.txt'\n"
        )

    def mount(self) -> None:
        """Mount, if this is a scene with a mount and it is not mounted."""
        if self.mountpoint is not None and find_daemon(self.kaifs.store) is None:
            self.kaifs.fine("mount", self.kaifs.store, self.mountpoint)

    def umount(self) -> None:
        """Take down what is left of the mount."""
        if self.mountpoint is not None:
            wait_until(self._is_unmounted, 60)

    def _is_unmounted(self) -> bool:
        assert self.mountpoint is not None
        try:
            lifecycle.umount(self.mountpoint, lazy=True, probe_timeout_s=1)
        except KaifsError:
            return not any(entry.mountpoint == self.mountpoint for entry in mounts())
        return False

    def begin(self, name: str, state: str | None) -> "list[subprocess.Popen[bytes]]":
        """Bring a snapshot into a state; return the command that runs in it, if one does."""
        if state is None:
            return []
        self.kaifs.fine("snapshot", "bot", "--name", name, "-q")
        if state == "test_passed":
            self.kaifs.fine("run", name, "--", "sh", "-c", f"echo {name} >{name}")
            self.kaifs.fine("test", name, "--suite", self.suite, "-q")
        if state != "running":
            return []
        script = f"sleep {self.token} & echo up; sleep {self.token}"
        process = self.kaifs.start("run", name, "--", "sh", "-c", script)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return [process]

    def victims(self, kind: str, warden: int) -> list[ProcessId]:
        """Return the processes to be killed, if they are there by now."""
        if kind == "daemon":
            info = read_info(self.kaifs.store)
            return [] if info is None else [info.process]
        if kind == "warden":
            pids = [warden]
        else:
            pids = [pid for pid in _descendants(warden) if _is_sandbox(pid)]
        return [found for pid in pids if (found := identify(pid)) is not None]

    def commands_left(self) -> list[str]:
        """Return what still runs of the commands in sandboxes."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    line = Path("/proc", entry, "cmdline").read_bytes()
                except OSError:
                    continue
                if line == f"sleep\0{self.token}\0".encode():
                    found.append(entry)
        return found


def _descendants(pid: int) -> list[int]:
    try:
        listing = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [one for child in listing for one in (int(child), *_descendants(int(child)))]


def _is_sandbox(pid: int) -> bool:
    try:
        return b"bwrap" in Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return False


def _has_begun_nothing(process: ProcessId) -> bool:
    """Return whether *process* is a sandbox's first one, waiting for a word of its parent.

    If that dies before it gives it, nobody else does: this is for the janitor.
    """
    return _is_sandbox(process.pid) and not _descendants(process.pid)


@pytest.mark.parametrize("served", ["embedded", "mounted"])
@pytest.mark.parametrize("what", OPERATIONS)
def test_sigkill_leaves_a_state_of_the_lifecycle_and_nothing_else(
    bot: Shell, tmp_path: Path, what: str, served: str
) -> None:
    """The seed of a round is in the message of what fails."""
    operation = OPERATIONS[what]
    mountpoint = None
    if served == "mounted":
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
    scene = Scene(bot, mountpoint)
    hits = 0
    try:
        for number in range(ROUNDS):
            seed = f"{what}:{served}:{number}"
            try:
                hits += _one_round(scene, operation, f"r{number}", random.Random(seed))
            except BaseException as error:
                error.add_note(f"in round {seed}")
                raise
    finally:
        scene.umount()
    assert hits, "nobody was killed in any round"
    assert bot.fine("run", "bot", "--", "cat", "a.txt") == "first\n"
    assert bot.fine("test", _fresh(bot), "--suite", scene.suite, "-q") == ""


def _fresh(bot: Shell) -> str:
    return bot.fine("snapshot", "bot", "-q").strip()


def _one_round(scene: Scene, operation: Operation, name: str, rng: random.Random) -> int:
    """Kill somebody in the middle of *operation*; return how many died of it."""
    scene.mount()
    runners = scene.begin(name, operation.begins)
    before = _versions(scene)
    kind = rng.choice(["daemon", "warden", "sandbox"])
    words = [{"NAME": name, "SUITE": str(scene.suite)}.get(word, word) for word in operation.verb]
    process = scene.kaifs.start(*words)
    time.sleep(rng.uniform(0, DELAY_MAX_S))
    # Where nothing runs in a sandbox of its own, that of the runner is the one.
    wardens = [process.pid, *(runner.pid for runner in runners)]
    victims = [one for pid in wardens for one in scene.victims(kind, pid)]
    for victim in victims:
        send_signal(victim, signal.SIGKILL)
    process.communicate(timeout=60)
    if operation.begins == "running" and process.returncode == 0:
        for runner in runners:
            runner.wait(20)
    for runner in runners:
        runner.kill()
        runner.communicate(timeout=20)
    for victim in victims:
        assert wait_end(victim, 20)

    # Nobody looks after it any more: what is in the sandboxes ends by itself.
    wait_until(lambda: all(_has_begun_nothing(one) for _, one in find_processes(scene.label)))
    wait_until(lambda: scene.commands_left() == [])
    scene.umount()
    wait_until(lambda: find_daemon(scene.kaifs.store) is None)
    _check_store(scene, operation, name, before, is_done=process.returncode == 0)
    assert all(one.is_removed for one in clean(scene.label))
    assert find_processes(scene.label) == []
    assert find_group_folders(scene.label) == []
    return len(victims)


def _versions(scene: Scene) -> int:
    return len(json.loads(scene.kaifs.fine("list", "bot", "--json")))


def _check_store(
    scene: Scene, operation: Operation, name: str, before: int, *, is_done: bool
) -> None:
    store = Store.open(scene.kaifs.store, wait_s=30)
    try:
        assert check(store) == []
        Forest(store).recover()
        assert check(store) == []
        agent = store.get_agent("bot")
        snapshot = store.find_snapshot(agent.agent_id, name)
        versions = store.versions(agent.agent_id)
        state = None if snapshot is None else snapshot.status
        assert state in operation.states
        if operation.verb[0] == "commit":
            _check_commit(snapshot, len(versions) - before)
            if len(versions) > before:
                evidence = decode_record(versions[-1].record).metadata.evidence
                assert evidence.success  # type: ignore[union-attr]  # UNSET fails too
        else:
            assert len(versions) == before
        if is_done:
            done: dict[str, Callable[[], bool]] = {
                "snapshot": lambda: state == "ready",
                "test": lambda: state == "test_passed",
                "commit": lambda: state is None,
                "discard": lambda: state is None,
            }
            assert done[operation.verb[0]](), "it was told that it was done"
        store.commit()
    finally:
        store.close(commit=False)


def _check_commit(snapshot: SnapshotRecord | None, made: int) -> None:
    """All of it or nothing."""
    if snapshot is None:
        assert made == 1
    else:
        # `committed` is what a commit that was cut short has left; the next open ends it.
        assert made == (1 if snapshot.committed else 0)


def test_nothing_runs_on_when_everybody_is_killed_at_once(bot: Shell, tmp_path: Path) -> None:
    """Daemon and warden together: nobody is left who could tidy up."""
    scene = Scene(bot, tmp_path / "mnt")
    assert scene.mountpoint is not None
    scene.mountpoint.mkdir()
    scene.mount()
    (runner,) = scene.begin("a", "running")
    info = find_daemon(bot.store)
    assert info is not None

    for process in info.processes:
        send_signal(process, signal.SIGKILL)
    runner.kill()
    runner.communicate(timeout=20)

    wait_until(lambda: scene.commands_left() == [])
    wait_until(lambda: find_processes(scene.label) == [])
    scene.umount()
    clean(scene.label)
    assert find_group_folders(scene.label) == []
    assert bot.fine("run", "a", "--", "cat", "a.txt") == "first\n"

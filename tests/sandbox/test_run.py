"""Starting a command and seeing it to its end."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kaifs.base.errors import ArgumentValueError, SnapshotIsolationError
from kaifs.linux.cgroups import find_groups
from kaifs.linux.processes import ProcessId, identify, is_running, wait_end
from kaifs.sandbox.janitor import clean, find_group_folders
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.run import Owner, start
from tests.sandbox.ground import LABEL, Attack, FolderMount, needs_root, python_child

pytestmark = [pytest.mark.root, needs_root]

POLICY = Policy(memory=128 << 20, timeout_s=20)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["no-such-command"], 127),
        (["/agent/missing"], 127),
        (["/etc/passwd"], 126),
        (["/agent"], 126),
    ],
)
def test_exit_status_is_the_shell_s(attack: Attack, command: list[str], status: int) -> None:
    result = attack(command)

    assert result.status == status
    assert (result.error is not None) == (status in (126, 127))


def test_signal_is_told(attack: Attack) -> None:
    assert attack(["sh", "-c", "kill -KILL $$"]).outcome.signal == signal.SIGKILL
    assert attack(["false"]).outcome.signal is None


def test_script_without_an_interpreter_line_is_run_by_the_shell(
    attack: Attack, agent: Path
) -> None:
    (agent / "script").write_text("echo from a script\n")
    (agent / "script").chmod(0o755)

    assert attack(["./script"]).output == "from a script\n"


def test_command_starts_in_the_agent_s_folder_and_owns_it(attack: Attack, agent: Path) -> None:
    result = attack(["sh", "-c", "pwd; cat hello; echo new > made; stat -c %U . made"])

    assert result.output == "/agent\nhello\nagent\nagent\n"
    assert (agent / "made").read_text() == "new\n"


def test_folder_that_is_not_there_is_told_and_nothing_runs(agent: Path) -> None:
    with pytest.raises(SnapshotIsolationError, match="/agent/missing: No such file"):
        start(POLICY, ["true"], FolderMount(agent), label=LABEL, cwd="/agent/missing")


def test_command_that_is_none_is_refused(agent: Path) -> None:
    for argv in ([], ["a\0b"]):
        with pytest.raises(ArgumentValueError):
            start(POLICY, argv, FolderMount(agent), label=LABEL)


def test_mount_that_fails_is_told_and_nothing_runs(agent: Path) -> None:
    class Broken:
        def mount(self, staging: Path, owner: Owner) -> None:
            raise OSError(5, "the server does not answer")

    with pytest.raises(SnapshotIsolationError, match="the server does not answer"):
        start(POLICY, ["true"], Broken(), label=LABEL)


def test_mount_that_kills_the_setup_is_told(agent: Path) -> None:
    class Killed:
        def mount(self, staging: Path, owner: Owner) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SnapshotIsolationError):
        start(POLICY, ["true"], Killed(), label=LABEL)


def test_mount_is_seen_nowhere_else(attack: Attack, public: Path) -> None:
    # All of a sandbox's mounts are on or below its stage. Other tests mount things meanwhile.
    assert attack(["grep", "-c", "kaifs-stage", "/proc/self/mountinfo"]).output.strip() != "0"

    assert "kaifs-stage" not in Path("/proc/self/mountinfo").read_text()


def test_signals_that_the_caller_ignores_are_not_ignored_inside(attack: Attack) -> None:
    """Python ignores SIGPIPE, and what is ignored stays so over an exec."""
    status = attack(["cat", "/proc/self/status"]).output

    assert "SigIgn:\t0000000000000000" in status
    assert "SigBlk:\t0000000000000000" in status


def test_kill_ends_every_process(agent: Path) -> None:
    program = "setsid sleep 1234.5 & echo started; exec sleep 1234.5"
    reading, writing = os.pipe()
    with start(
        POLICY, ["sh", "-c", program], FolderMount(agent), stdout=writing, label=LABEL
    ) as running:
        os.close(writing)
        assert os.read(reading, 100) == b"started\n"
        processes = sandbox_processes(running.name)
        running.kill()
        outcome = running.wait()
    os.close(reading)

    assert outcome.exit_status == 128 + signal.SIGKILL
    assert len(processes) >= 4
    assert not any(is_running(process) for process in processes)


def test_leaving_kills(agent: Path) -> None:
    with start(POLICY, ["sleep", "1234.5"], FolderMount(agent), label=LABEL) as running:
        processes = sandbox_processes(running.name)

    assert processes
    assert not any(is_running(process) for process in processes)


def test_kill_from_another_thread_ends_the_wait(agent: Path) -> None:
    with start(POLICY, ["sleep", "1234.5"], FolderMount(agent), label=LABEL) as running:
        thread = threading.Thread(target=running.kill)
        thread.start()
        assert running.wait().exit_status == 128 + signal.SIGKILL
        thread.join()


def test_another_thread_can_run_a_sandbox_from_start_to_end(attack: Attack) -> None:
    outputs: list[str] = []
    threads = [
        threading.Thread(target=lambda: outputs.append(attack(["echo", "done"]).output))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outputs == ["done\n"] * 3


def test_processes_that_a_command_leaves_behind_end_with_it(attack: Attack) -> None:
    began = time.monotonic()
    attack(["sh", "-c", "setsid sleep 30 & true"])

    assert time.monotonic() - began < 10


def test_killing_the_warden_ends_the_sandbox(agent: Path, package: Path) -> None:
    """SIGKILL lets nobody clean up; the kernel does, and the janitor removes the groups."""
    program = f"""
from pathlib import Path
from kaifs.linux.namespaces import MountFlag, attach
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.run import start
class Mount:
    def mount(self, staging, owner):
        attach({str(agent)!r}, staging, "", MountFlag.BIND)
running = start(Policy(), ["sleep", "1234.5"], Mount(), label="killed")
print(running.name, flush=True)
running.wait()
"""

    with python_child(program, package) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        processes = sandbox_processes(name)
        assert find_group_folders("killed") == []

        child.kill()

    assert len(processes) >= 3
    assert all(wait_end(process, 10) for process in processes)
    leftovers = clean("killed")
    assert leftovers
    assert all(leftover.is_removed for leftover in leftovers)
    assert clean("killed") == []


def test_usage_is_counted(attack: Attack) -> None:
    program = "held = b'x' * (40 << 20)\nimport time\nuntil = time.process_time() + 0.2\nwhile time.process_time() < until: pass"
    outcome = attack(program, policy=replace(POLICY, cpus=2)).outcome

    assert 0.2 <= outcome.cpu_s < 2
    assert 40 << 20 <= outcome.max_memory <= 128 << 20
    assert not outcome.oom_killed
    assert not outcome.timed_out


# --- streams ---------------------------------------------------------------------------------------


def test_files_and_pipes_are_carried(attack: Attack, public: Path) -> None:
    source = public / "source"
    source.write_bytes(os.urandom(3 << 20))
    target = public / "target"
    with source.open("rb") as stdin, target.open("wb") as stdout:
        result = attack(["cat"], stdin=stdin.fileno(), stdout=stdout.fileno())

    assert result.status == 0
    assert target.read_bytes() == source.read_bytes()


def test_standard_streams_can_be_opened_by_name(attack: Attack) -> None:
    assert (
        attack(["sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr"]).output
        == "out\nerr\n"
    )
    with Path(os.devnull).open("r+b") as null:
        assert attack(["sh", "-c", "echo x > /dev/stdout"], stdout=null.fileno()).status == 0
    reading, writing = os.pipe()
    assert attack(["sh", "-c", "echo x > /dev/stdout"], stdout=writing).status == 0
    assert os.read(reading, 10) == b"x\n"
    os.close(reading)
    os.close(writing)


def test_reader_that_goes_away_ends_the_writer(attack: Attack) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = attack(["yes"], stdout=writing)
    os.close(writing)

    assert result.outcome.signal == signal.SIGPIPE


def test_terminal_is_a_terminal_inside_with_its_size_and_settings(agent: Path) -> None:
    """It is another one: what happens to it does not happen to the user's."""
    master, slave = os.openpty()
    before = subprocess.run(["stty", "-g"], stdin=slave, capture_output=True, check=True).stdout
    subprocess.run(["stty", "rows", "33", "cols", "77"], stdin=slave, check=True)
    program = "test -t 0 && test -t 1 && stty size && read line && echo got $line && test -c /dev/tty && : < /dev/tty && stty raw -echo"
    with start(
        POLICY,
        ["sh", "-c", program],
        FolderMount(agent),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        label=LABEL,
    ) as running:
        os.write(master, b"typed\n")
        outcome = running.wait()
    seen = os.read(master, 4096)
    after = subprocess.run(["stty", "-g"], stdin=slave, capture_output=True, check=True).stdout
    os.close(master)
    os.close(slave)

    assert outcome.exit_status == 0, seen
    assert b"33 77" in seen
    assert b"got typed" in seen
    assert after == before


def test_output_to_a_terminal_that_is_not_read_is_not_changed(agent: Path) -> None:
    master, slave = os.openpty()
    with start(
        POLICY, ["printf", "a\nb"], FolderMount(agent), stdout=slave, label=LABEL
    ) as running:
        running.wait()
    seen = b""
    while len(seen) < 4:
        # A terminal gives out what it has, piece by piece.
        seen += os.read(master, 100)
    os.close(master)
    os.close(slave)

    assert seen == b"a\r\nb"


def test_control_c_on_the_terminal_interrupts_what_runs_inside(agent: Path) -> None:
    master, slave = os.openpty()
    program = "echo ready; exec sleep 100"
    with start(
        POLICY,
        ["sh", "-c", program],
        FolderMount(agent),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        label=LABEL,
    ) as running:
        typist = threading.Thread(target=lambda: (os.read(master, 5), os.write(master, b"\x03")))
        typist.start()
        outcome = running.wait()
        typist.join()
    os.close(master)
    os.close(slave)

    assert outcome.signal == signal.SIGINT


def sandbox_processes(name: str) -> list[ProcessId]:
    """Return the processes in the control groups of the sandbox *name*."""
    pids = {
        int(pid)
        for folder in find_groups(name.__eq__)
        for pid in (folder / "cgroup.procs").read_text().split()
    }
    return [process for pid in pids if (process := identify(pid)) is not None]

"""Commands in real containers of podman, in an image that is built here."""

import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kaifs.base.errors import ArgumentValueError, SnapshotIsolationError
from kaifs.base.limits import AllowedPath
from kaifs.linux.mounts import mounts
from kaifs.linux.network import local_addresses
from kaifs.linux.processes import identify, wait_end
from kaifs.sandbox.container import run
from kaifs.sandbox.container.leftovers import (
    SHARED_STAGE,
    abandoned_stages,
    find_containers,
    stop_containers,
)
from kaifs.sandbox.container.run import Outcome, start
from kaifs.sandbox.container.runtime import Runtime
from kaifs.sandbox.janitor import clean
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.run import Owner
from kaifs.sandbox.run import start as start_sandbox
from kaifs.store.store import Store
from kaifs.store.superblock import read_superblock
from kaifs.tree.forest import Forest
from tests.cli.conftest import Done, Shell
from tests.daemon.site import wait_until
from tests.sandbox.ground import ROOT, AsUser, FolderMount, needs_root

MISSING = [tool for tool in ("podman", "runc", "dpkg-query") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    needs_root,
    pytest.mark.skipif(bool(MISSING), reason=f"CONTAINERS ARE NOT TESTED: no {MISSING}"),
]

LABEL = f"tests{os.getpid()}"
"""Of its own for each process: runtimes know the containers of all of them."""
POLICY = Policy(memory=128 << 20, cpus=1, timeout_s=60)
RUN = tuple[str, Outcome]
RunIn = Callable[..., RUN]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The default image, under a name of its own; gone again in the end."""
    tag = f"kaifs-test-{secrets.token_hex(4)}"
    subprocess.run([ROOT / "tools" / "build_runtime_image", "--minimal", "--tag", tag], check=True)
    yield tag
    subprocess.run(["podman", "rmi", "--force", tag], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(autouse=True)
def no_container_is_left() -> Iterator[None]:
    """Nor anything mounted for one."""
    yield
    assert list(find_containers(LABEL)) == []
    assert staged() == []
    assert abandoned_stages(LABEL) == []


@pytest.fixture
def contain(agent: Path, image: str) -> RunIn:
    """Run a command, or a program for the shell, in a container."""

    def run_in(
        command: str | list[str], policy: Policy = POLICY, stdin: int | None = None
    ) -> tuple[str, Outcome]:
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        with tempfile.TemporaryFile() as output:
            out = output.fileno()
            with start(
                policy,
                argv,
                FolderMount(agent),
                image=image,
                stdin=stdin,
                stdout=out,
                stderr=out,
                label=LABEL,
            ) as running:
                outcome = running.wait()
            output.seek(0)
            return output.read().decode(errors="replace"), outcome

    return run_in


def staged() -> list[Path]:
    """Return what is mounted where a runtime's service would find it."""
    found = [entry.mountpoint for entry in mounts() if SHARED_STAGE in entry.mountpoint.parents]
    return [one for one in found if f"kaifs-{LABEL}-" in str(one)]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 125"], 125),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_status_is_the_shell_s(contain: RunIn, command: list[str], status: int) -> None:
    assert contain(command)[1].exit_status == status


def test_command_owns_the_agent_s_files_and_nothing_else(contain: RunIn, agent: Path) -> None:
    output, _ = contain(
        "pwd; cat hello; echo new > made; stat -c %u made | grep -qx $(id -u) && echo mine\n"
        "grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr '\\n\\t' '  '; echo\n"
        "touch /usr/x /x /etc/x 2>/dev/null || echo refused; ls /run /home; echo $HOME > /tmp/it"
    )

    assert output.startswith("/agent\nhello\nmine\n")
    assert "CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2" in output
    assert "refused" in output
    assert (agent / "made").read_text() == "new\n"


def test_environment_is_the_policy_s_and_not_ours(
    contain: RunIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the caller")
    monkeypatch.setenv("http_proxy", "http://secret")
    environment = {"KAI_ISOLATION_MODE": "true", "TEXT": "a b\n=c'\"$HOME", "LD_X": ""}
    output, _ = contain(["env", "-0"], replace(POLICY, environment=environment))

    found = dict(item.split("=", 1) for item in output.rstrip("\0").split("\0"))
    assert environment.items() <= found.items()
    assert "secret" not in output.lower()


def test_memory_hog_is_killed(contain: RunIn) -> None:
    program = 'python3 -c \'x = bytearray(b"x") * (160 << 20); print("GOT IT")\'; echo $?'
    output, outcome = contain(program, replace(POLICY, memory=64 << 20))

    assert "137\n" in output
    assert "GOT IT" not in output
    assert outcome.oom_killed
    assert not contain("true")[1].oom_killed


def test_fork_bomb_stops_at_the_limit(contain: RunIn) -> None:
    program = (
        "import os, time\nmade = 0\n"
        "try:\n while made < 100:\n  made += 1\n"
        "  if os.fork() == 0: time.sleep(60)\n"
        "except OSError as error: print('refused', made, error.errno)"
    )
    output, _ = contain(["python3", "-c", program], replace(POLICY, pids=16))

    word, made, code = output.split()
    assert (word, code) == ("refused", "11")
    assert int(made) <= 16


def test_cpu_hog_gets_its_share(contain: RunIn) -> None:
    program = (
        "import time\nbegan, spent = time.monotonic(), time.process_time()\n"
        "while time.monotonic() - began < 1.5: pass\n"
        "print((time.process_time() - spent) / (time.monotonic() - began))"
    )
    output, _ = contain(["python3", "-c", program], replace(POLICY, cpus=0.25))

    assert float(output) < 0.35


def test_scratch_has_a_size(contain: RunIn) -> None:
    output, _ = contain("head -c 9m /dev/zero > /tmp/x", replace(POLICY, scratch=4 << 20))

    assert "No space left" in output


def test_without_a_network_there_is_loopback_alone(contain: RunIn) -> None:
    assert contain("sed 1,2d /proc/net/dev | cut -d: -f1")[0].split() == ["lo"]


def test_network_reaches_none_of_the_machine_s_addresses(contain: RunIn) -> None:
    addresses = [str(one) for one in local_addresses()]
    program = (
        "import socket\n"
        f"for address in {addresses}:\n"
        " try: socket.create_connection((address, PORT), 3); print('GOT IT')\n"
        " except OSError as error: print(error.errno)\n"
        "print(open('/etc/resolv.conf').read().split()[:2])"
    )
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        output, _ = contain(
            ["python3", "-c", program.replace("PORT", str(port))],
            replace(POLICY, network="bridge"),
        )

    assert "GOT IT" not in output
    assert "['nameserver', '198.18.0.3']" in output


def test_read_only_is_read_only(contain: RunIn, agent: Path) -> None:
    output, outcome = contain("echo x > hello", replace(POLICY, read_only=True))

    assert outcome.exit_status != 0
    assert "Read-only file system" in output
    assert (agent / "hello").read_text() == "hello\n"


def test_blocked_calls_are_refused_with_what_does_the_same(contain: RunIn) -> None:
    policy = replace(POLICY, blocked_syscalls=("mkdir", "rmdir"))
    output, _ = contain("mkdir a; mkdir -p x/y; echo on", policy)

    assert output.count("Operation not permitted") == 2
    assert output.endswith("on\n")
    removal, _ = contain(
        "mkdir d; rmdir d; touch f; rm f && echo gone",
        policy=replace(policy, blocked_syscalls=("rmdir",)),
    )
    assert removal.count("Operation not permitted") == 1
    assert "gone" in removal


def test_a_command_may_be_kept_from_forking(contain: RunIn) -> None:
    policy = replace(POLICY, blocked_syscalls=("fork",))
    program = (
        "import os, threading\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "try: os.fork(); print('GOT IT')\n"
        "except OSError as error: print(error.errno)"
    )

    assert contain(["python3", "-c", program], policy)[0] == "thread\n1\n"


def test_what_every_sandbox_refuses_is_refused(contain: RunIn) -> None:
    program = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def errno_of(*call):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(*call) < 0 else 0
print(errno_of(272, 0x10000000), errno_of(165, 0, 0, 0, 0, 0), errno_of(250, 0, 0), errno_of(101, 0, 0),
      errno_of(435, 0, 0), errno_of(56, 0x10000011, 0, 0, 0, 0), errno_of(425, 1, 0))
for family in (40, 38, 17):
    try: socket.socket(family, socket.SOCK_DGRAM); print("GOT IT")
    except OSError as error: print(error.errno)
socket.socketpair()
socket.socket(socket.AF_INET6)
"""
    if os.uname().machine != "x86_64":
        pytest.skip("NOT TESTED: the numbers are those of x86-64")
    output, outcome = contain(["python3", "-c", program])

    assert outcome.exit_status == 0, output
    # unshare, mount, keyctl, ptrace, clone3 (ENOSYS), clone with a namespace, io_uring_setup
    assert output.splitlines()[0] == "1 1 1 1 38 1 1"
    assert output.splitlines()[1:] == ["97"] * 3


def test_allowed_paths_are_shown_and_belong_to_the_command(contain: RunIn, public: Path) -> None:
    data, work = public / "data", public / "work"
    for folder in (data, work):
        folder.mkdir()
        (folder / "it").write_text("seen\n")
    allowed = (AllowedPath(data), AllowedPath(work, writable=True))
    policy = replace(POLICY, allowed_paths=allowed)
    output, _ = contain(f"cat {data}/it; echo x > {data}/it; echo x > {work}/new", policy)

    assert output.startswith("seen\n")
    assert "Read-only file system" in output
    assert (work / "new").read_text() == "x\n"
    assert (work / "new").stat().st_uid == os.geteuid()


def test_forbidden_and_unspeakable_paths_are_refused(contain: RunIn, public: Path) -> None:
    store = public / "store"
    (store / "run").mkdir(parents=True)
    odd = public / "a,readonly"
    odd.mkdir()
    link = public / "link"
    link.symlink_to(store)
    for path in (store, store / "run", public, link):
        policy = replace(POLICY, allowed_paths=(AllowedPath(path),), forbidden=(store,))
        with pytest.raises(SnapshotIsolationError, match="must not be seen"):
            contain("true", policy)
    with pytest.raises(SnapshotIsolationError, match="comma"):
        contain("true", replace(POLICY, allowed_paths=(AllowedPath(odd),)))


def test_timeout_kills(contain: RunIn) -> None:
    output, outcome = contain(
        "echo before; sleep 1234.5 & sleep 1234.5", replace(POLICY, timeout_s=1)
    )

    assert output == "before\n"
    assert outcome.timed_out
    assert outcome.exit_status == 128 + signal.SIGKILL


def test_input_is_carried_to_its_end(contain: RunIn, public: Path) -> None:
    source = public / "source"
    source.write_bytes(b"line\n" * 200_000)
    with source.open("rb") as stdin:
        output, outcome = contain(["wc", "-c"], stdin=stdin.fileno())

    assert (output.strip(), outcome.exit_status) == ("1000000", 0)


def test_terminal_is_a_terminal_inside_with_its_size(agent: Path, image: str) -> None:
    master, slave = os.openpty()
    subprocess.run(["stty", "rows", "33", "cols", "77"], stdin=slave, check=True)
    program = "test -t 0 && test -t 1 && sleep 0.5; stty size; read line; echo got $line"
    with start(
        POLICY,
        ["sh", "-c", program],
        FolderMount(agent),
        image=image,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        label=LABEL,
    ) as running:
        os.write(master, b"typed\n")
        assert running.wait().exit_status == 0
    seen = os.read(master, 4096)
    os.close(master)
    os.close(slave)

    assert b"33 77" in seen
    assert b"got typed" in seen


def test_leaving_and_losing_the_leash_kill(agent: Path, image: str) -> None:
    with start(POLICY, ["sleep", "1234.5"], FolderMount(agent), image=image, label=LABEL):
        assert len(list(find_containers(LABEL))) == 1
    assert list(find_containers(LABEL)) == []

    leash, end = os.pipe()
    os.close(end)
    with start(
        POLICY, ["sleep", "1234.5"], FolderMount(agent), image=image, label=LABEL
    ) as running:
        outcome = running.wait(leash)
    os.close(leash)
    assert outcome.exit_status == 128 + signal.SIGKILL


def test_containers_of_a_snapshot_can_be_stopped(agent: Path, image: str) -> None:
    """As whoever discards it does, without knowing who runs what."""
    with start(
        POLICY, ["sleep", "1234.5"], FolderMount(agent), image=image, snapshot="bot/s", label=LABEL
    ) as running:
        assert stop_containers(LABEL, "bot/other") == 0
        thread = threading.Thread(target=stop_containers, args=(LABEL, "bot/s"))
        thread.start()
        outcome = running.wait()
        thread.join()

    assert outcome.exit_status == 128 + signal.SIGKILL


def test_what_cannot_be_is_refused_and_nothing_runs(agent: Path, image: str) -> None:
    def attempt(policy: Policy = POLICY, image: str = image) -> None:
        start(policy, ["touch", "ran"], FolderMount(agent), image=image, label=LABEL)

    with pytest.raises(SnapshotIsolationError, match="build_runtime_image"):
        attempt(image="kaifs-there-is-no-such-image")
    with pytest.raises(SnapshotIsolationError, match="no system call"):
        attempt(replace(POLICY, blocked_syscalls=("nonsense",)))
    with pytest.raises(ArgumentValueError):
        attempt(image="--privileged")
    assert not (agent / "ran").exists()


def test_limit_that_the_container_did_not_get_is_an_error(
    agent: Path, image: str, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rootless runtime behaves on control groups of version 1: it only warns."""
    careless = public / "podman"
    careless.write_text(
        "#!/bin/bash\nargs=()\nfor word; do case $word in --memory|--memory-swap|--cpus|--pids-limit)"
        ' skip=1;; *) [ -n "$skip" ] || args+=("$word"); skip=;; esac; done\n'
        'exec podman "${args[@]}"\n'
    )
    careless.chmod(0o755)
    monkeypatch.setattr(run, "choose_runtime", lambda policy: Runtime("podman", str(careless)))

    with pytest.raises(SnapshotIsolationError, match=r"memory: .*cpus: .*pids: ") as caught:
        start(POLICY, ["touch", "ran"], FolderMount(agent), image=image, label=LABEL)

    assert "cannot be enforced" in str(caught.value)
    assert not (agent / "ran").exists()


def test_ordinary_user_is_refused(as_user: AsUser) -> None:
    program = """
from kaifs.base.errors import SnapshotIsolationError
from kaifs.sandbox.container.run import start
from kaifs.sandbox.policy import Policy
try:
    start(Policy(), ["true"], None, image="x")
except SnapshotIsolationError as error:
    print(error.code, error)
"""
    done = as_user(program)

    assert "rootless" in done.stdout, done.stderr


WARDEN = """
import sys
from kaifs.linux.namespaces import MountFlag, attach
from kaifs.sandbox.container.run import start
from kaifs.sandbox.policy import Policy
class Mount:
    def mount(self, staging, owner):
        attach({agent!r}, staging, "", MountFlag.BIND)
running = start(Policy(), ["sleep", "1234.5"], Mount(), image={image!r}, label={label!r})
print(running.name, running._pid, flush=True)
running.wait()
"""


def start_warden(agent: Path, image: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a warden of its own; return it, and the pid of its keeper."""
    child = subprocess.Popen(
        [sys.executable, "-c", WARDEN.format(agent=str(agent), image=image, label=LABEL)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line
    return child, int(line.split()[1])


def test_keeper_removes_the_container_when_the_warden_is_killed(agent: Path, image: str) -> None:
    child, keeper = start_warden(agent, image)
    process = identify(keeper)
    assert process is not None
    with child:
        child.kill()

    assert wait_end(process, 20)
    assert list(find_containers(LABEL)) == []
    assert clean(LABEL) == []


def test_janitor_removes_the_container_when_the_keeper_is_killed_too(
    agent: Path, image: str
) -> None:
    child, keeper = start_warden(agent, image)
    assert clean(LABEL) == []  # of the living
    with child:
        os.kill(keeper, signal.SIGKILL)
        child.kill()
    assert len(list(find_containers(LABEL))) == 1

    leftovers = clean(LABEL)

    assert all(leftover.is_removed for leftover in leftovers)
    assert any("container" in leftover.what for leftover in leftovers)
    assert clean(LABEL) == []


def test_killed_while_being_made_nothing_stays(agent: Path, image: str) -> None:
    """At moments all over the making; the janitor finds whatever is left."""
    for delay in (0.05, 0.15, 0.25, 0.35, 0.45):
        child = subprocess.Popen(
            [sys.executable, "-c", WARDEN.format(agent=str(agent), image=image, label=LABEL)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        time.sleep(delay + 0.1)
        child.kill()
        child.wait()

    def is_clean() -> bool:
        clean(LABEL)
        return list(find_containers(LABEL)) == [] and keepers(agent) == []

    wait_until(is_clean)


def keepers(agent: Path) -> list[int]:
    """Return the processes in whose mounts the agent's folder is, and which are not ours."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                seen = Path("/proc", entry, "mountinfo").read_text()
                if "kaifs-stage" in seen and str(agent) in seen:
                    found.append(int(entry))
            except OSError:
                continue
    return found


def test_service_that_does_not_see_our_mounts_is_shown_a_folder_of_root_s(
    agent: Path, image: str, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's side of it, played by podman: the same commands, from the machine's namespace."""
    docker = public / "docker"
    docker.write_text('#!/bin/sh\nexec podman --runtime runc "$@"\n')
    docker.chmod(0o755)
    monkeypatch.setattr(run, "choose_runtime", lambda policy: Runtime("docker", str(docker)))
    with tempfile.TemporaryFile() as output:
        with start(
            POLICY,
            ["sh", "-c", "echo new > made; cat hello; unshare -U true; exit 3"],
            FolderMount(agent),
            image=image,
            stdout=output.fileno(),
            stderr=output.fileno(),
            label=LABEL,
        ) as running:
            assert SHARED_STAGE.stat().st_mode & 0o077 == 0
            assert staged()
            outcome = running.wait()
        output.seek(0)
        said = output.read().decode()

    assert outcome.exit_status == 3, said
    assert said.startswith("hello\n")
    assert "Operation not permitted" in said
    assert (agent / "made").read_text() == "new\n"


def test_start_takes_less_than_a_second(agent: Path, image: str) -> None:
    times = []
    for _ in range(5):
        with start(POLICY, ["true"], FolderMount(agent), image=image, label=LABEL) as running:
            running.wait()
        times.append(running.start_s)

    assert min(times) < 1, f"median {statistics.median(times) * 1000:.0f} ms"


def test_mount_that_fails_is_told(image: str) -> None:
    class Broken:
        def mount(self, staging: Path, owner: Owner) -> None:
            raise OSError(5, "the server does not answer")

    with pytest.raises(SnapshotIsolationError, match="the server does not answer"):
        start(POLICY, ["true"], Broken(), image=image, label=LABEL)


def test_results_are_those_of_a_sandbox(agent: Path, contain: RunIn) -> None:
    scripts = ["echo $PWD $HOME $USER $NODE_ENV", "exit 9", "mkdir -p /tmp/x && echo ok"]
    scripts += ["touch /usr/x; echo $?", "ls -A /agent"]
    for script in scripts:
        with tempfile.TemporaryFile() as output:
            out = output.fileno()
            with start_sandbox(
                POLICY, ["sh", "-c", script], FolderMount(agent), stdout=out, label=LABEL
            ) as running:
                status = running.wait().exit_status
            output.seek(0)
            expected = output.read().decode()
        said, outcome = contain(f"exec 2>/dev/null; {script}")
        assert (said, outcome.exit_status) == (expected, status), script


# --- with a store ------------------------------------------------------------------------------


@pytest.fixture
def bot(tmp_path: Path) -> Shell:
    """A store with `bot@1.0.0`."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("first\n")
    shell = Shell(tmp_path / "store")
    shell.fine("init")
    shell.fine("import", "bot", source, "--as", "1.0.0")
    return shell


def run_bot(bot: Shell, image: str, *options: str, script: str) -> Done:
    return bot("run", "--container", "--image", image, *options, "--", "sh", "-c", script)


@pytest.mark.fuse
def test_what_a_container_writes_is_the_agent_owner_s_in_the_snapshot(
    bot: Shell, image: str
) -> None:
    bot.fine("snapshot", "bot", "--name", "snap", "-q", "--container", "--image", image)
    done = bot("run", "snap", "--", "sh", "-c", "cat a.txt; echo new > made; mkdir d; exit 5")

    assert (done.status, done.out) == (5, "first\n")
    store = Store.open(bot.store)
    agent = store.get_agent("bot")
    tree = Forest(store).tree(store.get_snapshot(agent, "snap").root)
    made = tree.inode(tree.resolve(b"made"))
    store.close()
    assert (made.uid, made.gid, made.size) == (agent.uid, agent.gid, 4)


@pytest.mark.fuse
def test_quota_and_read_only_hold(bot: Shell, image: str) -> None:
    hog = run_bot(
        bot, image, "--storage", "2m", "bot", script="head -c 4m /dev/urandom > big; echo $?"
    )
    sealed = run_bot(bot, image, "--read-only", "bot", script="echo x > a.txt")

    assert "quota exceeded" in hog.err
    assert hog.out == "1\n"
    assert "Read-only file system" in sealed.err
    assert sealed.status != 0


@pytest.mark.fuse
def test_store_cannot_be_allowed(bot: Shell, image: str) -> None:
    done = run_bot(bot, image, "--allow", str(bot.store), "bot", script="true")

    assert done.status == 125
    assert done.err.startswith("kaifs: E103:")
    assert json.loads(bot.fine("snapshots", "--json")) == []


@pytest.mark.fuse
def test_suite_comes_to_the_same_as_in_a_sandbox(bot: Shell, image: str, tmp_path: Path) -> None:
    report = '<testsuite tests=\\"2\\" failures=\\"1\\"><testcase name=\\"a\\"/><testcase name=\\"b\\"><failure message=\\"m\\"/></testcase></testsuite>'
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f"""
[[test]]
name = "works"
command = "echo fine; test $NODE_ENV = sandbox"
expectOutput = "^fine$"
[[test]]
name = "fails"
command = ["sh", "-c", "echo no; exit 3"]
[[test]]
name = "late"
command = "sleep 60"
timeout = 1
[[test]]
name = "reports"
command = "echo '{report}' > $KAIFS_REPORTS/r.xml"
[[test]]
name = "hog"
command = "python3 -c 'bytearray(b\\"x\\") * (400 << 20)'"
"""
    )
    found = []
    for name, options in (("s", ()), ("c", ("--container", "--image", image))):
        bot.fine("snapshot", "bot", "--name", name, "-q", "--memory", "96m", *options)
        done = bot("test", name, "--json", "--suite", suite)
        document = done.document
        found.append(
            (
                done.status,
                document["success"],
                document["passedTests"],
                document["totalTests"],
                document["failures"],
                document["status"],
            )
        )

    assert found[0] == found[1]
    assert found[0][2:4] == (2, 6)


@pytest.mark.fuse
def test_discarding_ends_the_container(bot: Shell, image: str, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    bot.fine("mount", bot.store, mountpoint)
    try:
        bot.fine("snapshot", "bot", "--name", "snap", "-q", "--container", "--image", image)
        with bot.start("run", "snap", "--", "sh", "-c", "echo on; sleep 1234.5") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            assert bot("discard", "snap").status == 0
            process.wait(30)
            assert process.stderr is not None
            process.stderr.read()
    finally:
        assert bot("umount", mountpoint).status == 0
    assert list(find_containers(read_superblock(bot.store).uuid.hex())) == []

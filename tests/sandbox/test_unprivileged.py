"""What an ordinary user gets: all that the kernel allows, and E103 for what it does not.

The programs run as a user without an account, with the system's Python and a
copy of the package, since checkouts and interpreters are often where only their
owner may look.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.linux.cgroups import Group, GroupUnavailable, hierarchies
from tests.sandbox.ground import ANY_UID, AsUser, needs_root

pytestmark = [
    pytest.mark.root,
    needs_root,  # to become the user, and to delegate groups to it
    pytest.mark.skipif(
        not Path("/usr/bin/python3").exists(), reason="NOT TESTED: needs the system's Python"
    ),
]

PRELUDE = """
import os, sys
from dataclasses import replace
from pathlib import Path
from kaifs.linux.namespaces import MountFlag, attach
from kaifs.sandbox.defences import Defence
from kaifs.base.limits import AllowedPath
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.run import start
class Mount:
    def mount(self, staging, owner):
        assert owner.uid == os.geteuid()
        attach(sys.argv[1], staging, "", MountFlag.BIND)
LOOSE = Policy(required=frozenset(), timeout_s=20)
def attack(command, *without, policy=LOOSE, stdin=None):
    argv = [*"/usr/bin/python3 -c".split(), command] if isinstance(command, str) else command
    sys.stdout.flush()
    with start(policy, argv, Mount(), stdin=stdin, stdout=1, stderr=1, label="tests",
               without=frozenset(without)) as running:
        return running.wait()
"""


@pytest.fixture
def theirs(agent: Path) -> Path:
    """The agent's files, the user's."""
    for path in (agent, *agent.iterdir()):
        os.chown(path, ANY_UID, ANY_UID)
    return agent


def test_command_runs_as_the_owner_of_the_files(as_user: AsUser, theirs: Path) -> None:
    program = PRELUDE + 'attack(["sh", "-c", "id -u; cat hello; touch made; stat -c %U made; env"])'
    done = as_user(program, str(theirs))

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1000\nhello\nagent\n")
    assert "SECRET" not in done.stdout
    assert (theirs / "made").stat().st_uid == ANY_UID


def test_limits_that_cannot_be_enforced_are_refused_by_name(as_user: AsUser, theirs: Path) -> None:
    program = PRELUDE + 'attack(["echo", "it ran"], policy=Policy())'
    done = as_user(program, str(theirs))

    assert "E103" in done.stderr
    assert "memory" in done.stderr
    assert "cpus" in done.stderr
    assert "it ran" not in done.stdout


def test_limits_that_are_not_required_are_told(as_user: AsUser, theirs: Path) -> None:
    program = PRELUDE + (
        'running = start(LOOSE, ["true"], Mount()); running.wait();'
        'print(*(one.partition(":")[0] for one in running.unenforced))'
    )
    done = as_user(program, str(theirs))

    assert done.stdout.split() == ["memory", "cpus"], done.stderr


FORK_BOMB = """
import os, time
children = 0
try:
    for _ in range(60):
        if not os.fork():
            time.sleep(30); os._exit(0)
        children += 1
except OSError: pass
print('children', children)
"""


def test_fork_bomb_is_stopped_without_any_control_group(as_user: AsUser, theirs: Path) -> None:
    """A user namespace counts its processes for itself, whatever else the user runs."""
    program = PRELUDE + (
        f"attack({FORK_BOMB!r}, policy=replace(LOOSE, pids=20, required=frozenset(['pids'])))"
    )
    others = [
        subprocess.Popen(["setpriv", f"--reuid={ANY_UID}", "--clear-groups", "sleep", "60"])
        for _ in range(15)
    ]
    try:
        done = as_user(program, str(theirs))
    finally:
        for process in others:
            process.kill()
            process.wait()

    assert 10 <= int(done.stdout.split()[1]) <= 20, done.stderr


@pytest.fixture
def delegated() -> Iterator[list[Path]]:
    """Groups that the user may divide, with the tests in them."""
    group = Group(f"tests-{os.getpid()}")
    try:
        for controller in ("memory", "cpu", "pids"):
            group.extend(controller, hierarchies())
    except GroupUnavailable as error:
        group.remove(5)
        pytest.skip(f"NOT TESTED: {error}")
    for folder in group.folders:
        for path in (folder, *folder.iterdir()):
            os.chown(path, ANY_UID, ANY_UID)
    yield group.folders
    group.remove(5)


def test_delegated_groups_are_used(as_user: AsUser, theirs: Path, delegated: list[Path]) -> None:
    hog = "held = bytearray(160 << 20)\nfor at in range(0, len(held), 4096): held[at] = 1"
    program = PRELUDE + (
        f"outcome = attack({hog!r}, policy=Policy(memory=64 << 20, pids=20, timeout_s=20))\n"
        "print(outcome.oom_killed, outcome.exit_status)\n"
        f"attack({FORK_BOMB!r}, policy=Policy(pids=20))"
    )
    # Whoever delegates puts the user's first process there; here it is born there.
    for folder in delegated:
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    try:
        done = as_user(program, str(theirs))
    finally:
        for folder in delegated:
            (folder.parent / "cgroup.procs").write_text(str(os.getpid()))

    assert done.stdout.splitlines()[0] == "True 137", done.stderr
    assert 1 <= int(done.stdout.split()[-1]) <= 20


@pytest.mark.parametrize(
    ("attack", "without"),
    [
        pytest.param("import os; os.kill({victim}, 0); print('GOT IT')", "PID_NAMESPACE, Defence.LANDLOCK", id="kill"),
        pytest.param("import os; print(open('/host{secret}').read())", "MINIMAL_ROOT, Defence.LANDLOCK", id="files"),
        pytest.param("import ctypes; print('GOT IT' if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 else 'no')", "SECCOMP", id="ptrace"),
        pytest.param("import os; print('GOT IT' if os.environ.get('SECRET') else 'no')", "CLEAN_ENVIRONMENT", id="environment"),
        pytest.param("import subprocess; subprocess.run(['unshare', '-U', 'true'], check=True); print('GOT IT')", "SECCOMP, Defence.USERNS_LIMIT", id="namespace"),
        pytest.param("import os; os.open('/x', os.O_CREAT); print('GOT IT')", "READ_ONLY_SYSTEM, Defence.LANDLOCK", id="root"),
    ],
)  # fmt: skip
def test_attack_fails_unless_a_defence_is_left_out(
    as_user: AsUser, theirs: Path, public: Path, attack: str, without: str
) -> None:
    """The user's sandbox has the user's own uid outside: the walls alone hold it."""
    secret = public / "secret"
    secret.write_text("GOT IT")
    secret.chmod(0o600)
    os.chown(secret, ANY_UID, ANY_UID)
    victim = subprocess.Popen(["setpriv", f"--reuid={ANY_UID}", "--clear-groups", "sleep", "60"])
    try:
        text = attack.format(victim=victim.pid, secret=secret)
        held = as_user(PRELUDE + f"attack({text!r})", str(theirs))
        open_ = as_user(PRELUDE + f"attack({text!r}, Defence.{without})", str(theirs))
    finally:
        victim.kill()
        victim.wait()

    assert "GOT IT" not in held.stdout + held.stderr
    assert "GOT IT" in open_.stdout, open_.stderr


def test_file_given_to_be_read_cannot_be_written(
    as_user: AsUser, theirs: Path, public: Path
) -> None:
    """The file is the user's, and so is the command: only relay and Landlock stand between."""
    given = public / "given"
    given.write_text("whole")
    os.chown(given, ANY_UID, ANY_UID)
    program = PRELUDE + (
        "with open(sys.argv[2]) as given:\n"
        "    attack(['sh', '-c', 'echo spoilt > /proc/self/fd/0'], {without} stdin=given.fileno())"
    )

    as_user(program.format(without=""), str(theirs), str(given))
    assert given.read_text() == "whole"
    without = "Defence.STREAM_RELAY, Defence.LANDLOCK,"
    as_user(program.format(without=without), str(theirs), str(given))
    assert given.read_text() == "spoilt\n"


def test_allowed_path_can_be_written(as_user: AsUser, theirs: Path, public: Path) -> None:
    data = public / "data"
    data.mkdir(mode=0o700)
    os.chown(data, ANY_UID, ANY_UID)
    program = PRELUDE + (
        "path = AllowedPath(Path(sys.argv[2]), writable=True)\n"
        "attack(['touch', sys.argv[2] + '/new'], policy=replace(LOOSE, allowed_paths=(path,)))"
    )
    done = as_user(program, str(theirs), str(data))

    assert (data / "new").exists(), done.stderr


def test_network_of_the_user_s_own(as_user: AsUser, theirs: Path) -> None:
    """Or E103 that names the device, where users may not open it."""
    if shutil.which("slirp4netns") is None or not os.path.exists("/dev/net/tun"):
        pytest.skip("NOT TESTED: needs slirp4netns and /dev/net/tun")
    program = PRELUDE + (
        "attack(['cat', '/proc/net/fib_trie'], policy=replace(LOOSE, network='bridge'))"
    )
    refused_or_done = as_user(program, str(theirs))
    may_open = os.stat("/dev/net/tun").st_mode & 0o006 == 0o006
    if not may_open:
        assert "E103" in refused_or_done.stderr
        assert "/dev/net/tun" in refused_or_done.stderr
        # A device that everybody may open, in a mount namespace of the test's own.
        make = 'mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec "$@"'
        user = ["setpriv", f"--reuid={ANY_UID}", f"--regid={ANY_UID}", "--clear-groups"]
        refused_or_done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", make, "sh", *user, "/usr/bin/python3", "-B", "-c", program, str(theirs)],
            cwd="/",
            env={"PYTHONPATH": str(theirs.parent / "package"), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip

    assert "198.18.0.100" in refused_or_done.stdout, refused_or_done.stderr

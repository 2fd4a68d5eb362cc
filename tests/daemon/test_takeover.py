"""A mount whose server dies, again and again, goes on in another one, and no program notices.

`KAIFS_CRASH_ROUNDS=100` is the long form.
"""

import fcntl
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import RestartError, StoreBusyError
from kaifs.control.client import find_daemon
from kaifs.control.places import log_path
from kaifs.daemon import lifecycle
from kaifs.daemon.supervisor import UNSERVED_MAX
from kaifs.fuse.protocol import Opcode
from kaifs.linux.files import lock_owner
from kaifs.linux.mounts import find_mount
from kaifs.linux.processes import is_running, send_signal, wait_end
from kaifs.store.store import LOCK_NAME, Store
from kaifs.store.superblock import SUPERBLOCK_NAME
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from tests.daemon.site import (
    Site,
    check_store,
    each_ending,
    is_dead,
    kill,
    kill_server,
    restart,
    server,
    wait_ended,
    wait_until,
)
from tests.fuse.system_calls import give_name

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_CRASH_ROUNDS", "3"))
PAUSE_MAX_S = 0.4
"""Between a server that answers and its death."""
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

BUILD = """
set -e
mkdir build && cd build
for i in 1 2 3 4 5 6 7 8; do
    printf 'int f%s(int x) { return x * %s + 1; }\\n' $i $i > f$i.c
done
printf 'CFLAGS = -O0\\nprog: main.o f1.o f2.o f3.o f4.o f5.o f6.o f7.o f8.o\\n\\tgcc -o $@ $^\\n' > Makefile
printf 'int f1(int), f8(int);\\nint main(void) { return f1(2) + f8(3) == 28 ? 0 : 1; }\\n' > main.c
make -s -j2
./prog
mkdir package
for i in 1 2 3 4 5 6; do printf 'import os\\n\\ndef f(x):\\n    return x + %s\\n' $i > package/m$i.py; done
touch package/__init__.py
python3 -m compileall -q --invalidation-mode checked-hash package
python3 -c 'from package import m1, m6; assert m1.f(1) + m6.f(1) == 9'
make -s clean 2>/dev/null || rm f1.o && make -s
./prog
rm -f prog *.o
"""
CLONE = """
set -e
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
git clone -q --no-hardlinks "$1/repository" clone
cd clone
git -c user.name=a -c user.email=a@b commit -q --allow-empty -m more --date=2026-01-01T00:00:00Z
git fsck --strict
git gc -q
test -z "$(git status --porcelain)"
git log --format=%s > ../log
git checkout -q -b other HEAD~2
rm -rf .git
"""
UNTAR = """
set -e
tar xf "$1/archive.tar"
tar cf - --sort=name . | sha256sum > ../"$(basename "$PWD")".sum
mv -f ../"$(basename "$PWD")".sum sum
tar xf "$1/archive.tar" --overwrite
"""
WORK = {
    "build": ["sh", "-c", BUILD, "sh"],
    "clone": ["sh", "-c", CLONE, "sh"],
    "untar": ["sh", "-c", UNTAR, "sh"],
    "random load": [sys.executable, str(HERE / "random_load.py")],
}


def _sources(folder: Path) -> Path:
    """Make what is cloned and unpacked."""
    rng = random.Random(7)
    repository = folder / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    environment = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    subprocess.run(["git", "init", "-q", str(repository)], check=True, env=environment)
    for number in range(8):
        for name in range(15):
            path = repository / f"d{name % 4}" / f"f{name}.{number % 3}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(rng.randbytes(rng.choice([10, 3000, 200_000])))
        subprocess.run([*git, "add", "."], check=True, env=environment)
        subprocess.run([*git, "commit", "-q", "-m", f"{number}"], check=True, env=environment)
    archive = ["tar", "cf", str(folder / "archive.tar"), "-C", str(repository), "."]
    subprocess.run(archive, check=True)
    return folder


def log_of(site: Site) -> str:
    return log_path(site.store).read_text()


# --- work ------------------------------------------------------------------------------------


@each_ending
@pytest.mark.parametrize("work", list(WORK))
@pytest.mark.parametrize("view", ["whole", "view"])
def test_work_comes_to_the_same_while_servers_die(
    site: Site, tmp_path: Path, work: str, view: str, end_server: Callable[[Site], None]
) -> None:
    """No program sees an error, and what is there in the end is as without a death."""
    if ROUNDS < 10 and (view == "view") == (work in ("build", "clone")):
        pytest.skip("in the long form")
    (tmp_path / "sources").mkdir()
    sources = _sources(tmp_path / "sources")
    site.mount("commit=1")
    (site.mountpoint / "agent").mkdir()
    place = site.current
    if view == "view":
        site.umount()
        site.mount("commit=1", "agent=agent", "view=current")
        place = site.mountpoint
    rng = random.Random(work + view)
    expected, ended, number = tmp_path / "expected", 0, 0
    expected.mkdir()
    _work(expected, work, sources).wait()
    while ended < ROUNDS:
        folder = place / f"work{number}"
        folder.mkdir()
        process = _work(folder, work, sources)
        while process.poll() is None and ended < ROUNDS:
            time.sleep(rng.uniform(0, PAUSE_MAX_S))
            end_server(site)
            ended += 1
        assert process.wait(120) == 0, log_of(site)
        assert subprocess.run(["diff", "-r", expected, folder], check=False).returncode == 0
        number += 1

    assert "bug" not in log_of(site)
    site.umount()
    check_store(site.store)


def _work(folder: Path, work: str, sources: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000", "LC_ALL": "C"}
    return subprocess.Popen([*WORK[work], str(sources)], cwd=folder, env=environment)


# --- what is open ------------------------------------------------------------------------------


@each_ending
def test_what_is_open_goes_on(
    mounted: Site, tmp_path: Path, end_server: Callable[[Site], None]
) -> None:
    current = mounted.current
    (current / "many").mkdir()
    for number in range(2000):
        (current / "many" / f"f{number}").touch()
    read = os.open(current / "many", os.O_RDONLY | os.O_DIRECTORY)
    listing = os.scandir(read)
    listed = [next(listing).name for _ in range(700)]
    append = os.open(current / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(append, b"before\n")
    deleted = os.open(current / "deleted", os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"still here")
    os.unlink(current / "deleted")
    nameless = os.open(current, os.O_RDWR | os.O_TMPFILE)
    os.write(nameless, b"named later")
    mapped = os.open(current / "mapped", os.O_RDWR | os.O_CREAT)
    os.truncate(mapped, 3 * mmap.PAGESIZE)
    memory = mmap.mmap(mapped, 3 * mmap.PAGESIZE)
    memory[:5] = b"dirty"
    locked = os.open(current / "locked", os.O_RDWR | os.O_CREAT)
    fcntl.flock(locked, fcntl.LOCK_EX)
    (current / "folder" / "inner").mkdir(parents=True)
    os.mkfifo(current / "fifo")
    reader = subprocess.Popen(["cat", current / "fifo"], stdout=subprocess.PIPE)
    shell = subprocess.Popen(
        ["sh"], cwd=current / "folder/inner", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    for _ in range(2):
        end_server(mounted)

    os.write(append, b"after\n")
    assert (current / "log").read_bytes() == b"before\nafter\n"
    os.pwrite(deleted, b"!", 10)
    os.fsync(deleted)
    assert os.pread(deleted, 100, 0) == b"still here!"
    assert os.fstat(deleted).st_nlink == 0
    give_name(nameless, current / "named")
    assert (current / "named").read_bytes() == b"named later"
    memory[2 * mmap.PAGESIZE : 2 * mmap.PAGESIZE + 4] = b"more"
    memory.flush()
    content = (current / "mapped").read_bytes()
    assert (content[:5], content[2 * mmap.PAGESIZE :][:4]) == (b"dirty", b"more")
    with open(current / "locked") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    listed += [entry.name for entry in listing]
    assert sorted(listed) == sorted(f"f{number}" for number in range(2000))
    said, _ = shell.communicate(b"pwd; echo x >rel; cat rel; cd ..; pwd; ls\n", timeout=20)
    assert said.decode().split() == [
        str(current / "folder/inner"),
        "x",
        str(current / "folder"),
        "inner",
    ]
    (current / "fifo").write_bytes(b"through")
    assert reader.communicate(timeout=20)[0] == b"through"
    listing.close()
    memory.close()
    for fd in (read, append, deleted, nameless, mapped, locked):
        os.close(fd)
    mounted.umount()
    check_store(mounted.store)


def test_a_waiting_program_can_be_interrupted_while_nobody_serves(mounted: Site) -> None:
    """A process that is killed does not stay because its request was asked for again."""
    send_signal(server(mounted).supervisor, signal.SIGSTOP)
    before = server(mounted)
    send_signal(before.process, signal.SIGKILL)
    waiting = subprocess.Popen(["stat", "-f", str(mounted.mountpoint)], stdout=subprocess.DEVNULL)
    killed = subprocess.Popen(["stat", "-f", str(mounted.mountpoint)], stdout=subprocess.DEVNULL)
    killed.kill()

    send_signal(before.supervisor, signal.SIGCONT)

    assert waiting.wait(60) == 0
    assert killed.wait(60) == -signal.SIGKILL


def test_what_was_unlinked_while_open_is_gone_after_the_mount(mounted: Site) -> None:
    """Who had it open, a server that takes over cannot know; the next mount can."""
    with open(mounted.current / "file", "wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.unlink(mounted.current / "file")
        kill_server(mounted)
    with open(mounted.current / "new", "wb") as file:
        os.unlink(mounted.current / "new")

    mounted.umount()

    store = Store.open(mounted.store)
    assert store.unfinished_roots() == []
    store.close()
    check_store(mounted.store)


def test_after_a_restart_what_is_unlinked_while_open_goes_when_it_is_closed(mounted: Site) -> None:
    """The server that ends tells the next one what the kernel knows."""
    old = os.open(mounted.current / "old", os.O_RDWR | os.O_CREAT)
    gone = os.open(mounted.current / "gone", os.O_RDWR | os.O_CREAT)
    os.unlink(mounted.current / "gone")
    restart(mounted)
    os.unlink(mounted.current / "old")

    os.close(old)
    os.close(gone)

    # The kernel sends at most eight requests before a FORGET; what is reaped goes with the next record.
    # Then nothing is left to be done after a crash.
    for _ in range(10):
        (mounted.current / "next").touch()
    kill(server(mounted))
    site_store = Store.open(mounted.store, wait_s=20)
    assert check(site_store) == []
    head = site_store.root(site_store.get_agent("agent").head)
    inodes = head.inodes
    Forest(site_store).recover()
    assert head.inodes == inodes == 2
    site_store.close()


# --- done, but not answered --------------------------------------------------------------------


class Trap:
    """A mount whose servers die at an exact point of a request."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.file = folder / "trap"
        self.script = folder / "server.py"
        shutil.copy(HERE / "deadly.py", self.script)
        command = [sys.executable, str(self.script), str(site.store), str(site.mountpoint)]
        program = (
            "import sys; from pathlib import Path; from kaifs.daemon.supervisor import supervise;"
            "sys.exit(supervise(sys.argv[2:], Path(sys.argv[1])))"
        )
        self.supervisor = subprocess.Popen(
            [sys.executable, "-c", program, str(log_path(site.store)), *command],
            env=os.environ | {"PYTHONPATH": str(ROOT), "KAIFS_TEST_TRAP": str(self.file)},
        )
        wait_until(lambda: find_daemon(site.store) is not None, 60)
        wait_until(lambda: server(site).mounts[0].survives, 60)
        (site.mountpoint / "agent").mkdir()

    def set(self, opcode: Opcode, place: str, times: int = 1) -> None:
        """Let the next request of that kind be deadly."""
        temporary = self.file.with_suffix(".new")
        temporary.write_text(f"{opcode} {place} {times}")
        temporary.rename(self.file)

    def check(self) -> None:
        """Check that it was."""
        # Who dies after its reply may do so a moment after the program has gone on.
        wait_until(lambda: not self.file.exists())


@pytest.fixture
def trap(site: Site, tmp_path: Path) -> Iterator[Trap]:
    """A mount that is a trap for its servers."""
    trap = Trap(site, tmp_path)
    yield trap
    trap.file.unlink(missing_ok=True)
    site.clear()
    assert trap.supervisor.wait(60) == 0


def _name_tmpfile(folder: Path) -> None:
    fd = os.open(folder, os.O_RDWR | os.O_TMPFILE)
    give_name(fd, folder / "named")
    os.close(fd)


def _append(folder: Path) -> None:
    with open(folder / "log", "ab", buffering=0) as file:
        file.write(b"line\n")
        os.fsync(file.fileno())


CHANGES: list[tuple[Opcode, Callable[[Path], object]]] = [
    (Opcode.MKDIR, lambda folder: (folder / "d").mkdir()),
    (Opcode.CREATE, lambda folder: os.close(os.open(folder / "c", os.O_CREAT | os.O_EXCL))),
    (Opcode.MKNOD, lambda folder: os.mkfifo(folder / "fifo")),
    (Opcode.SYMLINK, lambda folder: (folder / "s").symlink_to("c")),
    (Opcode.LINK, lambda folder: os.link(folder / "c", folder / "c2")),
    (Opcode.RENAME, lambda folder: os.rename(folder / "c", folder / "r")),
    (Opcode.SETATTR, lambda folder: os.chmod(folder / "r", 0o640)),
    (Opcode.SETXATTR, lambda folder: os.setxattr(folder / "r", "user.a", b"1", os.XATTR_CREATE)),
    (Opcode.REMOVEXATTR, lambda folder: os.removexattr(folder / "r", "user.a")),
    (Opcode.WRITE, _append),
    (Opcode.FSYNC, _append),
    (Opcode.UNLINK, lambda folder: os.unlink(folder / "c2")),
    (Opcode.RMDIR, lambda folder: (folder / "d").rmdir()),
    (Opcode.TMPFILE, _name_tmpfile),
    (Opcode.MKDIR, lambda folder: (folder / "../@snapshots/x").mkdir()),
    (
        Opcode.RENAME,
        lambda folder: os.rename(folder / "../@snapshots/x", folder / "../@snapshots/y"),
    ),
    (Opcode.RMDIR, lambda folder: (folder / "../@snapshots/y").rmdir()),
    (Opcode.MKDIR, lambda folder: (folder / "../../other").mkdir()),
    (Opcode.RMDIR, lambda folder: (folder / "../../other").rmdir()),
]


@pytest.mark.parametrize(
    ("place", "times"), [("before-journal", 1), ("before-reply", 2), ("after-reply", 1)]
)
def test_a_change_is_made_once_wherever_the_server_dies(trap: Trap, place: str, times: int) -> None:
    """Also if the successor dies on the way to answering what its predecessor had done."""
    chosen = CHANGES if ROUNDS >= 10 or place == "before-reply" else CHANGES[:2]
    for opcode, change in chosen:
        trap.set(opcode, place, times)
        change(trap.site.current)
        trap.check()

    names = set(os.listdir(trap.site.current))
    if len(chosen) == len(CHANGES):
        assert names == {"fifo", "s", "r", "log", "named"}
        assert (trap.site.current / "log").read_bytes() == b"line\nline\n"
        assert (trap.site.current / "r").stat().st_mode & 0o777 == 0o640
        assert os.listdir(trap.site.mountpoint / "agent/@snapshots") == []
        assert os.listdir(trap.site.mountpoint) == ["agent"]
    if place == "before-reply":
        assert log_of(trap.site).count("answered_again") >= len(chosen) - 2
    trap.site.umount()
    check_store(trap.site.store)


def test_a_thread_that_waits_for_the_kernel_keeps_no_successor_from_serving(trap: Trap) -> None:
    """It waits for a lock that an unanswered request holds, which only a successor can answer."""
    trap.set(Opcode.MKDIR, "notifying")

    (trap.site.current / "d").mkdir()

    trap.check()
    assert os.listdir(trap.site.current) == ["d"]
    assert log_of(trap.site).count("answered_again") == 1
    trap.site.umount()


# --- the supervisor ------------------------------------------------------------------------------


def test_status_names_both_processes_and_says_what_survives(mounted: Site) -> None:
    info = mounted.infos[0]

    assert info.pid != info.supervisor_pid
    assert is_running(info.supervisor)
    (mount,) = info.mounts
    assert mount.survives
    assert "supervisor" in mount.survives_reason


def test_pyfuse3_does_not_survive_and_says_so(site: Site) -> None:
    info = site.mount("transport=pyfuse3")

    assert info.pid == info.supervisor_pid
    assert not info.mounts[0].survives
    assert "pyfuse3" in info.mounts[0].survives_reason
    with pytest.raises(RestartError, match="pyfuse3"):
        lifecycle.restart(site.mountpoint)
    assert site.umount().has_ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_the_supervisor_are_for_the_server(
    mounted: Site, number: signal.Signals
) -> None:
    (mounted.current / "file").write_bytes(b"kept")

    send_signal(mounted.infos[0].supervisor, number)

    wait_ended(mounted.infos[0])
    assert find_mount(mounted.mountpoint) is None
    mounted.mount()
    assert (mounted.current / "file").read_bytes() == b"kept"


def test_without_its_supervisor_the_server_goes_on_and_says_so(mounted: Site) -> None:
    info = mounted.infos[0]
    send_signal(info.supervisor, signal.SIGKILL)
    assert wait_end(info.supervisor, 20)

    wait_until(lambda: server(mounted).supervisor_pid == info.pid)

    (mounted.current / "file").write_bytes(b"served")
    assert not server(mounted).mounts[0].survives
    assert find_daemon(mounted.store) is not None
    with pytest.raises(RestartError, match="supervisor is gone"):
        lifecycle.restart(mounted.mountpoint)
    assert mounted.umount().has_ended
    assert lock_owner(mounted.store / LOCK_NAME) is None


def test_a_mount_is_given_up_when_server_after_server_dies(mounted: Site) -> None:
    """It answers ENOTCONN then, the store is free, and somebody is told."""
    info = mounted.infos[0]
    superblock = mounted.store / SUPERBLOCK_NAME
    moved = superblock.with_suffix(".moved")
    superblock.rename(moved)

    send_signal(info.process, signal.SIGKILL)
    assert wait_end(info.supervisor, 60)

    assert is_dead(mounted.mountpoint)
    assert lock_owner(mounted.store / LOCK_NAME) is None
    assert log_of(mounted).count("server_died") == UNSERVED_MAX + 1
    assert "given_up" in log_of(mounted)
    moved.rename(superblock)
    mounted.mount()
    assert os.listdir(mounted.mountpoint) == ["agent"]


def test_clients_wait_while_a_server_is_replaced(mounted: Site) -> None:
    before = server(mounted)
    send_signal(before.process, signal.SIGKILL)

    info = find_daemon(mounted.store)

    assert info is not None
    with pytest.raises(StoreBusyError):
        Store.open(mounted.store, wait_s=0)
    assert mounted.umount().has_ended
    assert not is_running(before.supervisor)


def test_a_successor_that_does_not_start_leaves_the_server_alone(trap: Trap) -> None:
    """An installation that is broken is found out before the server has ended."""
    before = server(trap.site)
    trap.script.write_text("raise SystemExit(3)")

    with pytest.raises(RestartError, match="status 3"):
        lifecycle.restart(trap.site.mountpoint)

    (trap.site.current / "file").write_bytes(b"served")
    assert server(trap.site) == before
    trap.site.umount()


def test_a_restart_waits_for_what_runs_and_keeps_the_supervisor(mounted: Site) -> None:
    before = server(mounted)
    stopped = threading.Event()

    def write() -> None:
        with open(mounted.current / "file", "ab", buffering=0) as file:
            while not stopped.is_set():
                file.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    restart(mounted)
    stopped.set()
    writer.join()

    assert server(mounted).pid != before.pid
    assert server(mounted).supervisor_pid == before.supervisor_pid
    assert set((mounted.current / "file").read_bytes()) == {ord("x")}

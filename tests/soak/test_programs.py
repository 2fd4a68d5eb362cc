"""Programs that check what they read, for `KAIFS_SOAK_S` seconds each. One that is missing is skipped."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from kaifs.control.client import call
from kaifs.linux.processes import ProcessId, identify, send_signal
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.service.status import Params as StatusParams
from tests.daemon.site import Site, kill, kill_server, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

SECONDS = int(os.environ.get("KAIFS_SOAK_S", "0"))
ROUNDS = int(os.environ.get("KAIFS_DATABASE_ROUNDS", "3"))
ROOT = Path(__file__).parents[2]
STATUS_MAX_S = 10.0
STRESSORS = """
    access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl filename flock
    fpunch fsize fstat getdent hdd inotify io iomix lease link locka lockf lockofd mknod mmap open
    readahead rename revio seek sendfile symlink sync-file touch unlink utime xattr
""".split()
FIO = """
    --name=soak --size=64m --rw=randrw --bsrange=512-128k --verify=crc32c --verify_fatal=1
    --verify_backlog=256 --verify_state_save=0 --time_based --numjobs=2 --group_reporting --fallocate=none --fsync=64
""".split()
ENGINES = {
    "write": ["--ioengine=psync"],
    "mmap": ["--ioengine=mmap", "--bsrange=4k-128k"],
    "direct": ["--ioengine=libaio", "--direct=1", "--iodepth=8", "--blockalign=4096"],
}
POSTGRESQL = "postgres"
"""The user of Debian's packages; the server refuses to run as root."""
PROGRAMS = Path("/usr/lib/postgresql")
SUMS = """
    SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history),
           (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history),
           (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)
"""


def need(program: str) -> None:
    """Skip the test where *program* is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")


@pytest.mark.parametrize("stressor", STRESSORS)
def test_a_stressor_finds_what_it_wrote(folder: Path, stressor: str) -> None:
    need("stress-ng")

    run = subprocess.run(
        ["stress-ng", "--verify", "--temp-path", folder, f"--{stressor}", "2", "-t", str(SECONDS)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_checksums_hold_and_the_daemon_answers_under_load(
    site: Site, folder: Path, engine: str
) -> None:
    need("fio")
    command = ["fio", *FIO, *ENGINES[engine], f"--runtime={SECONDS}", f"--directory={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fio:
        slowest_s = 0.0
        while fio.poll() is None:
            begin = time.monotonic()
            call(site.store, "status", StatusParams(measure="never"))
            slowest_s = max(slowest_s, time.monotonic() - begin)
            with contextlib.suppress(subprocess.TimeoutExpired):
                fio.wait(0.2)
        assert fio.stdout is not None
        assert fio.returncode == 0, fio.stdout.read()
    assert slowest_s < STATUS_MAX_S


def test_a_repository_is_cloned_packed_and_sound(site: Site, folder: Path) -> None:
    """Nothing differs from what is checked out, in the folder and in a snapshot of it."""
    git = ["git", "-c", "gc.auto=0", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    clone = folder / "clone"
    subprocess.run([*git, "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
    until = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < until or not number:
        number += 1
        (clone / f"new{number}").write_text(str(number))
        for command in (["add", "-A"], ["commit", "-qm", "more"], ["gc", "-q"]):
            subprocess.run([*git, *command], cwd=clone, check=True)
        subprocess.run([*git, "checkout", "-q", f"HEAD~{number}"], cwd=clone, check=True)
        subprocess.run([*git, "checkout", "-q", "-"], cwd=clone, check=True)
    call(site.store, "snapshot", SnapshotParams(reference="agent", name="later"))
    later = site.mountpoint / "agent/@snapshots/later"
    for place in {clone, later / clone.relative_to(site.current)}:
        if place.exists():
            trust = ["-c", f"safe.directory={place}"]
            status = subprocess.check_output([*git, *trust, "status", "--porcelain"], cwd=place)
            assert status == b""
            subprocess.run([*git, *trust, "fsck", "--full", "--strict"], cwd=place, check=True)


class Server:
    """A PostgreSQL server in a folder."""

    def __init__(self, folder: Path) -> None:
        versions = sorted(PROGRAMS.glob("*/bin"), key=lambda path: int(path.parent.name))
        if not versions:
            pytest.skip("no PostgreSQL here")
        self.programs = versions[-1]
        self.folder = folder / "data"
        self.folder.mkdir(mode=0o700)
        shutil.chown(self.folder, POSTGRESQL, POSTGRESQL)
        self.run("initdb", "-A", "trust", "--data-checksums", "-D", self.folder)

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program of PostgreSQL's; return what it prints."""
        return subprocess.run(
            [self.programs / program, *arguments],
            user=POSTGRESQL,
            group=POSTGRESQL,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.defpath, "PGHOST": str(self.folder), "PGUSER": POSTGRESQL},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def start(self) -> None:
        """Start it; it recovers from what killed it."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder}"
        log = self.folder / "log"
        try:
            self.run("pg_ctl", "-D", self.folder, "-w", "-o", options, "-l", log, "start")
        except subprocess.CalledProcessError:
            print(log.read_text())
            raise

    def begin_load(self) -> "subprocess.Popen[bytes]":
        """Have four clients move money about, until they lose the server if they do."""
        return subprocess.Popen(
            [self.programs / "pgbench", "-n", "-c", "4", "-T", str(SECONDS), POSTGRESQL],
            user=POSTGRESQL,
            group=POSTGRESQL,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.defpath, "PGHOST": str(self.folder), "PGUSER": POSTGRESQL},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def processes(self) -> list[ProcessId]:
        """Return the server's processes, first the one that would replace the others."""
        first = int((self.folder / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        found = (identify(pid) for pid in (first, *map(int, children)))
        return [process for process in found if process is not None]

    def check(self) -> None:
        """Money is where it should be, and every index agrees with its table."""
        assert self.run("psql", "-qAtc", SUMS, POSTGRESQL).strip() == "t|t|t"
        self.run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", POSTGRESQL)


def are_gone(processes: list[ProcessId]) -> bool:
    """Return whether nothing has the numbers of *processes*."""
    return not any(Path(f"/proc/{process.pid}").exists() for process in processes)


@pytest.mark.parametrize("victim", ["server", "daemon"])
def test_postgresql_recovers_from_a_kill(site: Site, folder: Path, victim: str) -> None:
    rng = random.Random(victim)
    options = site.infos[0].mounts[0].options.split(",")
    server = Server(folder)
    server.start()
    server.run("pgbench", "-q", "-i", "-s", "2", POSTGRESQL)
    for _ in range(ROUNDS):
        with server.begin_load() as load:
            with contextlib.suppress(subprocess.TimeoutExpired):
                load.wait(rng.uniform(1, max(2, SECONDS)))
            processes = server.processes()
            if victim == "daemon":
                kill(site.infos[-1])
            for process in processes:
                send_signal(process, signal.SIGKILL)
            load.kill()
        # The next server takes a zombie for a live one.
        wait_until(partial(are_gone, processes))
        if victim == "daemon":
            site.mount(*options)
        server.start()
        server.check()
    server.run("pg_ctl", "-D", server.folder, "-w", "-m", "fast", "stop")
    server.run("pg_checksums", "--check", "-D", server.folder)


def test_postgresql_does_not_notice_that_the_server_of_the_mount_is_replaced(
    site: Site, folder: Path
) -> None:
    """No client sees an error, and PostgreSQL need not recover."""
    if site.infos[0].mounts[0].transport != "kernel":
        pytest.skip("only the kernel transport has a supervisor that keeps the mount")
    rng = random.Random("replaced")
    server = Server(folder)
    server.start()
    server.run("pgbench", "-q", "-i", "-s", "2", POSTGRESQL)
    for _ in range(ROUNDS):
        with server.begin_load() as load:
            while load.poll() is None:
                kill_server(site)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    load.wait(rng.uniform(0.5, 3))
        assert load.returncode == 0
        server.check()
    server.run("pg_ctl", "-D", server.folder, "-w", "-m", "fast", "stop")
    server.run("pg_checksums", "--check", "-D", server.folder)
    log = (server.folder / "log").read_text()
    assert [word for word in ("PANIC", "ERROR", "not properly shut down") if word in log] == []

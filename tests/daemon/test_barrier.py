"""The barrier: what was written before it is in the tree after it, however dirty the cache."""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kaifs.base.errors import BarrierError
from kaifs.control.client import call
from kaifs.linux.mounts import FuseConnection, find_mount
from kaifs.linux.processes import send_signal
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from tests.daemon.site import Site, kill

pytestmark = pytest.mark.fuse

PAGE = 4096
PAGES = 10_000


@contextmanager
def isolated_dirty_pages(site: Site, pages: int) -> Iterator[mmap.mmap]:
    """Map a file of which every second page is dirty, and that the daemon has seen nothing of.

    None shares a WRITE with another. The daemon is stopped meanwhile: else the
    kernel's own write-back would be done before a barrier begins.
    """
    entry = find_mount(site.mountpoint)
    assert entry is not None
    bdi = Path(f"/sys/class/bdi/{entry.major}:{entry.minor}")
    (bdi / "strict_limit").write_text("0")
    (bdi / "max_ratio").write_text("100")
    daemon = site.infos[-1].process
    size = pages * 2 * PAGE
    with open(site.current / "sparse", "w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as content:
            for number in range(pages):
                assert content[number * 2 * PAGE] == 0
            os.fsync(file.fileno())
            send_signal(daemon, signal.SIGSTOP)
            try:
                for number in range(pages):
                    start = number * 2 * PAGE
                    content[start : start + PAGE] = page(number)
                # Starts the write-back and does not wait for it.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert FuseConnection(entry.minor).waiting > pages // 2
            finally:
                send_signal(daemon, signal.SIGCONT)
            yield content


def page(number: int) -> bytes:
    """Return what page *number* is to hold: no two are alike."""
    return (number + 1).to_bytes(8, "big") * (PAGE // 8)


def check_isolated_pages(path: Path, pages: int) -> None:
    """Check that *path* has what `isolated_dirty_pages` wrote."""
    with open(path, "rb") as file:
        for number in range(pages):
            file.seek(number * 2 * PAGE)
            assert file.read(PAGE) == page(number), number


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 12])
def test_isolated_dirty_pages_of_an_open_file_are_whole_in_a_snapshot(
    mounted: Site, limit: int | None
) -> None:
    """With the limit raised, and with the kernel's default, of which the daemon knows nothing."""
    pages = PAGES if limit is None else 1_000
    if limit is not None:
        entry = find_mount(mounted.mountpoint)
        assert entry is not None
        FuseConnection(entry.minor).raise_limits(limit)
    else:
        entry = find_mount(mounted.mountpoint)
        assert entry is not None
        assert FuseConnection(entry.minor).max_background == 65535
    with isolated_dirty_pages(mounted, pages) as content:
        call(mounted.store, "snapshot", SnapshotParams(reference="agent", name="snap"))

        content[:5] = b"later"
    check_isolated_pages(mounted.mountpoint / "agent/@snapshots/snap/sparse", pages)


def test_mkdir_of_a_snapshot_flushes_first(mounted: Site) -> None:
    with isolated_dirty_pages(mounted, 500):
        (mounted.mountpoint / "agent/@snapshots/snap").mkdir()

    check_isolated_pages(mounted.mountpoint / "agent/@snapshots/snap/sparse", 500)


SYNCFS = 306
FSTATFS = 138
"""Numbers of x86-64. Source: asm/unistd_64.h."""


def helper_of(pid: int) -> int:
    """Return the daemon's helper process."""
    (helper,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(helper)


def is_in_system_call(pid: int, *numbers: int) -> bool:
    """Return whether the process is blocked in one of the system calls."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in map(str, numbers)


SNAPSHOT = """
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from kaifs.control.client import call
from kaifs.service.snapshot import Params
print("ready", flush=True)
sys.stdin.readline()
call(Path(sys.argv[1]), "snapshot", Params(reference="agent", name=sys.argv[2]))
"""


def is_killed_in_a_barrier(mounted: Site, name: str) -> bool:
    """Make the snapshot *name* and kill the daemon while its helper flushes; False: too late."""
    (info,) = mounted.infos
    helper = helper_of(info.pid)
    with subprocess.Popen(
        [sys.executable, "-c", SNAPSHOT, str(mounted.store), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    ) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == b"ready\n"
        with suppress(OSError), isolated_dirty_pages(mounted, PAGES):
            client.stdin.write(b"go\n")
            client.stdin.flush()
            while not is_in_system_call(helper, SYNCFS, FSTATFS):
                if client.poll() is not None:
                    return False
            kill(info)
        return client.wait(20) != 0


@pytest.mark.slow
def test_sigkill_during_a_barrier_leaves_a_mount_to_clear_and_a_store_to_open(
    mounted: Site,
) -> None:
    # The barrier may be over before its system call is seen; then another one is tried.
    assert any(is_killed_in_a_barrier(mounted, f"snap{number}") for number in range(20))

    store = Store.open(mounted.store, wait_s=5)
    try:
        Forest(store).recover()
        assert [agent.name for agent in store.agents()] in ([], ["agent"])
    finally:
        store.close()
    mounted.mount()
    mounted.umount()


def test_a_helper_that_was_killed_is_replaced(mounted: Site) -> None:
    os.kill(helper_of(mounted.infos[0].pid), signal.SIGKILL)

    call(mounted.store, "snapshot", SnapshotParams(reference="agent", name="snap"))

    assert (mounted.mountpoint / "agent/@snapshots/snap").is_dir()


def test_a_covered_mountpoint_is_an_error_and_not_a_wrong_flush(mounted: Site) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "test", str(mounted.mountpoint)], check=True)
    try:
        with pytest.raises(BarrierError, match="covers"):
            call(mounted.store, "snapshot", SnapshotParams(reference="agent", name="snap"))
    finally:
        subprocess.run(["umount", str(mounted.mountpoint)], check=True)
    assert os.listdir(mounted.mountpoint / "agent/@snapshots") == []


RENAMER = """
import os, sys
# Alone in a folder: a rename holds its lock until the times are sent.
os.mkdir(sys.argv[1])
path = os.path.join(sys.argv[1], "file")
with open(path, "wb", 0) as file:
    os.write(1, b"begun")
    while True:
        file.write(b"x")
        os.rename(path, path + "-")
        os.rename(path + "-", path)
"""


def test_a_program_that_is_killed_while_the_kernel_sends_times_fails_no_barrier(
    mounted: Site,
) -> None:
    """The kernel tells the next syncfs(2) of its EINTR, whoever calls it."""
    for number in range(2):
        renamers = [
            subprocess.Popen(
                [sys.executable, "-c", RENAMER, mounted.current / f"{number}-{renamer}"],
                stdout=subprocess.PIPE,
            )
            for renamer in range(8)
        ]
        for renamer in renamers:
            assert renamer.stdout is not None
            assert renamer.stdout.read(5) == b"begun"
        # While the daemon stands still, each of them waits for an answer.
        daemon = mounted.infos[-1].process
        send_signal(daemon, signal.SIGSTOP)
        for renamer in renamers:
            renamer.kill()
        send_signal(daemon, signal.SIGCONT)
        for renamer in renamers:
            with renamer:
                pass

        call(mounted.store, "snapshot", SnapshotParams(reference="agent", name=f"snap{number}"))

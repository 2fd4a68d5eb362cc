"""The barrier: what was written before it is in the tree after it, however dirty the cache."""

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
from kaifs.linux.processes import send_signal, wait_end
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from tests.daemon.site import Site

pytestmark = pytest.mark.fuse

PAGE = 4096
PAGES = 10_000


@contextmanager
def isolated_dirty_pages(site: Site, pages: int) -> Iterator[int]:
    """Hold a file open of which every second page is dirty: none shares a WRITE with another."""
    entry = find_mount(site.mountpoint)
    assert entry is not None
    # Else the kernel writes back while we write, to keep a FUSE mount's share of memory small.
    bdi = Path(f"/sys/class/bdi/{entry.major}:{entry.minor}")
    (bdi / "strict_limit").write_text("0")
    (bdi / "max_ratio").write_text("100")
    file = os.open(site.current / "sparse", os.O_RDWR | os.O_CREAT)
    try:
        for number in range(pages):
            os.pwrite(file, number.to_bytes(8, "big") * (PAGE // 8), number * 2 * PAGE)
        yield file
    finally:
        with suppress(OSError):
            os.close(file)


def check_isolated_pages(path: Path, pages: int) -> None:
    """Check that *path* has what `isolated_dirty_pages` wrote."""
    with open(path, "rb") as file:
        for number in range(pages):
            file.seek(number * 2 * PAGE)
            assert file.read(PAGE) == number.to_bytes(8, "big") * (PAGE // 8), number


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
    with isolated_dirty_pages(mounted, pages) as file:
        call(mounted.store, "snapshot", SnapshotParams(reference="agent", name="snap"))

        os.pwrite(file, b"later" * 100, 0)
    check_isolated_pages(mounted.mountpoint / "agent/@snapshots/snap/sparse", pages)


def test_mkdir_of_a_snapshot_flushes_first(mounted: Site) -> None:
    with isolated_dirty_pages(mounted, 500):
        (mounted.mountpoint / "agent/@snapshots/snap").mkdir()

    check_isolated_pages(mounted.mountpoint / "agent/@snapshots/snap/sparse", 500)


SNAPSHOT = """
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from kaifs.control.client import call
from kaifs.service.snapshot import Params
call(Path(sys.argv[1]), "snapshot", Params(reference="agent", name="snap"))
"""


@pytest.mark.slow
def test_sigkill_during_a_barrier_leaves_a_mount_to_clear_and_a_store_to_open(
    mounted: Site,
) -> None:
    (info,) = mounted.infos
    entry = find_mount(mounted.mountpoint)
    assert entry is not None
    connection = FuseConnection(entry.minor)
    with (
        isolated_dirty_pages(mounted, PAGES),
        subprocess.Popen(
            [sys.executable, "-c", SNAPSHOT, str(mounted.store)],
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        ) as client,
    ):
        # The barrier runs as soon as its WRITEs queue up.
        while connection.waiting < 1000:
            assert client.poll() is None, "the snapshot was made before the daemon was killed"

        send_signal(info.process, signal.SIGKILL)

        assert wait_end(info.process, 20), "the daemon cannot be killed"
        assert client.wait(20) != 0
    store = Store.open(mounted.store, wait_s=5)
    try:
        Forest(store).recover()
        assert [agent.name for agent in store.agents()] in ([], ["agent"])
    finally:
        store.close()
    mounted.mount()
    mounted.umount()


def test_a_helper_that_was_killed_is_replaced(mounted: Site) -> None:
    pid = mounted.infos[0].pid
    (helper,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(helper), signal.SIGKILL)

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

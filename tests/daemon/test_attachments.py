"""A sandbox's own connection to a snapshot: seen by it alone, coherent with the store's mount."""

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kaifs.base.errors import MountBusyError, SnapshotIsolationError
from kaifs.control.client import attach, call, find_daemon
from kaifs.control.messages import AttachParams
from kaifs.daemon.lifecycle import served
from kaifs.linux.mounts import mounts
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.store.store import Store
from kaifs.tree.fsck import check
from tests.daemon.site import Site, each_ending, kill_server, server, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

SNAPSHOT = "agent/@snapshots/snap"
STRANGER = 65534

INSIDE = """
import os, sys
from pathlib import Path
from kaifs.control.client import attach
from kaifs.control.messages import AttachParams
from kaifs.fuse.mounting import MountOptions, mount_fuse
from kaifs.linux.namespaces import Namespace, make_mounts_private, unshare

store, reference, staging, quota, read_only = sys.argv[1:]
params = AttachParams(
    reference=reference,
    quota=int(quota) or None,
    read_only=read_only == "1",
)
attachment = attach(Path(store), params)
unshare(Namespace.MOUNT)
make_mounts_private()
fd = mount_fuse(Path(staging), MountOptions(allow_other=True))
attachment.pass_descriptor(fd, 65534, 65534)
os.close(fd)
os.chdir(staging)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print("ready", flush=True)
while command := sys.stdin.readline():
    try:
        print(eval(command, globals()), flush=True)
    except OSError as error:
        print("errno", error.errno, flush=True)
"""


class Inside:
    """A process that has a snapshot for itself, and evaluates what it is told there."""

    def __init__(self, site: Site, folder: Path, quota: int = 0, read_only: bool = False) -> None:
        staging = folder / "staging"
        staging.mkdir(exist_ok=True)
        arguments = [str(site.store), SNAPSHOT, str(staging), str(quota), str(int(read_only))]
        self.process = subprocess.Popen(
            [sys.executable, "-c", INSIDE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._line() == "ready"

    def ask(self, expression: str) -> str:
        """Return what *expression* is inside, as text; `errno N` if it fails."""
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def snapshot(mounted: Site) -> Site:
    """A mounted store with a snapshot that has one file."""
    (mounted.current / "file").write_bytes(b"base\n")
    call(mounted.store, "snapshot", SnapshotParams(reference="agent", name="snap"))
    return mounted


@pytest.fixture
def enter(snapshot: Site, tmp_path: Path) -> Iterator[Callable[..., Inside]]:
    """Start processes that have the snapshot for themselves; they end with the test."""
    started: list[Inside] = []

    def start(quota: int = 0, read_only: bool = False) -> Inside:
        started.append(Inside(snapshot, tmp_path, quota, read_only))
        return started[-1]

    yield start
    for inside in started:
        inside.end()
    wait_until(lambda: is_free(snapshot))


def visible_mounts(site: Site) -> list[Path]:
    """Return what is mounted below the test's folder, as everybody sees it."""
    folder = site.mountpoint.parent
    return [entry.mountpoint for entry in mounts() if folder in entry.mountpoint.parents]


def is_free(site: Site) -> bool:
    """Return whether no sandbox has the snapshot."""
    return errno_of(lambda: (site.mountpoint / SNAPSHOT / "probe").touch()) != errno.EBUSY


def errno_of(change: Callable[[], object]) -> int:
    """Return the errno with which *change* fails, 0 if it does not."""
    try:
        change()
    except OSError as error:
        return error.errno or 0
    return 0


def test_what_is_written_inside_is_seen_outside_at_once(
    snapshot: Site, enter: Callable[..., Inside]
) -> None:
    """Also names and attributes that the kernel remembered before the loan."""
    outside = snapshot.mountpoint / SNAPSHOT
    assert (outside / "file").read_bytes() == b"base\n"
    assert not (outside / "new").exists()
    inside = enter()

    inside.ask("open('new', 'w').write('n') + open('file', 'a').write('more')")

    assert (outside / "new").read_bytes() == b"n"
    assert (outside / "file").read_bytes() == b"base\nmore"
    assert (outside / "file").stat().st_size == 9
    inside.ask("os.unlink('new')")
    assert not (outside / "new").exists()
    assert sorted(os.listdir(outside)) == ["file"]
    inside.ask("open('file', 'w').write('short')")
    assert (outside / "file").read_bytes() == b"short"
    assert (snapshot.current / "file").read_bytes() == b"base\n"


def test_what_was_looked_at_meanwhile_is_whole_afterwards(
    snapshot: Site, enter: Callable[..., Inside]
) -> None:
    """The kernel takes a file's size once for each node: a longer one was cut, and appended to inside."""
    file = snapshot.mountpoint / SNAPSHOT / "file"
    with file.open("rb") as kept:
        inside = enter()
        for size in (5, 9, 3):
            inside.ask(f"open('file', 'wb').write(b'x' * {size})")
            assert file.stat().st_size == size
            assert file.read_bytes() == b"x" * size
        inside.ask("open('file', 'ab').write(b'y' * 5000)")
        inside.end()
        wait_until(lambda: is_free(snapshot))

        assert file.read_bytes() == b"xxx" + b"y" * 5000
        with file.open("ab") as appended:
            appended.write(b"end")
        assert file.read_bytes() == b"xxx" + b"y" * 5000 + b"end"
        assert kept.read()


def test_outside_it_can_only_be_read_meanwhile(
    snapshot: Site, enter: Callable[..., Inside]
) -> None:
    outside = snapshot.mountpoint / SNAPSHOT
    inside = enter()

    for change in (
        lambda: (outside / "file").open("r+"),
        lambda: (outside / "other").mkdir(),
        lambda: (outside / "file").unlink(),
        lambda: os.chmod(outside / "file", 0o600),
        lambda: os.truncate(outside / "file", 0),
    ):
        assert errno_of(change) == errno.EBUSY
    inside.end()
    wait_until(lambda: is_free(snapshot))
    (outside / "file").write_bytes(b"after")
    assert (outside / "file").read_bytes() == b"after"


def test_the_mount_is_seen_inside_alone(snapshot: Site, enter: Callable[..., Inside]) -> None:
    inside = enter()

    assert visible_mounts(snapshot) == [snapshot.mountpoint]
    assert inside.ask("open('/proc/self/mountinfo').read().count('/staging ')") == "1"


def test_inside_everything_is_ones_own_and_is_stored_as_the_owners(
    snapshot: Site, enter: Callable[..., Inside]
) -> None:
    inside = enter()

    assert inside.ask("os.stat('file').st_uid") == str(STRANGER)
    inside.ask("open('mine', 'w').close()")
    inside.ask("os.symlink('mine', 'link')")

    assert inside.ask("os.stat('mine').st_uid") == str(STRANGER)
    for name in ("mine", "link"):
        status = (snapshot.mountpoint / SNAPSHOT / name).lstat()
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())


def test_times_are_the_servers(snapshot: Site, enter: Callable[..., Inside]) -> None:
    """Without the writeback cache nobody else would move mtime."""
    inside = enter()
    before = int(inside.ask("os.stat('file').st_mtime_ns"))

    inside.ask("open('file', 'a').write('x')")

    assert int(inside.ask("os.stat('file').st_mtime_ns")) > before


def test_the_quota_answers_at_the_write(snapshot: Site, enter: Callable[..., Inside]) -> None:
    inside = enter(quota=1 << 20)

    assert inside.ask("open('a', 'wb', 0).write(os.urandom(900000))") == "900000"
    assert inside.ask("open('b', 'wb', 0).write(os.urandom(900000))") == f"errno {errno.EDQUOT}"
    assert inside.ask("[os.unlink('a'), os.unlink('b')]") == "[None, None]"
    assert inside.ask("open('c', 'wb', 0).write(os.urandom(900000))") == "900000"
    assert inside.ask("os.statvfs('.').f_blocks * os.statvfs('.').f_frsize") == str(1 << 20)


def test_the_quota_counts_names_and_attributes_too(
    snapshot: Site, enter: Callable[..., Inside]
) -> None:
    """A disk is filled by empty files, links and attributes as well."""
    inside = enter(quota=100_000)

    inside.ask("[open(f'e{i}', 'w').close() for i in range(200)]")
    assert inside.ask("os.mkdir('one-more')") == f"errno {errno.EDQUOT}"
    assert inside.ask("os.symlink('x', 'l')") == f"errno {errno.EDQUOT}"
    assert inside.ask("[os.link('e1', f'l{i}') for i in range(3)]") == f"errno {errno.EDQUOT}"
    assert inside.ask("os.setxattr('e1', 'user.x', bytes(60000))") == f"errno {errno.EDQUOT}"


def test_read_only_means_nothing_can_change(snapshot: Site, enter: Callable[..., Inside]) -> None:
    inside = enter(read_only=True)

    assert inside.ask("open('file').read().strip()") == "base"
    for change in ("open('file', 'w')", "open('new', 'w')", "os.unlink('file')", "os.mkdir('d')"):
        assert inside.ask(change) == f"errno {errno.EROFS}"


def test_one_sandbox_at_a_time(snapshot: Site, enter: Callable[..., Inside]) -> None:
    enter()

    with pytest.raises(SnapshotIsolationError, match="a sandbox"):
        attach(snapshot.store, AttachParams(reference=SNAPSHOT))


def test_files_open_for_writing_outside_keep_a_sandbox_out(snapshot: Site) -> None:
    with (
        (snapshot.mountpoint / SNAPSHOT / "file").open("a"),
        pytest.raises(SnapshotIsolationError, match="open for writing"),
    ):
        attach(snapshot.store, AttachParams(reference=SNAPSHOT))


@pytest.mark.parametrize("is_mapped", [False, True])
def test_files_opened_for_writing_before_a_takeover_keep_a_sandbox_out(
    snapshot: Site, is_mapped: bool
) -> None:
    """Whoever serves now has not been asked for those opens."""
    path = snapshot.mountpoint / SNAPSHOT / "file"
    with ExitStack() as opened:
        file = opened.enter_context(path.open("r+b"))
        if is_mapped:
            opened.enter_context(mmap.mmap(file.fileno(), 5))
            file.close()
        opened.enter_context((snapshot.current / "other").open("wb"))
        kill_server(snapshot)

        with pytest.raises(SnapshotIsolationError, match="open for writing"):
            attach(snapshot.store, AttachParams(reference=SNAPSHOT))
        opened.pop_all().close()
    with (snapshot.current / "other").open("ab"), path.open("rb"):
        attach(snapshot.store, AttachParams(reference=SNAPSHOT)).close()


@each_ending
def test_a_sandbox_goes_on_with_another_server(
    snapshot: Site, enter: Callable[..., Inside], end_server: Callable[[Site], None]
) -> None:
    """What it has open, its quota and its owners stay; nobody else may write, before and after."""
    inside = enter(quota=1 << 20)
    assert inside.ask("[f := open('open', 'wb+', 0), f.write(b'before')][1]") == "6"
    assert (
        inside.ask("[g := open('gone', 'wb+', 0), g.write(b'gone'), os.unlink('gone')][1]") == "4"
    )

    for _ in range(2):
        end_server(snapshot)
        assert inside.ask("f.write(b'+')") == "1"

    assert inside.ask("open('open').read()") == "before++"
    assert inside.ask("os.pread(g.fileno(), 9, 0)") == "b'gone'"
    assert inside.ask("os.stat('open').st_uid") == str(STRANGER)
    assert inside.ask("open('a', 'wb', 0).write(os.urandom(900000))") == "900000"
    assert inside.ask("open('b', 'wb', 0).write(os.urandom(900000))") == f"errno {errno.EDQUOT}"
    outside = snapshot.mountpoint / SNAPSHOT
    assert errno_of(lambda: (outside / "file").open("r+")) == errno.EBUSY
    assert (outside / "open").read_bytes() == b"before++"
    with pytest.raises(SnapshotIsolationError, match="a sandbox"):
        attach(snapshot.store, AttachParams(reference=SNAPSHOT))
    inside.end()
    wait_until(lambda: is_free(snapshot))
    (outside / "file").write_bytes(b"written outside\n")
    assert enter().ask("open('file').read()") == "written outside"


@each_ending
def test_a_sandbox_whose_descriptor_has_not_come_goes_on(
    snapshot: Site, end_server: Callable[[Site], None]
) -> None:
    kept = Path(f"/proc/{server(snapshot).supervisor_pid}/fd")
    before = len(os.listdir(kept))
    attachment = attach(snapshot.store, AttachParams(reference=SNAPSHOT))
    # A server that is killed before the supervisor has the conversation takes it along.
    wait_until(lambda: len(os.listdir(kept)) > before)

    end_server(snapshot)

    with pytest.raises(SnapshotIsolationError, match="a sandbox"):
        attach(snapshot.store, AttachParams(reference=SNAPSHOT))
    attachment.close()
    wait_until(lambda: is_free(snapshot))


@each_ending
def test_discarding_ends_a_sandbox_that_another_server_had(
    snapshot: Site, enter: Callable[..., Inside], end_server: Callable[[Site], None]
) -> None:
    inside = enter()
    end_server(snapshot)

    os.rmdir(snapshot.mountpoint / SNAPSHOT)

    wait_until(lambda: inside.ask("os.listdir('.')") == f"errno {errno.ENOTCONN}")
    assert os.listdir(snapshot.mountpoint / "agent/@snapshots") == []


def test_umount_names_the_sandbox_and_changes_nothing(
    snapshot: Site, enter: Callable[..., Inside]
) -> None:
    inside = enter()

    with pytest.raises(MountBusyError, match="sandbox"):
        snapshot.umount()

    assert inside.ask("open('file').read().strip()") == "base"


def test_a_killed_sandbox_gives_the_snapshot_back(
    snapshot: Site, enter: Callable[..., Inside]
) -> None:
    inside = enter()
    inside.ask("open('new', 'w').write('kept')")

    inside.process.send_signal(signal.SIGKILL)

    wait_until(lambda: is_free(snapshot))
    assert (snapshot.mountpoint / SNAPSHOT / "new").read_bytes() == b"kept"


def test_a_client_that_asks_and_goes_away_leaves_nothing(snapshot: Site) -> None:
    attach(snapshot.store, AttachParams(reference=SNAPSHOT)).close()

    wait_until(lambda: is_free(snapshot))


def test_without_a_daemon_one_serves_for_the_time_it_is_needed(site: Site, tmp_path: Path) -> None:
    """Nobody sees a mount of it, and it ends with whoever wanted it."""
    site.mount()
    (site.mountpoint / "agent").mkdir()
    site.umount()

    with served(site.store):
        call(site.store, "snapshot", SnapshotParams(reference="agent", name="snap"))
        inside = Inside(site, tmp_path)
        assert visible_mounts(site) == []
        assert inside.ask("open('new', 'w').write('n')") == "1"
        inside.end()

    assert find_daemon(site.store) is None
    store = Store.open(site.store, wait_s=0)
    try:
        assert check(store) == []
    finally:
        store.close(commit=False)


SERVED = """
import sys
from pathlib import Path
from kaifs.daemon.lifecycle import served
with served(Path(sys.argv[1])):
    print("served", flush=True)
    sys.stdin.read()
"""


def test_a_daemon_for_one_process_ends_when_that_is_killed(site: Site) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVED, str(site.store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"served\n"
        info = find_daemon(site.store)
        assert info is not None
        assert info.mounts == []
        process.kill()

    Store.open(site.store, wait_s=20).close()


def test_a_daemon_for_one_process_stays_for_another_that_uses_it(
    site: Site, tmp_path: Path
) -> None:
    """It ends with the last, not with the one who started it; no sandbox loses its files."""
    site.mount()
    (site.mountpoint / "agent").mkdir()
    site.umount()

    with ExitStack() as second:
        with served(site.store):
            info = find_daemon(site.store)
            second.enter_context(served(site.store))
            call(site.store, "snapshot", SnapshotParams(reference="agent", name="snap"))
            inside = Inside(site, tmp_path)
        assert find_daemon(site.store) == info
        assert inside.ask("open('new', 'w').write('n')") == "1"
        inside.end()

    Store.open(site.store, wait_s=20).close()


def test_two_who_need_a_daemon_at_once_share_one(site: Site) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SERVED, str(site.store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(3)
    ]

    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"served\n"
    for process in processes:
        process.communicate()
        assert process.returncode == 0

    # The last to go tells it by going.
    wait_until(lambda: find_daemon(site.store) is None)


def test_discarding_a_snapshot_ends_the_connection_of_a_sandbox(site: Site, tmp_path: Path) -> None:
    site.mount()
    (site.mountpoint / "agent").mkdir()
    call(site.store, "snapshot", SnapshotParams(reference="agent", name="snap"))
    inside = Inside(site, tmp_path)
    assert inside.ask("open('new', 'w').write('n')") == "1"

    os.rmdir(site.mountpoint / "agent" / "@snapshots" / "snap")

    assert inside.ask("attachment.wait_end(10) is not None") == "True"
    # ECONNABORTED for a request that is under way when the supervisor lets go.
    wait_until(lambda: inside.ask("os.listdir('.')") == f"errno {errno.ENOTCONN}")
    inside.end()
    site.umount()

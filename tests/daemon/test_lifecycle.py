"""Mount and unmount, with servers that live, die and hang."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kaifs.base.errors import (
    AgentNotFoundError,
    BarrierError,
    MountBusyError,
    MountOptionError,
    MountpointError,
    NotMountedError,
    StoreNotFoundError,
    ViewTakenError,
)
from kaifs.cli.main import main
from kaifs.control.client import find_daemon
from kaifs.control.places import log_path
from kaifs.daemon import lifecycle
from kaifs.linux.files import lock_owner
from kaifs.linux.mounts import find_mount
from kaifs.linux.processes import is_running, send_signal
from kaifs.sandbox.names import VARIABLE, new_name
from kaifs.store.store import LOCK_NAME, Store
from kaifs.store.superblock import read_superblock
from tests.daemon.site import Site, is_dead, kill, wait_ended, wait_until

pytestmark = pytest.mark.fuse


def ended(site: Site) -> bool:
    """Return whether no daemon has the store and nothing is mounted."""
    return lock_owner(site.store / LOCK_NAME) is None and find_mount(site.mountpoint) is None


def test_mount_returns_when_the_mount_answers_and_umount_when_the_daemon_has_ended(
    site: Site,
) -> None:
    info = site.mount()
    os.statvfs(site.mountpoint)
    (site.mountpoint / "agent").mkdir()
    (site.current / "file").write_bytes(b"kept")
    number = (site.current / "file").stat().st_ino

    unmounted = site.umount()

    assert unmounted.has_ended
    assert not is_running(info.process)
    assert ended(site)
    assert find_daemon(site.store) is None
    site.mount()
    assert (site.current / "file").read_bytes() == b"kept"
    assert (site.current / "file").stat().st_ino == number


def test_the_daemon_has_left_the_session_and_the_terminal(mounted: Site) -> None:
    pid = mounted.infos[0].pid

    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert {Path(f"/proc/{pid}/fd/{fd}").readlink() for fd in (0, 1, 2)} == {Path(os.devnull)}


@pytest.mark.root
@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_a_mount_waits_for_the_daemon_that_umount_8_did_not_wait_for(
    site: Site, transport: str
) -> None:
    for number in range(3):
        site.mount(f"transport={transport}")
        (site.mountpoint / f"agent{number}").mkdir()
        subprocess.run(["umount", site.mountpoint], check=True)

    site.mount(f"transport={transport}")

    assert {"agent0", "agent1", "agent2"} <= set(os.listdir(site.mountpoint))
    site.umount()


def test_a_mount_does_not_wait_for_a_daemon_that_is_mounted_elsewhere(
    mounted: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lifecycle, "wait_end", None)
    (tmp_path / "other").mkdir()

    with pytest.raises(ViewTakenError):
        lifecycle.mount(mounted.store, tmp_path / "other", [])


@pytest.mark.root
@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
@pytest.mark.parametrize("given", [(), ("nodev", "nosuid")])
def test_through_mount_8_devices_and_set_id_work_unless_they_are_refused(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    transport: str,
    given: tuple[str, ...],
) -> None:
    """Source: mount(8), `defaults`. It keeps `dev` and `suid` to itself, and passes the others on."""
    monkeypatch.setattr("sys.argv", ["/usr/sbin/mount.kaifs"])
    options = ",".join(["rw", f"transport={transport}", *given])

    status = main([str(site.store), str(site.mountpoint), "-o", options])

    flags = os.statvfs(site.mountpoint).f_flag
    site.umount()
    assert (status, capsys.readouterr().out) == (0, "")
    assert bool(flags & os.ST_NODEV) == ("nodev" in given)
    assert bool(flags & os.ST_NOSUID) == ("nosuid" in given)


@pytest.mark.root
@pytest.mark.parametrize("lazy", [False, True])
def test_what_a_dead_warden_has_left_does_not_keep_the_server(mounted: Site, lazy: bool) -> None:
    """A sandbox's process that is not bound to its warden yet has a copy of all mounts."""
    label = read_superblock(mounted.store).uuid.hex()
    with subprocess.Popen(["sleep", "1000"]) as warden:
        name = str(new_name(label, warden.pid))
        warden.kill()
    said = ["sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(
        ["unshare", "--mount", *said], env={**os.environ, VARIABLE: name}, stdout=subprocess.PIPE
    ) as left:
        assert left.stdout is not None
        assert left.stdout.readline() == b"up\n"
        try:
            unmounted = lifecycle.umount(mounted.mountpoint, lazy=lazy)
        finally:
            left.kill()

    assert unmounted.has_ended
    assert left.returncode == -signal.SIGKILL
    assert ended(mounted)


def test_the_helper_holds_neither_the_device_nor_the_store(mounted: Site) -> None:
    pid = mounted.infos[0].pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    (helper,) = children
    links = [os.readlink(f"/proc/{helper}/fd/{fd}") for fd in os.listdir(f"/proc/{helper}/fd")]

    assert not [link for link in links if "fuse" in link or str(mounted.store) in link]


@pytest.mark.parametrize("ending", ["umount", "fusermount3", "SIGTERM", "SIGINT"])
def test_every_way_to_unmount_ends_the_daemon_with_everything_committed(
    mounted: Site, ending: str
) -> None:
    (info,) = mounted.infos
    (mounted.current / "file").write_bytes(b"x" * 100_000)

    match ending:
        case "umount":
            subprocess.run(["umount", str(mounted.mountpoint)], check=True)
        case "fusermount3":
            subprocess.run(["fusermount3", "-u", str(mounted.mountpoint)], check=True)
        case _:
            send_signal(info.process, signal.Signals[ending])

    wait_ended(info)
    assert ended(mounted)
    mounted.mount()
    assert (mounted.current / "file").read_bytes() == b"x" * 100_000


def test_sigterm_detaches_a_mount_in_use_after_flushing_it(mounted: Site) -> None:
    (info,) = mounted.infos
    file = os.open(mounted.current / "file", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"written, not synced")

    send_signal(info.process, signal.SIGTERM)

    wait_ended(info)
    assert ended(mounted)
    with pytest.raises(OSError, match="not connected") as caught:
        os.close(file)
    assert caught.value.errno == errno.ENOTCONN
    mounted.mount()
    assert (mounted.current / "file").read_bytes() == b"written, not synced"


def test_umount_of_a_mount_in_use_names_the_processes_and_changes_nothing(mounted: Site) -> None:
    with open(mounted.current / "file", "wb") as file:
        with pytest.raises(MountBusyError) as caught:
            mounted.umount()

        assert f"[{os.getpid()}]" in str(caught.value)
        assert caught.value.code == "E136"
        file.write(b"still works")
    assert (mounted.current / "file").read_bytes() == b"still works"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_umount_does_not_wait_for_another_mount_namespace_that_has_the_mount_too(
    site: Site, transport: str
) -> None:
    """A container that was started meanwhile has a copy of every mount."""
    info = site.mount(f"transport={transport}")
    (site.mountpoint / "agent").mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo in; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"in\n"

        unmounted = site.umount()

        assert not unmounted.has_ended
        assert find_mount(site.mountpoint) is None
        container.communicate(b"leave\n")
    wait_ended(info)
    site.mount()
    assert (site.mountpoint / "agent").is_dir()
    site.umount()


def test_lazy_umount_detaches_and_ends_the_daemon_after_the_last_user(mounted: Site) -> None:
    (info,) = mounted.infos
    with open(mounted.current / "file", "wb", buffering=0) as file:
        unmounted = mounted.umount(lazy=True)

        assert not unmounted.has_ended
        assert find_mount(mounted.mountpoint) is None
        file.write(b"after the umount")

    wait_ended(info)
    mounted.mount()
    assert (mounted.current / "file").read_bytes() == b"after the umount"


def test_a_killed_daemon_s_mount_is_cleared_by_the_next_mount(mounted: Site) -> None:
    kill(mounted.infos[0])
    assert is_dead(mounted.mountpoint)
    assert find_daemon(mounted.store) is None

    mounted.mount()

    assert os.listdir(mounted.mountpoint) in ([], ["agent"])
    assert mounted.umount().has_ended
    assert ended(mounted)


def test_a_killed_daemon_s_mount_is_cleared_by_umount(mounted: Site) -> None:
    kill(mounted.infos[0])

    mounted.umount()

    assert ended(mounted)


def test_what_was_fsynced_survives_a_killed_daemon(mounted: Site) -> None:
    with open(mounted.current / "file", "wb", buffering=0) as file:
        file.write(b"precious" * 10_000)
        os.fsync(file.fileno())

    kill(mounted.infos[0])

    mounted.mount()
    assert (mounted.current / "file").read_bytes() == b"precious" * 10_000


def test_a_hung_daemon_is_aborted_and_what_it_held_is_kept(mounted: Site) -> None:
    (info,) = mounted.infos
    (mounted.current / "file").write_bytes(b"in memory only")
    send_signal(info.process, signal.SIGSTOP)
    stuck = subprocess.Popen(["stat", "-f", str(mounted.mountpoint)], stderr=subprocess.DEVNULL)

    mounted.mount()

    assert stuck.wait(20) != 0
    assert not is_running(info.process)
    assert (mounted.current / "file").read_bytes() == b"in memory only"


def test_a_hung_daemon_s_mount_is_cleared_by_umount(mounted: Site) -> None:
    send_signal(mounted.infos[0].process, signal.SIGSTOP)

    mounted.umount()

    assert ended(mounted)


@pytest.mark.parametrize("case", ["missing", "file", "full", "tmpfs", "kaifs", "in store"])
def test_mountpoints_that_cannot_be_used_are_refused(site: Site, tmp_path: Path, case: str) -> None:
    place = tmp_path / "place"
    match case:
        case "file":
            place.write_bytes(b"")
        case "full":
            place.mkdir()
            (place / "something").touch()
        case "tmpfs":
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "test", str(place)], check=True)
        case "kaifs":
            site.mount()
            place = site.mountpoint
        case "in store":
            place = site.store / "run" / "mnt"
            place.mkdir()

    with pytest.raises(MountpointError) as caught:
        lifecycle.mount(site.store, place, [])

    assert caught.value.code == "E133"
    if case == "tmpfs":
        subprocess.run(["umount", str(place)], check=True)


def test_a_second_mount_of_a_store_names_the_first(mounted: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    with pytest.raises(ViewTakenError) as caught:
        lifecycle.mount(mounted.store, tmp_path / "other", [])

    assert str(mounted.mountpoint) in str(caught.value)


def test_what_is_wrong_with_the_start_reaches_the_caller(site: Site, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        lifecycle.mount(tmp_path / "nothing", site.mountpoint, [])
    with pytest.raises(MountOptionError, match="colour"):
        site.mount("colour=blue")
    with pytest.raises(AgentNotFoundError):
        site.mount("agent=nobody")

    assert ended(site)


def test_umount_where_no_kaifs_is(site: Site, tmp_path: Path) -> None:
    for place in (site.mountpoint, tmp_path / "missing" / "x", Path("/proc")):
        with pytest.raises(NotMountedError):
            lifecycle.umount(place)


def test_a_mount_in_the_foreground_ends_with_the_mount(site: Site) -> None:
    program = (
        "import sys; from pathlib import Path; from kaifs.daemon.lifecycle import mount;"
        "mount(Path(sys.argv[1]), Path(sys.argv[2]), [], foreground=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(site.store), str(site.mountpoint)],
        env={**os.environ, "PYTHONPATH": str(Path(lifecycle.__file__).parents[2])},
    ) as server:
        wait_until(lambda: find_daemon(site.store) is not None)

        assert site.umount().has_ended

        assert server.wait(20) == 0


def test_a_mount_whose_caller_has_gone_is_taken_down_again(site: Site) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "kaifs.daemon.main", str(site.store), str(site.mountpoint)),
            *("--ready-fd", str(writing)),
        ],
        pass_fds=[writing],
        env={**os.environ, "PYTHONPATH": str(Path(lifecycle.__file__).parents[2])},
    ) as server:
        os.close(writing)
        assert server.wait(20) != 0

    assert ended(site)


def test_a_mount_of_one_agent_and_of_one_view(mounted: Site) -> None:
    (mounted.current / "file").write_bytes(b"x")
    (mounted.mountpoint / "agent" / "@snapshots" / "snap").mkdir()
    mounted.umount()

    mounted.mount("agent=agent")
    assert "current" in os.listdir(mounted.mountpoint)
    mounted.umount()
    mounted.mount("agent=agent,view=@snapshots/snap,ro")

    assert os.listdir(mounted.mountpoint) == ["file"]
    with pytest.raises(OSError, match="Read-only"):
        (mounted.mountpoint / "file").write_bytes(b"y")


def test_the_log_has_one_line_an_event(mounted: Site) -> None:
    mounted.umount()

    lines = log_path(mounted.store).read_text().splitlines()

    assert [line for line in lines if " mounted mountpoint=" in line]
    assert " ended epoch=" in lines[-1]


def fill(path: Path) -> None:
    """Write to *path* until the disk is full."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def test_a_full_disk_is_told_at_fsync_and_nothing_is_lost(tmp_path: Path) -> None:
    """The commit fails as long as there is no space, and succeeds once there is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "test", str(disk)], check=True)
    try:
        Store.create(disk / "store").close()
        (tmp_path / "mnt").mkdir()
        site = Site(disk / "store", tmp_path / "mnt")
        site.mount("commit=0.1")
        (site.mountpoint / "agent").mkdir()
        (site.current / "small").write_bytes(b"small")
        with open(site.current / "small", "rb") as file:
            os.fsync(file.fileno())
        filler = disk / "filler"
        fill(filler)

        with open(site.current / "large", "wb", buffering=0) as file:
            file.write(os.urandom(4 << 20))
            with pytest.raises(OSError, match=r"space|Input/output"):
                os.fsync(file.fileno())
        filler.unlink()

        (site.current / "later").write_bytes(b"later")
        with open(site.current / "later", "rb") as file:
            os.fsync(file.fileno())
        # The kernel reports a failed write-back once more, to the next who flushes the mount.
        with suppress(BarrierError):
            site.umount()
        site.clear()
        site.mount()
        assert (site.current / "small").read_bytes() == b"small"
        assert (site.current / "later").read_bytes() == b"later"
        site.clear()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)

"""A store on several mounts: each writable view is written and cached by one connection alone."""

import errno
import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kaifs.base.errors import (
    MountBusyError,
    MountOptionError,
    SnapshotIsolationError,
    StoreBusyError,
    ViewTakenError,
)
from kaifs.control.client import attach, call, find_daemon
from kaifs.control.messages import AttachParams
from kaifs.daemon import lifecycle
from kaifs.linux.mounts import find_mount
from kaifs.linux.processes import send_signal
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.seal import Params as SealParams
from kaifs.service.snapshot import Params as SnapshotParams
from tests.daemon.site import Site, check_store, kill_server, server, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

Mounter = Callable[..., Path]


@pytest.fixture
def tree(site: Site) -> Iterator[Site]:
    """A mount of the whole store, with an agent that has a version."""
    site.mount("commit=3600")
    (site.mountpoint / "agent").mkdir()
    (site.current / "file").write_bytes(b"first\n")
    call(site.store, "seal", SealParams(agent="agent", label="1.0.0"))
    yield site
    site.clear()


@pytest.fixture
def mount(tree: Site, tmp_path: Path) -> Iterator[Mounter]:
    """Returns a new mount of the same store with the options it is given."""
    places: list[Path] = []

    def make(*options: str) -> Path:
        place = tmp_path / f"other{len(places)}"
        place.mkdir()
        places.append(place)
        lifecycle.mount(tree.store, place, list(options), probe_timeout_s=1)
        return place

    yield make
    for place in places:
        with suppress(KeyboardInterrupt):
            while find_mount(place) is not None:
                lifecycle.umount(place, lazy=True, probe_timeout_s=5)


def errno_of(action: Callable[[], object]) -> int:
    """Return with which errno *action* fails, 0 if it does not."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def finish(site: Site) -> None:
    """Unmount what is left, and check the store."""
    site.umount()
    check_store(site.store)


def test_what_is_written_on_one_mount_is_read_on_the_other(tree: Site, mount: Mounter) -> None:
    # What the first mount has cached is of no harm: names, absent names, attributes, pages.
    assert (tree.current / "file").read_bytes() == b"first\n"
    assert not (tree.current / "new").exists()
    view = mount("agent=agent,view=current")

    for number in range(3):
        (view / "file").write_bytes(b"%d\n" % number)
        (view / "new").write_bytes(b"new %d\n" % number)
        # The kernel of the view's connection may hold it back until somebody asks: fsync.
        for name in ("file", "new"):
            with (view / name).open("rb+") as file:
                os.fsync(file.fileno())
        assert (tree.current / "file").read_bytes() == b"%d\n" % number
        assert (tree.current / "new").read_bytes() == b"new %d\n" % number
        (view / "new").unlink()
        assert not (tree.current / "new").exists()
        assert os.listdir(tree.current) == ["file"]
    lifecycle.umount(view)
    finish(tree)


def test_mount_returns_the_daemon_with_the_new_mount(tree: Site, tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()

    info = lifecycle.mount(tree.store, tmp_path / "view", ["agent=agent,view=current"])
    lifecycle.umount(tmp_path / "view")

    assert info is not None
    assert [mount.mountpoint for mount in info.mounts] == [
        str(tree.mountpoint),
        str(tmp_path / "view"),
    ]
    finish(tree)


def test_the_view_is_read_only_elsewhere_until_its_mount_has_gone(
    tree: Site, mount: Mounter
) -> None:
    view = mount("agent=agent,view=current")

    assert errno_of(lambda: (tree.current / "file").open("rb+")) == errno.EBUSY
    assert errno_of(lambda: (tree.current / "other").touch()) == errno.EBUSY
    assert errno_of((tree.current / "file").unlink) == errno.EBUSY
    (tree.mountpoint / "agent/@snapshots/s").mkdir()
    (tree.mountpoint / "agent/@snapshots/s/file").write_bytes(b"of the snapshot\n")
    (view / "file").write_bytes(b"of the view\n")
    lifecycle.umount(view)

    assert (tree.current / "file").read_bytes() == b"of the view\n"
    (tree.current / "file").write_bytes(b"of the tree\n")
    assert (tree.current / "file").read_bytes() == b"of the tree\n"
    finish(tree)


def test_size_and_times_are_those_of_now_by_every_path(tree: Site, mount: Mounter) -> None:
    """With the writeback cache the kernel takes them once for each node, and then counts itself."""
    file = tree.current / "file"
    with file.open("rb") as kept:
        for loan in range(2):
            view = mount("agent=agent,view=current")
            for number in range(3):
                with (view / "file").open("ab" if number < 2 else "wb") as written:
                    written.write(b"%d.%d\n" % (loan, number))
                    written.flush()
                    os.fsync(written.fileno())
                here, there = os.stat(file), os.stat(view / "file")
                assert (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
                assert file.read_bytes() == (view / "file").read_bytes()
            lifecycle.umount(view)
            with file.open("ab") as appended:
                appended.write(b"appended\n")
            assert file.read_bytes() == b"%d.2\nappended\n" % loan
            assert os.stat(file).st_size == 13
            with file.open("rb+") as written, file.open("rb") as read:
                written.write(b"X")
                written.flush()
                assert read.read() == b"X.2\nappended\n"
        # Open since before the first loan.
        kept.seek(0)
        assert kept.read()
    file.unlink()
    assert os.listdir(tree.current) == []
    finish(tree)


def test_verbs_see_what_was_written_on_every_mount(tree: Site, mount: Mounter) -> None:
    view = mount("agent=agent,view=current")
    with (view / "mapped").open("wb+") as file:
        file.truncate(mmap.PAGESIZE)
        memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        memory[:6] = b"mapped"
        (view / "file").write_bytes(b"dirty\n")

        call(tree.store, "seal", SealParams(agent="agent", label="1.1.0"))

    sealed = tree.mountpoint / "agent/@versions/1.1.0"
    assert (sealed / "file").read_bytes() == b"dirty\n"
    assert (sealed / "mapped").read_bytes().rstrip(b"\0") == b"mapped"
    # So does a mkdir on the other mount.
    (view / "file").write_bytes(b"dirty again\n")
    (tree.mountpoint / "agent/@snapshots/s").mkdir()
    assert (tree.mountpoint / "agent/@snapshots/s/file").read_bytes() == b"dirty again\n"
    memory.close()
    lifecycle.umount(view)
    finish(tree)


def test_a_rollback_shows_on_every_mount(tree: Site, mount: Mounter) -> None:
    view = mount("agent=agent,view=current")
    (view / "file").write_bytes(b"second\n")
    (view / "more").write_bytes(b"more\n")

    call(tree.store, "rollback", RollbackParams(agent="agent", version="1.0.0"))

    for current in (view, tree.current):
        assert os.listdir(current) == ["file"]
        assert (current / "file").read_bytes() == b"first\n"
    assert errno_of(lambda: (tree.current / "file").open("rb+")) == errno.EBUSY
    (view / "file").write_bytes(b"third\n")
    call(tree.store, "seal", SealParams(agent="agent", label="2.0.0"))
    assert (tree.current / "file").read_bytes() == b"third\n"
    lifecycle.umount(view)
    (tree.current / "file").write_bytes(b"fourth\n")
    finish(tree)


def test_a_writable_view_is_on_one_mount_and_a_sealed_one_on_many(
    tree: Site, mount: Mounter
) -> None:
    view = mount("agent=agent,view=current")
    sealed = [mount("agent=agent,view=@versions/1.0.0") for _ in range(2)]

    for options in ("agent=agent,view=current", "agent=agent,view=current,ro", "agent=agent", ""):
        with pytest.raises(ViewTakenError):
            mount(options)
    for options in ("agent=agent,view=@versions/1.0.0,transport=pyfuse3", "commit=1"):
        with pytest.raises(MountOptionError):
            mount(options)
    assert [(place / "file").read_bytes() for place in sealed] == [b"first\n"] * 2
    for file in [place / "file" for place in sealed]:
        assert errno_of(file.unlink) == errno.EROFS
    assert {Path(one.mountpoint) for one in server(tree).mounts} == {tree.mountpoint, view, *sealed}
    for place in (view, *sealed):
        lifecycle.umount(place)
    finish(tree)


def test_a_view_that_is_written_elsewhere_is_not_taken(tree: Site, mount: Mounter) -> None:
    with (tree.current / "file").open("rb+"), pytest.raises(ViewTakenError, match="open"):
        mount("agent=agent,view=current")

    view = mount("agent=agent,view=current")

    lifecycle.umount(view)
    finish(tree)


def test_sandboxes_and_mounts_do_not_share_a_snapshot(tree: Site, mount: Mounter) -> None:
    call(tree.store, "snapshot", SnapshotParams(reference="agent", name="snap"))
    view = mount("agent=agent,view=@snapshots/snap")

    with pytest.raises(SnapshotIsolationError, match="mounted"):
        attach(tree.store, AttachParams(reference="agent/@snapshots/snap"))

    lifecycle.umount(view)
    finish(tree)


def test_mounts_go_one_by_one_and_the_daemon_with_the_last(tree: Site, mount: Mounter) -> None:
    view = mount("agent=agent,view=current")
    other = mount("agent=agent,view=@versions/1.0.0")
    (view / "file").write_bytes(b"kept\n")

    done = lifecycle.umount(tree.mountpoint)
    assert (done.has_ended, done.is_gone) == (False, True)
    with (view / "file").open("rb"), pytest.raises(MountBusyError):
        lifecycle.umount(view)
    subprocess.run(["umount", other], check=True)
    wait_until(lambda: len(server(tree).mounts) == 1)
    assert (view / "file").read_bytes() == b"kept\n"
    # The store's own folder can be mounted again beside it.
    again = mount()
    assert (again / "agent/current/file").read_bytes() == b"kept\n"
    lifecycle.umount(again)
    assert lifecycle.umount(view).has_ended

    assert find_daemon(tree.store) is None
    check_store(tree.store)


def test_a_mount_that_came_and_went_leaves_nothing_open(tree: Site, mount: Mounter) -> None:
    info = server(tree)

    def opened() -> int:
        return sum(len(os.listdir(f"/proc/{one.pid}/fd")) for one in info.processes)

    def come_and_go() -> None:
        view = mount("agent=agent,view=current")
        with pytest.raises(ViewTakenError):
            mount("agent=agent,view=current")
        lifecycle.umount(view)
        wait_until(lambda: len(server(tree).mounts) == 1)

    come_and_go()
    before = opened()
    for _ in range(5):
        come_and_go()

    # The server closes a conversation a moment after its client: one or two may count in either.
    wait_until(lambda: opened() <= before)
    finish(tree)


def test_in_the_foreground_there_is_one_mount_a_process(tree: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    with pytest.raises(StoreBusyError):
        lifecycle.mount(
            tree.store, tmp_path / "other", ["agent=agent,view=current"], foreground=True
        )


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_every_mount_survives_its_server(tree: Site, mount: Mounter, how: str) -> None:
    view = mount("agent=agent,view=current")
    sealed = mount("agent=agent,view=@versions/1.0.0")
    with (view / "file").open("rb+") as written, (sealed / "file").open("rb") as read:
        written.write(b"before\n")
        written.flush()
        for _ in range(3):
            if how == "killed":
                kill_server(tree)
            else:
                lifecycle.restart(view)
        wait_until(lambda: all(one.survives for one in server(tree).mounts))
        written.write(b"after\n")
        assert read.read() == b"first\n"

    assert len(server(tree).mounts) == 3
    assert (view / "file").read_bytes() == b"before\nafter\n"
    call(tree.store, "seal", SealParams(agent="agent", label="1.1.0"))
    assert (tree.current / "file").read_bytes() == b"before\nafter\n"
    assert errno_of(lambda: (tree.current / "file").open("rb+")) == errno.EBUSY
    # Also when the first one has gone.
    lifecycle.umount(tree.mountpoint)
    kill_server(tree)
    assert (view / "file").read_bytes() == b"before\nafter\n"
    lifecycle.umount(sealed)
    assert lifecycle.umount(view).has_ended


def test_a_mount_that_hangs_is_known_by_its_mountpoint(tree: Site, mount: Mounter) -> None:
    """What a daemon has left that died with its supervisor, the next mount there clears."""
    view = mount("agent=agent,view=current")
    info = server(tree)
    for process in info.processes:
        send_signal(process, signal.SIGKILL)
    wait_until(lambda: find_daemon(tree.store) is None)

    tree.mount()
    lifecycle.mount(tree.store, view, ["agent=agent,view=current"], probe_timeout_s=1)

    assert (view / "file").read_bytes() == b"first\n"
    lifecycle.umount(view)
    finish(tree)

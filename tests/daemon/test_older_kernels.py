"""Kernels without the newest notifications: a switch and a takeover all the same, or a clear word.

Linux 6.9 to 6.15 (7.40 to 7.43) send requests again, and cannot make all names stale at once; older
ones can do neither.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kaifs.base.errors import KaifsError, RestartError
from kaifs.control.client import call, find_daemon
from kaifs.daemon import lifecycle
from kaifs.linux.files import lock_owner
from kaifs.linux.mounts import find_mount
from kaifs.linux.processes import send_signal
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.seal import Params as SealParams
from kaifs.store.store import LOCK_NAME
from tests.daemon import test_rollback, test_several_mounts, test_takeover
from tests.daemon.site import (
    Site,
    check_store,
    each_ending,
    is_dead,
    kill_server,
    server,
    wait_ended,
    wait_until,
)
from tests.daemon.test_several_mounts import Mounter, finish
from tests.daemon.test_several_mounts import mount as mount
from tests.daemon.test_several_mounts import tree as tree
from tests.daemon.test_takeover import log_of

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

NO_EPOCH, NO_RESEND = 43, 39
"""The newest minor versions without."""

Ending = Callable[[Site], None]


@pytest.fixture
def spoken() -> int:
    """The minor version that the kernel speaks."""
    return NO_EPOCH


@pytest.fixture(autouse=True)
def trap(spoken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have every daemon that the test starts find such a kernel; return where a trap may be set."""
    trap = tmp_path / "trap"

    def start(command: Sequence[str], **named: Any) -> "subprocess.Popen[bytes]":
        _, _, module, *arguments = command
        assert module == "kaifs.daemon.main"
        script = ["-m", "tests.daemon.older_kernel", str(spoken), str(trap)]
        return subprocess.Popen([sys.executable, *script, *arguments], **named)

    stand_in = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(lifecycle, "subprocess", stand_in)
    return trap


@pytest.fixture
def one_view(site: Site) -> Site:
    """A mount of current alone."""
    site.mount()
    (site.mountpoint / "agent").mkdir()
    site.umount()
    site.mount("agent=agent", "view=current")
    return site


def seal(site: Site, label: str) -> None:
    call(site.store, "seal", SealParams(agent="agent", label=label))


def roll_back(site: Site, label: str) -> None:
    call(site.store, "rollback", RollbackParams(agent="agent", version=label))


def make_versions(site: Site, folder: Path) -> None:
    """Make two versions, of which current, *folder*, shows the second; they tell who they are."""
    (folder / "folder").mkdir()
    for text, label in (("old", "1.0.0"), ("new", "1.1.0")):
        (folder / "file").write_text(text)
        (folder / "folder/file").write_text(text * 1000)
        (folder / text).touch()
        seal(site, label)
    (folder / "old").unlink()
    seal(site, "1.2.0")


def check_shown(folder: Path, text: str) -> None:
    """Check that *folder* shows the version that says *text*, by names, listing and content."""
    other = {"old": "new", "new": "old"}[text]
    assert (folder / "file").read_text() == text
    assert (folder / "folder/file").read_text() == text * 1000
    assert not (folder / other).exists()
    assert sorted(os.listdir(folder)) == sorted(["file", "folder", text])


# --- a switch by names ------------------------------------------------------------------------


def test_readers_see_the_old_state_or_the_new_one(site: Site) -> None:
    test_rollback.test_readers_see_the_old_state_or_the_new_one(site, "kernel")


test_what_was_written_before_a_rollback_is_in_the_backup = (
    test_rollback.test_what_was_written_before_a_rollback_is_in_the_backup
)
test_an_open_file_stays_on_the_old_view = test_rollback.test_an_open_file_stays_on_the_old_view


@each_ending
@pytest.mark.parametrize("is_one_view", [False, True])
def test_switches_and_takeovers_by_turns(
    site: Site, request: pytest.FixtureRequest, end_server: Ending, is_one_view: bool
) -> None:
    request.getfixturevalue("one_view" if is_one_view else "mounted")
    current = site.mountpoint if is_one_view else site.current
    make_versions(site, current)

    for number in range(4):
        label, text = (("1.0.0", "old"), ("1.2.0", "new"))[number % 2]
        roll_back(site, label)
        check_shown(current, text)
        end_server(site)
        check_shown(current, text)
        (current / "file").write_text("changed")

    site.umount()
    assert "invalidation_failed" not in log_of(site)
    check_store(site.store)


@pytest.mark.parametrize("is_one_view", [False, True])
def test_what_a_server_could_not_tell_its_successor_tells(
    site: Site, request: pytest.FixtureRequest, trap: Path, is_one_view: bool
) -> None:
    """It died after the switch was in the journal, before the kernel had forgotten the old names."""
    request.getfixturevalue("one_view" if is_one_view else "mounted")
    current = site.mountpoint if is_one_view else site.current
    make_versions(site, current)
    check_shown(current, "new")
    trap.touch()

    def ask() -> None:
        with suppress(KaifsError):
            roll_back(site, "1.0.0")

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: not trap.exists())
    # With what this changes, the journal has the switch.
    os.setxattr(current, "user.note", b"")
    kill_server(site)
    asking.join()

    wait_until(lambda: (current / "file").read_text() == "old")
    check_shown(current, "old")
    site.umount()
    check_store(site.store)


# --- takeover ---------------------------------------------------------------------------------


@each_ending
def test_work_comes_to_the_same_while_servers_die(
    site: Site, tmp_path: Path, end_server: Ending
) -> None:
    test_takeover.test_work_comes_to_the_same_while_servers_die(
        site, tmp_path, "random load", "view", end_server
    )


test_what_is_open_goes_on = test_takeover.test_what_is_open_goes_on
test_after_a_restart_what_is_unlinked_while_open_goes_when_it_is_closed = (
    test_takeover.test_after_a_restart_what_is_unlinked_while_open_goes_when_it_is_closed
)

# --- several mounts ---------------------------------------------------------------------------


test_what_is_written_on_one_mount_is_read_on_the_other = (
    test_several_mounts.test_what_is_written_on_one_mount_is_read_on_the_other
)
test_size_and_times_are_those_of_now_by_every_path = (
    test_several_mounts.test_size_and_times_are_those_of_now_by_every_path
)
test_a_rollback_shows_on_every_mount = test_several_mounts.test_a_rollback_shows_on_every_mount
test_every_mount_survives_its_server = test_several_mounts.test_every_mount_survives_its_server


@each_ending
def test_a_rollback_shows_on_every_mount_after_a_takeover(
    tree: Site, mount: Mounter, end_server: Ending
) -> None:
    view = mount("agent=agent,view=current")
    (view / "file").write_bytes(b"second\n")
    (view / "more").write_bytes(b"more\n")
    assert (tree.current / "file").read_bytes() == b"second\n"
    end_server(tree)

    roll_back(tree, "1.0.0")

    end_server(tree)
    for current in (view, tree.current):
        assert os.listdir(current) == ["file"]
        assert (current / "file").read_bytes() == b"first\n"
        assert not (current / "more").exists()
    lifecycle.umount(view)
    finish(tree)


# --- without a takeover -----------------------------------------------------------------------


@pytest.mark.parametrize("spoken", [NO_RESEND, 31])
def test_a_kernel_that_sends_nothing_again_ends_with_its_server_and_says_so(
    tree: Site, mount: Mounter
) -> None:
    """Whoever uses the mount gets ENOTCONN then, nothing acknowledged is lost, and it can be mounted."""
    view = mount("agent=agent,view=@versions/1.0.0")
    info = server(tree)
    for mounted in info.mounts:
        assert not mounted.survives
        assert "cannot send requests again" in mounted.survives_reason
    with pytest.raises(RestartError, match="cannot send requests again"):
        lifecycle.restart(tree.mountpoint)
    (tree.current / "file").write_bytes(b"acknowledged\n")
    opened = os.open(tree.current / "file", os.O_RDONLY)
    os.fsync(opened)

    send_signal(info.process, signal.SIGKILL)
    wait_ended(info)

    # As `is_dead`: the first may still have found the connection open.
    with pytest.raises(OSError, match="connect"):
        os.fsync(opened)
    with suppress(OSError):
        os.close(opened)
    assert is_dead(tree.mountpoint)
    assert is_dead(view)
    wait_until(lambda: lock_owner(tree.store / LOCK_NAME) is None)
    assert find_daemon(tree.store) is None

    tree.mount()
    lifecycle.mount(tree.store, view, ["agent=agent,view=@versions/1.0.0"], probe_timeout_s=1)

    assert (tree.current / "file").read_bytes() == b"acknowledged\n"
    assert (view / "file").read_bytes() == b"first\n"
    lifecycle.umount(view)
    finish(tree)


@pytest.mark.parametrize("spoken", [NO_RESEND, 31])
def test_a_rollback_on_a_kernel_that_sends_nothing_again(mounted: Site) -> None:
    make_versions(mounted, mounted.current)

    for label, text in (("1.0.0", "old"), ("1.2.0", "new")):
        roll_back(mounted, label)
        check_shown(mounted.current, text)

    assert mounted.umount().has_ended
    assert find_mount(mounted.mountpoint) is None
    check_store(mounted.store)

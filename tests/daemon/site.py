"""Where a test mounts its store, and waiting without sleeping."""

import errno
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kaifs.control.info import DaemonInfo, read_info
from kaifs.daemon import lifecycle
from kaifs.linux.mounts import find_mount
from kaifs.linux.processes import ProcessId, is_running, send_signal, wait_end
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check

POLL_S = 0.01


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for what no descriptor tells, and fail if it does not come."""
    until = time.monotonic() + timeout_s
    nothing = select.poll()
    while not condition():
        assert time.monotonic() < until, "it did not come"
        nothing.poll(POLL_S * 1000)


def kill(info: DaemonInfo) -> None:
    """Kill a daemon by SIGKILL, with the supervisor that would replace it."""
    for process in info.processes:
        send_signal(process, signal.SIGKILL)
    wait_ended(info)


def wait_ended(info: DaemonInfo) -> None:
    """Wait until a daemon has ended, and its supervisor."""
    for process in info.processes:
        assert wait_end(process, 20), f"process {process.pid} does not end"


def is_dead(mountpoint: Path) -> bool:
    """Return whether a mount has lost its server for good.

    A request that still found the connection open, held by a child of the server that had not
    come to its exec, gets ECONNABORTED; all later ones get ENOTCONN.
    """
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


def check_store(path: Path) -> None:
    """Check that fsck finds nothing in a store that nobody serves, before a recovery and after.

    What the recovery makes is left to the next mount to make.
    """
    store = Store.open(path, wait_s=60)
    try:
        assert check(store) == []
        Forest(store).recover()
        assert check(store) == []
    finally:
        store.close(commit=False)


@dataclass
class Site:
    """Where a test mounts its store."""

    store: Path
    mountpoint: Path
    infos: list[DaemonInfo] = field(default_factory=list)

    def mount(self, *options: str) -> DaemonInfo:
        """Mount and return the daemon."""
        info = lifecycle.mount(self.store, self.mountpoint, list(options), probe_timeout_s=1)
        assert info is not None
        self.infos.append(info)
        return info

    def umount(self, *, lazy: bool = False) -> lifecycle.Unmounted:
        """Unmount."""
        return lifecycle.umount(self.mountpoint, lazy=lazy, probe_timeout_s=1)

    @property
    def current(self) -> Path:
        """The agent's current."""
        return self.mountpoint / "agent" / "current"

    def clear(self) -> None:
        """Take down what a test left mounted."""
        while find_mount(self.mountpoint) is not None:
            lifecycle.umount(self.mountpoint, lazy=True, probe_timeout_s=1)
        wait_until(lambda: not any(map(is_running, self._processes())))

    def _processes(self) -> list[ProcessId]:
        return [process for info in self.infos for process in info.processes]


def server(site: Site) -> DaemonInfo:
    """Return the daemon that serves now; wait for it if it is being replaced."""
    found: list[DaemonInfo] = []

    def is_there() -> bool:
        info = read_info(site.store)
        if info is None or not is_running(info.process):
            return False
        found.append(info)
        return True

    wait_until(is_there, 60)
    if found[-1] not in site.infos:
        site.infos.append(found[-1])
    return found[-1]


def kill_server(site: Site) -> None:
    """Kill the server, and not its supervisor; wait until another one serves."""
    before = server(site)
    send_signal(before.process, signal.SIGKILL)
    wait_until(lambda: server(site).pid != before.pid, 60)


def restart(site: Site) -> None:
    """Let a new server take over, on purpose."""
    site.infos.append(lifecycle.restart(site.mountpoint))


each_ending = pytest.mark.parametrize(
    "end_server", [kill_server, restart], ids=["killed", "restarted"]
)
"""Runs a test with each way in which a server gives way to the next one."""

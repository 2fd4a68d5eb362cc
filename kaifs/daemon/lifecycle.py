"""Mounting and unmounting, as a command sees it.

`mount` returns when the mount answers; `umount` when everything is on disk and
the daemon has ended. What a daemon that died or hangs has left at the
mountpoint is cleared by either.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote

from kaifs.base.errors import (
    AccessDeniedError,
    DaemonError,
    KaifsError,
    MountBusyError,
    MountFailedError,
    MountpointError,
    NotMountedError,
    StoreBusyError,
    StoreNotFoundError,
)
from kaifs.control.client import find_daemon, hold, request_mount, request_restart, shutdown
from kaifs.control.frames import FRAME_MAX
from kaifs.control.info import DaemonInfo, MountInfo, read_info
from kaifs.control.messages import (
    Failure,
    MessageError,
    MountParams,
    decode_from_daemon,
    error_of,
)
from kaifs.control.places import log_path, run_folder
from kaifs.daemon.options import MountOptions, parse_options
from kaifs.linux.files import lock_owner
from kaifs.linux.mounts import (
    Answer,
    FuseConnection,
    MountEntry,
    ensure_fusectl,
    find_mount,
    probe,
    resolve_mountpoint,
    unmount,
    users_of,
)
from kaifs.linux.namespaces import mount_namespace
from kaifs.linux.processes import is_running, send_signal, wait_end
from kaifs.store.superblock import read_superblock

FSTYPE: Final = "fuse.kaifs"
START_LOCK_NAME: Final = "start.lock"
"""In the run folder: held by who starts a daemon for sandboxes."""
PROBE_TIMEOUT_S: Final = 10.0
"""Seconds without an answer after which a server counts as hung."""
END_TIMEOUT_S: Final = 60.0
"""Seconds for a daemon to end after its mount has gone."""
UNMOUNTED_TIMEOUT_S: Final = 10.0
"""Seconds for which a mount waits for a daemon whose own mount has gone. It may serve files that
were open at a lazy unmount, for as long as they are."""
RESTART_POLL_S: Final = 0.01
TERM_TIMEOUT_S: Final = 5.0
"""Seconds for a hung daemon to end by itself once its connection has been aborted."""

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
_started: Final[list["subprocess.Popen[bytes]"]] = []
"""Daemons that this process started, to be reaped if they end before it does."""


@dataclass(frozen=True, slots=True)
class Unmounted:
    """What `umount` did."""

    mountpoint: Path
    has_ended: bool
    """Whether the daemon has ended; it may serve other mounts, and after a lazy unmount open files."""
    is_gone: bool = True
    """Whether nobody uses the mount any more."""


def mount(
    store: Path,
    mountpoint: Path,
    options: list[str],
    *,
    foreground: bool = False,
    probe_timeout_s: float = PROBE_TIMEOUT_S,
) -> DaemonInfo | None:
    """Mount *store* on *mountpoint* and return the daemon once the mount answers.

    If a daemon serves the store on other mounts, it serves this one too.

    Args:
        store: The store's folder.
        mountpoint: An empty folder.
        options: The values of `-o`.
        foreground: Serve in this process, and return None when the mount has gone.
        probe_timeout_s: Seconds for which a mount that is there already may not answer.

    Raises:
        MountOptionError: An option is unknown or wrong.
        StoreNotFoundError: There is no such store.
        MountpointError: The mountpoint is missing, in use, not empty, or inside the store.
        StoreBusyError: Another process has the store.
        ViewTakenError: What it would show is on another mount already.
        MountFailedError: The system refuses.
    """
    parsed = parse_options(options)
    try:
        store = store.resolve(strict=True)
    except OSError as error:
        raise StoreNotFoundError(str(store)) from error
    read_superblock(store)
    mountpoint = _check_mountpoint(store, mountpoint, probe_timeout_s)
    info = find_daemon(store)
    if not foreground and info is not None and any(_is_mounted(mount) for mount in info.mounts):
        place = MountParams(
            mountpoint=str(mountpoint), options=parsed.text, namespace=mount_namespace()
        )
        request_mount(store, place)
    else:
        _check_unserved(store)
        if foreground:
            _serve_here(store, mountpoint, parsed)
            return None
        _start(store, mountpoint, parsed.text)
    info = find_daemon(store)
    if info is None:
        raise DaemonError(f"{store}: it ended at once")
    return info


@contextlib.contextmanager
def served(store: Path) -> Iterator[None]:
    """Have a daemon serve *store* as long as this lasts: the one that does, or one for the purpose.

    The one for the purpose mounts nothing. It ends with the last process that
    is in here, whatever way that ends.

    Raises:
        StoreNotFoundError: There is no such store.
        StoreBusyError: Another process has the store.
        AccessDeniedError: No daemon runs, and the caller may not start one.
        MountFailedError: The system refuses.
    """
    try:
        store = store.resolve(strict=True)
    except OSError as error:
        raise StoreNotFoundError(str(store)) from error
    read_superblock(store)
    with contextlib.ExitStack() as kept:
        while not _join(store, kept):
            pass
        yield


def _join(store: Path, kept: contextlib.ExitStack) -> bool:
    """Enter into *kept* what lets a daemon be there; return whether there is one."""
    info = find_daemon(store)
    if info is not None and info.mounts:
        # Nothing to hold: also for those who may use the daemon and not start one.
        return True
    # Two who start one at once: the second waits, and finds that of the first.
    with _opened_start_lock(store) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        info = find_daemon(store)
        if info is None:
            _start_for_sandboxes(store, kept)
            return True
    if info.mounts:
        return True
    try:
        kept.enter_context(hold(store))
    except DaemonError:
        # It has ended meanwhile.
        wait_end(info.process, END_TIMEOUT_S)
        return False
    return True


def _opened_start_lock(store: Path) -> BinaryIO:
    try:
        run_folder(store).mkdir(mode=0o700, exist_ok=True)
        return open(run_folder(store) / START_LOCK_NAME, "wb")
    except PermissionError as error:
        raise AccessDeniedError(str(store)) from error


def _start_for_sandboxes(store: Path, kept: contextlib.ExitStack) -> None:
    ours, theirs = os.pipe()
    kept.callback(os.close, theirs)
    try:
        process = _start(store, None, "", ["--end-fd", str(ours)], ours)
    finally:
        os.close(ours)
    kept.callback(_release, store, process)


def _release(store: Path, process: "subprocess.Popen[bytes]") -> None:
    """Let a daemon go: it ends, unless others hold it."""
    try:
        ends = shutdown(store, lazy=True, held=False).ends
    except KaifsError:
        # It died, or is on its way down already.
        ends = True
    if ends:
        process.wait(END_TIMEOUT_S)


def restart(path: Path) -> DaemonInfo:
    """Let a new process go on with a mount, with the code that is installed now, and return it.

    What is open stays open; who reads or writes meanwhile waits a moment.

    Args:
        path: The mountpoint, or the store.

    Raises:
        DaemonError: No daemon serves it, or the new one does not answer.
        RestartError: The mount cannot go on in another process now.
    """
    store = _served_by(path)
    before = find_daemon(store)
    if before is None or not before.mounts:
        raise DaemonError(f"{path}: no daemon serves it")
    old = request_restart(store)
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        # Not by connecting: nobody lets in who waits meanwhile, and there is room for few.
        info = read_info(store)
        if info is not None and info.pid != old.pid and is_running(info.process):
            return info
        time.sleep(RESTART_POLL_S)
    raise DaemonError(f"{store}: the new server does not answer")


def _served_by(path: Path) -> Path:
    """Return the store that is mounted at *path*, or that *path* is."""
    try:
        entry = find_mount(resolve_mountpoint(path))
    except OSError as error:
        raise StoreNotFoundError(f"{path}: {error.strerror}") from error
    if entry is not None and entry.fstype == FSTYPE:
        return _store_of(entry)
    read_superblock(path)
    return path


def umount(
    mountpoint: Path, *, lazy: bool = False, probe_timeout_s: float = PROBE_TIMEOUT_S
) -> Unmounted:
    """Unmount *mountpoint* and return when all is on disk and the daemon has ended.

    Args:
        mountpoint: Where kaifs is mounted.
        lazy: Detach it also if processes use it; they keep what they have open.
        probe_timeout_s: Seconds for which it may not answer before it counts as hung.

    Raises:
        NotMountedError: No kaifs is mounted there.
        MountBusyError: Processes use it; nothing was changed.
    """
    try:
        mountpoint = resolve_mountpoint(mountpoint)
    except OSError as error:
        raise NotMountedError(f"{mountpoint}: {error.strerror}") from error
    entry = find_mount(mountpoint)
    if entry is None or entry.fstype != FSTYPE:
        raise NotMountedError(str(mountpoint))
    store = _store_of(entry)
    if probe(mountpoint, probe_timeout_s) is not Answer.YES:
        _clear(entry)
        return Unmounted(mountpoint, has_ended=True)
    info = find_daemon(store)
    if info is None or not _serves(info, entry):
        _unmount_foreign(entry, lazy=lazy)
        return Unmounted(mountpoint, has_ended=False, is_gone=not lazy)
    result = shutdown(store, lazy=lazy, mountpoint=str(mountpoint))
    ends, is_gone = result.ends, result.is_gone
    if not is_gone and _remove_leftovers(store):
        ends, is_gone = _wait_gone(store, entry)
    if not ends:
        return Unmounted(mountpoint, has_ended=False, is_gone=is_gone)
    for process in info.processes:
        if not wait_end(process, END_TIMEOUT_S):
            raise DaemonError(f"{store}: process {process.pid} does not end")
    # Not at the top: a mount needs nothing of it, and it takes long to load.
    from kaifs.store.store import LOCK_NAME

    # A server may have been replaced since.
    if (owner := lock_owner(store / LOCK_NAME)) is not None:
        raise DaemonError(f"{store}: {owner} does not end")
    _reap()
    return Unmounted(mountpoint, has_ended=True)


def _remove_leftovers(store: Path) -> bool:
    """End what sandboxes have left whose warden has died; return whether there was something.

    Each has a copy of every mount there was when it started, which keeps the server there.
    """
    # Not at the top: only needed when something went wrong, and it takes long to load.
    from kaifs.sandbox.janitor import clean

    return bool(clean(read_superblock(store).uuid.hex(), containers=False))


def _wait_gone(store: Path, entry: MountEntry) -> tuple[bool, bool]:
    """Wait until nobody serves *entry*; return whether no server is left, and whether it came so."""
    deadline = time.monotonic() + UNMOUNTED_TIMEOUT_S
    while time.monotonic() < deadline:
        info = read_info(store)
        if info is None or not _serves(info, entry):
            return info is None, True
        time.sleep(RESTART_POLL_S)
    return False, False


# --- before a mount -----------------------------------------------------------------------


def _check_mountpoint(store: Path, mountpoint: Path, probe_timeout_s: float) -> Path:
    """Return *mountpoint* resolved, cleared of what a dead daemon has left there."""
    try:
        resolved = resolve_mountpoint(mountpoint)
    except OSError as error:
        raise MountpointError(f"{mountpoint}: {error.strerror}") from error
    if resolved == store or store in resolved.parents:
        raise MountpointError(f"{mountpoint} is inside the store")
    while (entry := find_mount(resolved)) is not None:
        if not entry.fstype.startswith("fuse"):
            if entry.fstype == "autofs":
                break
            raise MountpointError(f"{mountpoint}: {entry.fstype} is mounted there")
        if entry.fstype != FSTYPE or probe(resolved, probe_timeout_s) is Answer.YES:
            raise MountpointError(f"{mountpoint}: {entry.fstype} is mounted there")
        _clear(entry)
    try:
        with os.scandir(resolved) as found:
            is_empty = next(found, None) is None
    except OSError as error:
        raise MountpointError(f"{mountpoint}: {error.strerror}") from error
    if not is_empty:
        raise MountpointError(f"{mountpoint} is not empty")
    return resolved


def _check_unserved(store: Path) -> None:
    info = read_info(store)
    if info is None:
        return
    from kaifs.store.store import LOCK_NAME

    if lock_owner(store / LOCK_NAME) is None:
        return
    places = ", ".join(mount.mountpoint for mount in info.mounts)
    if places and not any(_is_mounted(mount) for mount in info.mounts):
        # umount(8) returns before the daemon has written what it has, and ended.
        until = time.monotonic() + UNMOUNTED_TIMEOUT_S
        if all(wait_end(process, max(0.0, until - time.monotonic())) for process in info.processes):
            return
    raise StoreBusyError(
        f"{store}: process {info.pid} serves it {f'on {places}' if places else 'for sandboxes'}",
        mountpoint=places,
        pid=info.pid,
    )


def _is_mounted(mount: MountInfo) -> bool:
    entry = find_mount(Path(mount.mountpoint))
    return entry is not None and entry.minor == mount.minor


# --- the start ----------------------------------------------------------------------------


def _serve_here(store: Path, mountpoint: Path, options: MountOptions) -> None:
    """Serve until the mount has gone, in this process or one that it looks after.

    Raises:
        KaifsError: It could not be mounted.
    """
    from kaifs.daemon.main import is_supervised, server_command

    if not is_supervised(options.text):
        from kaifs.daemon.app import Settings, run

        run(Settings(store, mountpoint, options, foreground=True))
        return
    ours, theirs = os.pipe()
    os.environ["PYTHONPATH"] = _package_path()
    command = server_command(store, mountpoint, options.text, foreground=True)
    with open(ours, "rb") as ready:
        from kaifs.daemon.supervisor import supervise

        status = supervise(command, log_path(store), [theirs], foreground=True)
        body = ready.read(FRAME_MAX)
    if body:
        message = decode_from_daemon(body)
        if isinstance(message, Failure):
            raise error_of(message)
    if status != 0:
        raise DaemonError(f"{mountpoint}: the server ended with status {status}")


def _package_path() -> str:
    """Return where Python finds this package, for a process that is started."""
    paths = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(path for path in paths if path)


def _start(
    store: Path, mountpoint: Path | None, options: str, more: Sequence[str] = (), *fds: int
) -> "subprocess.Popen[bytes]":
    """Start the daemon and return it when it says that the mount answers."""
    _reap()
    ours, theirs = os.pipe()
    with open(ours, "rb") as ready:
        environment = os.environ | {"PYTHONPATH": _package_path()}
        places = [str(place) for place in (store, mountpoint) if place is not None]
        command = [sys.executable, "-m", "kaifs.daemon.main", *places]
        try:
            # No new session: an automounter knows by it who must not wait for the mount.
            process = subprocess.Popen(
                [*command, "-o", options, "--ready-fd", str(theirs), *more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                close_fds=True,
                pass_fds=[theirs, *fds],
                env=environment,
            )
        finally:
            os.close(theirs)
        body = ready.read(FRAME_MAX)
    if not body:
        status = process.wait()
        raise MountFailedError(f"{mountpoint or store}: the daemon ended with status {status}")
    try:
        message = decode_from_daemon(body)
    except MessageError as error:
        raise MountFailedError(f"{mountpoint or store}: {error}") from error
    if isinstance(message, Failure):
        process.wait()
        raise error_of(message)
    _started.append(process)
    return process


def _reap() -> None:
    _started[:] = [process for process in _started if process.poll() is None]


# --- what others left ---------------------------------------------------------------------


def _clear(entry: MountEntry) -> None:
    """Take away a mount whose server is gone or hangs, and end that server if it is ours."""
    connection = FuseConnection(entry.minor)
    with contextlib.suppress(OSError):
        # Wakes who waits for the server, and lets a hung one find its end.
        if ensure_fusectl() and connection.is_available:
            connection.abort()
    try:
        unmount(entry.mountpoint, lazy=True)
    except OSError as error:
        raise MountpointError(f"{entry.mountpoint}: dead mount stays: {error.strerror}") from error
    info = read_info(_store_of(entry))
    if info is not None and _serves(info, entry):
        send_signal(info.process, signal.SIGCONT)
        if not wait_end(info.process, TERM_TIMEOUT_S):
            # First who would replace it.
            for process in info.processes:
                send_signal(process, signal.SIGKILL)
        for process in info.processes:
            wait_end(process, TERM_TIMEOUT_S)


def _unmount_foreign(entry: MountEntry, *, lazy: bool) -> None:
    """Unmount what answers, but not as the daemon of the store that it names."""
    try:
        unmount(entry.mountpoint, lazy=lazy)
    except OSError as error:
        users = ", ".join(str(user) for user in users_of(entry))
        raise MountBusyError(f"{entry.mountpoint}: {users or error.strerror}") from error


def _store_of(entry: MountEntry) -> Path:
    return Path(unquote(entry.source))


def _serves(info: DaemonInfo, entry: MountEntry) -> bool:
    return any(
        mount.mountpoint == str(entry.mountpoint) and mount.minor == entry.minor
        for mount in info.mounts
    )

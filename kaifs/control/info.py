"""Where the daemon of a store is found: `STORE/run/daemon.json` beside its socket."""

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from kaifs.control.places import INFO_NAME, SOCKET_NAME, run_folder
from kaifs.linux.files import read_file, write_durably
from kaifs.linux.processes import ProcessId, is_running

_INFO_MAX: Final = 1 << 20


class MountInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One mount that the daemon serves."""

    mountpoint: str
    transport: str
    reason: str
    """Why it is that one; for people."""
    agent: str | None
    """Whose folder is the root of the mount; None for the whole store."""
    options: str
    minor: int = 0
    """Of the mount's device number: names its connection in fusectl."""
    survives: bool = False
    """Whether it goes on if the process that serves it dies."""
    survives_reason: str = ""
    """Why it does or does not; for people."""


class DaemonInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The daemon of one store, as it describes itself."""

    pid: int
    """Of the process that serves requests."""
    supervisor_pid: int
    """Of the process that replaces it if it dies; the same as `pid` if none does."""
    started_ticks: int
    """Start of the process in clock ticks after boot; with the pid it names one process."""
    started_ns: int
    """When it began to serve, in nanoseconds since 1970."""
    mounts: list[MountInfo]
    supervisor_ticks: int = 0
    """As `started_ticks`, of the supervisor."""

    @property
    def process(self) -> ProcessId:
        """The process that this describes, ended or not."""
        return ProcessId(self.pid, self.started_ticks)

    @property
    def supervisor(self) -> ProcessId:
        """The process that replaces it if it dies; itself if none does."""
        if self.supervisor_pid == self.pid:
            return self.process
        return ProcessId(self.supervisor_pid, self.supervisor_ticks)

    @property
    def processes(self) -> tuple[ProcessId, ...]:
        """All processes, first who would replace another one."""
        return tuple(dict.fromkeys((self.supervisor, self.process)))


def write_info(store: Path, info: DaemonInfo) -> None:
    """Publish *info* as the daemon of *store*."""
    text = msgspec.json.format(msgspec.json.encode(info)) + b"\n"
    write_durably(run_folder(store) / INFO_NAME, text, mode=0o644)


def remove_info(store: Path) -> None:
    """Take back what `write_info` and the socket published."""
    for name in (INFO_NAME, SOCKET_NAME):
        with contextlib.suppress(FileNotFoundError):
            (run_folder(store) / name).unlink()


def read_info(store: Path) -> DaemonInfo | None:
    """Return the daemon of *store* if it is running, or about to be replaced; it may not answer."""
    try:
        info = msgspec.json.decode(
            read_file(run_folder(store) / INFO_NAME, _INFO_MAX), type=DaemonInfo
        )
    except (OSError, msgspec.MsgspecError):
        return None
    return info if is_running(info.process) or is_running(info.supervisor) else None

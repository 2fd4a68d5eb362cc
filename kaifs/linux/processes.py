"""Processes: which one a pid means, waiting for one to end, becoming a daemon.

A pid alone names nobody for long; together with the time at which the process
started it does, until the next boot.
"""

import ctypes
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_NAME: Final = 15
_PR_GET_NAME: Final = 16
NOTIFYING: Final = "kaifs-notify"
"""Name of a thread that tells the kernel something. It may wait for requests to be answered, also
when its process has been killed; it holds nothing that a successor needs."""
_CAPTURE_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for ever: its pid and when it started."""

    pid: int
    started: int
    """Clock ticks after boot. Source: proc_pid_stat(5), field 22."""


def identify(pid: int) -> ProcessId | None:
    """Return which process *pid* means now; None if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command's name, in parentheses, may hold blanks and parentheses itself.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return ProcessId(pid, int(fields[19]))


def is_running(process: ProcessId) -> bool:
    """Return whether *process* has not ended."""
    return identify(process.pid) == process


def wait_end(process: ProcessId, timeout_s: float) -> bool:
    """Wait until *process* has ended; return False if it has not after *timeout_s* seconds."""
    pidfd = _open(process)
    if pidfd is None:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def send_signal(process: ProcessId, signal_number: signal.Signals) -> None:
    """Send a signal to *process*, never to another one that has its pid by now."""
    pidfd = _open(process)
    if pidfd is not None:
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal_number)
        finally:
            os.close(pidfd)


def set_process_name(name: str) -> None:
    """Set what ps(1) and top(1) call this process, or this thread of it; 15 bytes are kept."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


@contextmanager
def named_thread(name: str) -> Iterator[None]:
    """Let this thread have another name meanwhile, as others see it in /proc; 15 bytes are kept."""
    libc = ctypes.CDLL(None)
    before = ctypes.create_string_buffer(16)
    libc.prctl(_PR_GET_NAME, before, 0, 0, 0)
    set_process_name(name)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_NAME, before, 0, 0, 0)


def leave_terminal() -> None:
    """Cut this process from its terminal, standard streams and working directory.

    Never before a FUSE mount(2): an automounter recognises by the session who
    it must not make wait for the mount.
    """
    with suppress(PermissionError):
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.chdir("/")


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Keep what is written to descriptor 2, by C libraries too; yield what returns it."""
    keep = os.memfd_create("stderr", os.MFD_CLOEXEC)
    before = os.dup(2)
    os.dup2(keep, 2)
    try:
        yield lambda: os.pread(keep, _CAPTURE_MAX, 0).decode(errors="replace").strip()
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(keep)


def _open(process: ProcessId) -> int | None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Looked at after opening: from here on the descriptor cannot change its meaning.
    if not is_running(process):
        os.close(pidfd)
        return None
    return pidfd

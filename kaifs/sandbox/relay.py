"""Carrying a sandbox's standard streams where handing over the descriptor would give too much.

A terminal could be typed into and listened to, and a file could be opened
again through /proc/self/fd with rights that the descriptor does not have. So a
terminal becomes a new pseudoterminal and a file a pipe, and this end copies.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat
import termios
import time
import tty
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from kaifs.base.errors import ArgumentValueError

_PIECE: Final = 65536
_TERMINAL_PIECE: Final = 1024


@dataclass(slots=True)
class _Flow:
    """One direction: what comes from `source` goes to `target`."""

    source: int
    target: int
    closes_target: bool
    """Whether the end of one is to be told to the other."""
    to_terminal: bool = False
    waiting: bytearray = field(default_factory=bytearray)


class Carried(Enum):
    """Why `Streams.carry` has returned."""

    ENDED = auto()
    LEASH = auto()
    TIME_IS_UP = auto()


class Streams:
    """The standard streams of one sandbox: the ends for inside, and the copying."""

    def __init__(self, given: tuple[int | None, int | None, int | None], *, relay: bool) -> None:
        """Take descriptors, which stay the caller's; None is /dev/null.

        Args:
            given: For the command's 0, 1 and 2.
            relay: False hands everything over as it is.

        Raises:
            ArgumentValueError: One is a folder: it would be a way out.
        """
        self.inside: list[int | None] = []
        """Descriptors for the command, of this object; None is its /dev/null."""
        self.terminal: int | None = None
        """That of `inside` which is to be the controlling terminal."""
        self._flows: list[_Flow] = []
        self._own: set[int] = set()
        self._master = -1
        self._outer = -1
        self._settings: list[Any] | None = None
        self._size = b""
        try:
            for number, fd in enumerate(given):
                self.inside.append(None if fd is None else self._take(number, fd, relay))
            self._decide_who_ends_lines()
        except BaseException:
            self.close()
            raise

    def give(self, uid: int, gid: int) -> None:
        """Make what was made or is a pipe the command's, so that it can open /dev/stderr."""
        for fd in self.inside:
            if fd is not None and (stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd)):
                with contextlib.suppress(OSError):
                    os.fchown(fd, uid, gid)

    def close_inside(self) -> None:
        """Let go of the ends that the command has by now."""
        for fd in {fd for fd in self.inside if fd is not None}:
            self._close(fd)
        self.inside = [None, None, None]

    def _decide_who_ends_lines(self) -> None:
        """Leave the end of lines to the user's terminal if that is not put into raw mode.

        A process in the background must not do that: it would be stopped. It does
        not read the terminal then. Before the command can write: a pseudoterminal
        changes what is written when it is written.
        """
        inputs = [flow for flow in self._flows if flow.source == self._outer]
        if self._outer < 0 or (inputs and not _is_in_background(self._outer)):
            return
        for flow in inputs:
            self._flows.remove(flow)
        with contextlib.suppress(termios.error):
            settings = termios.tcgetattr(self._master)
            settings[1] &= ~termios.OPOST
            termios.tcsetattr(self._master, termios.TCSANOW, settings)

    def begin(self) -> None:
        """Put the user's terminal, if it is read, into raw mode."""
        if any(flow.source == self._outer for flow in self._flows):
            with contextlib.suppress(termios.error):  # it has gone
                self._settings = termios.tcgetattr(self._outer)
                tty.setraw(self._outer, termios.TCSADRAIN)

    def carry(self, ended: int, leash: int, deadline: float | None) -> Carried:
        """Copy until something happens.

        Args:
            ended: A descriptor that can be read once the command has ended.
            leash: One that can be read, or is closed at its other end, when it is to end;
                -1 if there is none.
            deadline: When its time is up, on the monotonic clock.
        """
        while True:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            self._register(poll)
            if leash >= 0:
                poll.register(leash, select.POLLIN)
            left_ms = None
            if deadline is not None:
                left_ms = max(0.0, deadline - time.monotonic()) * 1000 + 1
            events = dict(poll.poll(left_ms))
            if events.pop(ended, 0):
                return Carried.ENDED
            is_pulled = events.pop(leash, 0)
            self._handle(events)
            if is_pulled:
                return Carried.LEASH
            if deadline is not None and time.monotonic() >= deadline:
                return Carried.TIME_IS_UP

    def _register(self, poll: select.poll) -> None:
        """Tell *poll*, a new one, what to wait for."""
        events: dict[int, int] = {}
        for flow in self._flows:
            if flow.waiting:
                events[flow.target] = events.get(flow.target, 0) | select.POLLOUT
            else:
                events[flow.source] = events.get(flow.source, 0) | select.POLLIN
        for fd, mask in events.items():
            poll.register(fd, mask)

    def _handle(self, events: dict[int, int]) -> None:
        """Copy what *events* of a poll, by descriptor, say can be copied."""
        self._follow_size()
        for flow in list(self._flows):
            if flow.waiting:
                if events.get(flow.target, 0) & ~select.POLLIN:
                    self._write(flow)
            elif events.get(flow.source, 0) & ~select.POLLOUT:
                self._read(flow)

    def drain(self, timeout_s: float) -> None:
        """Copy what the command has left behind; it has ended, so that is little."""
        for flow in [
            flow for flow in self._flows if flow.closes_target and flow.target in self._own
        ]:
            self._end(flow)
        while self._flows:
            poll = select.poll()
            self._register(poll)
            events = dict(poll.poll(timeout_s * 1000))
            if not events:
                break
            self._handle(events)

    def close(self) -> None:
        """Give the terminal back and close everything that was made."""
        if self._settings is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._outer, termios.TCSADRAIN, self._settings)
            self._settings = None
        for fd in list(self._own):
            self._close(fd)
        self._flows.clear()

    def _take(self, number: int, fd: int, relay: bool) -> int | None:
        mode = os.fstat(fd).st_mode
        if not relay:
            return self._owned(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        if stat.S_ISDIR(mode):
            raise ArgumentValueError(f"descriptor {fd}: a folder cannot be a standard stream")
        if stat.S_ISCHR(mode):
            if os.path.samestat(os.fstat(fd), os.stat(os.devnull)):
                return None
            if os.isatty(fd):
                return self._take_terminal(number, fd)
        if stat.S_ISREG(mode):
            return self._take_file(number, fd)
        return self._owned(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))

    def _take_terminal(self, number: int, fd: int) -> int:
        if self.terminal is None:
            self._master, slave = (self._owned(one) for one in os.openpty())
            self.terminal = slave
            self._outer = self._owned(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(fd))
            self._follow_size()
            self._flows.append(_Flow(self._master, self._outer, False, to_terminal=True))
        if number == 0:
            self._flows.append(_Flow(self._outer, self._master, False))
        return self.terminal

    def _take_file(self, number: int, fd: int) -> int:
        outer = self._owned(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        reading, writing = (self._owned(one) for one in os.pipe2(os.O_CLOEXEC))
        if number == 0:
            os.set_blocking(writing, False)
            self._flows.append(_Flow(outer, writing, True))
            return reading
        self._flows.append(_Flow(reading, outer, False))
        return writing

    def _follow_size(self) -> None:
        if self._outer < 0:
            return
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._outer, termios.TIOCGWINSZ, bytes(8))
            if size != self._size:
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
                self._size = size

    def _read(self, flow: _Flow) -> None:
        try:
            # A blocking write to a terminal that poll(2) calls ready takes this much.
            data = os.read(flow.source, _TERMINAL_PIECE if flow.to_terminal else _PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # the pseudoterminal has no user any more
                raise
            data = b""
        if not data:
            self._end(flow)
            return
        flow.waiting += data
        self._write(flow)

    def _write(self, flow: _Flow) -> None:
        try:
            del flow.waiting[: os.write(flow.target, flow.waiting)]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._end(flow)
        except OSError:
            # The disk is full, or the terminal gone: the command learns of it by SIGPIPE.
            self._end(flow)

    def _end(self, flow: _Flow) -> None:
        self._flows.remove(flow)
        if flow.closes_target:
            self._close(flow.target)
        elif flow.source in self._own and flow.source not in (self._outer, self._master):
            self._close(flow.source)

    def _owned(self, fd: int) -> int:
        self._own.add(fd)
        return fd

    def _close(self, fd: int) -> None:
        if fd in self._own:
            self._own.remove(fd)
            os.close(fd)


def _is_in_background(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:
        return False  # not this session's terminal: nobody stops us

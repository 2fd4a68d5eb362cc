"""The supervisor: what keeps a mount alive while its servers come and go.

It holds what outlives a server (`handover.Kept`) and uses none of it: a process that
waits for a mount could be held by it. When the server dies, it starts another one and
gives it that; when the server ends, it ends. It imports next to nothing, for it is
there as long as the mount, and nothing in it may fail.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from kaifs.control.ongoing import Ongoing
from kaifs.daemon.handover import PROTOCOL, Kept, KeptConnection, Line, Message
from kaifs.daemon.log import log_to_file
from kaifs.linux.processes import NOTIFYING, leave_terminal, set_process_name

log = logging.getLogger(__name__)

NAME: Final = "kaifs-supervise"
FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
UNSERVED_MAX: Final = 5
"""Servers in a row that died before they answered; then the mount is given up."""
PAUSES_S: Final = (0.0, 0.1, 0.5, 2.0, 4.0)
"""Before each of them is started."""
DEATHS_MAX: Final = 150
DEATHS_SPAN_S: Final = 60.0
"""More deaths than that in this time: something in the store or a request kills each server."""
LOAD_MAX_S: Final = 60.0
"""Seconds in which a successor must have loaded its code."""
EXIT_GIVEN_UP: Final = 1
EXIT_BUG: Final = 70
"""Source: EX_SOFTWARE of sysexits.h."""

LOOK_S: Final = 0.25
"""Seconds after which a server is looked at. No descriptor tells of the death of one of whose threads
one cannot end yet: since Linux 6.15 not even a PIDFD_THREAD of its first thread."""
_LINGER_POLL_MS: Final = 2
_BACKLOG: Final = 64


class _Child:
    """A server that was started."""

    def __init__(
        self,
        command: Sequence[str],
        fds: Sequence[int],
        *,
        own_group: bool,
        serve: Callable[[int], int] | None = None,
    ) -> None:
        self.line, theirs = Line.pair()
        try:
            if serve is not None:
                self.pid = self._fork(serve, theirs, own_group=own_group)
            else:
                self.pid = _spawn(command, [theirs.fileno(), *fds], own_group=own_group)
        finally:
            theirs.close()
            for fd in fds:
                os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)
        self.is_loaded = False
        self.is_answering = False
        self.ending: bool | None = None
        """True: it goes for a successor; False: for good; None: it has not said that it goes."""
        self.status: int | None = None

    def _fork(self, serve: Callable[[int], int], theirs: Line, *, own_group: bool) -> int:
        """Let a copy of this process serve; return its pid. It never comes back from here."""
        pid = os.fork()
        if pid:
            return pid
        status = EXIT_BUG
        try:
            if own_group:
                os.setpgid(0, 0)
            self.line.close()
            status = serve(os.dup(theirs.fileno()))
        except BaseException:  # noqa: BLE001 - the end of a process
            traceback.print_exc()
        finally:
            os._exit(status)

    def has_ended(self) -> bool:
        """Return whether it has ended, but for threads that wait for a successor's answers."""
        with suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return True
            if not _only_notifies(self.pid):
                return False
            # The last of its threads may have ended meanwhile.
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return True

    def close(self) -> None:
        self.line.close()
        os.close(self.pidfd)


class Supervisor:
    """Starts servers, one after the other, until one ends for good."""

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        fds: Sequence[int],
        *,
        foreground: bool,
        serve: Callable[[int], int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            command: Starts a server.
            log_path: Where to log.
            fds: What the first server, and no other one, inherits. They are closed here.
            serve: As `supervise`.
            foreground: Stay in the terminal's session. Then servers have a process group of their
                own: Ctrl-C is for this process, which passes it on.
        """
        self._command = command
        self._log_path = log_path
        self._foreground = foreground
        self._kept: Kept | None = None
        self._signals: deque[int] = deque()
        self._successor: _Child | None = None
        self._load_until = 0.0
        self._lingering: list[_Child] = []
        self._deaths: deque[float] = deque(maxlen=DEATHS_MAX)
        self._unserved = 0
        more = ["--ready-fd", str(fds[0])] if fds else []
        self._server = _Child([*command, *more], fds, own_group=foreground, serve=serve)
        self._serve()

    def _start(self) -> _Child:
        return _Child(self._command, (), own_group=self._foreground)

    def _serve(self) -> None:
        """Let the server begin, with what is kept."""
        kept = self._kept
        with suppress(OSError):
            if kept is None:
                self._server.line.send("serve", protocol=PROTOCOL)
            else:
                kept.send(self._server.line)
        self._know(-1)

    def run(self) -> int:
        """Return an exit status when the last server has ended."""
        with _woken(self._signals) as wakeup:
            while True:
                poll = select.poll()
                poll.register(wakeup, select.POLLIN)
                for child in filter(None, (self._server, self._successor)):
                    poll.register(child.pidfd, select.POLLIN)
                    if child.line.fileno() >= 0:
                        poll.register(child.line.fileno(), select.POLLIN)
                ready = {fd for fd, _ in poll.poll(self._timeout_ms())}
                if wakeup in ready:
                    with suppress(BlockingIOError):
                        os.read(wakeup, 4096)
                self._forward()
                self._hear(self._server)
                if self._successor is not None:
                    self._hear_successor(self._successor, ready)
                self._lingering = [one for one in self._lingering if not _is_reaped(one)]
                is_dead = self._server.pidfd in ready or _is_zombie(self._server.pid)
                if is_dead and (status := self._bury()) is not None:
                    return status

    def _timeout_ms(self) -> float | None:
        return LOOK_S * 1000 if self._kept is not None else None

    # --- what the server says --------------------------------------------------------------

    def _hear(self, child: _Child) -> None:
        while child.line.fileno() >= 0:
            try:
                message = child.line.receive(is_waiting=False)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                log.warning("not_understood", extra={"error": str(error)})
                message = None
            if message is None:
                child.line.close()
                return
            self._obey(child, message)

    def _obey(self, child: _Child, message: Message) -> None:
        match message.op:
            case "loaded":
                child.is_loaded = True
            case "keep":
                self._keep(message)
            case "hold":
                self._hold(message)
                self._settle(child)
            case "alone":
                self._settle(child)
            case "served":
                self._settle(child)
            case "replace":
                self._prepare()
            case "drop":
                self._drop(message.fields["name"])
                with suppress(OSError):
                    child.line.send("dropped")
            case "go_on":
                self._take_in(message)
            case "over":
                self._let_go(message.fields["name"])
            case "ending":
                child.ending = bool(message.fields.get("again"))
                if message.fds:
                    self._know(message.fds[0])
            case _:
                log.warning("not_understood", extra={"op": message.op})

    def _settle(self, child: _Child) -> None:
        """Take in that a server answers."""
        child.is_answering = True
        self._unserved = 0
        self._forward()

    def _keep(self, message: Message) -> None:
        lock, listener = message.fds
        self._kept = Kept(lock, listener)
        # Who connects is told that we listen, whichever server answers.
        with socket.socket(fileno=os.dup(listener)) as listening:
            listening.listen(_BACKLOG)
        log_to_file(self._log_path)
        if not self._foreground:
            leave_terminal()

    def _hold(self, message: Message) -> None:
        if self._kept is not None:
            self._kept.connections[message.fields["name"]] = KeptConnection.of(message)

    def _drop(self, name: str) -> None:
        """Let a connection go, and with the last one everything."""
        if self._kept is None:
            return
        connection = self._kept.connections.pop(name, None)
        if connection is not None:
            for fd in connection.fds:
                os.close(fd)
        if not self._kept.connections:
            for one in list(self._kept.ongoing):
                self._let_go(one)
            for fd in self._kept.fds:
                os.close(fd)
            self._kept = None

    def _know(self, fd: int) -> None:
        """Keep what a server has said that the kernel knows; -1: nothing is known any more."""
        if self._kept is not None:
            if self._kept.known >= 0:
                os.close(self._kept.known)
            self._kept = replace(self._kept, known=fd)

    def _take_in(self, message: Message) -> None:
        name = message.fields["name"]
        self._let_go(name)
        if self._kept is None:
            for fd in message.fds:
                os.close(fd)
        else:
            self._kept.ongoing[name] = Ongoing(name, message.fds, message.fields["facts"])

    def _let_go(self, name: str) -> None:
        """Let a conversation go."""
        ongoing = self._kept.ongoing.pop(name, None) if self._kept is not None else None
        if ongoing is not None:
            for fd in ongoing.fds:
                os.close(fd)

    def _forward(self) -> None:
        """Pass on signals that came. A server that does not answer yet could not take them."""
        while self._signals and (self._server.is_answering or self._kept is None):
            with suppress(ProcessLookupError):
                os.kill(self._server.pid, self._signals.popleft())

    # --- a successor on purpose --------------------------------------------------------------

    def _prepare(self) -> None:
        """Start a successor while the server still serves."""
        if self._successor is None:
            self._successor = self._start()
            self._load_until = time.monotonic() + LOAD_MAX_S

    def _hear_successor(self, child: _Child, ready: set[int]) -> None:
        was_loaded = child.is_loaded
        self._hear(child)
        if child.is_loaded and not was_loaded:
            self._tell("loaded")
        if child.pidfd in ready and child.has_ended():
            self._refuse(child, f"it ended with status {child.status}")
        elif not child.is_loaded and time.monotonic() > self._load_until:
            os.kill(child.pid, signal.SIGKILL)
            self._lingering.append(child)
            self._refuse(child, "it does not start")

    def _refuse(self, child: _Child, reason: str) -> None:
        self._successor = None
        child.close()
        self._tell("failed", reason=reason)

    def _tell(self, op: str, reason: str = "") -> None:
        with suppress(OSError):
            self._server.line.send(op, reason=reason)

    # --- the death of a server -----------------------------------------------------------------

    def _bury(self) -> int | None:
        """Deal with the end of the server; return the exit status if that is the end of it all."""
        server = self._server
        while not server.has_ended():
            # Its other threads may be writing to the store; the kernel lets them finish.
            select.poll().poll(_LINGER_POLL_MS)
        self._hear(server)
        server.close()
        if server.status is None:
            self._lingering.append(server)
        if server.ending is False or self._kept is None:
            if self._successor is not None:
                os.kill(self._successor.pid, signal.SIGKILL)
            is_clean = server.ending is False and server.status is None
            return 0 if is_clean else _exit_status(server.status)
        if server.ending:
            log.info("replacing", extra={"pid": server.pid})
        elif not self._survives(server):
            return self._give_up()
        successor, self._successor = self._successor, None
        self._server = successor or self._start()
        self._serve()
        return None

    def _survives(self, server: _Child) -> bool:
        """Take in that *server* died; return whether it is worth while to start another one."""
        now = time.monotonic()
        self._deaths.append(now)
        if not server.is_answering:
            self._unserved += 1
        log.warning(
            "server_died",
            extra={"pid": server.pid, "status": server.status, "unserved": self._unserved},
        )
        is_storm = len(self._deaths) == DEATHS_MAX and now - self._deaths[0] < DEATHS_SPAN_S
        if self._unserved >= UNSERVED_MAX or is_storm:
            return False
        select.poll().poll(PAUSES_S[self._unserved] * 1000)
        return True

    def _give_up(self) -> int:
        """Let the mount go: what uses it gets ENOTCONN from now on."""
        store = self._log_path.parent.parent
        log.error("given_up", extra={"deaths": len(self._deaths), "unserved": self._unserved})
        for name in list(self._kept.connections) if self._kept is not None else []:
            self._drop(name)
        # Not before: nothing else here needs so much code.
        from kaifs.base.clock import SystemClock, format_time
        from kaifs.service.alerting import announce, send_detached
        from kaifs.service.alerts import Alert

        alert = Alert(
            event="unserved",
            agent="",
            version="",
            reason="every server of the mount died; it is given up, and needs to be mounted again",
            time=format_time(SystemClock().now_ns()),
            store=str(store),
        )
        announce(alert)
        send_detached(alert)
        return EXIT_GIVEN_UP


def supervise(
    command: Sequence[str],
    log_path: Path,
    fds: Sequence[int] = (),
    *,
    foreground: bool = False,
    serve: Callable[[int], int] | None = None,
) -> int:
    """Start servers by *command*, and return an exit status when the mount has gone.

    Args:
        command: Starts a server.
        log_path: Where to log.
        fds: The pipe by which the first server tells how the start went.
        foreground: Stay in the terminal's session.
        serve: Serves, given the descriptor of the line to the supervisor, and returns an exit
            status. Called in a copy of this process, which becomes the first server: another
            Python would have to start, and load all this again, while somebody waits for the mount.
            None: the first server is started like the others.
    """
    supervisor = Supervisor(command, log_path, fds, foreground=foreground, serve=serve)
    set_process_name(NAME)
    return supervisor.run()


def _spawn(command: Sequence[str], inherited: Sequence[int], *, own_group: bool) -> int:
    """Start a server, whose line is the first of the descriptors that it inherits; return its pid."""
    for fd in inherited:
        os.set_inheritable(fd, True)
    argv = [*command, "--supervisor-fd", str(inherited[0])]
    if own_group:
        return os.posix_spawn(sys.executable, argv, os.environ, setpgroup=0)
    return os.posix_spawn(sys.executable, argv, os.environ)


class _woken:
    """Have signals collected, and a descriptor that can be read when one came."""

    def __init__(self, signals: deque[int]) -> None:
        self._signals = signals

    def __enter__(self) -> int:
        self._ours, self._theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._theirs, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, lambda number, _: self._signals.append(number))
            for number in FORWARDED
        }
        return self._ours

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._ours)
        os.close(self._theirs)


def _is_zombie(pid: int) -> bool:
    """Return whether the first thread of *pid* has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")


def _only_notifies(pid: int) -> bool:
    """Return whether *pid* is a zombie but for threads that tell the kernel something.

    They may wait for a lock of the kernel that an unanswered request holds, so they end only
    when a successor answers it.
    """
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            stat = (task / "stat").read_bytes()
        except OSError:
            continue
        name, _, rest = stat.partition(b"(")[2].rpartition(b")")
        if rest.split()[0] not in (b"Z", b"X") and name != NOTIFYING.encode():
            return False
    return True


def _is_reaped(child: _Child) -> bool:
    with suppress(ChildProcessError):
        return os.waitpid(child.pid, os.WNOHANG)[0] != 0
    return True


def _exit_status(status: int | None) -> int:
    """Return what a shell would say of a process that ended like that."""
    if status is None:
        return EXIT_GIVEN_UP
    return status if status >= 0 else 128 - status

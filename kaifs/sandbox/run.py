"""Starting a command in a sandbox, and seeing it to its end.

From the caller's process to the command there is one fork and three execs::

    caller ──fork──▶ set-up ──exec──▶ bubblewrap ──fork──▶ its pid 1 ──fork──▶ launcher ──exec──▶ command

The set-up is a copy of the caller and runs Python: it makes a mount namespace
(in a user namespace unless root), the stage and the agent's mount, gives up
root, and closes every descriptor but the few that bubblewrap needs. It waits
for the caller, which meanwhile has put it into its control groups and network.
The launcher reports when it has been replaced by the command; whatever fails
before that is E103 and nothing has run.

If the calling thread ends, however it does, the kernel kills bubblewrap, with
it pid 1, and with that everything in the pid namespace. So the thread that
called `start` has to live as long as the sandbox.
"""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Protocol, Self

from kaifs.base.errors import ArgumentValueError, KaifsError, SnapshotIsolationError
from kaifs.base.limits import AGENT
from kaifs.linux.cgroups import GroupUnavailable
from kaifs.linux.landlock import abi_version, ruleset_attributes
from kaifs.linux.namespaces import (
    Namespace,
    die_with_parent,
    keep_descriptors,
    make_mounts_private,
    map_ids_to_themselves,
    unshare,
)
from kaifs.sandbox.defences import ALL, Defence
from kaifs.sandbox.launcher import FAILED, NOT_EXECUTED, PERL, PREPARED, PROGRAM, Job
from kaifs.sandbox.limits import Limits, make_limits, prefer_as_victim
from kaifs.sandbox.names import VARIABLE, SandboxName, new_name
from kaifs.sandbox.network import UserNetwork, close_ways, prohibited_networks
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.relay import Carried, Streams
from kaifs.sandbox.root import HOME, INNER_ID, Root
from kaifs.sandbox.syscalls import default_filter, user_filter

CANNOT_EXECUTE: Final = 126
NOT_FOUND: Final = 127

_FIRST_ID: Final = 1_879_048_192
"""Uids from here to 2^31 belong to nobody. Source: systemd's UIDS-GIDS.md."""
_ID_COUNT: Final = 1 << 27
_END_S: Final = 10.0
_DRAIN_S: Final = 2.0
_REPORT_MAX: Final = 65536
_UNSHARED: Final = b"U"
_GO: Final = b"G"
_GIVEN_UP: Final = b"the warden has given up"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom the files of /agent must belong to, so that the command owns them."""

    uid: int
    gid: int


class AgentMount(Protocol):
    """Makes a folder show the agent's files."""

    def mount(self, staging: Path, owner: Owner) -> None:
        """Make the empty folder *staging* show them; return when it answers.

        Runs in a forked copy of the caller, in a mount namespace of its own:
        what is mounted is seen there alone and ends with the sandbox. Nothing
        else of the process's state survives, and no other thread does.

        Args:
            staging: Where.
            owner: Ids, in the user namespace that this runs in, that the command has.
        """
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, and what it used."""

    exit_status: int
    """As a shell sees it: 0 to 255, 128 and the number for a signal."""
    signal: int | None
    """The signal that ended it, read off the exit status, as a shell does."""
    timed_out: bool
    oom_killed: bool
    """Whether any process in the sandbox was killed for want of memory."""
    cpu_s: float
    """Of all processes, the set-up included; where no control group counts, of those that
    were waited for."""
    max_memory: int
    """Most bytes in use at once, page cache included; where no control group counts, of the
    largest process."""
    duration_s: float


class Running:
    """A command in its sandbox. Leaving it as a context manager kills it."""

    def __init__(self, name: SandboxName, limits: Limits, streams: Streams) -> None:
        self.name = str(name)
        """For the janitor, logs and status."""
        self.unenforced = limits.unenforced
        """Limits that were not required and that this machine cannot have, for people."""
        self.start_s = 0.0
        """Seconds from the request until the command was executed."""
        self.error: str | None = None
        """Why the command could not be executed; then its exit status is 126 or 127."""
        self._limits = limits
        self._streams = streams
        self._network: UserNetwork | None = None
        self._deadline: float | None = None
        self._began = 0.0
        self._outer = -1
        self._init = -1
        self._pid = 0
        self._status: tuple[int, resource.struct_rusage] | None = None
        self._outcome: Outcome | None = None
        self._timed_out = False

    def wait(self, leash: int = -1) -> Outcome:
        """Carry the streams until the command has ended; kill it when its time is up.

        When this returns no process of the sandbox is left. An exception
        (KeyboardInterrupt) leaves it running.

        Args:
            leash: A descriptor; once there is something to read from it, or its other end is
                closed, the sandbox is killed.
        """
        if self._outcome is not None:
            return self._outcome
        while True:
            found = self._streams.carry(self._outer, leash, self._deadline)
            if found is Carried.ENDED:
                return self._finish()
            if found is Carried.TIME_IS_UP:
                self._timed_out, self._deadline = True, None
            else:
                leash = -1
            self.kill()

    def kill(self) -> None:
        """Kill every process in the sandbox; `wait` tells when they are gone."""
        for pidfd in (self._init, self._outer):
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Kill the sandbox if it runs still, and remove everything that it needed."""
        if self._outcome is None:
            self.kill()
            if self._pid:
                self._finish()
            else:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _finish(self) -> Outcome:
        status, usage = self._reap()
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        group = self._limits.group
        cpu_s = group.cpu_seconds()
        peak = group.memory_peak()
        self._outcome = Outcome(
            exit_status=code,
            signal=code - 128 if 128 < code <= 128 + signal.NSIG else None,
            timed_out=self._timed_out,
            oom_killed=group.oom_kills() > 0,
            cpu_s=usage.ru_utime + usage.ru_stime if cpu_s is None else cpu_s,
            max_memory=usage.ru_maxrss * 1024 if peak is None else peak,
            duration_s=time.monotonic() - self._began,
        )
        self._streams.drain(_DRAIN_S)
        self._release()
        return self._outcome

    def _reap(self) -> tuple[int, resource.struct_rusage]:
        # bubblewrap ends with the command; its pid 1 a moment later, and with it the rest.
        _, status, usage = os.wait4(self._pid, 0)
        self._pid = 0
        if self._init >= 0:
            poll = select.poll()
            poll.register(self._init, select.POLLIN)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            if not poll.poll(_END_S * 1000):
                raise SnapshotIsolationError(f"{self.name}: a process in it cannot be killed")
        return status, usage

    def _release(self) -> None:
        try:
            self._streams.close()
            if self._network is not None:
                self._network.close()
            for pidfd in (self._outer, self._init):
                if pidfd >= 0:
                    os.close(pidfd)
            self._outer = self._init = -1
        finally:
            self._limits.close()


def start(
    policy: Policy,
    argv: Sequence[str],
    agent_mount: AgentMount,
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    cwd: str = str(AGENT),
    label: str = "none",
    without: frozenset[Defence] = frozenset(),
) -> Running:
    """Run *argv* in a sandbox; return when it has been executed, or could not be.

    Args:
        policy: What it may do.
        argv: Command and arguments; the command is looked up in the sandbox's PATH.
        agent_mount: Shows the files of /agent.
        stdin: Descriptor, which stays the caller's. None is /dev/null. `Running.wait`
            carries terminals and files, so it has to be called.
        stdout: As *stdin*.
        stderr: As *stdin*.
        cwd: Folder in the sandbox.
        label: What the janitor looks for leftovers by: the store's uuid.
        without: Defences to leave out. For the attack suite alone.

    Raises:
        ArgumentValueError: There is no command, or a stream cannot be used.
        SnapshotIsolationError: Something cannot be enforced; nothing has run.
    """
    if not argv or any("\0" in word for word in argv):
        raise ArgumentValueError("command: there is none, or it holds a zero byte")
    if "\0" in cwd or not cwd.startswith("/"):
        raise ArgumentValueError(f"working directory: {cwd!r} is not absolute")
    start = _Start(policy, list(argv), cwd, ALL - without)
    name = new_name(label, os.getpid())
    limits = make_limits(policy, str(name), start.defences)
    try:
        streams = Streams((stdin, stdout, stderr), relay=Defence.STREAM_RELAY in start.defences)
    except BaseException:
        limits.close()
        raise
    running = Running(name, limits, streams)
    try:
        start.begin(running, agent_mount)
    except BaseException:
        running.close()
        raise
    return running


class _Start:
    """Everything between the request and the command."""

    def __init__(
        self, policy: Policy, argv: list[str], cwd: str, defences: frozenset[Defence]
    ) -> None:
        self.policy = policy
        self.argv = argv
        self.cwd = cwd
        self.defences = defences
        self.began = time.monotonic()
        self.bubblewrap = _find("bwrap", "bubblewrap")
        _find(PERL, "perl")
        self.root = Root(policy, defences)
        self.filters = (default_filter(), user_filter(policy.blocked_syscalls))
        self.is_bridged = policy.network == "bridge"
        uid, gid = os.geteuid(), os.getegid()
        # Root of a user namespace is somebody else outside, and may not become just anybody.
        self.is_root = uid == 0 and maps_everybody()
        self.drops = self.is_root and Defence.DROPPED_USER in defences
        if self.drops:
            uid = gid = nobody_s_id()
        self.owner = Owner(uid, gid)

    def begin(self, running: Running, agent_mount: AgentMount) -> None:
        streams, limits = running._streams, running._limits
        if self.drops:
            streams.give(self.owner.uid, self.owner.gid)
        report, reporting = os.pipe2(os.O_CLOEXEC)
        waiting, going = os.pipe2(os.O_CLOEXEC)
        info, informing = os.pipe2(os.O_CLOEXEC)
        said = os.memfd_create("bwrap", os.MFD_CLOEXEC)
        networks = prohibited_networks() if self.is_bridged else []
        warden = os.getpid()
        try:
            pid = fork()
            if pid == 0:
                setup = _SetUp(self, warden, running.name, streams, limits, networks)
                os.close(going)
                setup.run(agent_mount, reporting, waiting, informing, said)
            for fd in (reporting, waiting, informing):
                os.close(fd)
            reporting = waiting = informing = -1
            running._pid = pid
            running._outer = os.pidfd_open(pid)
            streams.close_inside()
            try:
                limits.group.add(pid)
                if self.is_bridged and os.read(report, 1) == _UNSHARED:
                    running._network = UserNetwork(pid, running.name)
                with contextlib.suppress(BrokenPipeError):
                    os.write(going, _GO)
            except GroupUnavailable as error:
                # A set-up that has ended is in no group any more; then it says why.
                os.close(going)
                going = -1
                self._hear(running, report, said, str(error))
            else:
                self._hear(running, report, said)
            running._init = _open_init(pid, info)
        finally:
            for fd in (report, reporting, waiting, going, info, informing, said):
                if fd >= 0:
                    os.close(fd)
        running._began = time.monotonic()
        running.start_s = running._began - self.began
        if self.policy.timeout_s is not None:
            running._deadline = running._began + self.policy.timeout_s
        streams.begin()

    def _hear(self, running: Running, report: int, said: int, otherwise: str = "") -> None:
        heard = b""
        while len(heard) < _REPORT_MAX and (piece := os.read(report, 4096)):
            heard += piece
        heard = heard.removeprefix(_UNSHARED)
        if heard == PREPARED:
            return
        if heard.startswith(PREPARED + NOT_EXECUTED):
            code = int(heard[2:])
            running.error = f"{self.argv[0]}: {os.strerror(code)}"
            return
        if FAILED in heard and not heard.endswith(_GIVEN_UP):
            reason = heard.partition(FAILED)[2].decode(errors="replace").strip()
        elif otherwise:
            reason = f"cannot be enforced: {otherwise}"
        else:
            reason = os.pread(said, 4096, 0).decode(errors="replace").strip()
            reason = reason or "the set-up was killed; is the memory limit too low?"
        raise SnapshotIsolationError(f"sandbox: {reason}")


class _SetUp:
    """What the forked copy of the caller does, until it is bubblewrap."""

    def __init__(
        self,
        start: _Start,
        warden: int,
        name: str,
        streams: Streams,
        limits: Limits,
        networks: list[IPv4Network],
    ) -> None:
        self.start = start
        self.warden = warden
        self.name = name
        self.streams = streams
        self.limits = limits
        self.networks = networks

    def run(
        self, agent_mount: AgentMount, report: int, waiting: int, informing: int, said: int
    ) -> NoReturn:
        try:
            self._prepare(agent_mount, report, waiting)
            self._execute(report, informing, said)
        except KaifsError as error:
            _tell(report, error.subject)
        except BaseException as error:  # noqa: BLE001 - a copy of the caller must not go on
            _tell(report, f"{type(error).__name__}: {error}")
        finally:
            os._exit(125)

    def _prepare(self, agent_mount: AgentMount, report: int, waiting: int) -> None:
        start = self.start
        die_with_parent(self.warden)
        forget_signals()
        os.setsid()
        prefer_as_victim()
        kinds = Namespace.MOUNT
        if not start.is_root:
            kinds |= Namespace.USER
        if start.is_bridged:
            kinds |= Namespace.NETWORK
        unshare(kinds)
        if not start.is_root:
            map_ids_to_themselves(start.owner.uid, start.owner.gid)
        if start.is_bridged:
            os.write(report, _UNSHARED)
        make_mounts_private()
        shown_as = (start.owner.uid, start.owner.gid) if start.drops else None
        start.root.stage(lambda folder: agent_mount.mount(folder, start.owner), shown_as)
        if os.read(waiting, 1) != _GO:
            raise ProcessLookupError(_GIVEN_UP.decode())
        if start.is_bridged and Defence.PROHIBITED_ROUTES in start.defences:
            close_ways(self.networks)
        _limit_cores()
        if start.drops:
            os.setgroups([])
            os.setresgid(start.owner.gid, start.owner.gid, start.owner.gid)
            os.setresuid(start.owner.uid, start.owner.uid, start.owner.uid)
        # Cleared by the change of user.
        die_with_parent(self.warden)

    def _execute(self, report: int, informing: int, said: int) -> None:
        job = _memory_file("job", self._job(report).encode())
        kept = {report, informing, job, *(fd for fd in self.streams.inside if fd is not None)}
        arguments = [*self._namespaces(), *self.start.root.arguments()]
        if Defence.SECCOMP in self.start.defences:
            program = _memory_file("filter", self.start.filters[0])
            kept.add(program)
            arguments += ["--seccomp", str(program)]
        arguments += ["--chdir", "/", "--info-fd", str(informing), "--clearenv"]
        # Neither the arguments nor the program are on a command line: all processes of the
        # sandbox can read that of its pid 1.
        listed = _memory_file("arguments", b"".join(os.fsencode(one) + b"\0" for one in arguments))
        kept.add(listed)
        command = ["bwrap", "--args", str(listed), "--", PERL, "-", str(job)]
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(_memory_file("launcher", PROGRAM.encode()), 0)
        os.dup2(null, 1)
        os.dup2(said, 2)
        if Defence.CLOSED_DESCRIPTORS in self.start.defences:
            keep_descriptors(kept)
        else:
            for fd in kept:
                os.set_inheritable(fd, True)
        os.execve(self.start.bubblewrap, command, {VARIABLE: self.name})  # noqa: S606 - on purpose

    def _namespaces(self) -> list[str]:
        defences = self.start.defences
        arguments = ["--unshare-user", "--uid", str(INNER_ID), "--gid", str(INNER_ID)]
        arguments += ["--unshare-uts", "--hostname", "sandbox", "--unshare-cgroup"]
        if Defence.USERNS_LIMIT in defences:
            arguments.append("--disable-userns")
        if Defence.PID_NAMESPACE in defences:
            arguments.append("--unshare-pid")
        if Defence.IPC_NAMESPACE in defences:
            arguments.append("--unshare-ipc")
        if not self.start.is_bridged and Defence.NETWORK_NAMESPACE in defences:
            arguments.append("--unshare-net")
        return [*arguments, "--new-session", "--die-with-parent", "--cap-drop", "ALL"]

    def _job(self, report: int) -> Job:
        start, streams = self.start, self.streams
        inside = streams.inside
        landlocked = Defence.LANDLOCK in start.defences and abi_version() > 0
        return Job(
            report=report,
            streams=(inside[0], inside[1], inside[2]),
            terminal=streams.terminal,
            close_descriptors=Defence.CLOSED_DESCRIPTORS in start.defences,
            folder=Path(start.cwd),
            processes=self.limits.processes,
            data=self.limits.data,
            ruleset=ruleset_attributes(abi_version()) if landlocked else b"",
            rules=start.root.landlock_rules(),
            command=start.argv,
            environment=self._environment(),
            filter=start.filters[1] if start.policy.blocked_syscalls else b"",
        )

    def _environment(self) -> Mapping[str, str]:
        clean = Defence.CLEAN_ENVIRONMENT in self.start.defences
        environment = {} if clean else dict(os.environ)
        environment |= {
            "PATH": self.start.root.search_path,
            "HOME": HOME,
            "LANG": "C.UTF-8",
            "USER": "agent",
            "LOGNAME": "agent",
            "SHELL": "/bin/sh",
        }
        if self.streams.terminal is not None:
            environment["TERM"] = os.environ.get("TERM", "dumb")
        return {**environment, **self.start.policy.environment}


def fork() -> int:
    """Copy this process, also with threads in it; return 0 in the copy."""
    with warnings.catch_warnings():
        # Python 3.12 warns when there are threads: the copy has none of them, and whatever lock
        # one of them held stays locked. The set-up takes no lock of another module's.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def nobody_s_id() -> int:
    """Return a number of a user and group that nothing else on the machine belongs to."""
    return _FIRST_ID + int.from_bytes(os.urandom(4)) % _ID_COUNT


def maps_everybody() -> bool:
    """Return whether every user of the machine has a number here: whether root is root."""
    first, outside, count = Path("/proc/self/uid_map").read_text().split()[:3]
    return (first, outside) == ("0", "0") and int(count) > _FIRST_ID + _ID_COUNT


def _find(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SnapshotIsolationError(f"{name} is missing: install {package}")
    return found


def _open_init(pid: int, info: int) -> int:
    """Return a descriptor of pid 1 of the sandbox whose bubblewrap is *pid*; -1 if it has ended."""
    text = os.read(info, 4096)
    if not text:
        return -1
    child = int(json.loads(text)["child-pid"])
    try:
        pidfd = os.pidfd_open(child)
    except ProcessLookupError:
        return -1
    # bubblewrap has not been waited for, so its child is the one that it told of or nobody.
    stat_text = Path(f"/proc/{child}/stat").read_text()
    if int(stat_text.rpartition(")")[2].split()[1]) != pid:
        os.close(pidfd)
        return -1
    return pidfd


def _tell(report: int, reason: str) -> None:
    with contextlib.suppress(OSError):
        os.write(report, FAILED + reason.encode(errors="replace"))


def _memory_file(name: str, data: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def forget_signals() -> None:
    """Undo what the caller has set: what is ignored stays so over an exec."""
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _limit_cores() -> None:
    # One byte: with 0 a program of the host that takes core dumps would still be started.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))

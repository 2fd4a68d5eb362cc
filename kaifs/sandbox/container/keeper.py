"""The process that looks after one container, from its making to its removal.

It is a copy of the warden, in a mount namespace of its own, and outlives
it: when the warden goes away, however it does, the pipe between them ends,
and the keeper removes the container. Only what ends both at once leaves one
for the janitor.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import termios
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final, NoReturn

from kaifs.base.errors import KaifsError, SnapshotIsolationError
from kaifs.base.limits import AGENT
from kaifs.linux.namespaces import (
    MountFlag,
    Namespace,
    attach,
    die_with_parent,
    make_mounts_private,
    unshare,
)
from kaifs.sandbox.container.leftovers import SHARED_STAGE, remove_stage
from kaifs.sandbox.container.limits import check_limits, group_folders, oom_kills
from kaifs.sandbox.container.profile import make_profile, runtime_profile
from kaifs.sandbox.container.runtime import (
    Creation,
    Runtime,
    RuntimeFailedError,
    Volume,
    check_volume,
)
from kaifs.sandbox.defences import ALL
from kaifs.sandbox.network import close_ways
from kaifs.sandbox.relay import Streams
from kaifs.sandbox.root import allowed_paths, open_shown, stage_shown
from kaifs.sandbox.run import AgentMount, Owner, forget_signals, fork

UNSHARED: Final = b"U"
"""Reported when the keeper is in its network namespace."""
GO: Final = b"G"
"""The warden's answer."""
PREPARED: Final = b"P"
"""Reported when the limits have been seen and nothing but the start is left to be done."""
FAILED: Final = b"E"
"""Begins a report that something before it went wrong."""
ENDED: Final = b"X"
"""Begins the last report: JSON with `status` and `oom_killed`."""

_PRIVATE_STAGE: Final = Path("/sys/fs/fuse")
"""Covered in the keeper's mount namespace alone: it is wherever FUSE is, and no runtime needs it."""
_STAGE_SIZE: Final = 4 << 20
_CLIENT_END_S: Final = 10.0
"""Seconds after the end of a container's first process within which its last output is out."""
_KILLS: Final = 20
_KILL_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Keeper:
    """What it is told before it is forked."""

    runtime: Runtime
    creation: Creation
    """With neither profile nor volumes: those are the keeper's to make."""
    networks: Sequence[IPv4Network]
    """What may not be reached, of a container with a network."""
    report: int
    lifeline: int
    """Read end of a pipe whose other end the warden alone has."""

    def run(self, agent_mount: AgentMount, streams: Streams) -> NoReturn:
        """Do everything, and exit. In the copy only."""
        try:
            forget_signals()
            # Who reads the report may have gone; all the more is there to be done.
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            os.setsid()
            self._keep(agent_mount, streams)
        except (KaifsError, RuntimeFailedError) as error:
            reason = error.subject if isinstance(error, KaifsError) else str(error)
            self._tell(FAILED + reason.encode(errors="replace"))
        except BaseException as error:  # noqa: BLE001 - a copy of the caller must not go on
            self._tell(FAILED + f"{type(error).__name__}: {error}".encode(errors="replace"))
        finally:
            os._exit(0)

    def _keep(self, agent_mount: AgentMount, streams: Streams) -> None:
        name = self.creation.name
        inside = [*streams.inside]
        try:
            creation = self._stage(agent_mount)
            # What else the warden had open would stay open as long as the container runs.
            _close_all_but({self.report, self.lifeline, *(fd for fd in inside if fd is not None)})
            if self._is_given_up():
                return
            self.runtime.call(creation.arguments(self.runtime), name)
            try:
                first = self._check(name)
                if not self._is_given_up():
                    self._tell(PREPARED)
                    oom_killed = self._attend(inside, streams.terminal, first)
                    self._tell_end(name, oom_killed)
            finally:
                self.runtime.call(self.runtime.removal(name), name)
        finally:
            if not self.runtime.sees_our_mounts:
                remove_stage(name)

    def _stage(self, agent_mount: AgentMount) -> Creation:
        """Gather what the container shows."""
        creation = self.creation
        policy = creation.policy
        stage = _PRIVATE_STAGE
        kinds = Namespace.MOUNT
        if policy.network == "bridge":
            kinds |= Namespace.NETWORK
        if self.runtime.sees_our_mounts:
            unshare(kinds)
            make_mounts_private()
        else:
            SHARED_STAGE.mkdir(mode=0o700, exist_ok=True)
            stage = SHARED_STAGE / creation.name
            stage.mkdir(mode=0o700)
        if policy.network == "bridge":
            self._tell(UNSHARED)
            if os.read(self.lifeline, 1) != GO:
                raise ProcessLookupError("the warden has given up")
            close_ways(list(self.networks))
        # Looked up before anything is covered.
        shown = [(one, open_shown(one, policy, ALL)) for one in allowed_paths(policy, stage)]
        flags = MountFlag.NOSUID | MountFlag.NODEV
        attach("kaifs-stage", stage, "tmpfs", flags, f"mode=0755,size={_STAGE_SIZE}")
        # What the runtime leaves where it is started (`oom`) ends with the stage.
        os.chdir(stage)
        for one, fd in shown:
            stage_shown(one, fd, creation.owner)
        agent = stage / "agent"
        agent.mkdir()
        agent_mount.mount(agent, Owner(*creation.owner))
        base = runtime_profile() if self.runtime.name == "podman" else None
        profile = stage / "seccomp.json"
        profile.write_text(json.dumps(make_profile(policy.blocked_syscalls, base)))
        volumes = [
            Volume(agent, AGENT, not policy.read_only),
            *(Volume(one.stage, one.target, one.writable) for one, _ in shown),
        ]
        for volume in volumes:
            check_volume(volume)
        return replace(creation, profile=profile, volumes=volumes)

    def _check(self, name: str) -> int | None:
        """See that the limits hold, before anything of the agent's runs.

        Returns:
            The pid of the container's first process, if it has one already.
        """
        policy = self.creation.policy
        if self.runtime.name == "podman":
            self.runtime.call(["init", name], name)
            pid = int(self.runtime.inspect(name, name)["State"]["Pid"])
            check_limits(policy, pid)
            return pid
        # docker cannot stop before the start. What it says it can limit has been asked before.
        host = self.runtime.inspect(name, name)["HostConfig"]
        found = (host["Memory"], host["NanoCpus"], host["PidsLimit"])
        cpus = None if policy.cpus is None else round(policy.cpus * 1e5) * 10_000
        wanted = (policy.memory or 0, cpus or 0, policy.pids)
        if found != wanted:
            raise SnapshotIsolationError(f"cannot be enforced: the limits are {found}")
        return None

    def _attend(self, inside: list[int | None], terminal: int | None, first: int | None) -> bool:
        """Start the container and wait until it has ended; kill it when the warden says so.

        Returns:
            Whether something in it was killed for want of memory, as far as it can be seen here.
        """
        group = None if first is None else group_folders(first).get("memory")
        init = -1 if first is None else os.pidfd_open(first)
        keeper = os.getpid()
        pid = fork()
        if pid == 0:
            try:
                self._become_client(keeper, inside, terminal)
            finally:
                os._exit(125)
        for fd in {fd for fd in inside if fd is not None}:
            os.close(fd)
        client = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(client, select.POLLIN)
        poll.register(self.lifeline, select.POLLIN)
        if init >= 0:
            poll.register(init, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        # The runtime removes the group some tens of milliseconds after the first process's end.
        oom_killed = group is not None and oom_kills(group) > 0
        if init >= 0:
            poll.unregister(init)
        poll.unregister(self.lifeline)
        if not ready & {client, init} or not poll.poll(_CLIENT_END_S * 1000):
            self._kill(poll)
        # If it lives still, what it looks after ends with the removal.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (client, init):
            if fd >= 0:
                os.close(fd)
        return oom_killed

    def _kill(self, ended: select.poll) -> None:
        """Kill the container until *ended* tells; what it wrote until then comes out still."""
        for _ in range(_KILLS):
            # Refused as long as the start is not done.
            with contextlib.suppress(RuntimeFailedError):
                self.runtime.call(["kill", "--signal", "KILL", self.creation.name])
            if ended.poll(_KILL_PAUSE_S * 1000):
                return

    def _become_client(
        self, keeper: int, inside: list[int | None], terminal: int | None
    ) -> NoReturn:
        die_with_parent(keeper)
        forget_signals()
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        # Above the standard ones, so that none is overwritten before it is used.
        sources = [
            fcntl.fcntl(null if fd is None else fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in inside
        ]
        for number, fd in enumerate(sources):
            os.dup2(fd, number)
        if terminal is not None:
            # It has to be told when the size changes.
            fcntl.ioctl(inside.index(terminal), termios.TIOCSCTTY, 0)
        creation = self.creation
        command = [self.runtime.path, "start", "--attach"]
        command += ["--interactive"] * creation.is_interactive
        environment = self.runtime.environment(creation.name)
        os.execve(self.runtime.path, [*command, creation.name], environment)  # noqa: S606 - on purpose

    def _tell_end(self, name: str, oom_killed: bool) -> None:
        try:
            state = self.runtime.inspect(name, name)["State"]
        except RuntimeFailedError:
            # Somebody else has removed it, which killed it: `stop_containers`, or an administrator.
            state = {"Status": "exited", "ExitCode": 128 + signal.SIGKILL, "OOMKilled": False}
        if state["Status"] not in ("exited", "stopped"):
            reason = state.get("Error") or f"the container is {state['Status']}"
            raise SnapshotIsolationError(reason)
        oom_killed = oom_killed or bool(state["OOMKilled"])
        end = {"status": int(state["ExitCode"]), "oom_killed": oom_killed}
        self._tell(ENDED + json.dumps(end).encode())

    def _is_given_up(self) -> bool:
        poll = select.poll()
        poll.register(self.lifeline, select.POLLIN)
        return bool(poll.poll(0))

    def _tell(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self.report, message)


def _close_all_but(kept: set[int]) -> None:
    first = 3
    for fd in [*sorted(fd for fd in kept if fd >= first), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(first, fd)
        first = fd + 1

"""Starting a command in a container, and seeing it to its end.

From the caller's process to the command::

    caller ──fork──▶ keeper ──▶ podman create, init ──▶ limits are read ──▶ podman start

The keeper does everything in a mount namespace of its own, in which alone the
agent's files are mounted; see `keeper`. Whatever fails before the start is
E103, and nothing has run.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kaifs.base.errors import ArgumentValueError, SnapshotIsolationError
from kaifs.sandbox.container.keeper import ENDED, FAILED, GO, PREPARED, UNSHARED, Keeper
from kaifs.sandbox.container.runtime import (
    SNAPSHOT_LABEL,
    STORE_LABEL,
    WARDEN_LABEL,
    Creation,
    check_image,
    choose_runtime,
)
from kaifs.sandbox.names import new_name
from kaifs.sandbox.network import UserNetwork, prohibited_networks
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.relay import Carried, Streams
from kaifs.sandbox.run import AgentMount, fork, maps_everybody, nobody_s_id
from kaifs.sandbox.syscalls import user_rules

_REPORT_MAX: Final = 65536
_DRAIN_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    exit_status: int
    """As a shell sees it: 0 to 255, 128 and the number for a signal."""
    timed_out: bool
    oom_killed: bool
    """Whether any process in the container was killed for want of memory."""
    duration_s: float


class Running:
    """A command in its container. Leaving it as a context manager kills it."""

    def __init__(self, name: str, streams: Streams) -> None:
        self.name = name
        """The container's, too."""
        self.start_s = 0.0
        """Seconds from the request until the container was ready to be started."""
        self.error: str | None = None
        """Always None: that a command could not be executed, the container's shell says itself."""
        self.unenforced: tuple[str, ...] = ()
        """Always empty: a container starts with every limit in force, or not at all."""
        self._streams = streams
        self._network: UserNetwork | None = None
        self._deadline: float | None = None
        self._began = 0.0
        self._pid = 0
        self._keeper = -1
        self._lifeline = -1
        self._report = -1
        self._outcome: Outcome | None = None
        self._timed_out = False

    def wait(self, leash: int = -1) -> Outcome:
        """Carry the streams until the command has ended; kill it when its time is up.

        When this returns the container has been removed. An exception
        (KeyboardInterrupt) leaves it running.

        Args:
            leash: A descriptor; once there is something to read from it, or its other end is
                closed, the container is killed.
        """
        if self._outcome is not None:
            return self._outcome
        while True:
            found = self._streams.carry(self._keeper, leash, self._deadline)
            if found is Carried.ENDED:
                return self._finish()
            if found is Carried.TIME_IS_UP:
                self._timed_out, self._deadline = True, None
            else:
                leash = -1
            self.kill()

    def kill(self) -> None:
        """Kill the container; `wait` tells when it is gone."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def close(self) -> None:
        """Kill the container if it runs still, and remove everything that it needed."""
        if self._outcome is not None:
            return
        self.kill()
        if self._pid:
            with contextlib.suppress(SnapshotIsolationError):
                self.wait()
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
        os.waitpid(self._pid, 0)
        self._pid = 0
        said = self._hear()
        self._streams.drain(_DRAIN_S)
        killed = self._lifeline < 0
        self._release()
        if said.startswith(ENDED):
            end = json.loads(said[1:].partition(FAILED)[0])
        elif killed:
            # It was killed before its command had started, or with its keeper.
            end = {"status": 128 + signal.SIGKILL, "oom_killed": False}
        else:
            raise SnapshotIsolationError(f"container: {_reason(said)}")
        self._outcome = Outcome(
            exit_status=end["status"],
            timed_out=self._timed_out,
            oom_killed=end["oom_killed"],
            duration_s=time.monotonic() - self._began,
        )
        return self._outcome

    def _hear(self) -> bytes:
        heard = b""
        while len(heard) < _REPORT_MAX and (piece := os.read(self._report, 4096)):
            heard += piece
        return heard

    def _release(self) -> None:
        self._streams.close()
        if self._network is not None:
            self._network.close()
            self._network = None
        for fd in (self._keeper, self._lifeline, self._report):
            if fd >= 0:
                os.close(fd)
        self._keeper = self._lifeline = self._report = -1


def start(
    policy: Policy,
    argv: Sequence[str],
    agent_mount: AgentMount,
    *,
    image: str,
    snapshot: str = "none",
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    label: str = "none",
) -> Running:
    """Run *argv* in a container; return when it is about to be executed.

    Args:
        policy: What it may do. Every limit is required, whatever `policy.required` says.
        argv: Command and arguments; the command is looked up in the image's PATH.
        agent_mount: Shows the files of /agent.
        image: Name of an image that is there; nothing is fetched.
        snapshot: For the container's label.
        stdin: Descriptor, which stays the caller's. None is /dev/null. `Running.wait`
            carries terminals and files, so it has to be called.
        stdout: As *stdin*.
        stderr: As *stdin*.
        label: What the janitor looks for leftovers by: the store's uuid.

    Raises:
        ArgumentValueError: There is no command, or a stream or the image's name cannot be used.
        SnapshotIsolationError: Something cannot be enforced; nothing has run.
    """
    began = time.monotonic()
    if not argv or any("\0" in word for word in argv):
        raise ArgumentValueError("command: there is none, or it holds a zero byte")
    check_image(image)
    runtime = choose_runtime(policy)
    if not maps_everybody():
        raise SnapshotIsolationError("containers need root of the machine, not of a namespace")
    user_rules(policy.blocked_syscalls)  # says which name is none
    is_bridged = policy.network == "bridge"
    name = new_name(label, os.getpid())
    owner = nobody_s_id()
    streams = Streams((stdin, stdout, stderr), relay=True)
    running = Running(str(name), streams)
    creation = Creation(
        name=str(name),
        image=image,
        policy=policy,
        command=list(argv),
        owner=(owner, owner),
        profile=Path(),
        volumes=(),
        is_interactive=stdin is not None,
        has_terminal=streams.terminal is not None,
        joins_errors=stdout is not None and stdout == stderr,
        labels={
            STORE_LABEL: label,
            SNAPSHOT_LABEL: snapshot,
            WARDEN_LABEL: f"{name.warden.pid}:{name.warden.started}",
        },
    )
    try:
        streams.give(owner, owner)
        networks = prohibited_networks() if is_bridged else []
        running._report, reporting = os.pipe2(os.O_CLOEXEC)
        watched, running._lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            pid = fork()
            if pid == 0:
                os.close(running._lifeline)
                keeper = Keeper(runtime, creation, networks, reporting, watched)
                keeper.run(agent_mount, streams)
            running._pid = pid
            running._keeper = os.pidfd_open(pid)
        finally:
            os.close(reporting)
            os.close(watched)
        streams.close_inside()
        _await_preparation(running, is_bridged)
    except BaseException:
        running.close()
        raise
    running._began = time.monotonic()
    running.start_s = running._began - began
    if policy.timeout_s is not None:
        running._deadline = running._began + policy.timeout_s
    streams.begin()
    return running


def _await_preparation(running: Running, is_bridged: bool) -> None:
    heard = os.read(running._report, 1)
    if is_bridged and heard == UNSHARED:
        running._network = UserNetwork(running._pid, running.name)
        with contextlib.suppress(BrokenPipeError):
            os.write(running._lifeline, GO)
        heard = os.read(running._report, 1)
    if heard != PREPARED:
        raise SnapshotIsolationError(f"container: {_reason(heard + running._hear())}")


def _reason(said: bytes) -> str:
    reason = said.partition(FAILED)[2].decode(errors="replace").strip()
    if "image not known" in reason or "No such image" in reason:
        reason += "; tools/build_runtime_image builds the default one"
    return reason or "its keeper was killed"

"""A command's sandbox: where the verbs that run something meet what isolates it.

The verbs know a `Session` alone. `prepare` and `open_session` are the one place
that knows how a snapshot is served privately and what runs commands in it.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from kaifs.api.access import find_daemon
from kaifs.base.errors import DaemonError
from kaifs.service.suite_runner import Execution, Executor

if TYPE_CHECKING:
    from kaifs.control.client import Attachment
    from kaifs.sandbox.container.run import Running as RunningContainer
    from kaifs.sandbox.policy import Policy
    from kaifs.sandbox.run import Owner, Running
    from kaifs.service.isolation import IsolatedSnapshot

REPORT_FOLDER: Final = "/tmp/kaifs-reports"  # noqa: S108 - in the sandbox, whose /tmp is its own
OUTPUT_MAX: Final = 8 << 20
"""Bytes of a test command's output that are kept, reports included: the end of it."""
REPORT_MAX: Final = 2 << 20
"""Bytes of one report that are read."""
DETACH_S: Final = 10.0
"""Seconds within which the daemon notices that a sandbox's mount is gone."""
_CONTROLLED: Final = frozenset({"memory", "cpus", "pids"})
"""Limits that take a control group, or what does for one."""

# The sandbox's own files end with it, so what a command has reported comes out behind its
# output. That a command can write such a mark itself lets it tell nothing that it could not
# write into a report.
_WRAPPER: Final = f"""
mark=$1 folder={REPORT_FOLDER}; shift
mkdir -p "$folder"
"$@"
status=$?
for report in "$folder"/*.xml; do
  if [ -f "$report" ]; then
    printf '\\n%s %s\\n' "$mark" "${{report##*/}}"
    head -c {REPORT_MAX} "$report"
  fi
done
exit $status
"""


OnUnenforced: TypeAlias = Callable[[tuple[str, ...]], None]
"""Told limits that are not in force, each with the reason, in words for people."""


def ignore_unenforced(limits: tuple[str, ...]) -> None:
    """Tell nobody."""


class Session(Executor, Protocol):
    """A snapshot with everything in place to run commands in it, at `/agent`."""

    def run_foreground(
        self, command: Sequence[str], on_unenforced: OnUnenforced = ignore_unenforced
    ) -> int:
        """Run a command on our own stdin, stdout and stderr; return its exit status.

        As a shell has it: 126 if it cannot be executed, 127 if it is not found, 128
        and the signal that ended it. *on_unenforced* is told the limits that nobody
        asked for and that this machine cannot have.
        """
        ...


@contextmanager
def prepare(store: Path) -> Iterator[None]:
    """Have what sessions need as long as this lasts: a daemon, which serves private connections.

    Begin it before a verb that needs a session, when nothing has *store* open.

    Raises:
        KaifsError: as `kaifs.daemon.lifecycle.served`.
    """
    from kaifs.daemon.lifecycle import served

    with served(store):
        yield


@contextmanager
def open_session(store: Path, snapshot: IsolatedSnapshot) -> Iterator[Session]:
    """Lend a session in *snapshot*. When it ends nothing of it is left: no process, no mount.

    `prepare` has to last that long.

    Raises:
        SnapshotIsolationError: something that the snapshot asks for cannot be enforced; then
            nothing was run.
    """
    from kaifs.sandbox.janitor import clean
    from kaifs.store.superblock import read_superblock

    label = read_superblock(store).uuid.hex()
    clean(label, containers=snapshot.isolation.container)
    daemon = find_daemon(store)
    mounted = [Path(mount.mountpoint) for mount in daemon.mounts] if daemon is not None else []
    yield _SandboxSession(store, snapshot, label, (store.resolve(), *mounted))


@dataclass(frozen=True, slots=True)
class _PrivateMount:
    """Shows the snapshot by a connection of its own."""

    attachment: Attachment
    read_only: bool

    def mount(self, staging: Path, owner: Owner) -> None:
        """Mount, and pass the descriptor to the daemon. In the sandbox's mount namespace."""
        from kaifs.fuse.mounting import MountOptions, mount_fuse

        options = MountOptions(self.read_only, allow_other=True, flags=("nosuid", "nodev"))
        fd = mount_fuse(staging, options)
        self.attachment.pass_descriptor(fd, owner.uid, owner.gid)
        os.close(fd)


@dataclass(frozen=True, slots=True)
class _SandboxSession:
    """Each command gets a sandbox of its own."""

    store: Path
    snapshot: IsolatedSnapshot
    label: str
    forbidden: tuple[Path, ...]

    @property
    def report_folder(self) -> str:
        """Where commands leave reports."""
        return REPORT_FOLDER

    def run(
        self, command: str | tuple[str, ...], env: Mapping[str, str], timeout_s: float
    ) -> Execution:
        """Run *command* to its end and keep what it writes."""
        words = ("/bin/sh", "-c", command) if isinstance(command, str) else command
        mark = f"kaifs-report-{secrets.token_hex(16)}"
        argv = ["/bin/sh", "-c", _WRAPPER, "sh", mark, *words]
        policy = self._policy(env, timeout_s)
        began = time.monotonic()
        collector = _Collector()
        with collector, self._attached() as agent_mount:
            out = collector.writing
            with self._start(policy, argv, agent_mount, (None, out, out)) as running:
                # Not before: a process with threads had better not fork.
                collector.begin()
                outcome = running.wait(agent_mount.attachment.fileno())
        output = collector.output
        said, *reports = output.kept.split(f"\n{mark} ".encode())
        return Execution(
            exit_status=outcome.exit_status,
            output=said,
            duration_s=time.monotonic() - began,
            timed_out=outcome.timed_out,
            oom_killed=outcome.oom_killed,
            dropped=output.dropped,
            reports=tuple(map(_named_report, reports)),
            unenforced=running.unenforced,
        )

    def run_foreground(
        self, command: Sequence[str], on_unenforced: OnUnenforced = ignore_unenforced
    ) -> int:
        """Run a command on our own streams."""
        with (
            self._attached() as agent_mount,
            self._start(self._policy({}, None), list(command), agent_mount, (0, 1, 2)) as running,
        ):
            if running.unenforced:
                on_unenforced(running.unenforced)
            outcome = running.wait(agent_mount.attachment.fileno())
            if running.error is not None:
                print(f"kaifs: {running.error}", file=sys.stderr)
            return outcome.exit_status

    def _start(
        self,
        policy: Policy,
        argv: list[str],
        agent_mount: _PrivateMount,
        streams: tuple[int | None, int | None, int | None],
    ) -> Running | RunningContainer:
        """Start *argv* in what the snapshot asks for: a sandbox, or a container."""
        stdin, stdout, stderr = streams
        if (image := self.snapshot.isolation.image) is not None:
            from kaifs.sandbox.container.run import start as start_container

            return start_container(
                policy,
                argv,
                agent_mount,
                image=image,
                snapshot=f"{self.snapshot.agent_id}/@snapshots/{self.snapshot.id}",
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                label=self.label,
            )
        from kaifs.sandbox.run import start

        return start(
            policy,
            argv,
            agent_mount,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            label=self.label,
        )

    @contextmanager
    def _attached(self) -> Iterator[_PrivateMount]:
        from kaifs.base.limits import parse_storage
        from kaifs.control.client import attach
        from kaifs.control.messages import AttachParams

        isolation = self.snapshot.isolation
        read_only = isolation.permissions.read_only
        params = AttachParams(
            reference=f"{self.snapshot.agent_id}/@snapshots/{self.snapshot.id}",
            read_only=read_only,
            quota=parse_storage(isolation.resources.storage),
        )
        attachment = attach(self.store, params)
        try:
            yield _PrivateMount(attachment, read_only)
            # The next command gets the snapshot only when the daemon has it back.
            attachment.wait_end(DETACH_S)
        except TimeoutError as error:
            raise DaemonError(f"{params.reference} is not given back") from error
        finally:
            attachment.close()

    def _policy(self, env: Mapping[str, str], timeout_s: float | None) -> Policy:
        """Return what the snapshot allows."""
        from kaifs.base import limits
        from kaifs.sandbox import policy

        isolation = self.snapshot.isolation
        resources, permissions = isolation.resources, isolation.permissions
        # An ordinary user without a control group gets the limits that they did not ask for where
        # they can be had, and is told which could not.
        required = _CONTROLLED if os.geteuid() == 0 else _CONTROLLED & set(isolation.required)
        return policy.Policy(
            memory=limits.parse_memory(resources.memory),
            cpus=limits.parse_cpus(resources.cpu),
            pids=limits.parse_pids(resources.pids),
            network=policy.parse_network(isolation.network_mode),
            environment={**isolation.environment, **env},
            read_only=permissions.read_only,
            allowed_paths=tuple(map(limits.parse_allowed_path, permissions.allowed_paths)),
            blocked_syscalls=tuple(map(limits.parse_system_call, permissions.blocked_syscalls)),
            timeout_s=timeout_s,
            required=required,
            forbidden=self.forbidden,
        )


@dataclass(frozen=True, slots=True)
class _Output:
    """What came through a pipe."""

    kept: bytes
    dropped: int
    """Bytes before it that were not kept."""


class _Collector:
    """A pipe that is read to its end by a thread of its own; the end of what comes is kept."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        self._kept = bytearray()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to read. Who writes has the other end by now."""
        os.close(self.writing)
        self.writing = -1
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writing >= 0:
            os.close(self.writing)
        if self._thread is not None:
            self._thread.join()
        os.close(self._reading)

    @property
    def output(self) -> _Output:
        """What was kept, at the end."""
        self._drop()
        return _Output(bytes(self._kept), self._dropped)

    def _run(self) -> None:
        while piece := os.read(self._reading, 1 << 16):
            self._kept += piece
            if len(self._kept) > 2 * OUTPUT_MAX:
                self._drop()

    def _drop(self) -> None:
        surplus = max(len(self._kept) - OUTPUT_MAX, 0)
        self._dropped += surplus
        del self._kept[:surplus]


def _named_report(part: bytes) -> tuple[str, bytes]:
    name, _, content = part.partition(b"\n")
    return name.decode(errors="replace"), content

"""Snapshots in isolation: made, tried, tested, committed or thrown away.

::

    from kaifs import SnapshotIsolationManager, SnapshotOptions, TestCase, TestSuite

    manager = SnapshotIsolationManager("/srv/store")
    snapshot = manager.create_isolated_snapshot("bot", "1.0.0", SnapshotOptions(memory_limit="1g"))
    manager.run_in_snapshot(snapshot.id, ["sh", "-c", "echo 'x = 2' >lib/x.py"])
    result = manager.test_in_snapshot(
        snapshot.id, TestSuite(test=(TestCase(name="unit", command="make test"),))
    )
    if result.success:
        print(manager.commit_snapshot(snapshot.id).version)
    else:
        manager.rollback_snapshot(snapshot.id)

Every method goes through the daemon if one serves the store, and opens the
store itself if none does. Where commands are to run and there is no daemon, one
is there for that call alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from kaifs.api import session
from kaifs.api.access import call, store_path
from kaifs.api.session import OnUnenforced
from kaifs.base.errors import (
    ArgumentValueError,
    InvalidVersionError,
    SnapshotNotFoundError,
    SnapshotStateError,
    SuiteError,
)
from kaifs.service import commit, discard, rebase, show, snapshot, snapshots, testing
from kaifs.service.commit import CommitResult
from kaifs.service.documents import SIZE_MAX
from kaifs.service.isolation import IsolatedSnapshot, Limits
from kaifs.service.record import Description
from kaifs.service.snapshots import SnapshotInfo
from kaifs.service.steps import Item, OnProgress, Signer
from kaifs.service.suite import TestSuite, load_suite
from kaifs.service.suite_runner import OnSuiteProgress, SuiteRunner

AGENT_PATH: Final = "/agent"
"""Where commands see the snapshot. Source: specification, createIsolationConfig."""
_COMMITTED: Final = Description(snapshot_type="auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """The specification's SnapshotOptions. None stands for the specification's default.

    Limits hold for what is run in the snapshot by kaifs; they are enforced, or
    refused with E103, when something is to run.
    """

    use_container: bool = False
    """Run commands in a container of an OCI runtime."""
    container_image: str | None = None
    network_access: bool = False
    memory_limit: str | None = None
    """`512m`, `1g`: powers of 1024."""
    cpu_limit: str | None = None
    """Processors: `0.5`."""
    storage_limit: str | None = None
    """What may be stored in the snapshot: `1g`."""
    pids_limit: str | None = None
    """Processes and threads at once."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Over `NODE_ENV=sandbox` and `KAI_ISOLATION_MODE=true`."""
    read_only: bool = False
    allowed_paths: Sequence[str] = (AGENT_PATH,)
    """`/agent`, and folders of this machine: `PATH` or `PATH:ro` to read, `PATH:rw` to write."""
    blocked_syscalls: Sequence[str] = ()
    """Names. Calling one fails with EPERM, on top of what every sandbox refuses."""

    def limits(self) -> Limits:
        """Return them as the verbs take them."""
        return Limits(
            container=self.use_container,
            image=self.container_image,
            network=self.network_access,
            memory=self.memory_limit,
            cpus=self.cpu_limit,
            storage=self.storage_limit,
            pids=self.pids_limit,
            env=tuple(f"{name}={value}" for name, value in self.environment.items()),
            allow=tuple(path for path in self.allowed_paths if path != AGENT_PATH),
            deny_syscall=tuple(self.blocked_syscalls),
        )


def read_suite(path: str | os.PathLike[str]) -> TestSuite:
    """Return the suite in a TOML, YAML or JSON file.

    Raises:
        SuiteError: it cannot be read, or is none.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            payload = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise SuiteError(f"{name}: {error.strerror}") from error
    return load_suite(payload, name)


def reference_of(made: IsolatedSnapshot) -> str:
    """Return what names a snapshot even if another agent has one of the same id."""
    return f"{made.agent_id}/@snapshots/{made.id}"


class SnapshotIsolationManager:
    """The specification's SnapshotIsolationManager, on one store.

    Where a method takes a *snapshot_id*, that is a snapshot's id, or
    `AGENT/@snapshots/ID` where several agents have one of that id. Every failure
    that can be expected is a `KaifsError`, with the store left as it was.
    """

    def __init__(self, store: str | os.PathLike[str] | None = None) -> None:
        """Use *store*: a path; None is `$KAIFS_STORE`, or the user's default."""
        self.store: Final = store_path(store)

    def create_isolated_snapshot(
        self,
        agent_id: str,
        version: str | None = None,
        options: SnapshotOptions | None = None,
        *,
        name: str | None = None,
    ) -> IsolatedSnapshot:
        """Make a snapshot of one of an agent's versions. O(1), whatever its size.

        Args:
            agent_id: The agent's name.
            version: Its label; None is the agent's current, uncommitted changes included.
            options: What commands in it may use and touch.
            name: The snapshot's id; None generates one.

        Raises:
            AgentNotFoundError, InvalidVersionError: there is nothing to make it of.
            ArgumentValueError: an option makes no sense.
            BadNameError, SnapshotExistsError: the name cannot be had.
            AccessDeniedError: the agent is somebody else's.
        """
        reference = agent_id if version is None else f"{agent_id}@{version}"
        return self.create_snapshot(reference, options, name=name)

    def create_snapshot(
        self, reference: str, options: SnapshotOptions | None = None, *, name: str | None = None
    ) -> IsolatedSnapshot:
        """Make a snapshot of what *reference* names: an agent, a version, or a snapshot.

        Raises:
            KaifsError: as `create_isolated_snapshot`.
        """
        options = options or SnapshotOptions()
        params = snapshot.Params(
            reference=reference, name=name, read_only=options.read_only, limits=options.limits()
        )
        made: IsolatedSnapshot = call(self.store, "snapshot", params)
        return made

    def get_snapshot(self, snapshot_id: str) -> IsolatedSnapshot:
        """Return a snapshot as it is now.

        Raises:
            SnapshotNotFoundError: there is none of that id.
            AmbiguousReferenceError: several agents have one.
        """
        return self._snapshot(self._show(snapshot_id), snapshot_id)

    def list_snapshots(self, agent_id: str | None = None) -> tuple[SnapshotInfo, ...]:
        """Return an agent's snapshots, or everybody's, by agent and id.

        Raises:
            AgentNotFoundError: there is no such agent.
        """
        params = snapshots.Params(agent=agent_id)
        found: snapshots.Result = call(self.store, "snapshots", params)
        return found.snapshots

    def test_in_snapshot(
        self,
        snapshot_id: str,
        test_suite: TestSuite | str | os.PathLike[str] | None = None,
        *,
        source: str | None = None,
        on_progress: OnSuiteProgress | None = None,
    ) -> testing.Result:
        """Run a test suite in the snapshot's sandbox; set its status and keep the evidence.

        Tests that fail are a result: `success` is False. What raises leaves the
        snapshot in `test_error`, or where it was if nothing had begun.

        Args:
            snapshot_id: The snapshot.
            test_suite: A suite, or the file that it is in; None is what the snapshot's own
                files say.
            source: What the evidence says of where the suite is from; None is the file's name.
            on_progress: Called before each test, and at the end.

        Raises:
            SuiteError: the suite cannot be used, or the snapshot's files name none.
            SnapshotIsolationError: something that the snapshot asks for cannot be enforced.
            SnapshotStateError: tests run in it already.
            SuiteRunError: it was discarded meanwhile.
        """
        if isinstance(test_suite, str | os.PathLike):
            source = os.fspath(test_suite) if source is None else source
            test_suite = read_suite(test_suite)
        # A file's name may be no Unicode.
        told = os.fsencode(source or "").decode("utf-8", "replace")
        params = testing.Params(reference=snapshot_id, suite=test_suite, source=told)
        order = bytearray()

        def report() -> Iterator[Item]:
            # Begun when the verb wants the report, which is after it has said what to run.
            wanted = msgspec.json.decode(bytes(order), type=testing.Order)
            with session.open_session(self.store, wanted.snapshot) as opened:
                ran = SuiteRunner(opened, on_progress).run(wanted.suite)
            yield from testing.report_items(ran)

        with session.prepare(self.store):
            result: testing.Result = call(
                self.store, "test", params, source=report(), on_output=order.extend
            )
        return result

    def test_log(self, snapshot_id: str) -> bytes:
        """Return what the last tests in a snapshot wrote: the end of it if it was much.

        Raises:
            SnapshotStateError: nothing is kept, or the caller may not read all of the snapshot.
            KaifsError: as `get_snapshot`.
        """
        found = self._show(snapshot_id, has_log=True)
        self._snapshot(found, snapshot_id)
        if found.log is None:
            raise SnapshotStateError(f"{snapshot_id}: no output of tests is kept")
        return found.log

    def run_in_snapshot(
        self,
        snapshot_id: str,
        command: Sequence[str],
        *,
        on_unenforced: OnUnenforced = session.ignore_unenforced,
    ) -> int:
        """Run a command in the snapshot's sandbox, on this process's own standard streams.

        Args:
            snapshot_id: The snapshot.
            command: Program and arguments.
            on_unenforced: Told the limits that nobody asked for and that this machine cannot
                have, before the command's end; what was asked for is in force, or nothing runs.

        Returns:
            Its exit status as a shell has it: 126 if it cannot be executed, 127 if it was not
            found, 128 and the signal that ended it.

        Raises:
            SnapshotIsolationError: something that the snapshot asks for cannot be enforced,
                or another sandbox has it.
            KaifsError: as `get_snapshot`.
        """
        with session.prepare(self.store):
            found = self.get_snapshot(snapshot_id)
            with session.open_session(self.store, found) as opened:
                return opened.run_foreground(command, on_unenforced)

    @contextmanager
    def lend_snapshot(
        self, reference: str, options: SnapshotOptions | None = None, *, keep: bool = False
    ) -> Iterator[IsolatedSnapshot]:
        """Lend a snapshot to run something in: the one that *reference* names, or a new one.

        Args:
            reference: A snapshot, or an agent or a version to make one of.
            options: For a new one; None for the defaults.
            keep: Whether a new one stays; else it is removed in the end, as well as it can be.

        Raises:
            ArgumentValueError: *options* or *keep* for a snapshot that is there already.
            KaifsError: as `create_isolated_snapshot`.
        """
        with session.prepare(self.store):
            found = self._find(reference)
            if found is not None:
                if options is not None or keep:
                    text = "limits and --keep are for a snapshot that is made"
                    text += "; this one is there already"
                    raise ArgumentValueError(f"{reference}: {text}")
                yield found
                return
            made = self.create_snapshot(reference, options)
            if keep:
                yield made
                return
            try:
                yield made
            finally:
                # Whoever discarded it meanwhile has done what was to be done.
                with suppress(SnapshotNotFoundError):
                    self.discard_snapshot(reference_of(made))

    def commit_snapshot(
        self,
        snapshot_id: str,
        *,
        label: str | None = None,
        bump: Literal["major", "minor", "patch"] = "patch",
        description: Description = _COMMITTED,
        on_progress: OnProgress | None = None,
        signer: Signer | None = None,
    ) -> CommitResult:
        """Make a snapshot whose tests passed the agent's next version, and remove it.

        What it changed is merged onto current.

        Args:
            snapshot_id: The snapshot.
            label: The version's; None grows the one that current is based on by *bump*.
            bump: See *label*.
            description: What the version's record says, beside the tests' evidence.
            on_progress: Called on the way.
            signer: Signs the version, see `kaifs.api.signing`; None: the store's key, if it
                has one.

        Raises:
            SnapshotStateError: its tests did not pass, or something changed since.
            MergeConflictError: `details["conflicts"]` lists them; nothing was changed.
            BadLabelError, VersionExistsError: the label cannot be had.
            KaifsError: as `get_snapshot`.
        """
        params = commit.Params(
            reference=snapshot_id,
            label=label,
            bump=bump,
            description=description,
            caller_signs=signer is not None,
        )
        done: CommitResult = call(
            self.store, "commit", params, on_progress=on_progress, signer=signer
        )
        return done

    def rebase_snapshot(self, snapshot_id: str) -> rebase.Result:
        """Bring into a snapshot what current has changed since; it is `ready` then.

        Raises:
            MergeConflictError: as `commit_snapshot`.
            SnapshotStateError: tests run in it.
            SealedError: it is read-only.
        """
        params = rebase.Params(reference=snapshot_id)
        done: rebase.Result = call(self.store, "rebase", params)
        return done

    def rollback_snapshot(self, snapshot_id: str) -> None:
        """Throw a snapshot away, ending what runs in it.

        Raises:
            KaifsError: as `get_snapshot`; E105 if it is somebody else's.
        """
        self.discard_snapshot(snapshot_id)

    def discard_snapshot(self, snapshot_id: str) -> discard.Result:
        """Do what `rollback_snapshot` does, and return what is gone."""
        gone: discard.Result = call(self.store, "discard", discard.Params(reference=snapshot_id))
        return gone

    def _show(self, reference: str, *, has_log: bool = False) -> show.Result:
        found: show.Result = call(
            self.store, "show", show.Params(reference=reference, has_log=has_log)
        )
        return found

    def _snapshot(self, found: show.Result, reference: str) -> IsolatedSnapshot:
        if found.snapshot is None:
            raise SnapshotNotFoundError(reference)
        return found.snapshot

    def _find(self, reference: str) -> IsolatedSnapshot | None:
        """Return the snapshot that *reference* names, None if it names something else."""
        try:
            return self._show(reference).snapshot
        except InvalidVersionError:
            if "@" in reference:
                raise
            # An agent without a version has a current all the same.
            return None

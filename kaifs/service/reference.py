"""References: how a user names a tree.

::

    AGENT@LABEL              a version
    AGENT                    what its current shows
    AGENT/@snapshots/NAME    a snapshot
    ID                       a snapshot, if no agent and no other snapshot is called so
"""

from __future__ import annotations

from dataclasses import dataclass

from kaifs.base.errors import (
    AgentNotFoundError,
    AmbiguousReferenceError,
    BadReferenceError,
    SnapshotNotFoundError,
)
from kaifs.base.label import parse_label
from kaifs.base.types import RootId
from kaifs.meta.records import AgentRecord, SnapshotRecord, VersionRecord
from kaifs.service.names import GENERATED_PREFIX
from kaifs.store.registry import check_agent_name, check_snapshot_name
from kaifs.store.store import Store

SNAPSHOTS = "@snapshots"


@dataclass(frozen=True, slots=True)
class Target:
    """What a reference names. Both *version* and *snapshot* None: the agent's current."""

    agent: AgentRecord
    root: RootId
    version: VersionRecord | None = None
    snapshot: SnapshotRecord | None = None

    @property
    def label(self) -> str:
        """Label of the version it is or is based on; empty if there is none."""
        if self.version is not None:
            return self.version.label
        if self.snapshot is not None:
            return self.snapshot.version
        return self.agent.version

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.agent.name}@{self.version.label}"
        if self.snapshot is not None:
            return f"{self.agent.name}/{SNAPSHOTS}/{self.snapshot.name}"
        return self.agent.name


def resolve(store: Store, text: str) -> Target:
    """Return what the reference *text* names.

    Raises:
        BadReferenceError: *text* is no reference.
        BadNameError, BadLabelError: a part of it is not well formed.
        AgentNotFoundError, InvalidVersionError, SnapshotNotFoundError: nothing is called so.
        AmbiguousReferenceError: several snapshots are.
    """
    name, slash, rest = text.partition("/")
    if slash:
        folder, _, snapshot_name = rest.partition("/")
        if folder != SNAPSHOTS or not snapshot_name:
            raise BadReferenceError(repr(text))
        agent = get_agent(store, name)
        check_snapshot_name(snapshot_name)
        return _snapshot_target(agent, store.get_snapshot(agent, snapshot_name))
    name, at, label = text.partition("@")
    if at:
        agent = get_agent(store, name)
        version = get_version(store, agent, label)
        return Target(agent, version.root, version=version)
    return _resolve_bare(store, text)


def resolve_version(store: Store, text: str) -> tuple[AgentRecord, VersionRecord]:
    """Return the version that *text* names as `AGENT@LABEL`.

    Raises:
        BadReferenceError: *text* names something else.
        KaifsError: as `resolve`.
    """
    target = resolve(store, text)
    if target.version is None:
        raise BadReferenceError(f"{text!r} is no version: write AGENT@LABEL")
    return target.agent, target.version


def resolve_snapshot(store: Store, text: str) -> tuple[AgentRecord, SnapshotRecord]:
    """Return the snapshot that *text* names.

    Raises:
        BadReferenceError: *text* names something else.
        SnapshotNotFoundError: a bare name that neither a snapshot nor an agent has.
        KaifsError: as `resolve`.
    """
    try:
        target = resolve(store, text)
    except AgentNotFoundError as error:
        raise SnapshotNotFoundError(text) from error
    if target.snapshot is not None:
        return target.agent, target.snapshot
    raise BadReferenceError(f"{text!r} is no snapshot")


def get_agent(store: Store, name: str) -> AgentRecord:
    """Return the agent called *name*.

    Raises:
        BadNameError: no agent can be called that.
        AgentNotFoundError: there is none.
    """
    check_agent_name(name)
    return store.get_agent(name)


def get_version(store: Store, agent: AgentRecord, label: str) -> VersionRecord:
    """Return the version *label* of *agent*.

    Raises:
        BadLabelError: *label* is no label.
        InvalidVersionError: there is no such version.
    """
    parse_label(label)
    return store.get_version(agent, label)


def _resolve_bare(store: Store, text: str) -> Target:
    if not text.startswith(GENERATED_PREFIX):
        check_agent_name(text)
        agent = store.find_agent(text)
        if agent is not None:
            return Target(agent, agent.head)
    check_snapshot_name(text)
    found = [
        (agent, snapshot)
        for agent in store.agents()
        if (snapshot := store.find_snapshot(agent.agent_id, text)) is not None
    ]
    if len(found) > 1:
        candidates = [f"{agent.name}/{SNAPSHOTS}/{text}" for agent, _ in found]
        raise AmbiguousReferenceError(", ".join(candidates), candidates=candidates)
    if found:
        return _snapshot_target(*found[0])
    if text.startswith(GENERATED_PREFIX):
        raise SnapshotNotFoundError(text)
    raise AgentNotFoundError(text)


def _snapshot_target(agent: AgentRecord, snapshot: SnapshotRecord) -> Target:
    return Target(agent, snapshot.root, snapshot=snapshot)

"""News that must go up: what changed in the registry, for whoever caches names."""

from dataclasses import dataclass

from kaifs.base.types import RootId


@dataclass(frozen=True, slots=True)
class AgentAdded:
    """A new agent is there."""

    agent_id: int
    name: str


@dataclass(frozen=True, slots=True)
class AgentRemoved:
    """An agent is gone."""

    agent_id: int
    name: str


@dataclass(frozen=True, slots=True)
class VersionAdded:
    """A new version is there."""

    agent_id: int
    label: str


@dataclass(frozen=True, slots=True)
class VersionRemoved:
    """A version is gone."""

    agent_id: int
    label: str


@dataclass(frozen=True, slots=True)
class VersionSigned:
    """A version has another signature, or its first."""

    agent_id: int
    label: str


@dataclass(frozen=True, slots=True)
class VersionQuarantined:
    """A version is set aside: nothing of its tree is shown any more."""

    agent_id: int
    label: str
    root: RootId
    """0 if it has no tree that is known."""


@dataclass(frozen=True, slots=True)
class VersionReleased:
    """A version is out of quarantine: shown as before, or gone."""

    agent_id: int
    label: str
    root: RootId
    """0 if it has no tree that is known."""


@dataclass(frozen=True, slots=True)
class SnapshotAdded:
    """A new snapshot is there."""

    agent_id: int
    name: str


@dataclass(frozen=True, slots=True)
class SnapshotRemoved:
    """A snapshot is gone."""

    agent_id: int
    name: str


@dataclass(frozen=True, slots=True)
class SnapshotRenamed:
    """A snapshot has another name."""

    agent_id: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class HeadSwitched:
    """Another root is what an agent's `current` shows."""

    agent_id: int
    old: RootId
    new: RootId


Change = (
    AgentAdded
    | AgentRemoved
    | VersionAdded
    | VersionRemoved
    | VersionSigned
    | VersionQuarantined
    | VersionReleased
    | SnapshotAdded
    | SnapshotRemoved
    | SnapshotRenamed
    | HeadSwitched
)

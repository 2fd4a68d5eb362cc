"""Snapshots as the specification describes them, with the limits of what runs in them.

The limits hold for commands that kaifs runs in a snapshot. Their defaults are
told with every snapshot; one that is asked for and cannot be enforced is
refused before anything is made.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from kaifs.base.clock import format_time
from kaifs.meta.records import AgentRecord, SnapshotRecord
from kaifs.service.reference import SNAPSHOTS


class Resources(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Most that a command may use."""

    memory: str = "512m"
    cpu: str = "0.5"
    storage: str = "1g"
    pids: str = "512"


class Permissions(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a command may touch."""

    read_only: bool = False
    allowed_paths: tuple[str, ...] = ("/agent",)
    blocked_syscalls: tuple[str, ...] = ()


def _default_environment() -> dict[str, str]:
    return {"NODE_ENV": "sandbox", "KAI_ISOLATION_MODE": "true"}


class IsolationConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's IsolationConfig."""

    environment: dict[str, str] = msgspec.field(default_factory=_default_environment)
    network_mode: str = "none"
    resources: Resources = Resources()
    permissions: Permissions = Permissions()


class IsolatedSnapshot(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's IsolatedSnapshot."""

    id: str
    agent_id: str
    """The agent's name."""
    version: str
    path: str
    """Its folder in the mount; without a mount, its reference."""
    container_id: str | None = None
    isolation: IsolationConfig
    created: str
    status: str


def describe_snapshot(
    agent: AgentRecord, snapshot: SnapshotRecord, mountpoint: Path | None
) -> IsolatedSnapshot:
    """Return *snapshot* in the specification's words."""
    reference = f"{agent.name}/{SNAPSHOTS}/{snapshot.name}"
    return IsolatedSnapshot(
        id=snapshot.name,
        agent_id=agent.name,
        version=snapshot.version,
        path=reference if mountpoint is None else str(mountpoint / reference),
        isolation=IsolationConfig(permissions=Permissions(read_only=snapshot.read_only)),
        created=format_time(snapshot.created_ns),
        status=snapshot.status,
    )

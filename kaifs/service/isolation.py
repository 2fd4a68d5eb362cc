"""Snapshots as the specification describes them, with the limits of what runs in them.

The limits hold for commands that kaifs runs in a snapshot. They are checked for
sense and kept when the snapshot is made, and enforced, or refused as a whole,
when something is to run.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from kaifs.base.clock import format_time
from kaifs.base.errors import ArgumentValueError, StoreDamagedError
from kaifs.base.limits import (
    AGENT,
    parse_allowed_path,
    parse_cpus,
    parse_memory,
    parse_pids,
    parse_storage,
    parse_system_call,
    parse_variable,
)
from kaifs.meta.records import AgentRecord, SnapshotRecord
from kaifs.service.context import Context
from kaifs.service.reference import SNAPSHOTS
from kaifs.tree.tested import shown_status

DEFAULT_IMAGE: Final = "kai-agent-runtime"
"""Source: specification, createIsolatedSnapshot."""


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
    """`/agent` and folders of the host, read-only unless `:rw` follows."""
    blocked_syscalls: tuple[str, ...] = ()


def _default_environment() -> dict[str, str]:
    return {"NODE_ENV": "sandbox", "KAI_ISOLATION_MODE": "true"}


class IsolationConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's IsolationConfig."""

    environment: dict[str, str] = msgspec.field(default_factory=_default_environment)
    hidden_variables: tuple[str, ...] = ()
    """Names of variables that commands get too, and whose values are not told here."""
    network_mode: str = "none"
    """`none` or `bridge`."""
    resources: Resources = Resources()
    permissions: Permissions = Permissions()
    container: bool = False
    """Whether commands run in a container of an OCI runtime."""
    image: str | None = None
    """Its image; None without a container."""
    required: tuple[str, ...] = ()
    """Limits that were asked for by name: `memory`, `cpus`, `storage`, `pids`. Without them
    nothing runs, whoever runs it; root gets every limit or nothing."""

    def without_values(self) -> IsolationConfig:
        """Return it as everybody may read it: what users put into variables is often a secret."""
        default = _default_environment()
        hidden = [name for name, value in self.environment.items() if default.get(name) != value]
        told = {name: value for name, value in self.environment.items() if name not in hidden}
        return replace(
            self,
            environment=told,
            hidden_variables=tuple(sorted({*hidden, *self.hidden_variables})),
        )


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What is asked for commands that run in a snapshot, by option."""

    container: bool = False
    image: str | None = None
    network: bool = False
    memory: str | None = None
    cpus: str | None = None
    storage: str | None = None
    pids: str | None = None
    env: tuple[str, ...] = ()
    """`K=V`."""
    allow: tuple[str, ...] = ()
    """`PATH`, `PATH:ro` or `PATH:rw`."""
    deny_syscall: tuple[str, ...] = ()

    def config(self, *, read_only: bool) -> IsolationConfig:
        """Return the isolation that the options ask for.

        Raises:
            ArgumentValueError: a value makes no sense.
        """
        default = Resources()
        asked = {
            "memory": self.memory,
            "cpus": self.cpus,
            "storage": self.storage,
            "pids": self.pids,
        }
        resources = Resources(
            memory=default.memory if self.memory is None else self.memory,
            cpu=default.cpu if self.cpus is None else self.cpus,
            storage=default.storage if self.storage is None else self.storage,
            pids=default.pids if self.pids is None else self.pids,
        )
        parse_memory(resources.memory)
        parse_storage(resources.storage)
        parse_cpus(resources.cpu)
        parse_pids(resources.pids)
        if self.image is not None and not self.container:
            raise ArgumentValueError("--image needs --container")
        return IsolationConfig(
            environment=_default_environment() | dict(map(parse_variable, self.env)),
            network_mode="bridge" if self.network else "none",
            resources=resources,
            permissions=Permissions(
                read_only=read_only,
                allowed_paths=(str(AGENT), *map(_checked_path, self.allow)),
                blocked_syscalls=tuple(map(parse_system_call, self.deny_syscall)),
            ),
            container=self.container,
            image=(self.image or DEFAULT_IMAGE) if self.container else None,
            required=tuple(name for name, value in asked.items() if value is not None),
        )


def _checked_path(text: str) -> str:
    parse_allowed_path(text)
    return text


def isolation_of(snapshot: SnapshotRecord) -> IsolationConfig:
    """Return what a snapshot was asked to be isolated by.

    Raises:
        StoreDamagedError: its record is unreadable.
    """
    if not snapshot.isolation:
        return IsolationConfig(permissions=Permissions(read_only=snapshot.read_only))
    try:
        return msgspec.json.decode(snapshot.isolation, type=IsolationConfig)
    except msgspec.MsgspecError as error:
        raise StoreDamagedError(f"isolation of snapshot {snapshot.name}: {error}") from error


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
    """`ready` again once something changed since the tests."""


def describe_snapshot(
    context: Context, agent: AgentRecord, snapshot: SnapshotRecord
) -> IsolatedSnapshot:
    """Return *snapshot* in the specification's words.

    Values of variables are told to those alone who may run something in it.
    """
    reference = f"{agent.name}/{SNAPSHOTS}/{snapshot.name}"
    mountpoint = context.mountpoint
    isolation = isolation_of(snapshot)
    if not context.owns(agent) and context.caller.uid != snapshot.uid:
        isolation = isolation.without_values()
    return IsolatedSnapshot(
        id=snapshot.name,
        agent_id=agent.name,
        version=snapshot.version,
        path=reference if mountpoint is None else str(mountpoint / reference),
        isolation=isolation,
        created=format_time(snapshot.created_ns),
        status=shown_status(context.store, snapshot),
    )

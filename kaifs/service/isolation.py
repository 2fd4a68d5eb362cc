"""Snapshots as the specification describes them, with the limits of what runs in them.

The limits hold for commands that kaifs runs in a snapshot. They are checked for
sense and kept when the snapshot is made, and enforced, or refused as a whole,
when something is to run.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.errors import ArgumentValueError, StoreDamagedError
from kaifs.meta.records import AgentRecord, SnapshotRecord
from kaifs.service.reference import SNAPSHOTS
from kaifs.store.store import Store
from kaifs.tree.tested import shown_status

DEFAULT_IMAGE: Final = "kai-agent-runtime"
"""Source: specification, createIsolatedSnapshot."""
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{1,6})?)([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII
)
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_CPUS: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SYSCALL: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}", re.ASCII)


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
    network_mode: str = "none"
    """`none` or `bridge`."""
    resources: Resources = Resources()
    permissions: Permissions = Permissions()
    container: bool = False
    """Whether commands run in a container of an OCI runtime."""
    image: str | None = None
    """Its image; None without a container."""


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
        resources = Resources(
            memory=self.memory or default.memory,
            cpu=self.cpus or default.cpu,
            storage=self.storage or default.storage,
            pids=self.pids or default.pids,
        )
        parse_size(resources.memory, "--memory")
        parse_size(resources.storage, "--storage")
        parse_cpus(resources.cpu)
        parse_pids(resources.pids)
        if self.image is not None and not self.container:
            raise ArgumentValueError("--image needs --container")
        return IsolationConfig(
            environment=_default_environment() | dict(map(_variable, self.env)),
            network_mode="bridge" if self.network else "none",
            resources=resources,
            permissions=Permissions(
                read_only=read_only,
                allowed_paths=("/agent", *map(_allowed_path, self.allow)),
                blocked_syscalls=tuple(map(_syscall, self.deny_syscall)),
            ),
            container=self.container,
            image=(self.image or DEFAULT_IMAGE) if self.container else None,
        )


def parse_size(text: str, option: str) -> int:
    """Return the bytes that *text* means: `512m`, `1g`, `1048576`; units are powers of 1024.

    Raises:
        ArgumentValueError: it means none, or nothing at all.
    """
    found = _SIZE.fullmatch(text)
    size = int(Decimal(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not 0 < size < 1 << 63:
        raise ArgumentValueError(f"{option} {text!a} is no size such as 512m or 1g")
    return size


def parse_cpus(text: str) -> float:
    """Return the processors that *text* means: `0.5`, `2`.

    Raises:
        ArgumentValueError: it means none.
    """
    cpus = float(text) if _CPUS.fullmatch(text) else 0.0
    if cpus < 0.01:
        raise ArgumentValueError(f"--cpus {text!a} is no number of processors such as 0.5")
    return cpus


def parse_pids(text: str) -> int:
    """Return the number of processes that *text* means.

    Raises:
        ArgumentValueError: it means none.
    """
    pids = int(text) if _COUNT.fullmatch(text) else 0
    if pids < 1:
        raise ArgumentValueError(f"--pids {text!a} is no number of processes")
    return pids


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
        raise ArgumentValueError(f"--env {text!a} is not NAME=VALUE")
    return name, value


def _allowed_path(text: str) -> str:
    path = text.removesuffix(":ro").removesuffix(":rw")
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ArgumentValueError(f"--allow {text!a} is no absolute path without '..'")
    return text


def _syscall(text: str) -> str:
    if not _SYSCALL.fullmatch(text):
        raise ArgumentValueError(f"--deny-syscall {text!a} is no name of a system call")
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
    store: Store, agent: AgentRecord, snapshot: SnapshotRecord, mountpoint: Path | None
) -> IsolatedSnapshot:
    """Return *snapshot* in the specification's words."""
    reference = f"{agent.name}/{SNAPSHOTS}/{snapshot.name}"
    return IsolatedSnapshot(
        id=snapshot.name,
        agent_id=agent.name,
        version=snapshot.version,
        path=reference if mountpoint is None else str(mountpoint / reference),
        isolation=isolation_of(snapshot),
        created=format_time(snapshot.created_ns),
        status=shown_status(store, snapshot),
    )

"""Lists agents, or the versions of one, newest first."""

from collections.abc import Generator
from fnmatch import fnmatchcase

import msgspec

from kaifs.base.errors import AccessDeniedError, ArgumentValueError, StoreDamagedError
from kaifs.meta.records import AgentRecord
from kaifs.service.context import Context
from kaifs.service.record import VersionMetadata, decode_record
from kaifs.service.reference import get_agent
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to list."""

    agent: str | None = None
    """None lists the agents."""
    tags: tuple[str, ...] = ()
    """Only versions with a tag that fits one of these patterns of the shell; none: all."""


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One agent."""

    agent: str
    version: str
    """What current is based on; empty if it has no version yet."""
    versions: int
    snapshots: int


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's VersionInfo."""

    version: str
    metadata: VersionMetadata
    is_current: bool
    size: int
    """Bytes of all its regular files."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Agents by name, or versions, newest first. The other one is empty."""

    agents: tuple[AgentInfo, ...] = ()
    versions: tuple[VersionInfo, ...] = ()
    damaged: tuple[str, ...] = ()
    """Labels of versions whose records cannot be read."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """List agents or versions.

    Raises:
        AgentNotFoundError: there is no such agent.
        AccessDeniedError: its folder is closed to the caller.
        ArgumentValueError: agents have no tags.
    """
    yield from ()
    store = context.store
    if params.tags and params.agent is None:
        raise ArgumentValueError("only versions have tags: name an agent")
    if params.agent is None:
        agents = (_agent_info(context, agent) for agent in store.agents())
        return Result(agents=tuple(info for info in agents if info is not None))
    agent = get_agent(store, params.agent)
    context.require_reader(agent)
    versions = []
    readable, damaged = store.readable_versions(agent.agent_id)
    for version in reversed(readable):
        try:
            metadata = decode_record(version.record).metadata
        except StoreDamagedError:
            damaged.append(version.label)
            continue
        is_current = version.label == agent.version
        info = VersionInfo(
            version=version.label, metadata=metadata, is_current=is_current, size=version.size
        )
        if _is_wanted(info, params.tags):
            versions.append(info)
    return Result(versions=tuple(versions), damaged=tuple(damaged))


def _is_wanted(info: VersionInfo, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(
        fnmatchcase(tag, pattern) for tag in info.metadata.tags for pattern in patterns
    )


def _agent_info(context: Context, agent: AgentRecord) -> AgentInfo | None:
    try:
        context.require_reader(agent)
    except AccessDeniedError:
        return None
    return AgentInfo(
        agent=agent.name,
        version=agent.version,
        versions=context.store.count_versions(agent.agent_id),
        snapshots=len(context.store.snapshots(agent.agent_id)),
    )

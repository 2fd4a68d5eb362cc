"""Tells what a store is and what takes its space."""

from collections.abc import Generator
from typing import Literal

import msgspec

from kaifs.base.errors import AccessDeniedError
from kaifs.meta.records import AgentRecord
from kaifs.service.context import Context
from kaifs.service.space import Measured, is_quick, measure
from kaifs.service.steps import Item, Step
from kaifs.store.superblock import FORMAT_VERSION


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """How much to tell."""

    measure: Literal["auto", "always", "never"] = "auto"
    """Whether to tell the unique bytes of agents and versions, which must be measured; `auto`: if
    that takes about a second, or was done since anything changed."""


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The store itself."""

    path: str
    format_version: int
    uuid: str
    epoch: int
    """Commits so far."""
    is_dirty: bool
    """Whether something is not on disk yet."""


class VersionSpace(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one version takes."""

    version: str
    logical: int
    unique: int | None
    """Stored and reached by nothing else; None: not measured."""


class AgentSpace(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one agent takes. All in bytes."""

    agent: str
    logical: int
    """Regular files of current, all versions and all snapshots."""
    unique: int | None
    """Stored and reached by this agent alone, by one or several of its trees; None: not measured."""
    versions: tuple[VersionSpace, ...]


class Space(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What all takes, in bytes."""

    logical: int
    """What the mount shows: regular files of every tree."""
    stored: int
    """On disk, index included."""
    unique: int
    """Blocks in the segments, each counted once."""
    agents: tuple[AgentSpace, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A store's state."""

    store: StoreInfo
    space: Space


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Tell a store's state."""
    store = context.store
    is_dirty = store.is_dirty
    measured = None
    if params.measure == "always" or (params.measure == "auto" and is_quick(store)):
        measured = yield from measure(store)
    agents = tuple(
        _agent_space(context, agent, measured)
        for agent in store.agents()
        if _is_open(context, agent)
    )
    space = store.space()
    return Result(
        store=StoreInfo(
            path=str(store.path),
            format_version=FORMAT_VERSION,
            uuid=store.uuid,
            epoch=store.epoch,
            is_dirty=is_dirty,
        ),
        space=Space(
            logical=sum(agent.logical for agent in agents),
            stored=space.stored,
            unique=space.live,
            agents=agents,
        ),
    )


def _is_open(context: Context, agent: AgentRecord) -> bool:
    try:
        context.require_reader(agent)
    except AccessDeniedError:
        return False
    return True


def _agent_space(context: Context, agent: AgentRecord, measured: Measured | None) -> AgentSpace:
    store = context.store
    versions = store.versions(agent.agent_id)
    roots = [agent.head, *(snapshot.root for snapshot in store.snapshots(agent.agent_id))]
    return AgentSpace(
        agent=agent.name,
        logical=sum(found.size for root in roots if (found := store.find_root(root)) is not None)
        + sum(version.size for version in versions),
        unique=None if measured is None else measured.agents.get(agent.agent_id, 0),
        versions=tuple(
            VersionSpace(
                version=version.label,
                logical=version.size,
                unique=None if measured is None else measured.roots.get(version.root, 0),
            )
            for version in reversed(versions)
        ),
    )

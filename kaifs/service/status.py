"""Tells what a store is and what takes its space."""

from collections.abc import Generator
from typing import Literal

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.errors import AccessDeniedError
from kaifs.meta.records import AgentRecord
from kaifs.service.context import Context
from kaifs.service.space import Measured, is_quick, measure
from kaifs.service.steps import Item, Step
from kaifs.store.scrub import find_scrub
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


class Scrub(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """When everything was read, and is going to be read again."""

    finished: str | None
    """When the last scrub ended; None: there was none."""
    read: int
    healed: int
    damaged: int
    """What that found: bytes, and blocks and records of the index."""
    started: str | None
    """When the one began that is under way; None: none is."""
    done: int
    """Bytes that it has read so far."""
    next: str | None
    """When the next one begins by itself; None: one is under way, none is to, or nobody serves."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A store's state."""

    store: StoreInfo
    space: Space
    scrub: Scrub


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
        scrub=_scrub(context),
    )


def _scrub(context: Context) -> Scrub:
    record = find_scrub(context.store)
    since_ns = record.finished_ns or context.store.superblock.created_ns
    is_due = context.scrub_ns and not record.started_ns
    return Scrub(
        finished=format_time(record.finished_ns) if record.finished_ns else None,
        read=record.last.read,
        healed=record.last.healed,
        damaged=record.last.damaged,
        started=format_time(record.started_ns) if record.started_ns else None,
        done=record.so_far.read,
        next=format_time(since_ns + context.scrub_ns) if is_due else None,
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

"""Lists the versions that are in quarantine."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.errors import AccessDeniedError
from kaifs.meta.records import AgentRecord, QuarantineRecord
from kaifs.service.context import Context
from kaifs.service.reference import get_agent
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Whose."""

    agent: str | None = None
    """None: everybody's."""


class QuarantinedVersion(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A version in quarantine, with the members of the specification's `quarantine.json`."""

    agent: str
    version: str
    reason: str
    quarantined_at: str
    original_path: str
    errors: tuple[str, ...]
    """What was found, a line each; empty if a user set it aside."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """By agent and label."""

    versions: tuple[QuarantinedVersion, ...]


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """List what is in quarantine.

    Raises:
        KaifsError: as `get_agent`; E105.
    """
    yield from ()
    store = context.store
    if params.agent is not None:
        agents = [get_agent(store, params.agent)]
        context.require_reader(agents[0])
    else:
        agents = [agent for agent in store.agents() if _is_open(context, agent)]
    return Result(
        versions=tuple(
            describe_quarantined(agent, record)
            for agent in agents
            for record in store.quarantined(agent.agent_id)
        )
    )


def describe_quarantined(agent: AgentRecord, record: QuarantineRecord) -> QuarantinedVersion:
    """Return what a user is told of a version in quarantine."""
    return QuarantinedVersion(
        agent=agent.name,
        version=record.label,
        reason=record.reason,
        quarantined_at=format_time(record.quarantined_ns),
        original_path=record.path,
        errors=record.found,
    )


def _is_open(context: Context, agent: AgentRecord) -> bool:
    try:
        context.require_reader(agent)
    except AccessDeniedError:
        return False
    return True

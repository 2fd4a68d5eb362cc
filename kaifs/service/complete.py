"""Tells what can be named: for the completion of commands in a shell."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.errors import AccessDeniedError
from kaifs.meta.records import AgentRecord
from kaifs.service.context import Context
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Of what the names are wanted."""

    agent: str | None = None
    """Whose labels to tell; None, or one that is none: nobody's."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Names, of what the caller may look into."""

    agents: tuple[str, ...]
    labels: tuple[str, ...]
    """Of the agent's versions, newest first."""
    snapshots: tuple[tuple[str, str], ...]
    """Agent and name."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Tell names. Whatever cannot be found is left out: there is nobody to complain to."""
    yield from ()
    store = context.store
    agents = [agent for agent in store.agents() if _is_open(context, agent)]
    return Result(
        agents=tuple(agent.name for agent in agents),
        labels=tuple(
            version.label
            for agent in agents
            if agent.name == params.agent
            for version in reversed(store.versions(agent.agent_id))
        ),
        snapshots=tuple(
            (agent.name, snapshot.name)
            for agent in agents
            for snapshot in store.snapshots(agent.agent_id)
        ),
    )


def _is_open(context: Context, agent: AgentRecord) -> bool:
    try:
        context.require_reader(agent)
    except AccessDeniedError:
        return False
    return True

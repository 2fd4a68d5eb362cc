"""Removes a snapshot."""

from collections.abc import Generator

import msgspec

from kaifs.service.context import Context
from kaifs.service.reference import resolve_snapshot
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Which snapshot."""

    reference: str


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is gone."""

    id: str
    agent_id: str


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Remove a snapshot. Who has files of it open keeps them until they close them.

    Raises:
        KaifsError: as `resolve_snapshot`; E105 if it is not the caller's.
    """
    yield from ()
    agent, snapshot = resolve_snapshot(context.store, params.reference)
    if context.caller.uid != snapshot.uid:
        context.require_owner(agent)
    context.store.remove_snapshot(agent.agent_id, snapshot.name)
    return Result(id=snapshot.name, agent_id=agent.name)

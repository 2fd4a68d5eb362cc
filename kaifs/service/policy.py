"""What an agent's owner demands of its versions, and the verb that shows and changes it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import msgspec
from msgspec.structs import replace

from kaifs.base.errors import StoreDamagedError
from kaifs.meta.records import AgentRecord
from kaifs.service.context import Context
from kaifs.service.reference import get_agent
from kaifs.service.retention import NO_RETENTION, Retention
from kaifs.service.steps import Item, Step

OnDamage = Literal["keep", "fallback"]


class Policy(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is demanded of an agent's versions."""

    require_signature: bool = False
    """Whether only a version that somebody trusted has signed is made, and used."""
    on_damage: OnDamage = "keep"
    """What current does when the version that it is based on turns out damaged: go on, or fall
    back to the last good one."""
    retention: Retention = NO_RETENTION
    """Which versions `prune` keeps if it is not told."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to change; None leaves it."""

    agent: str
    require_signature: bool | None = None
    on_damage: OnDamage | None = None
    retention: Retention | None = None
    """In place of all rules before; without a rule there is none any more."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The policy as it is now, every field told."""

    agent: str
    require_signature: bool
    on_damage: OnDamage
    retention: Retention


def policy_of(agent: AgentRecord) -> Policy:
    """Return the policy of *agent*.

    Raises:
        StoreDamagedError: its record holds none.
    """
    if not agent.policy:
        return Policy()
    try:
        return msgspec.json.decode(agent.policy, type=Policy)
    except msgspec.MsgspecError as error:
        raise StoreDamagedError(f"unreadable policy of {agent.name}: {error}") from error


def set_policy(context: Context, agent: AgentRecord, policy: Policy) -> AgentRecord:
    """Let *policy* be that of *agent*, and return the agent's new record."""
    is_default = policy == Policy()
    changed = replace(agent, policy=b"" if is_default else msgspec.json.encode(policy))
    context.store.put_agent(changed)
    return changed


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Show an agent's policy, after what *params* say was changed.

    Raises:
        ArgumentValueError: a rule of retention cannot be followed.
        KaifsError: as `get_agent`; E105.
    """
    yield from ()
    agent = get_agent(context.store, params.agent)
    if params.retention is not None:
        params.retention.check()
    changes = {
        name: value
        for name in ("require_signature", "on_damage", "retention")
        if (value := getattr(params, name)) is not None
    }
    policy = policy_of(agent)
    if changes:
        context.require_owner(agent)
        policy = replace(policy, **changes)
        set_policy(context, agent, policy)
    else:
        context.require_reader(agent)
    return Result(
        agent=agent.name,
        require_signature=policy.require_signature,
        on_damage=policy.on_damage,
        retention=policy.retention,
    )

"""Lists snapshots."""

from collections.abc import Generator

import msgspec

from kaifs.base.errors import AccessDeniedError
from kaifs.meta.records import AgentRecord, SnapshotRecord
from kaifs.service.context import Context
from kaifs.service.isolation import IsolationConfig, describe_snapshot
from kaifs.service.reference import get_agent
from kaifs.service.space import snapshot_size
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Whose snapshots."""

    agent: str | None = None
    """None: everybody's."""


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's IsolatedSnapshot, with its age and size."""

    id: str
    agent_id: str
    version: str
    path: str
    container_id: str | None
    isolation: IsolationConfig
    created: str
    status: str
    age_seconds: float
    own_bytes: int
    """Stored bytes that it has beside what it was made from."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Snapshots by agent and name."""

    snapshots: tuple[SnapshotInfo, ...]


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """List snapshots.

    Raises:
        AgentNotFoundError: there is no such agent.
        AccessDeniedError: its folder is closed to the caller.
    """
    store = context.store
    if params.agent is None:
        agents = [agent for agent in store.agents() if _is_open(context, agent)]
    else:
        agents = [get_agent(store, params.agent)]
        context.require_reader(agents[0])
    found = [(agent, snapshot) for agent in agents for snapshot in store.snapshots(agent.agent_id)]
    now_ns = store.clock.now_ns()
    infos = []
    for agent, snapshot in found:
        # Looked up again: another verb may have discarded it at the last step.
        here = store.find_snapshot(agent.agent_id, snapshot.name)
        if here is not None and here.root == snapshot.root:
            size = yield from snapshot_size(context, here)
            infos.append(_info(context, agent, here, now_ns, size))
    return Result(snapshots=tuple(infos))


def _is_open(context: Context, agent: AgentRecord) -> bool:
    try:
        context.require_reader(agent)
    except AccessDeniedError:
        return False
    return True


def _info(
    context: Context, agent: AgentRecord, snapshot: SnapshotRecord, now_ns: int, own_bytes: int
) -> SnapshotInfo:
    described = describe_snapshot(context, agent, snapshot)
    return SnapshotInfo(
        id=described.id,
        agent_id=described.agent_id,
        version=described.version,
        path=described.path,
        container_id=described.container_id,
        isolation=described.isolation,
        created=described.created,
        status=described.status,
        age_seconds=max(0.0, (now_ns - snapshot.created_ns) / 1e9),
        own_bytes=own_bytes,
    )

"""Makes a snapshot: a writable clone with a name. O(1), whatever the tree's size."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.types import RootId
from kaifs.meta.records import SnapshotRecord
from kaifs.service.context import Context
from kaifs.service.isolation import IsolatedSnapshot, Limits, describe_snapshot
from kaifs.service.lifecycle import keep_clone
from kaifs.service.names import generate_snapshot_name
from kaifs.service.reference import Target, resolve
from kaifs.service.sealing import seal_tree, version_tree
from kaifs.service.signing import require_trusted
from kaifs.service.steps import Item, Step
from kaifs.store.registry import READY


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to make a snapshot of."""

    reference: str
    name: str | None = None
    """None generates one."""
    read_only: bool = False
    limits: Limits = Limits()


Result = IsolatedSnapshot


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Make a snapshot.

    Raises:
        ArgumentValueError: a limit makes no sense. Whether it can be enforced is told when
            something is to run.
        KaifsError: as `resolve` and `require_trusted`; E105, E121, E127.
    """
    store = context.store
    isolation = params.limits.config(read_only=params.read_only)
    target = resolve(store, params.reference)
    agent = target.agent
    context.require_owner(agent)
    if target.version is not None:
        require_trusted(context, agent, target.version)
    name = params.name if params.name is not None else generate_snapshot_name()
    store.check_new_snapshot(agent, name)
    if params.read_only and target.version is None:
        # What is sealed knows every digest; a version does already.
        source = context.forest.tree(target.root)
        base = store.find_version(agent.agent_id, target.label)
        tree = (yield from seal_tree(context, source, version_tree(context, base))).tree
        store.check_new_snapshot(agent, name)
        is_nested = target.snapshot is not None
        base_root = _keep_base(context, target) if is_nested else tree.root.root_id
    else:
        source = context.forest.tree(target.root)
        tree = context.forest.clone(source)
        base_root = _keep_base(context, target)
    snapshot = SnapshotRecord(
        agent_id=agent.agent_id,
        name=name,
        root=tree.root.root_id,
        base=base_root,
        version=target.label,
        status=READY,
        read_only=params.read_only,
        uid=context.caller.uid,
        gid=context.caller.gid,
        created_ns=store.clock.now_ns(),
        isolation=msgspec.json.encode(isolation),
    )
    store.add_snapshot(snapshot)
    return describe_snapshot(context, agent, snapshot)


def _keep_base(context: Context, target: Target) -> RootId:
    """Keep what a commit of the new snapshot takes its changes against; return its root.

    Also of a version: it may be taken away while the snapshot is there. Of a
    snapshot what that one was made from: a commit brings its changes along, which
    the tests have seen.
    """
    origin = target.root
    if target.snapshot is not None and context.store.has_root(target.snapshot.base):
        origin = target.snapshot.base
    return keep_clone(context, context.forest.tree(origin))

"""Makes a snapshot: a writable clone with a name. O(1), whatever the tree's size."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.errors import SnapshotIsolationError
from kaifs.base.types import RootId
from kaifs.meta.records import RootState, SnapshotRecord
from kaifs.service.context import Context
from kaifs.service.isolation import IsolatedSnapshot, describe_snapshot
from kaifs.service.names import generate_snapshot_name
from kaifs.service.reference import Target, resolve
from kaifs.service.sealing import seal_tree, version_tree
from kaifs.service.steps import Item, Step


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What was asked for commands that run in the snapshot, by option. None of it is enforced."""

    container: bool = False
    image: str | None = None
    network: bool = False
    memory: str | None = None
    cpus: str | None = None
    storage: str | None = None
    pids: str | None = None
    env: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny_syscall: tuple[str, ...] = ()
    test: bool = False
    suite: str | None = None

    def asked(self) -> list[str]:
        """Return the options that were used."""
        names = self.__struct_fields__
        return ["--" + name.replace("_", "-") for name in names if getattr(self, name)]


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
        SnapshotIsolationError: a limit was asked for that cannot be enforced.
        KaifsError: as `resolve`; E105, E121, E127.
    """
    store = context.store
    if asked := params.limits.asked():
        raise SnapshotIsolationError(f"{', '.join(asked)}: cannot be enforced yet", options=asked)
    target = resolve(store, params.reference)
    agent = target.agent
    context.require_owner(agent)
    name = params.name if params.name is not None else generate_snapshot_name()
    store.check_new_snapshot(agent, name)
    if params.read_only and target.version is None:
        # What is sealed knows every digest; a version does already.
        source = context.forest.tree(target.root)
        base = store.find_version(agent.agent_id, target.label)
        tree = (yield from seal_tree(context, source, version_tree(context, base))).tree
        base_root = tree.root.root_id
        store.check_new_snapshot(agent, name)
    else:
        tree = context.forest.clone(context.forest.tree(target.root))
        base_root = _base(context, target)
    snapshot = SnapshotRecord(
        agent_id=agent.agent_id,
        name=name,
        root=tree.root.root_id,
        base=base_root,
        version=target.label,
        status="ready",
        read_only=params.read_only,
        uid=context.caller.uid,
        gid=context.caller.gid,
        created_ns=store.clock.now_ns(),
    )
    store.add_snapshot(snapshot)
    return describe_snapshot(agent, snapshot, context.mountpoint)


def _base(context: Context, target: Target) -> RootId:
    """Return a root that stays as the snapshot is now, to tell later what changed in it."""
    if target.version is not None:
        return target.root
    frozen = context.forest.clone(context.forest.tree(target.root))
    # Not sealed: digests of what is new in it are not known. Nobody shows it, so nobody
    # changes it.
    context.store.set_root_state(frozen.root, RootState.WRITABLE)
    return frozen.root.root_id

"""Brings into a snapshot what current has changed since the snapshot was made.

The snapshot gets a new tree, based on what current is now, and is ready again:
what passed in the old tree says nothing of the new one. Who has a file of the
old tree open keeps that, and can no longer write to it.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec
from msgspec.structs import replace

from kaifs.base.errors import SealedError, SnapshotStateError
from kaifs.service.context import Context
from kaifs.service.isolation import IsolatedSnapshot, describe_snapshot
from kaifs.service.lifecycle import keep_clone, tested_of
from kaifs.service.merging import merge_trees
from kaifs.service.reference import resolve_snapshot
from kaifs.service.steps import Item, Step
from kaifs.service.suite import TestSuite
from kaifs.store.registry import NO_ROOT, READY, TESTING


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Which snapshot."""

    reference: str


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The snapshot as it is now, and what it was last tested by."""

    snapshot: IsolatedSnapshot
    suite: TestSuite | None
    """To be run again; None if it never had a result."""
    source: str


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Rebase a snapshot onto its agent's current.

    Raises:
        MergeConflictError: what current changed excludes what it changed.
        SnapshotStateError: tests run in it.
        SealedError: it is read-only.
        KaifsError: as `resolve_snapshot`; E105.
    """
    yield from ()
    store = context.store
    agent, snapshot = resolve_snapshot(store, params.reference)
    if context.caller.uid != snapshot.uid:
        context.require_owner(agent)
    if snapshot.read_only:
        raise SealedError(f"snapshot {snapshot.name}")
    if snapshot.status == TESTING:
        raise SnapshotStateError(f"{snapshot.name}: tests are running in it")
    tested = tested_of(snapshot)
    old = store.root(snapshot.root)
    with context.frozen(snapshot.root) as ours, context.frozen(agent.head) as theirs:
        merged = merge_trees(context, snapshot, ours, theirs, ("the snapshot", "current"))
        base = keep_clone(context, theirs)
    # A new tree, yet what its commands may store is what is left of the old one's quota.
    merged.root.charge(old.own)
    store.remove_snapshot(snapshot.agent_id, snapshot.name)
    rebased = replace(
        snapshot,
        root=merged.root.root_id,
        base=base,
        version=agent.version,
        status=READY,
        tested=NO_ROOT,
        evidence=b"",
    )
    store.add_snapshot(rebased)
    return Result(
        snapshot=describe_snapshot(context, agent, rebased),
        suite=None if tested is None else tested.cases,
        source="" if tested is None else tested.evidence.suite,
    )

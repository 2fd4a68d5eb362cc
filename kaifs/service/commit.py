"""Turns a snapshot whose tests passed into the agent's next version.

What the snapshot changed is merged onto current, the result is sealed with the
evidence of the tests in its record, current moves on to it, and the snapshot
goes. All of that is one change of the store: with a mount, programs may write to
current until the switch, so the switch is followed by a barrier, and while that
lasts the snapshot's record says that it is committed, so that after a crash the
next open removes it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from kaifs.base.clock import format_time
from kaifs.base.errors import SnapshotStateError
from kaifs.base.types import RootId
from kaifs.meta.records import AgentRecord, SnapshotRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.evidence import Evidence
from kaifs.service.lifecycle import find_by_root, require_passed
from kaifs.service.merging import merge_trees
from kaifs.service.record import Description
from kaifs.service.reference import resolve_snapshot
from kaifs.service.sealing import (
    add_draft,
    choose_label,
    draft_version,
    dropped_on_error,
    seal_tree,
    sign_draft,
    version_tree,
)
from kaifs.service.signing import require_signer, require_trusted
from kaifs.service.steps import Flush, Item, Step
from kaifs.service.switching import (
    begin_switch,
    finish_backup,
    forget_backup,
    refuse_foreign_mounts,
    switch_back,
)
from kaifs.tree.seal import SealedTree
from kaifs.tree.tested import is_unchanged
from kaifs.tree.tree import Tree

_TRIES: Final = 5
"""How often current may change while the merge is sealed before the commit gives up."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to commit, as what."""

    reference: str
    label: str | None = None
    """None grows the label that current is based on by *bump*, until it is free."""
    bump: Literal["major", "minor", "patch"] = "patch"
    description: Description = Description(snapshot_type="auto")
    caller_signs: bool = False
    """Whether a key of the user's signs the version instead of the store's."""


class CommitResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's CommitResult. A commit that fails raises instead."""

    success: bool
    snapshot_id: str
    agent_id: str
    version: str
    timestamp: str
    backup: str | None = None
    """Version that holds what was written to current while the commit was made."""


Result = CommitResult


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Commit a snapshot.

    Raises:
        SnapshotStateError: its tests did not pass, or something changed since.
        MergeConflictError: what current changed meanwhile excludes what it changed.
        BadLabelError, VersionExistsError: the label cannot be had.
        KaifsError: as `resolve_snapshot`; E105, E138, E139. Nothing was changed then.
    """
    store = context.store
    params.description.check()
    agent, snapshot = resolve_snapshot(store, params.reference)
    context.require_owner(agent)
    require_passed(context, snapshot)
    base = store.find_version(agent.agent_id, snapshot.version)
    if base is not None:
        require_trusted(context, agent, base)
    require_signer(context, agent, caller_signs=params.caller_signs)
    label = choose_label(store, agent, params.label, params.bump)
    refuse_foreign_mounts(context)
    for _ in range(_TRIES):
        with context.frozen(agent.head) as ours:
            sealed, parent = yield from _merge(context, agent, snapshot, ours)
            with dropped_on_error(context, sealed):
                description = _describe(params.description, snapshot)
                evidence = require_passed(context, snapshot)
                draft = yield from draft_version(
                    context, label, sealed, description, parent, evidence
                )
                signature = yield from sign_draft(
                    context, agent, draft, caller_signs=params.caller_signs
                )
                # No step from here to where the store shows the result.
                agent, snapshot = _again(context, agent, snapshot)
                _require_same(context, snapshot, evidence)
                store.check_new_label(agent, label)
                is_current = is_unchanged(store, ours.root.root_id, agent.head)
            if not is_current:
                context.forest.drop(sealed.tree.root.root_id)
                yield Flush()
                continue
            version = add_draft(context, agent, draft, signature)
            return (yield from _switch(context, agent, snapshot, version, ours))
    raise SnapshotStateError(f"{agent.name}: current is written to all the time")


def _merge(
    context: Context, agent: AgentRecord, snapshot: SnapshotRecord, ours: Tree
) -> Generator[Step, Item | None, tuple[SealedTree, VersionRecord | None]]:
    context.store.check_not_quarantined(agent, agent.version)
    parent = context.store.find_version(agent.agent_id, agent.version)
    with context.frozen(snapshot.root) as theirs:
        tree = merge_trees(context, snapshot, ours, theirs, ("current", "the snapshot"))
    try:
        sealed = yield from seal_tree(context, tree, version_tree(context, parent))
    finally:
        context.forest.drop(tree.root.root_id)
    return sealed, parent


def _again(
    context: Context, agent: AgentRecord, snapshot: SnapshotRecord
) -> tuple[AgentRecord, SnapshotRecord]:
    """Return both as they are by now."""
    found = find_by_root(context, snapshot.root)
    if found is None:
        raise SnapshotStateError(f"{snapshot.name}: it was discarded meanwhile")
    return context.store.get_agent(agent.name), found


def _require_same(context: Context, snapshot: SnapshotRecord, evidence: Evidence) -> None:
    """Check that the tests that passed last are those that the draft tells of."""
    if require_passed(context, snapshot) != evidence:
        raise SnapshotStateError(f"{snapshot.name}: it was tested again meanwhile")


def _describe(description: Description, snapshot: SnapshotRecord) -> Description:
    if description.notes:
        return description
    return msgspec.structs.replace(description, notes=f"Committed snapshot {snapshot.name}")


def _switch(
    context: Context,
    agent: AgentRecord,
    snapshot: SnapshotRecord,
    version: VersionRecord,
    merged: Tree,
) -> Generator[Step, Item | None, Result]:
    """Show the version as current, and take the snapshot away."""
    store = context.store
    previous, old = agent.version, agent.head
    try:
        begin_switch(context, store.get_agent(agent.name), version)
    except BaseException:
        store.remove_version(version.agent_id, version.label)
        raise
    store.put_snapshot(replace(snapshot, committed=version.label))
    store.note_unfinished(store.root(snapshot.root))
    backup = None
    try:
        # A step: a commit that comes by now has all of it.
        yield Flush()
        if is_unchanged(store, merged.root.root_id, old):
            forget_backup(context, agent.name)
        else:
            backup = yield from finish_backup(context, agent.name)
    except BaseException:
        _undo(context, agent, snapshot.root, version, previous, old)
        raise
    gone = find_by_root(context, snapshot.root)
    if gone is not None:
        store.remove_snapshot(gone.agent_id, gone.name)
    return Result(
        success=True,
        snapshot_id=snapshot.name,
        agent_id=agent.name,
        version=version.label,
        timestamp=format_time(store.clock.now_ns()),
        backup=None if backup is None else backup.label,
    )


def _undo(
    context: Context,
    agent: AgentRecord,
    snapshot_root: RootId,
    version: VersionRecord,
    previous: str,
    old: RootId,
) -> None:
    store = context.store
    switch_back(context, agent.name, old, previous)
    store.remove_version(version.agent_id, version.label)
    snapshot = find_by_root(context, snapshot_root)
    if snapshot is not None:
        store.put_snapshot(replace(snapshot, committed=""))

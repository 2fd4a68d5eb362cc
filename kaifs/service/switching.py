"""Making current show a version: the switch, and the backup of what was uncommitted.

The order matters with a mount: programs may have written what the kernel still
holds. First the head is switched, then everything written before is flushed into
the old tree, and only then is that sealed as the backup. While the backup is due
the agent's record says so, so that a crash in between loses nothing: the next
open finishes it. An error after the switch switches back.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass

from msgspec.structs import replace

from kaifs.base.digest import sha256
from kaifs.base.errors import (
    ChecksumMismatchError,
    ForeignMountError,
    KaifsError,
    RollbackValidationError,
    StoreDamagedError,
)
from kaifs.base.label import parse_label
from kaifs.base.types import RootId
from kaifs.linux.mounts import mounts_below
from kaifs.meta.records import AgentRecord, RootKind, RootState, VersionRecord
from kaifs.service.context import Context
from kaifs.service.record import Description
from kaifs.service.record_check import check_record
from kaifs.service.sealing import add_backup, seal_tree, version_tree
from kaifs.service.signing import require_unforged
from kaifs.service.steps import Flush, Item, Step
from kaifs.store.registry import NO_ROOT
from kaifs.tree.diff import diff
from kaifs.tree.tree import Tree

log = logging.getLogger(__name__)

_FIRST_LABEL = "0.0.0"


@dataclass(frozen=True, slots=True)
class Switched:
    """What a switch has done."""

    previous: str
    """Label that current was based on; empty if none."""
    backup: VersionRecord | None
    """The version that holds what was uncommitted; None if nothing was."""


def switch_current(
    context: Context, agent: AgentRecord, version: VersionRecord
) -> Generator[Step, Item | None, Switched]:
    """Let *agent*'s current show *version*, and seal what current had uncommitted.

    Raises:
        ForeignMountError: something is mounted inside current.
        RollbackValidationError: the version is not what its record says.
    """
    refuse_foreign_mounts(context)
    previous, old = agent.version, agent.head
    begin_switch(context, agent, version)
    try:
        yield Flush()
        backup = yield from finish_backup(context, agent.name)
    except BaseException:
        switch_back(context, agent.name, old, previous)
        raise
    return Switched(previous, backup)


def open_target(context: Context, version: VersionRecord) -> Tree:
    """Return a clone of *version*'s tree that current can show. The version is validated first.

    Raises:
        RollbackValidationError: the version is not what its record says, or not signed as it
            must be.
    """
    clone = context.forest.clone(context.forest.tree(version.root))
    try:
        _validate(context, version, clone)
    except BaseException:
        context.forest.drop(clone.root.root_id)
        raise
    return clone


def begin_switch(context: Context, agent: AgentRecord, version: VersionRecord) -> None:
    """Let *agent*'s current show *version*. A backup of what it showed is due from here on.

    Raises:
        RollbackValidationError: the version is not what its record says.
    """
    show_target(context, agent, version, open_target(context, version))


def show_target(context: Context, agent: AgentRecord, version: VersionRecord, clone: Tree) -> None:
    """Let *agent*'s current show *clone*, of `open_target`; a backup is due from here on."""
    store = context.store
    previous, old = agent.version, agent.head
    label = backup_label(context, agent)
    agent = store.switch_head(agent, clone.root, version.label)
    store.put_agent(replace(agent, backup=label, superseded=old, backup_base=previous))
    store.note_unfinished(store.root(old))


def forget_backup(context: Context, name: str) -> None:
    """Note that no backup is due for the agent *name*: what it showed is in a version."""
    store = context.store
    agent = store.get_agent(name)
    store.put_agent(replace(agent, backup="", superseded=NO_ROOT, backup_base=""))
    store.set_root_state(store.root(agent.superseded), RootState.SUPERSEDED)


def finish_backup(
    context: Context, name: str
) -> Generator[Step, Item | None, VersionRecord | None]:
    """Seal the backup that is due for the agent *name*, if it has anything uncommitted.

    From here on nothing more is written to what it showed: sealing takes steps, and
    what is acknowledged between them would be in no version. `switch_back` undoes it.
    """
    store = context.store
    agent = store.get_agent(name)
    source = context.forest.tree(agent.superseded)
    store.set_root_state(source.root, RootState.SUPERSEDED)
    base = store.find_version(agent.agent_id, agent.backup_base)
    base_tree = version_tree(context, base)
    backup = None
    if _is_changed(source, base_tree):
        sealed = yield from seal_tree(context, source, base_tree)
        over = "" if base is None else f" over {base.label}"
        notes = f"What current had uncommitted{over} at a rollback"
        description = Description(snapshot_type="rollback", notes=notes)
        backup = yield from add_backup(context, agent, agent.backup, sealed, description, base)
    forget_backup(context, name)
    return backup


def finish_due_backups(context: Context, *, is_served: bool = False) -> None:
    """Seal every backup that a process left due when it died. For whoever opens a store.

    *is_served*: its mount goes on, and what has no name may be open.
    """
    store = context.store
    for root_id in store.unfinished_roots():
        try:
            root = store.root(root_id)
            agent = store.agent_by_id(root.agent_id)
            if agent is not None and context.forest.has_due_backup(root):
                if not is_served:
                    context.forest.tree(root_id).reap_all()
                for _ in finish_backup(context, agent.name):
                    pass
        except (ChecksumMismatchError, StoreDamagedError) as error:
            # It stays due, and the rest of the store can be used.
            log.warning("backup_not_sealed", extra={"root": root_id, "error": str(error)})


def backup_label(context: Context, agent: AgentRecord) -> str:
    """Return the next free `NEXTPATCH-rollback.N` of *agent*."""
    taken = context.store.labels(agent.agent_id)
    following = parse_label(agent.version or _FIRST_LABEL).bump("patch").text
    number = 1
    while f"{following}-rollback.{number}" in taken:
        number += 1
    return f"{following}-rollback.{number}"


def _is_changed(tree: Tree, base: Tree | None) -> bool:
    if base is None:
        return tree.root.inodes > 1
    return next(diff(base, tree), None) is not None


def _validate(context: Context, version: VersionRecord, clone: Tree) -> None:
    """Check in O(1) that *clone* is the sealed tree that the version's record names.

    And that the record is what it was when the version last verified, and signed as it must be.
    """
    root = context.store.root(version.root)
    if root.state is not RootState.SEALED or clone.root.top != root.top:
        raise RollbackValidationError(f"{version.label}: its tree is not sealed")
    if root.kind is not RootKind.VERSION:
        raise RollbackValidationError(f"{version.label}: it is a version no more")
    for finding in check_record(version).errors:
        raise RollbackValidationError(f"{version.label}: {finding.text}")
    memo = context.store.find_verified(version.root)
    if memo is not None and memo.record != sha256(version.record).digest():
        text = "its record is not what it was when the version last verified"
        raise RollbackValidationError(f"{version.label}: {text}")
    agent = context.store.agent_by_id(version.agent_id)
    assert agent is not None, "a version has an agent"
    try:
        require_unforged(context, agent, version)
    except KaifsError as error:
        text = f"{error.code}: {error.message}: {error.subject}"
        raise RollbackValidationError(text, cause=str(error.code)) from error


def refuse_foreign_mounts(context: Context) -> None:
    """Check that nothing is mounted inside the mount: a switch would detach it.

    In whatever folder: with the switch the kernel looks every name up again, and a
    name that is looked up again loses what is mounted on it.

    Raises:
        ForeignMountError: something is.
    """
    foreign = [found for place in context.mounted for found in mounts_below(place)]
    if foreign:
        raise ForeignMountError(", ".join(str(mount.mountpoint) for mount in foreign))


def switch_back(context: Context, name: str, old: RootId, previous: str) -> None:
    """Undo `begin_switch`: the agent *name*'s current shows *old* again, based on *previous*."""
    store = context.store
    agent = store.get_agent(name)
    failed = agent.head
    agent = replace(agent, backup="", superseded=NO_ROOT, backup_base="")
    store.switch_head(agent, store.root(old), previous)
    store.set_root_state(store.root(failed), RootState.SUPERSEDED)

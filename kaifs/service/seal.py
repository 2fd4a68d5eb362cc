"""Makes a version from current or from another tree; current moves on to it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import msgspec

from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.record import Description
from kaifs.service.reference import Target, get_agent, resolve
from kaifs.service.sealing import (
    MadeVersion,
    add_draft,
    choose_label,
    draft_version,
    dropped_on_error,
    made_version,
    seal_tree,
    sign_draft,
    version_tree,
)
from kaifs.service.signing import require_signer, require_trusted
from kaifs.service.steps import Item, Step
from kaifs.service.switching import switch_current


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to seal, as what."""

    agent: str
    label: str | None = None
    """None grows the label that current is based on by *bump*, until it is free."""
    bump: Literal["major", "minor", "patch"] = "patch"
    source: str | None = None
    """A reference; None is the agent's current."""
    description: Description = Description()
    caller_signs: bool = False
    """Whether a key of the user's signs the version instead of the store's."""
    moves_current: bool = True
    """Whether current moves on to the version if it is made from another tree. Made from
    current itself, it always does."""


Result = MadeVersion


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Seal a tree. What current has uncommitted when another tree is sealed becomes a backup.

    Raises:
        BadLabelError, VersionExistsError: the label cannot be had.
        InvalidVersionError: what is to be the parent is in quarantine.
        KaifsError: as `resolve`, `sign_draft` and `switch_current`; E105.
    """
    store = context.store
    params.description.check()
    agent = get_agent(store, params.agent)
    context.require_owner(agent)
    label = choose_label(store, agent, params.label, params.bump)
    target = resolve(store, params.agent if params.source is None else params.source)
    if params.source is not None:
        context.require_content(target.agent, target.root)
    if target.version is not None:
        require_trusted(context, target.agent, target.version)
    require_signer(context, agent, caller_signs=params.caller_signs)
    store.check_not_quarantined(target.agent, target.label)
    parent = _parent(context, agent, target)
    source = context.forest.tree(target.root)
    sealed = yield from seal_tree(context, source, version_tree(context, _base(context, target)))
    with dropped_on_error(context, sealed):
        draft = yield from draft_version(context, label, sealed, params.description, parent)
        signature = yield from sign_draft(context, agent, draft, caller_signs=params.caller_signs)
        # No step from here to where current has moved on.
        agent = store.get_agent(agent.name)
        store.check_new_label(agent, label)
        if parent is not None:
            store.check_not_quarantined(agent, parent.label)
    version = add_draft(context, agent, draft, signature)
    is_current = params.moves_current or target.root == agent.head
    if target.root == agent.head:
        agent = store.get_agent(agent.name)
        store.put_agent(msgspec.structs.replace(agent, version=label))
    elif is_current:
        try:
            yield from switch_current(context, store.get_agent(agent.name), version)
        except BaseException:
            store.remove_version(agent.agent_id, label)
            raise
    return made_version(agent, version, parent, is_current=is_current)


def _base(context: Context, target: Target) -> VersionRecord | None:
    """Return the version that the tree was made from, whose digests it shares."""
    return target.version or context.store.find_version(target.agent.agent_id, target.label)


def _parent(context: Context, agent: AgentRecord, target: Target) -> VersionRecord | None:
    """Return the version of the same agent that the tree is based on."""
    return _base(context, target) if target.agent.agent_id == agent.agent_id else None

"""Makes a sealed version from items that the caller's process reads from a folder.

The items are laid over a clone of the agent's newest version, so that what has
not changed is shared with it. Nothing shows before all is there: then agent,
version and, for an agent's first version, current change at once. What is there so
far is made durable now and then, so that memory does not grow with the folder; the payload
of an import that fails stays in segments until gc.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.errors import SourceError
from kaifs.base.label import parse_label
from kaifs.meta.records import AgentRecord, RootState, VersionRecord
from kaifs.service.context import Context
from kaifs.service.ownership import as_made_by
from kaifs.service.record import Description
from kaifs.service.sealing import (
    Draft,
    MadeVersion,
    add_draft,
    draft_version,
    dropped_on_error,
    made_version,
    seal_tree,
    sign_draft,
    version_tree,
)
from kaifs.service.signing import require_signer
from kaifs.service.steps import Commit, Entry, Item, Progress, Step, Total, Want
from kaifs.service.tree_sync import TreeSync
from kaifs.store.registry import check_agent_name
from kaifs.tree.tree import Tree

_PROGRESS_SIZE = 4 << 20
_PROGRESS_FILES = 256
_COMMIT_SIZE = 256 << 20
"""Bytes after which what was taken in is made durable."""
_COMMIT_NODES = 1000
"""Changed nodes of B+trees after which it is: some 20,000 new files, and 50 MB of memory."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What the version is called."""

    agent: str
    """Made if there is none."""
    label: str
    description: Description = Description()
    caller_signs: bool = False
    """Whether a key of the user's signs the version instead of the store's."""


Result = MadeVersion


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Import a folder.

    Raises:
        BadNameError, BadLabelError, VersionExistsError, ArgumentValueError: before anything
            of the source is asked for.
        SourceError: the source ended early or makes no sense.
        AccessDeniedError: the agent, or the store, is not the caller's.
        KaifsError: as `require_signer` and `sign_draft`.
    """
    params.description.check()
    check_agent_name(params.agent)
    agent = _checked_agent(context, params)
    require_signer(context, agent, caller_signs=params.caller_signs)
    newest = _newest(context, agent)
    tree = _start(context, newest)
    try:
        yield from _take_items(context, tree)
        sealed = yield from seal_tree(context, tree, version_tree(context, newest))
        with dropped_on_error(context, sealed):
            parent = None if agent is None else _parent(context, agent, params.label)
            draft = yield from draft_version(
                context, params.label, sealed, params.description, parent
            )
            signature = yield from sign_draft(
                context, agent, draft, caller_signs=params.caller_signs
            )
            # What follows is small then, for the journal too.
            yield Commit()
            # No step from here on: what follows shows at once or not at all.
            # Looked up again: a mount may have been used meanwhile.
            agent = _checked_agent(context, params)
        return _publish(context, params.agent, agent, tree, draft, signature, parent)
    finally:
        if context.store.has_root(tree.root.root_id) and tree.root.state is RootState.BUILDING:
            context.forest.drop(tree.root.root_id)


def _checked_agent(context: Context, params: Params) -> AgentRecord | None:
    parse_label(params.label)
    agent = context.store.find_agent(params.agent)
    if agent is None:
        context.require_maker()
    else:
        context.require_owner(agent)
        context.store.check_new_label(agent, params.label)
    return agent


def _newest(context: Context, agent: AgentRecord | None) -> VersionRecord | None:
    versions = [] if agent is None else context.store.versions(agent.agent_id)
    return versions[-1] if versions else None


def _start(context: Context, newest: VersionRecord | None) -> Tree:
    """Return a tree of nobody to lay the items over."""
    if newest is not None:
        return context.forest.clone(context.forest.tree(newest.root))
    caller = context.caller
    return context.forest.new_tree(0o755, caller.uid, caller.gid)


def _take_items(context: Context, tree: Tree) -> Generator[Step, Item | None, None]:
    sync = TreeSync(tree, context.store.clock.now_ns())
    is_trusted = context.owns_store()
    nodes = context.store.nodes
    total = 0
    told_size = told_files = committed_size = 0
    while not sync.is_complete:
        item = yield Want()
        if item is None:
            raise SourceError("the source ended early")
        if isinstance(item, Total):
            total = item.size
        elif isinstance(item, Entry) and not is_trusted:
            item = as_made_by(context.caller, item)
        for _ in sync.take(item):
            yield Progress(sync.size, total, "bytes", "importing")
        if sync.size - told_size >= _PROGRESS_SIZE or sync.files - told_files >= _PROGRESS_FILES:
            told_size, told_files = sync.size, sync.files
            yield Progress(sync.size, total, "bytes", "importing")
        if sync.size - committed_size >= _COMMIT_SIZE or nodes.dirty_count >= _COMMIT_NODES:
            # The tree is still being built: whoever opens the store after a crash drops it.
            committed_size = sync.size
            yield Commit()
    yield Progress(sync.size, sync.size, "bytes", "importing")


def _publish(
    context: Context,
    name: str,
    agent: AgentRecord | None,
    tree: Tree,
    draft: Draft,
    signature: bytes,
    parent: VersionRecord | None,
) -> MadeVersion:
    store = context.store
    if agent is None:
        store.set_root_state(tree.root, RootState.WRITABLE)
        caller = context.caller
        agent = store.add_agent(name, caller.uid, caller.gid, tree.root)
    elif not agent.version and not _has_files(context, agent):
        old = agent.head
        agent = store.switch_head(agent, tree.root, "")
        store.set_root_state(store.root(old), RootState.SUPERSEDED)
    version = add_draft(context, agent, draft, signature)
    is_current = agent.head == tree.root.root_id
    if is_current:
        agent = store.get_agent(agent.name)
        store.put_agent(msgspec.structs.replace(agent, version=version.label))
    return made_version(agent, version, parent, is_current=is_current)


def _has_files(context: Context, agent: AgentRecord) -> bool:
    """Whether somebody has put something into an agent that has no version yet."""
    return context.store.root(agent.head).inodes > 1


def _parent(context: Context, agent: AgentRecord, label: str) -> VersionRecord | None:
    """Return the version that comes before *label* by precedence."""
    wanted = parse_label(label)
    below = [
        version
        for version in context.store.versions(agent.agent_id)
        if parse_label(version.label) < wanted
    ]
    return below[-1] if below else None

"""Making a version: the tree is sealed, described, and gets its label.

A verb that makes a version yields while file content is read; then, without a
step in between, everything that shows the version is changed at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.label import Bump, parse_label
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.evidence import Evidence
from kaifs.service.facts import read_facts
from kaifs.service.record import (
    AgentVersion,
    Description,
    VersionMetadata,
    encode_record,
    record_hash,
)
from kaifs.service.signing import ask_signature, sign_record
from kaifs.service.steps import Commit, Item, Progress, Step
from kaifs.store.store import Store
from kaifs.tree.seal import SealedTree, seal
from kaifs.tree.tree import Tree

FIRST_LABEL: Final = "0.0.0"
"""What the label of an agent without a version is grown from."""


class MadeVersion(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A version that is new."""

    agent: str
    version: str
    hash: str
    parent: str | None
    is_current: bool
    files: int
    """Inodes less the top directory."""
    size: int
    """Bytes of all its regular files."""
    created: str


def seal_tree(
    context: Context, source: Tree, base: Tree | None
) -> Generator[Step, Item | None, SealedTree]:
    """Seal what *source* is now; see `kaifs.tree.seal.seal`."""
    done = 0
    sealing = seal(context.forest, context.manifests, source, base)
    try:
        while True:
            done += next(sealing)
            yield Progress(done, 0, "bytes", "sealing")
    except StopIteration as stop:
        sealed: SealedTree = stop.value
        return sealed


def choose_label(store: Store, agent: AgentRecord, label: str | None, bump: Bump) -> str:
    """Return *label* if it is free; None grows the label that current is based on until it is.

    Raises:
        BadLabelError, VersionExistsError: *label* cannot be had.
    """
    if label is not None:
        store.check_new_label(agent, label)
        return label
    taken = {parse_label(one).core for one in store.labels(agent.agent_id)}
    following = parse_label(agent.version or FIRST_LABEL).bump(bump)
    while following.core in taken:
        following = following.bump(bump)
    return following.text


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that is not there yet: all that it lacks is its signature."""

    label: str
    sealed: SealedTree
    record: bytes
    """What is to be signed."""
    created_ns: int


def add_backup(
    context: Context,
    agent: AgentRecord,
    label: str,
    sealed: SealedTree,
    description: Description,
    parent: VersionRecord | None,
) -> Generator[Step, Item | None, VersionRecord]:
    """Let *sealed* be the version *label* of *agent*, which must be free. The store's key signs.

    Raises:
        KaifsError: as `sign_record`; *sealed* is dropped then.
    """
    with dropped_on_error(context, sealed):
        draft = yield from draft_version(
            context, label, sealed, description, parent, is_backup=True
        )
        signature = sign_record(context, agent, draft.record, is_backup=True)
    return add_draft(context, agent, draft, signature)


def sign_draft(
    context: Context, agent: AgentRecord | None, draft: Draft, *, caller_signs: bool
) -> Generator[Step, Item | None, bytes]:
    """Return the signature of *draft*, by the store's key or by the caller's process.

    A step only if that signs.

    Raises:
        KaifsError: as `sign_record` and `ask_signature`.
    """
    if caller_signs:
        return (yield from ask_signature(context, agent, draft.record))
    return sign_record(context, agent, draft.record)


@contextmanager
def dropped_on_error(context: Context, sealed: SealedTree) -> Iterator[None]:
    """Drop *sealed*, which is nobody's yet, if what is done with it fails."""
    try:
        yield
    except BaseException:
        context.forest.drop(sealed.tree.root.root_id)
        raise


def draft_version(
    context: Context,
    label: str,
    sealed: SealedTree,
    description: Description,
    parent: VersionRecord | None,
    evidence: Evidence | None = None,
    *,
    is_backup: bool = False,
) -> Generator[Step, Item | None, Draft]:
    """Describe *sealed* as the version *label*.

    Raises:
        KaifsError: as `read_facts`.
    """
    facts = yield from read_facts(context, sealed.tree, is_backup=is_backup)
    created_ns = context.store.clock.now_ns()
    record = AgentVersion(
        version=label,
        hash=sealed.hash,
        tree_digest=sealed.tree_digest,
        parent=parent.label if parent is not None else msgspec.UNSET,
        parent_hash=record_hash(parent.record) if parent is not None else msgspec.UNSET,
        metadata=VersionMetadata(
            created=format_time(created_ns),
            author=description.author,
            commit_hash=description.commit_hash or facts.commit_hash,
            snapshot_type=description.snapshot_type,
            notes=description.notes,
            agent_state_checksum=facts.agent_state_checksum,
            config_checksum=facts.config_checksum,
            tags=description.tags,
            evidence=msgspec.UNSET if evidence is None else evidence,
        ),
        dependencies=facts.dependencies,
    )
    if context.store.wants_commit(sealed.tree.root):
        # Else all of the tree would go into the journal when the version shows.
        yield Commit()
    return Draft(label, sealed, encode_record(record), created_ns)


def add_draft(
    context: Context, agent: AgentRecord, draft: Draft, signature: bytes
) -> VersionRecord:
    """Let *draft* be a version of *agent*; its label must be free. *signature* may be empty."""
    root = draft.sealed.tree.root
    version = VersionRecord(
        agent_id=agent.agent_id,
        label=draft.label,
        root=root.root_id,
        record=draft.record,
        hash=draft.sealed.hash,
        created_ns=draft.created_ns,
        size=root.size,
        inodes=root.inodes,
        signature=signature,
        signatures=1 if signature else 0,
        signed_ns=draft.created_ns if signature else 0,
    )
    context.store.add_version(version)
    return version


def made_version(
    agent: AgentRecord, version: VersionRecord, parent: VersionRecord | None, *, is_current: bool
) -> MadeVersion:
    """Return what a user is told of a new version."""
    return MadeVersion(
        agent=agent.name,
        version=version.label,
        hash=version.hash,
        parent=None if parent is None else parent.label,
        is_current=is_current,
        files=version.inodes - 1,
        size=version.size,
        created=format_time(version.created_ns),
    )


def version_tree(context: Context, version: VersionRecord | None) -> Tree | None:
    """Return the tree of *version*."""
    return None if version is None else context.forest.tree(version.root)

"""Making a version: the tree is sealed, described, and gets its label.

A verb that makes a version yields while file content is read; then, without a
step in between, everything that shows the version is changed at once.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.clock import format_time
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.record import (
    AgentVersion,
    Description,
    VersionMetadata,
    encode_record,
    record_hash,
    state_checksums,
)
from kaifs.service.steps import Item, Progress, Step
from kaifs.tree.seal import SealedTree, seal
from kaifs.tree.tree import Tree


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


def add_version(
    context: Context,
    agent: AgentRecord,
    label: str,
    sealed: SealedTree,
    description: Description,
    parent: VersionRecord | None,
) -> VersionRecord:
    """Let *sealed* be the version *label* of *agent*, which must be free."""
    store = context.store
    created_ns = store.clock.now_ns()
    state_checksum, config_checksum = state_checksums(sealed.manifest)
    record = AgentVersion(
        version=label,
        hash=sealed.hash,
        parent=parent.label if parent is not None else msgspec.UNSET,
        parent_hash=record_hash(parent.record) if parent is not None else msgspec.UNSET,
        metadata=VersionMetadata(
            created=format_time(created_ns),
            author=description.author,
            commit_hash=description.commit_hash,
            snapshot_type=description.snapshot_type,
            notes=description.notes,
            agent_state_checksum=state_checksum,
            config_checksum=config_checksum,
            tags=description.tags,
        ),
    )
    root = sealed.tree.root
    version = VersionRecord(
        agent_id=agent.agent_id,
        label=label,
        root=root.root_id,
        record=encode_record(record),
        hash=sealed.hash,
        created_ns=created_ns,
        size=root.size,
        inodes=root.inodes,
    )
    store.add_version(version)
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

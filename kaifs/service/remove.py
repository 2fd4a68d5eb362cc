"""Takes a version away."""

from collections.abc import Generator

import msgspec

from kaifs.base.errors import StoreDamagedError, VersionInUseError
from kaifs.meta.records import VersionRecord
from kaifs.service.context import Context
from kaifs.service.record import decode_record, record_hash
from kaifs.service.reference import SNAPSHOTS, resolve_version
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Which version."""

    reference: str
    force: bool = False
    """Also if a version or a snapshot descends from it."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is gone."""

    agent: str
    version: str


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Take a version away, in quarantine or not; gc frees what only it reached.

    Raises:
        VersionInUseError: current is based on it, or something descends from it.
        KaifsError: as `resolve_version`; E105.
    """
    yield from ()
    store = context.store
    name, _, label = params.reference.partition("@")
    owner = store.find_agent(name)
    aside = None if owner is None else store.find_quarantined(owner.agent_id, label)
    if owner is not None and aside is not None:
        # What is damaged is nobody's parent any more, and never current.
        context.require_owner(owner)
        store.remove_quarantined(aside)
        return Result(agent=owner.name, version=label)
    agent, version = resolve_version(store, params.reference)
    context.require_owner(agent)
    if version.label == agent.version:
        raise VersionInUseError(f"{agent.name}@{version.label} is current")
    needed_by = [
        f"{agent.name}@{child.label}"
        for child in store.versions(agent.agent_id)
        if _is_parent(version, child)
    ] + [
        f"{agent.name}/{SNAPSHOTS}/{snapshot.name}"
        for snapshot in store.snapshots(agent.agent_id)
        if snapshot.version == version.label
    ]
    if needed_by and not params.force:
        raise VersionInUseError(
            f"{agent.name}@{version.label}: {', '.join(needed_by)} came from it",
            neededBy=needed_by,
        )
    store.remove_version(agent.agent_id, version.label)
    return Result(agent=agent.name, version=version.label)


def _is_parent(version: VersionRecord, child: VersionRecord) -> bool:
    try:
        record = decode_record(child.record)
    except StoreDamagedError:
        return False
    return record.parent == version.label and record.parent_hash == record_hash(version.record)

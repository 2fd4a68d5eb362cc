"""Takes away the versions of an agent that no rule keeps.

Some versions stay whatever the rules say: those that something alive is based on.
The lineage of what stays is left as it was: a child goes on naming its parent by
label and record hash, and the history has a gap there.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.errors import NoRuleError, StoreDamagedError
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.policy import policy_of
from kaifs.service.record import decode_record
from kaifs.service.reference import get_agent
from kaifs.service.retention import Candidate, Retention, kept_by
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Whose versions, and which of them are kept."""

    agent: str
    retention: Retention = Retention()
    """No rule: those of the agent's policy."""
    is_dry_run: bool = False
    """Only tell what would go."""


class PrunedVersion(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One version, and why it stays."""

    version: str
    created: str
    tags: tuple[str, ...]
    size: int
    kept_by: tuple[str, ...]
    """Empty: nothing keeps it."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What stays and what goes, newest first."""

    agent: str
    retention: Retention
    """The rules that were followed."""
    is_dry_run: bool
    kept: tuple[PrunedVersion, ...]
    removed: tuple[PrunedVersion, ...]


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Take away what no rule keeps, all of it or nothing; gc frees the space.

    Raises:
        NoRuleError: neither *params* nor the agent's policy has a rule.
        ArgumentValueError: a rule cannot be followed.
        KaifsError: as `get_agent`; E105.
    """
    # No step anywhere: it is one change.
    yield from ()
    store = context.store
    agent = get_agent(store, params.agent)
    context.require_owner(agent)
    rules = params.retention or policy_of(agent).retention
    rules.check()
    if not rules:
        raise NoRuleError(agent.name)
    # Newest first; among those of one instant the greatest label.
    versions = store.versions(agent.agent_id)[::-1]
    versions.sort(key=lambda version: -version.created_ns)
    needed = needed_labels(context, agent)
    unreadable = {version.label: ("damaged",) for version in versions if not _is_readable(version)}
    candidates = [_candidate(version) for version in versions]
    kept: list[PrunedVersion] = []
    removed: list[PrunedVersion] = []
    for version, candidate, reasons in zip(
        versions, candidates, kept_by(rules, candidates), strict=True
    ):
        # What cannot be read cannot be judged by rules.
        reasons += unreadable.get(version.label, ()) + needed.get(version.label, ())
        (kept if reasons else removed).append(_pruned(version, candidate, reasons))
    if not params.is_dry_run:
        for gone in removed:
            store.remove_version(agent.agent_id, gone.version)
    return Result(
        agent=agent.name,
        retention=rules,
        is_dry_run=params.is_dry_run,
        kept=tuple(kept),
        removed=tuple(removed),
    )


def needed_labels(context: Context, agent: AgentRecord) -> dict[str, tuple[str, ...]]:
    """Return the versions of *agent* that something alive is based on, and what that is."""
    found: dict[str, tuple[str, ...]] = {}
    if agent.version:
        found[agent.version] = ("current",)
    if agent.backup_base:
        found[agent.backup_base] = (*found.get(agent.backup_base, ()), "backup")
    for snapshot in context.store.snapshots(agent.agent_id):
        if snapshot.version:
            before = found.get(snapshot.version, ())
            found[snapshot.version] = (*before, f"snapshot {snapshot.name}")
    return found


def _is_readable(version: VersionRecord) -> bool:
    try:
        decode_record(version.record)
    except StoreDamagedError:
        return False
    return True


def _candidate(version: VersionRecord) -> Candidate:
    if not _is_readable(version):
        return Candidate(version.label, version.created_ns, "", ())
    metadata = decode_record(version.record).metadata
    return Candidate(version.label, version.created_ns, metadata.snapshot_type, metadata.tags)


def _pruned(
    version: VersionRecord, candidate: Candidate, reasons: tuple[str, ...]
) -> PrunedVersion:
    return PrunedVersion(
        version=version.label,
        created=format_time(version.created_ns),
        tags=candidate.tags,
        size=version.size,
        kept_by=reasons,
    )

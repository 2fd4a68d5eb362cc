"""Setting a damaged version aside, and what current does then."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import Final

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.errors import (
    ChecksumMismatchError,
    InvalidVersionError,
    KaifsError,
    NotInQuarantineError,
    StoreDamagedError,
)
from kaifs.base.label import parse_label
from kaifs.meta.records import VERSION, AgentRecord, QuarantineRecord, SnapshotRecord, VersionRecord
from kaifs.service.alerts import Alert, Event
from kaifs.service.context import Context
from kaifs.service.findings import Finding, Findings
from kaifs.service.integrity import Verifier
from kaifs.service.lifecycle import keep_clone
from kaifs.service.lineage import Lineage
from kaifs.service.policy import policy_of
from kaifs.service.record_check import check_record
from kaifs.service.reference import get_agent
from kaifs.service.signing import check_signature
from kaifs.service.steps import Commit, Exclusive, Item, Step
from kaifs.service.switching import (
    forget_backup,
    open_target,
    refuse_foreign_mounts,
    show_target,
    switch_current,
)
from kaifs.store.registry import READY

log = logging.getLogger(__name__)

FOUND_KEPT: Final = 100
"""Lines of what was found that are kept with a version in quarantine."""


class Fallback(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a policy has made current show in place of damage."""

    agent: str
    version: str
    """The last good version."""
    backup: str | None
    """Where what current had uncommitted is: a version or, if it could not be sealed, a snapshot."""


def spell_finding(finding: Finding) -> str:
    """Return a finding as a line of JSON and of the screen."""
    code = f" ({ChecksumMismatchError.code})" if finding.is_damage else ""
    return f"{finding.check}: {finding.text}{code}"


def set_aside(
    context: Context, agent: AgentRecord, label: str, reason: str, found: Findings
) -> Generator[Step, Item | None, QuarantineRecord]:
    """Put a version into quarantine, durably, and tell administrators.

    The change itself is made in one step, so an epoch has all of it or nothing.
    """
    errors = tuple(map(spell_finding, found.errors))[:FOUND_KEPT]
    record = context.store.quarantine_version(agent, label, reason, errors)
    name = f"{agent.name}@{label}"
    log.error("quarantined", extra={"version": name, "reason": reason, "code": "E102"})
    yield Commit()
    tell(context, "quarantined", agent.name, label, reason, errors)
    return record


def tell(
    context: Context,
    event: Event,
    agent: str,
    version: str,
    reason: str,
    errors: tuple[str, ...] = (),
) -> None:
    """Tell administrators."""
    context.alert(
        Alert(
            event=event,
            agent=agent,
            version=version,
            reason=reason,
            time=format_time(context.store.clock.now_ns()),
            store=str(context.store.path),
            errors=errors,
        )
    )


def find_aside(
    context: Context, agent_name: str, label: str
) -> tuple[AgentRecord, QuarantineRecord]:
    """Return what is in quarantine as `AGENT@LABEL`.

    Raises:
        KaifsError: as `get_agent`; E120, E180.
    """
    agent = get_agent(context.store, agent_name)
    parse_label(label)
    record = context.store.find_quarantined(agent.agent_id, label)
    if record is None:
        raise NotInQuarantineError(f"{agent_name}@{label}")
    return agent, record


def check_data(
    context: Context, verifier: Verifier, agent: AgentRecord, version: VersionRecord
) -> Generator[Step, Item | None, bool]:
    """Return whether record, signature and content of a version are without error."""
    parts = [check_record(version), check_signature(context, agent, version)]
    if all(part.is_valid for part in parts):
        survey = yield from verifier.survey(version.root, version)
        parts.append((yield from verifier.check_version(agent, version, survey)))
    return all(part.is_valid for part in parts)


# --- current -----------------------------------------------------------------------------


def fall_back(
    context: Context, name: str, reason: str
) -> Generator[Step, Item | None, Fallback | None]:
    """Let the current of the agent *name* show the last good version, if its policy says so.

    Never fails: what cannot be done is told to administrators, and current goes on as it is.
    """
    try:
        agent = context.store.get_agent(name)
        if policy_of(agent).on_damage != "fallback":
            return None
        yield Exclusive()
        agent = context.store.get_agent(name)
        done = yield from _fall_back(context, agent)
    except KaifsError as error:
        log.warning("fallback_failed", extra={"agent": name, "error": str(error)})
        tell(context, "fallback_failed", name, "", f"{reason}; {error}")
        return None
    log.error("fallback", extra={"agent": name, "version": done.version, "backup": done.backup})
    yield Commit()
    tell(context, "fallback", name, done.version, reason)
    return done


def _fall_back(context: Context, agent: AgentRecord) -> Generator[Step, Item | None, Fallback]:
    refuse_foreign_mounts(context)
    verifier = Verifier(context, full=False)
    try:
        for version in _candidates(context, agent):
            if (yield from check_data(context, verifier, agent, version)):
                break
        else:
            raise InvalidVersionError(f"{agent.name} has no version that is good")
    finally:
        verifier.close()
    # Looked up again: others have run meanwhile.
    agent = context.store.get_agent(agent.name)
    version = context.store.get_version(agent, version.label)
    try:
        switched = yield from switch_current(context, agent, version)
    except (ChecksumMismatchError, StoreDamagedError):
        # What is uncommitted cannot be read to be sealed: keep it as it is.
        snapshot = _keep_as_snapshot(context, context.store.get_agent(agent.name), version)
        return Fallback(agent=agent.name, version=version.label, backup=snapshot)
    backup = None if switched.backup is None else switched.backup.label
    return Fallback(agent=agent.name, version=version.label, backup=backup)


def _candidates(context: Context, agent: AgentRecord) -> Iterator[VersionRecord]:
    """Yield the versions of *agent*, those first from which current descends, then by age."""
    lineage = Lineage(context, agent)
    told: set[str] = set()
    label = agent.version
    while label in lineage.relatives and label not in told:
        told.add(label)
        if not lineage.relatives[label].is_aside:
            yield context.store.get_version(agent, label)
        label = lineage.relatives[label].parent
    rest = [one for one in lineage.relatives.values() if one.label not in told and not one.is_aside]
    for relative in sorted(rest, key=lambda one: one.created_ns, reverse=True):
        yield context.store.get_version(agent, relative.label)


def _keep_as_snapshot(context: Context, agent: AgentRecord, version: VersionRecord) -> str:
    """Let current show *version* and what it showed be a snapshot; return the snapshot's name."""
    store = context.store
    number = 1
    while store.find_snapshot(agent.agent_id, f"damaged-{number}") is not None:
        number += 1
    name = f"damaged-{number}"
    old = context.forest.tree(agent.head)
    shown = open_target(context, version)
    store.add_snapshot(
        SnapshotRecord(
            agent_id=agent.agent_id,
            name=name,
            root=context.forest.clone(old).root.root_id,
            base=keep_clone(context, old),
            version=agent.version,
            status=READY,
            read_only=False,
            uid=agent.uid,
            gid=agent.gid,
            created_ns=store.clock.now_ns(),
        )
    )
    show_target(context, agent, version, shown)
    forget_backup(context, agent.name)
    return name


def quarantined_version(record: QuarantineRecord) -> VersionRecord | None:
    """Return the version that was set aside, None if its record was unreadable."""
    return VERSION.decode(record.version) if record.version else None

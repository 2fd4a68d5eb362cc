"""Checks that versions are what they were: the specification's validateVersionIntegrity.

Signatures, content and all metadata, dependencies, permissions, lineage, side by
side, each with its errors and warnings. A version whose data, record or signature
is damaged is set aside as soon as that is known. Of current and of snapshots, which
promise nothing, the blocks are read.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgspec

from kaifs.base.errors import AccessDeniedError, KaifsError, StoreDamagedError
from kaifs.base.label import parse_label
from kaifs.base.types import RootId
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.aside import (
    Fallback,
    fall_back,
    quarantined_version,
    set_aside,
    spell_finding,
    tell,
)
from kaifs.service.context import Context
from kaifs.service.dependencies import check_dependencies
from kaifs.service.findings import Finding, Findings, ValidationResult, join_findings
from kaifs.service.integrity import Survey, Verifier
from kaifs.service.lineage import Lineage, check_lineage
from kaifs.service.record_check import check_record
from kaifs.service.reference import get_agent, resolve
from kaifs.service.reproduction import check_reproduction
from kaifs.service.signing import check_signature
from kaifs.service.steps import Commit, Item, Progress, Step
from kaifs.store.store import Store

REASON = "verification found damage"


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to verify, and how."""

    references: tuple[str, ...] = ()
    """Versions, in quarantine too, agents' currents, snapshots; none: every version that the
    caller may read and that is not in quarantine."""
    full: bool = False
    """Read everything, also what verified before and cannot have changed."""
    reproduce: bool = False
    """Seal each version again, from its files, and compare."""


class Validation(ValidationResult, frozen=True, kw_only=True, rename="camel"):
    """The specification's ValidationResult, and of what it is.

    A line tells the check, the path or the field, and what is wrong. Damage has the code E102.
    """

    reference: str
    quarantined: bool
    """Whether it is in quarantine now."""
    is_skipped: bool
    """Whether its content was not read, because it verified before and cannot have changed."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was found of each."""

    validations: tuple[Validation, ...]
    fallbacks: tuple[Fallback, ...] = ()
    """What current of which agent shows now, because its policy says so."""
    read_bytes: int = 0
    """Bytes of content that were read; what versions share counts once."""


@dataclass(slots=True)
class _Target:
    """One thing to verify."""

    agent: AgentRecord
    name: str
    label: str = ""
    """Of a version; empty for other trees."""
    version: VersionRecord | None = None
    """None: its record is unreadable, or it is another tree."""
    root: RootId | None = None
    is_aside: bool = False
    survey: Survey | None = None


@dataclass(slots=True)
class _Run:
    """One run of the verb."""

    context: Context
    params: Params
    verifier: Verifier
    validations: list[Validation] = field(default_factory=list)
    lineages: dict[int, Lineage] = field(default_factory=dict)
    hit: dict[str, str] = field(default_factory=dict)
    """Agents whose current is hit, and by what."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Verify.

    Raises:
        KaifsError: as `resolve`; E105 if a file is closed to the caller.
    """
    targets = _targets(context, params)
    verifier = Verifier(context, full=params.full)
    running = _Run(context, params, verifier)
    with ExitStack() as frozen:
        frozen.callback(verifier.close)
        for target in targets:
            if not target.label and target.root is not None:
                tree = frozen.enter_context(context.frozen(target.root))
                target.root = tree.root.root_id
        if context.store.is_dirty:
            # What is read is what the disk has.
            yield Commit()
        for target in targets:
            if target.root is not None:
                target.survey = yield from verifier.survey(target.root, target.version)
        yield from verifier.settle()
        verifier.done = 0
        verifier.total = sum(_size(context.store, target) for target in targets)
        yield Progress(0, verifier.total, "bytes", "verifying")
        for target in targets:
            yield from _verify(running, target)
    fallbacks = []
    for name, reason in running.hit.items():
        fallback = yield from fall_back(context, name, reason)
        if fallback is not None:
            fallbacks.append(fallback)
    if context.store.is_dirty:
        # What verified is remembered.
        yield Commit()
    return Result(
        validations=tuple(running.validations),
        fallbacks=tuple(fallbacks),
        read_bytes=verifier.read_bytes,
    )


def check_target(context: Context, params: Params) -> Generator[Step, Item | None, Findings]:
    """Return what all checks find of the one version that *params* name; nothing is set aside.

    Raises:
        KaifsError: as `run`.
    """
    (target,) = _targets(context, params)
    verifier = Verifier(context, full=params.full)
    try:
        if context.store.is_dirty:
            yield Commit()
        if target.root is not None:
            target.survey = yield from verifier.survey(target.root, target.version)
        verifier.done, verifier.total = 0, _size(context.store, target)
        return (yield from _check(_Run(context, params, verifier), target))
    finally:
        verifier.close()


# --- what ----------------------------------------------------------------------------------


def _targets(context: Context, params: Params) -> list[_Target]:
    if params.references:
        return [_target(context, text) for text in dict.fromkeys(params.references)]
    found: list[_Target] = []
    for agent in context.store.agents():
        try:
            context.require_reader(agent)
        except AccessDeniedError:
            continue
        versions = sorted(context.store.versions(agent.agent_id), key=lambda one: one.root)
        for version in versions:
            try:
                context.require_content(agent, version.root)
            except AccessDeniedError:
                continue
            except KaifsError:
                pass  # It is damaged, and that is what is wanted.
            found.append(_version_target(agent, version))
        found += [
            _Target(agent, f"{agent.name}@{label}", label)
            for label in context.store.unreadable_versions(agent.agent_id)
        ]
    return found


def _target(context: Context, text: str) -> _Target:
    store = context.store
    name, at, label = text.partition("@")
    if at and "/" not in name:
        agent = get_agent(store, name)
        context.require_reader(agent)
        parse_label(label)
        try:
            store.find_version(agent.agent_id, label)
        except StoreDamagedError:
            return _Target(agent, text, label)
        aside = store.find_quarantined(agent.agent_id, label)
        if aside is not None:
            version = quarantined_version(aside)
            root = None if version is None else version.root
            return _Target(agent, text, label, version, root, is_aside=True)
    target = resolve(store, text)
    try:
        context.require_content(target.agent, target.root)
    except AccessDeniedError:
        raise
    except KaifsError:
        pass  # It is damaged, and that is what is wanted.
    if target.version is not None:
        return _version_target(target.agent, target.version)
    return _Target(target.agent, str(target), root=target.root)


def _version_target(agent: AgentRecord, version: VersionRecord) -> _Target:
    return _Target(agent, f"{agent.name}@{version.label}", version.label, version, version.root)


def _size(store: Store, target: _Target) -> int:
    if target.version is not None:
        return target.version.size
    return store.root(target.root).size if target.root is not None else 0


# --- checks --------------------------------------------------------------------------------


def _verify(running: _Run, target: _Target) -> Generator[Step, Item | None, None]:
    if not target.label:
        yield from _verify_tree(running, target)
        return
    context = running.context
    found = yield from _check(running, target)
    # No step from here to where it is set aside.
    if not _is_there(context.store, target):
        return
    is_aside = target.is_aside
    if found.has_damage and not is_aside:
        current = context.store.get_agent(target.agent.name)
        yield from set_aside(context, current, target.label, REASON, found)
        is_aside = True
        running.lineages.pop(target.agent.agent_id, None)
        if current.version == target.label:
            running.hit[target.agent.name] = f"{target.name}, which current is based on, is damaged"
    survey = target.survey
    running.validations.append(
        Validation(
            reference=target.name,
            valid=found.is_valid,
            errors=tuple(map(spell_finding, found.errors)),
            warnings=tuple(map(spell_finding, found.warnings)),
            quarantined=is_aside,
            is_skipped=survey is not None and survey.is_skipped and found.is_valid,
        )
    )


def _is_there(store: Store, target: _Target) -> bool:
    """Return whether nobody has taken the version away, or set it aside, meanwhile."""
    agent_id, label = target.agent.agent_id, target.label
    if store.agent_by_id(agent_id) is None:
        return False
    if target.is_aside:
        return store.find_quarantined(agent_id, label) is not None
    try:
        found = store.find_version(agent_id, label)
    except StoreDamagedError:
        return True
    return found is not None and (target.version is None or found.root == target.version.root)


def _check(running: _Run, target: _Target) -> Generator[Step, Item | None, Findings]:
    """Return what all checks of a version have found."""
    context, agent, version = running.context, target.agent, target.version
    if version is None or target.survey is None:
        text = "its record is unreadable"
        return Findings(errors=(Finding("checksum", text, is_damage=True),))
    parts = [check_signature(context, agent, version), check_record(version)]
    is_readable = parts[-1].is_valid
    parts.append((yield from running.verifier.check_version(agent, version, target.survey)))
    is_whole = not any(part.has_damage for part in parts)
    if is_readable and is_whole:
        try:
            parts.append(check_dependencies(context, agent, version))
        except KaifsError as error:
            parts.append(Findings(errors=(Finding("dependency", error.subject),)))
    lineage = running.lineages.get(agent.agent_id)
    if lineage is None:
        running.lineages.clear()
        lineage = running.lineages[agent.agent_id] = Lineage(context, agent)
    parts.append(check_lineage(context, lineage, version))
    if running.params.reproduce and is_readable and is_whole:
        parts.append((yield from check_reproduction(context, version)))
    return join_findings(parts)


def _verify_tree(running: _Run, target: _Target) -> Generator[Step, Item | None, None]:
    """Read the blocks of a tree that is no version."""
    assert target.survey is not None
    errors: list[str] = []
    if target.survey.error:
        errors.append(f"its tree cannot be read: {target.survey.error}")
    else:
        looked, _, _ = yield from running.verifier.look(target.agent, target.survey)
        errors += running.verifier.problems(looked)
    findings = tuple(Finding("checksum", text, is_damage=True) for text in errors)
    spelled = tuple(map(spell_finding, findings))
    if errors:
        reason = f"{target.name}: {errors[0]}"
        tell(running.context, "damaged", target.agent.name, "", reason, spelled)
        if target.name == target.agent.name:
            running.hit[target.name] = f"{target.name}: current is damaged"
    running.validations.append(
        Validation(
            reference=target.name,
            valid=not errors,
            errors=spelled,
            warnings=(),
            quarantined=False,
            is_skipped=False,
        )
    )

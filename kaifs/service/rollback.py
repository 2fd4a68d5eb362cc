"""Makes current show an older version; history is not erased.

The specification's three steps are told as it names them: `backup_current`,
`update_symlink` (the switch) and `validate_rollback`. They are done in an order
that leaves nothing half done: the target is validated, then current is switched,
then what it had uncommitted is sealed. A rollback that fails has changed nothing,
and tells the steps that it came to in the error's details.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.errors import KaifsError, RollbackValidationError
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.findings import ValidationResult
from kaifs.service.integrity import prove_description
from kaifs.service.reference import get_agent, get_version
from kaifs.service.steps import Flush, Item, Step
from kaifs.service.switching import (
    finish_backup,
    open_target,
    refuse_foreign_mounts,
    show_target,
    switch_back,
)
from kaifs.tree.tree import Tree

log = logging.getLogger(__name__)

BACKUP: Final = "backup_current"
SWITCH: Final = "update_symlink"
VALIDATE: Final = "validate_rollback"
FAILED: Final = "rollback_failed"
"""Source: specification, rollbackToVersion."""
STEPS: Final = "steps"
"""Under what the details of an error hold the steps of the rollback that it ended."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to roll back to."""

    agent: str
    version: str


class BackupDetails(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="backup"):
    """Where the uncommitted changes of current are."""

    version: str | None
    """None: there were none."""
    hash: str | None


class SwitchDetails(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="switch"):
    """What current shows."""

    target_version: str
    target_path: str


class ValidationDetails(
    ValidationResult, frozen=True, kw_only=True, rename="camel", tag="validation"
):
    """What the validation of the target says."""


class RollbackStep(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The specification's RollbackStep."""

    step: str
    success: bool
    details: BackupDetails | SwitchDetails | ValidationDetails | None = None
    error: str | None = None


class RollbackResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's RollbackResult."""

    success: bool
    target_version: str
    previous_version: str | None
    """What current was based on before; None if on nothing, or if the rollback failed."""
    error: str | None = None
    """Why it failed: code, message and subject in one line."""
    steps: tuple[RollbackStep, ...]
    """In the order of the specification; of a failure those that it came to, the last being
    `rollback_failed`."""
    timestamp: str


Result = RollbackResult


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Roll back. Uncommitted changes are sealed first, as `NEXTPATCH-rollback.N`.

    Raises:
        InvalidVersionError: there is no such version.
        RollbackValidationError: it is not what its record says.
        ForeignMountError: something is mounted inside current.
        KaifsError: E105, E120, E121, E123, E139. Whatever it is, its details hold the steps.
    """
    told = _Told(params)
    try:
        return (yield from _roll_back(context, params, told))
    except KaifsError as error:
        told.add(RollbackStep(step=FAILED, success=False, error=str(error)))
        error.details[STEPS] = msgspec.to_builtins(told.steps)
        raise


def failed_steps(error: KaifsError) -> tuple[RollbackStep, ...]:
    """Return the steps of the rollback that *error* ended, also if it never got to the verb."""
    steps = error.details.get(STEPS)
    if steps is None:
        return (RollbackStep(step=FAILED, success=False, error=str(error)),)
    return msgspec.convert(steps, tuple[RollbackStep, ...])


@dataclass(slots=True)
class _Told:
    """The steps so far; each goes to the log too."""

    params: Params
    steps: list[RollbackStep] = field(default_factory=list)

    def add(self, step: RollbackStep) -> None:
        self.steps.append(step)
        target = f"{self.params.agent}@{self.params.version}"
        told = {"target": target, "step": step.step, "success": step.success}
        if step.details is not None:
            told["details"] = msgspec.to_builtins(step.details)
        if step.error is not None:
            told["error"] = step.error
        log.info("rollback_step", extra=told)

    @contextmanager
    def failing(self, name: str) -> Iterator[None]:
        """Tell an expected failure of what is inside as that of the step *name*."""
        try:
            yield
        except KaifsError as error:
            details = None
            if name == VALIDATE:
                details = ValidationDetails(valid=False, errors=(str(error),))
            self.add(RollbackStep(step=name, success=False, details=details, error=str(error)))
            raise


def _roll_back(
    context: Context, params: Params, told: _Told
) -> Generator[Step, Item | None, Result]:
    store = context.store
    agent = get_agent(store, params.agent)
    context.require_owner(agent)
    version = get_version(store, agent, params.version)
    with told.failing(SWITCH):
        refuse_foreign_mounts(context)
    with told.failing(VALIDATE):
        yield from prove_description(context, agent, version)
        clone = open_target(context, version)
    show_target(context, agent, version, clone)
    try:
        with told.failing(BACKUP):
            yield Flush()
        with told.failing(VALIDATE):
            _check_shown(context, agent, version, clone)
        with told.failing(BACKUP):
            backup = yield from finish_backup(context, agent.name)
    except BaseException:
        switch_back(context, agent.name, agent.head, agent.version)
        raise
    for step in _done(agent, version, backup):
        told.add(step)
    return RollbackResult(
        success=True,
        target_version=version.label,
        previous_version=agent.version or None,
        steps=tuple(told.steps),
        timestamp=format_time(store.clock.now_ns()),
    )


def _check_shown(context: Context, agent: AgentRecord, version: VersionRecord, clone: Tree) -> None:
    """Check that the agent's current is what the switch has made it."""
    shown = context.store.get_agent(agent.name)
    if (shown.head, shown.version) != (clone.root.root_id, version.label):
        raise RollbackValidationError(f"{agent.name}: current shows something else")


def _done(
    agent: AgentRecord, version: VersionRecord, backup: VersionRecord | None
) -> tuple[RollbackStep, ...]:
    path = f"{agent.name}/@versions/{version.label}"
    return (
        RollbackStep(
            step=BACKUP,
            success=True,
            details=BackupDetails(
                version=None if backup is None else backup.label,
                hash=None if backup is None else backup.hash,
            ),
        ),
        RollbackStep(
            step=SWITCH,
            success=True,
            details=SwitchDetails(target_version=version.label, target_path=path),
        ),
        RollbackStep(step=VALIDATE, success=True, details=ValidationDetails(valid=True)),
    )

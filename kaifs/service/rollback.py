"""Makes current show an older version; history is not erased."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.clock import format_time
from kaifs.service.context import Context
from kaifs.service.reference import get_agent, get_version
from kaifs.service.steps import Item, Step
from kaifs.service.switching import switch_current


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


class ValidationResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag="validation"):
    """The specification's ValidationResult."""

    valid: bool
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class RollbackStep(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The specification's RollbackStep."""

    step: str
    success: bool
    details: BackupDetails | SwitchDetails | ValidationResult | None = None
    error: str | None = None


class RollbackResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's RollbackResult. A rollback that fails raises instead."""

    success: bool
    target_version: str
    previous_version: str | None
    error: str | None = None
    steps: tuple[RollbackStep, ...]
    timestamp: str


Result = RollbackResult


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Roll back. Uncommitted changes are sealed first, as `NEXTPATCH-rollback.N`.

    Raises:
        InvalidVersionError: there is no such version.
        KaifsError: as `switch_current`; E105, E120, E121, E123.
    """
    store = context.store
    agent = get_agent(store, params.agent)
    context.require_owner(agent)
    version = get_version(store, agent, params.version)
    switched = yield from switch_current(context, agent, version)
    backup = switched.backup
    path = f"{agent.name}/@versions/{version.label}"
    steps = (
        RollbackStep(
            step="backup_current",
            success=True,
            details=BackupDetails(
                version=None if backup is None else backup.label,
                hash=None if backup is None else backup.hash,
            ),
        ),
        RollbackStep(
            step="update_symlink",
            success=True,
            details=SwitchDetails(target_version=version.label, target_path=path),
        ),
        RollbackStep(step="validate_rollback", success=True, details=ValidationResult(valid=True)),
    )
    return RollbackResult(
        success=True,
        target_version=version.label,
        previous_version=switched.previous or None,
        steps=steps,
        timestamp=format_time(store.clock.now_ns()),
    )

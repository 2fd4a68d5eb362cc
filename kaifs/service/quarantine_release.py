"""Gives a version in quarantine back, if it verifies again."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import msgspec

from kaifs.base.errors import StillDamagedError
from kaifs.service.aside import find_aside, spell_finding
from kaifs.service.context import Context
from kaifs.service.findings import Findings
from kaifs.service.steps import Commit, Item, Step
from kaifs.service.verify import Params as VerifyParams
from kaifs.service.verify import check_target


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Which version."""

    reference: str


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is back."""

    agent: str
    version: str
    warnings: tuple[str, ...]
    """What is not as it should be, and no damage: errors of other kinds, too."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Release a version; everything of it is read before.

    Raises:
        StillDamagedError: it does not verify; it stays where it is.
        NotInQuarantineError: it is not there.
        KaifsError: as `get_agent`; E105, E120.
    """
    name, _, label = params.reference.partition("@")
    find = partial(find_aside, context, name, label)
    agent, record = find()
    context.require_owner(agent)
    found: Findings = yield from check_target(
        context, VerifyParams(references=(params.reference,), full=True)
    )
    damage = [finding for finding in found.errors if finding.is_damage]
    if damage:
        lines = list(map(spell_finding, damage))
        raise StillDamagedError(f"{params.reference}: {lines[0]}", errors=lines)
    # Looked up again: others have run meanwhile. No step from here on.
    agent, again = find()
    if again.root == record.root:
        context.store.release_version(again)
    yield Commit()
    rest = (*found.errors, *found.warnings)
    return Result(agent=agent.name, version=label, warnings=tuple(map(spell_finding, rest)))

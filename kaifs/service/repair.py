"""Mends what breaks the store's invariants, as far as it can be derived from the rest."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.service.context import Context
from kaifs.service.fsck import Broken, describe
from kaifs.service.steps import Item, Progress, Step, tell
from kaifs.tree.repair import Repaired, repair_steps


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Nothing to choose."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was done, and what is left."""

    is_clean: bool
    repaired: tuple[str, ...]
    """A line for each thing that was mended."""
    findings: tuple[Broken, ...]
    """What cannot be mended."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Repair the store. What was mended is durable, also if this ends early.

    Raises:
        AccessDeniedError: the store is not the caller's.
        NoSpaceError, StoreIOError: the disk refuses.
    """
    del params
    context.require_store_owner("repairs it")
    repaired = yield from _repair(context)
    return Result(
        is_clean=not repaired.left,
        repaired=tuple(repaired.done),
        findings=describe(repaired.left),
    )


def _repair(context: Context) -> Generator[Step, Item | None, Repaired]:
    repairing = repair_steps(context.store)
    return (yield from tell(repairing, lambda done: Progress(done, 0, "records", "checking")))

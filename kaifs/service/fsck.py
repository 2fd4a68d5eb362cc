"""Checks every invariant of the store."""

from collections.abc import Generator

import msgspec

from kaifs.service.context import Context
from kaifs.service.steps import Item, Progress, Step, tell
from kaifs.tree.fsck import Finding, check_steps


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Nothing to choose."""


class Broken(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One invariant that does not hold."""

    number: int
    """Of the invariant; see docs/INVARIANTS.md."""
    subject: str
    text: str


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was found."""

    is_clean: bool
    findings: tuple[Broken, ...]


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Check the store; change nothing.

    Raises:
        AccessDeniedError: the store is not the caller's.
    """
    del params
    context.require_store_owner("checks it")
    found = yield from _check(context)
    return Result(is_clean=not found, findings=describe(found))


def describe(found: list[Finding]) -> tuple[Broken, ...]:
    """Return *found* as users see it."""
    return tuple(
        Broken(number=finding.number, subject=finding.subject, text=finding.text)
        for finding in found
    )


def _check(context: Context) -> Generator[Step, Item | None, list[Finding]]:
    checking = check_steps(context.store)
    return (yield from tell(checking, lambda done: Progress(done, 0, "records", "checking")))

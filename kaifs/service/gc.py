"""Frees what no root reaches."""

from collections.abc import Generator

import msgspec

from kaifs.service.context import Context
from kaifs.service.steps import Commit, Item, Progress, Step, tell
from kaifs.store.gc import CommitWanted, Freed, GcStep, collect


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Nothing to choose."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was freed."""

    nodes: int
    blocks: int
    segments: int
    freed: int
    """Bytes of segments given back to the disk, less what was copied."""
    moved: int
    """Bytes copied out of segments that were mostly dead."""
    stored: int
    """Bytes on disk now."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Free what no root reaches.

    Raises:
        AccessDeniedError: the store is not the caller's.
    """
    del params
    context.require_store_owner("collects garbage")
    freed = yield from _collect(context)
    return Result(
        nodes=freed.nodes,
        blocks=freed.blocks,
        segments=freed.segments,
        freed=freed.size,
        moved=freed.moved,
        stored=context.store.space().stored,
    )


def _collect(context: Context) -> Generator[Step, Item | None, Freed]:
    def step_of(found: GcStep) -> Step:
        if isinstance(found, CommitWanted):
            return Commit()
        return Progress(found.marked, 0, "nodes", "collecting")

    return (yield from tell(collect(context.store), step_of))

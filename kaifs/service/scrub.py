"""Reads everything that the store has, heals what it has twice, names what is damaged.

Where `verify` asks whether versions are what they were, this asks the disk: every
block of every tree and every record of the index, each once. What can be healed from
an identical copy is healed; then whatever holds a block that cannot is verified, which
sets damaged versions aside and tells administrators.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import BlockId, NodeId, RootId
from kaifs.meta import keys
from kaifs.meta.node import Branch
from kaifs.meta.records import ScrubRecord, ScrubTally, extent_block
from kaifs.service import verify
from kaifs.service.aside import Fallback
from kaifs.service.context import Context
from kaifs.service.steps import Commit, Item, Progress, Step, Work
from kaifs.service.verify import Validation
from kaifs.store.nodes import Nodes
from kaifs.store.scrub import FROM_START, CheckMirror, Read, Scrubbed, find_scrub, put_scrub, scrub

_STEP: Final = 500
"""Nodes read between two steps."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Nothing to choose."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was read, healed and found."""

    read_bytes: int
    healed_blocks: int
    healed_records: int
    damaged_blocks: int
    """Blocks that no copy can heal."""
    lost_records: tuple[str, ...]
    """Records of the index that are damaged in both copies."""
    validations: tuple[Validation, ...]
    """Of each version, current and snapshot that holds a damaged block."""
    fallbacks: tuple[Fallback, ...]


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Scrub the store.

    Raises:
        AccessDeniedError: the store is not the caller's.
        NoSpaceError, StoreIOError: the disk refuses.
    """
    del params
    context.require_store_owner("scrubs it")
    return (yield from scrub_store(context, lambda part: Work(part.run)))


Reading = TypeVar("Reading")


def scrub_store(
    context: Context, reading: Callable[[Read | CheckMirror], Reading], *, resumes: bool = False
) -> Generator[Step | Reading, Item | None, Result]:
    """Scrub the store, and remember that.

    Args:
        context: Of whom everything may be seen by.
        reading: Returns what to yield where something is to be read. When this goes on, that has
            been done.
        resumes: Go on where a scrub was interrupted, if one was, and keep in the store how far
            this one is.

    Raises:
        NoSpaceError, StoreIOError: the disk refuses.
    """
    store = context.store
    record = find_scrub(store)
    if not resumes or not record.started_ns:
        now = store.clock.now_ns()
        record = replace(record, started_ns=now, segment=FROM_START, so_far=ScrubTally())
    if store.is_dirty:
        # What is read is what the disk has.
        yield Commit()
    before = record.so_far
    results: list[verify.Result] = []
    handled = 0
    found = Scrubbed()
    steps = scrub(store, record.segment)
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as stop:
                found = stop.value
                break
            if not isinstance(step, Scrubbed):
                yield reading(step)
                continue
            if resumes and step.segment != record.segment:
                so_far = _sum(before, step.tally)
                record = replace(record, segment=step.segment, so_far=so_far)
                put_scrub(store, record)
                # Now, for it may be long until the end, or until somebody goes on.
                results += yield from _handle(context, step.damaged[handled:])
                handled = len(step.damaged)
            yield Progress(step.size, step.total, "bytes", "scrubbing")
    finally:
        steps.close()
    if found.healed or found.healed_records:
        yield Commit()
    results += yield from _handle(context, found.damaged[handled:])
    put_scrub(store, ScrubRecord(store.clock.now_ns(), _sum(before, found.tally)))
    yield Commit()
    return Result(
        read_bytes=found.size,
        healed_blocks=len(found.healed),
        healed_records=found.healed_records,
        damaged_blocks=len(found.damaged),
        lost_records=tuple(found.lost_records),
        validations=tuple(one for result in results for one in result.validations),
        fallbacks=tuple(one for result in results for one in result.fallbacks),
    )


def _handle(
    context: Context, damaged: list[BlockId]
) -> Generator[Step, Item | None, list[verify.Result]]:
    """Verify whatever holds one of the blocks: damaged versions are set aside by that."""
    references = []
    if damaged:
        references = yield from _holders(context, frozenset(damaged))
    if not references:
        return []
    params = verify.Params(references=tuple(references), full=True)
    return [(yield from verify.run(context, params))]


def _sum(one: ScrubTally, other: ScrubTally) -> ScrubTally:
    return ScrubTally(one.read + other.read, one.healed + other.healed, one.damaged + other.damaged)


def _holders(
    context: Context, blocks: Collection[BlockId]
) -> Generator[Step, Item | None, list[str]]:
    """Return references to every tree that names one of *blocks*. Shared nodes are read once."""
    names: list[str] = []
    clean: set[NodeId] = set()
    for reference, root_id in list(_views(context)):
        if not context.store.has_root(root_id):
            continue
        try:
            with context.frozen(root_id) as tree:
                is_hit = yield from _is_hit(context.store.nodes, tree.root.top, blocks, clean)
        except StoreDamagedError:
            # A tree that cannot be walked is damaged as well.
            is_hit = True
        if is_hit:
            names.append(reference)
    return names


def _views(context: Context) -> Iterator[tuple[str, RootId]]:
    store = context.store
    for agent in store.agents():
        yield agent.name, agent.head
        for version in store.versions(agent.agent_id):
            yield f"{agent.name}@{version.label}", version.root
        for snapshot in store.snapshots(agent.agent_id):
            yield f"{agent.name}/@snapshots/{snapshot.name}", snapshot.root


def _is_hit(
    nodes: Nodes, top: NodeId, blocks: Collection[BlockId], clean: set[NodeId]
) -> Generator[Step, Item | None, bool]:
    """Return whether an extent below the node *top* names one of *blocks*.

    *clean* are nodes below which none does; it grows by those of a tree that is not hit.
    """
    seen: set[NodeId] = set()
    waiting = [top]
    while waiting:
        node_id = waiting.pop()
        if node_id in clean or node_id in seen:
            continue
        seen.add(node_id)
        if len(seen) % _STEP == 0:
            yield Progress(len(seen), 0, "nodes", "naming what is damaged")
        node = nodes.peek(node_id)
        if isinstance(node, Branch):
            waiting.extend(node.children)
        elif any(
            keys.split_key(key)[1] == keys.EXTENT and extent_block(value) in blocks
            for key, value in zip(node.keys, node.values, strict=True)
        ):
            return True
    clean |= seen
    return False

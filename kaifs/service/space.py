"""Who takes how much: stored bytes that only one root, or only one agent, reaches.

Each node and block is marked with the root that first reached it, then with the
agent once another root of that agent does, then as everybody's. What a mark says
already is not entered again, so each node is read three times at most, however
many roots there are. The result holds for one epoch and is kept for as long.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import BlockId, NodeId, RootId
from kaifs.meta import keys
from kaifs.meta.database import Table
from kaifs.meta.node import Leaf
from kaifs.meta.records import RootKind, SnapshotRecord, extent_block
from kaifs.service.context import Context
from kaifs.service.steps import Item, Progress, Step
from kaifs.store.differing import differing
from kaifs.store.store import RUN_FOLDER, Store
from kaifs.tree.tree import Tree

QUICK: Final = 100_000
"""Nodes and blocks that are measured in about a second."""
_CACHE_NAME: Final = "space"
"""In the run folder: what was measured last."""
_STEP: Final = 64
"""Nodes or blocks handled between two yields: some 2 ms."""
_KEYS_AT_ONCE: Final = 4096
"""Differing keys looked at between two yields: some 2 ms."""
_PAGE: Final = 8
"""Bits of a number that are its place in a page."""

_NOBODY: Final = 0
_EVERYBODY: Final = -(1 << 31)


class Measured(msgspec.Struct, frozen=True, array_like=True):
    """Stored bytes by who alone reaches them."""

    roots: dict[int, int]
    agents: dict[int, int]
    """By the agent's id: one or several of its roots."""


class _Cached(msgspec.Struct, frozen=True, array_like=True):
    """What was measured of a store, and when."""

    uuid: str
    epoch: int
    measured: Measured


def showing_roots(store: Store) -> dict[RootId, RootId]:
    """Return for each root the one on whose account it is: itself, but for clones of a snapshot.

    What a snapshot keeps to be compared with goes when it goes.
    """
    # What is unreadable counts nothing; fsck tells it.
    found = {root: root for root in store.root_ids() if store.find_root(root) is not None}
    for agent in store.agents():
        for snapshot in store.snapshots(agent.agent_id):
            for kept in (snapshot.base, snapshot.tested):
                is_whole = kept in found and snapshot.root in found
                if is_whole and store.root(kept).kind is RootKind.NONE:
                    found[kept] = snapshot.root
    return found


def measure(store: Store) -> Generator[Step, Item | None, Measured]:
    """Return what roots and agents have to themselves. O(nodes), or nothing if nothing changed."""
    cached = _find_cached(store)
    if cached is not None:
        return cached
    is_kept = not store.is_dirty
    epoch = store.epoch
    measured = yield from _Measuring(store).run()
    if is_kept and epoch == store.epoch and not store.is_dirty:
        _keep(store, measured)
    return measured


def is_quick(store: Store) -> bool:
    """Return whether `measure` takes about a second at most. O(1)."""
    records = store.database.count(Table.NODES) + store.database.count(Table.BLOCKS)
    return records <= QUICK or _find_cached(store) is not None


@dataclass(frozen=True, slots=True)
class _Owner:
    """Who reaches what is marked next."""

    root: int
    """Number of the root on whose account it is, from 1."""
    agent: int
    """Number of its agent, from 1."""


class _Measuring:
    """One walk over all trees of a store.

    It does not hold them still: of what is written meanwhile it counts some, some not.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._accounts = showing_roots(store)
        shown = sorted(set(self._accounts.values()))
        self._agents = sorted({store.root(root).agent_id for root in shown})
        agent_numbers = {agent: number for number, agent in enumerate(self._agents, 1)}
        self._shown = shown
        self._owners = {
            root: _Owner(number, agent_numbers[store.root(root).agent_id])
            for number, root in enumerate(shown, 1)
        }
        self._agent_of = [0, *(self._owners[root].agent for root in shown)]
        self._done = 0
        self._nodes = _Marks()
        self._blocks = _Marks()

    def run(self) -> Generator[Step, Item | None, Measured]:
        for root, account in self._accounts.items():
            if self._store.has_root(root):
                yield from self._walk(root, self._owners[account])
        return (yield from self._sum())

    def _walk(self, root_id: RootId, owner: _Owner) -> Generator[Step, Item | None, None]:
        store = self._store
        root = store.root(root_id)
        top = root.top
        stack: list[NodeId] = [top]
        while stack:
            node_id = stack.pop()
            if not self._mark(self._nodes, node_id, owner):
                continue
            try:
                node = store.nodes.peek(node_id)
            except StoreDamagedError:
                if not store.has_root(root_id):
                    return
                if root.top == top:
                    # It is damaged: what hangs below counts nothing.
                    continue
                # The tree was changed at one of our steps: begin with what it is now.
                top = root.top
                stack = [top]
                continue
            if isinstance(node, Leaf):
                for block in _blocks_of(node):
                    self._mark(self._blocks, block, owner)
            else:
                stack += node.children
            self._done += 1
            if self._done % _STEP == 0:
                yield Progress(self._done, 0, "nodes", "measuring")

    def _mark(self, marks: _Marks, number: int, owner: _Owner) -> bool:
        """Mark a node or block as reached by *owner*. Return whether that is news."""
        mark = marks.get(number)
        if mark in (owner.root, -owner.agent, _EVERYBODY):
            return False
        if mark == _NOBODY:
            marks.put(number, owner.root)
        elif mark > 0 and self._agent_of[mark] == owner.agent:
            marks.put(number, -owner.agent)
        else:
            marks.put(number, _EVERYBODY)
        return True

    def _sum(self) -> Generator[Step, Item | None, Measured]:
        roots = [0] * (len(self._shown) + 1)
        agents = [0] * (len(self._agents) + 1)
        for done, (block, mark) in enumerate(self._blocks.items()):
            if mark == _EVERYBODY:
                continue
            record = None
            with suppress(StoreDamagedError):
                record = self._store.payload.find_record(BlockId(block))
            size = 0 if record is None else record.stored_size
            if mark > 0:
                roots[mark] += size
                agents[self._agent_of[mark]] += size
            else:
                agents[-mark] += size
            if done % _STEP == 0:
                yield Progress(done, 0, "blocks", "measuring")
        return Measured(
            dict(zip(self._shown, roots[1:], strict=True)),
            dict(zip(self._agents, agents[1:], strict=True)),
        )


class _Marks:
    """A small number for each of many numbers that lie together: 4 bytes each, not a hundred."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}

    def get(self, number: int) -> int:
        page = self._pages.get(number >> _PAGE)
        return 0 if page is None else page[number & (1 << _PAGE) - 1]

    def put(self, number: int, mark: int) -> None:
        page = self._pages.get(number >> _PAGE)
        if page is None:
            page = self._pages[number >> _PAGE] = array("i", bytes(4 << _PAGE))
        page[number & (1 << _PAGE) - 1] = mark

    def items(self) -> Iterator[tuple[int, int]]:
        for first, page in self._pages.items():
            for place, mark in enumerate(page):
                if mark:
                    yield (first << _PAGE) + place, mark


def _blocks_of(leaf: Leaf) -> Iterator[BlockId]:
    for key, value in zip(leaf.keys, leaf.values, strict=True):
        if key[keys.PREFIX_SIZE - 1] == keys.EXTENT and (block := extent_block(value)):
            yield block


def snapshot_size(context: Context, snapshot: SnapshotRecord) -> Generator[Step, Item | None, int]:
    """Return the stored bytes that a snapshot, and what is kept for it, has beside its base.

    Blocks that were there before it do not count. O(what changed in it).
    """
    store = context.store
    root = store.root(snapshot.root)
    if not store.has_root(snapshot.base):
        # What it came from is gone: what was counted as it was written will have to do.
        return root.own
    trees = [
        context.forest.tree(one) for one in (snapshot.root, snapshot.tested) if store.has_root(one)
    ]
    blocks: set[BlockId] = set()
    base = context.forest.tree(snapshot.base)
    try:
        for _ in _new_blocks(base, trees, blocks, _KEYS_AT_ONCE):
            pass
    except _TooManyError:
        with ExitStack() as held:
            frozen = [held.enter_context(context.frozen(tree.root.root_id)) for tree in trees]
            base = held.enter_context(context.frozen(snapshot.base))
            yield from _new_blocks(base, frozen, blocks, None)
    records = (store.payload.find_record(block) for block in blocks if block >= root.first_block)
    return sum(record.stored_size for record in records if record is not None)


class _TooManyError(Exception):
    """More differs than can be looked at in one step."""


def _new_blocks(
    base: Tree, trees: list[Tree], found: set[BlockId], limit: int | None
) -> Generator[Step, Item | None, None]:
    """Put the blocks into *found* that *trees* name where they differ from *base*."""
    done = 0
    for tree in trees:
        for key, _, value in differing(base.store.nodes, base.root.top, tree.root.top):
            if value is not None and key[keys.PREFIX_SIZE - 1] == keys.EXTENT:
                found.add(extent_block(value))
            done += 1
            if limit is not None and done > limit:
                raise _TooManyError
            if limit is None and done % _KEYS_AT_ONCE == 0:
                yield Progress(done, 0, "keys", "measuring")


def _cache_path(store: Store) -> Path:
    return store.path / RUN_FOLDER / _CACHE_NAME


def _find_cached(store: Store) -> Measured | None:
    """Return what was measured in this epoch, if nothing has changed since."""
    if store.is_dirty:
        return None
    with suppress(OSError, msgspec.MsgspecError):
        cached = msgspec.msgpack.decode(_cache_path(store).read_bytes(), type=_Cached)
        if (cached.uuid, cached.epoch) == (store.uuid, store.epoch):
            return cached.measured
    return None


def _keep(store: Store, measured: Measured) -> None:
    """Keep what was measured. Where that cannot be done it is measured again."""
    path = _cache_path(store)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        try:
            fresh.write_bytes(msgspec.msgpack.encode(_Cached(store.uuid, store.epoch, measured)))
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

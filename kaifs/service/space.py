"""Who takes how much: bytes that only one owner reaches.

An owner is a root, or several. Each node and block gets an owner when it is
first reached, and becomes shared when another one reaches it. What an owner, or
everybody, has already is not entered again, so the cost is O(nodes), not
O(roots x nodes).
"""

from collections.abc import Generator, Mapping
from typing import Final

from kaifs.base.types import BlockId, NodeId, RootId
from kaifs.meta import keys
from kaifs.meta.node import Leaf
from kaifs.meta.records import RootKind, extent_block
from kaifs.service.steps import Item, Progress, Step
from kaifs.store.store import Store

_SHARED: Final = -1
_STEP: Final = 512


def showing_roots(store: Store) -> dict[RootId, RootId]:
    """Return for each root the one on whose account it is: itself, but for clones of a snapshot.

    What a snapshot keeps to be compared with goes when it goes.
    """
    found = {root: root for root in store.root_ids()}
    for agent in store.agents():
        for snapshot in store.snapshots(agent.agent_id):
            for kept in (snapshot.base, snapshot.tested):
                if kept in found and store.root(kept).kind is RootKind.NONE:
                    found[kept] = snapshot.root
    return found


def own_sizes(
    store: Store, owners: Mapping[RootId, int]
) -> Generator[Step, Item | None, dict[int, int]]:
    """Return for each owner the stored bytes of the blocks that no other owner reaches.

    Args:
        store: The store.
        owners: Which owner, a number from 0, each root belongs to.
    """
    node_owner: dict[NodeId, int] = {}
    block_owner: dict[BlockId, int] = {}
    done = 0
    for root, owner in owners.items():
        stack = [store.root(root).top]
        while stack:
            node_id = stack.pop()
            before = node_owner.get(node_id)
            if before in (_SHARED, owner):
                continue
            node_owner[node_id] = owner if before is None else _SHARED
            node = store.nodes.peek(node_id)
            if isinstance(node, Leaf):
                _own_blocks(node, owner, block_owner)
            else:
                stack += node.children
            done += 1
            if done % _STEP == 0:
                yield Progress(done, 0, "nodes", "measuring")
    sizes = dict.fromkeys(owners.values(), 0)
    for block, owner in block_owner.items():
        if owner != _SHARED:
            record = store.payload.find_record(block)
            sizes[owner] += 0 if record is None else record.stored_size
    return sizes


def _own_blocks(leaf: Leaf, owner: int, block_owner: dict[BlockId, int]) -> None:
    for key, value in zip(leaf.keys, leaf.values, strict=True):
        if key[keys.PREFIX_SIZE - 1] == keys.EXTENT and (block := extent_block(value)):
            before = block_owner.setdefault(block, owner)
            if before != owner:
                block_owner[block] = _SHARED

"""All trees of a store: opening, making and cloning them."""

from __future__ import annotations

import logging
from collections.abc import Collection

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import RootId
from kaifs.meta.records import RootKind, RootState
from kaifs.store.roots import Root
from kaifs.store.store import Store
from kaifs.tree.manifest import Manifests
from kaifs.tree.tree import Tree

log = logging.getLogger(__name__)


class Forest:
    """The trees of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._trees: dict[RootId, Tree] = {}
        self.manifests = Manifests()
        """Keeps what was rendered, for all who render."""

    def tree(self, root_id: RootId) -> Tree:
        """Return the tree of a root.

        Raises:
            StoreDamagedError: there is no such root.
        """
        tree = self._trees.get(root_id)
        root = self.store.root(root_id)
        # After `abandon` the store has other objects for the same roots.
        if tree is None or tree.root is not root:
            tree = self._trees[root_id] = Tree(self.store, root)
        return tree

    def new_tree(self, mode: int, uid: int, gid: int) -> Tree:
        """Return a new tree with a top directory only, of nobody and still being built."""
        tree = self.tree(self.store.new_root().root_id)
        tree.make_top(mode, uid, gid, self.store.clock.now_ns())
        return tree

    def clone(self, source: Tree) -> Tree:
        """Return a clone of *source*, of nobody and still being built.

        O(1), and O(orphans) if *source* has some: they are held by processes that
        know *source*, so the clone is without them.
        """
        tree = self.tree(self.store.clone_root(source.root).root_id)
        tree.reap_all()
        return tree

    def drop(self, root_id: RootId) -> None:
        """Delete a root that nobody shows any more."""
        self._trees.pop(root_id, None)
        self.manifests.forget(root_id)
        self.store.drop_root(root_id)

    def recover(self, *, is_served: bool = False, going_on: Collection[RootId] = ()) -> None:
        """After opening a store: drop what was being built, reap what nobody holds any more.

        A snapshot that was being tested gets test_error; one that was committed goes.

        A head whose backup is due is left as it is, for the verb that seals it.

        Args:
            is_served: The mount of another process goes on here. Orphans and superseded roots
                may be open, and stay until somebody opens the store for whom they are not.
            going_on: Roots in which tests run whose report comes here.
        """
        for root_id in self.store.unfinished_roots():
            if root_id in going_on:
                continue
            try:
                self._recover(root_id, is_served=is_served)
            except StoreDamagedError as error:
                # The rest of the store can be used all the same; fsck tells what is wrong.
                log.warning("not_recovered", extra={"root": root_id, "error": str(error)})

    def _recover(self, root_id: RootId, *, is_served: bool) -> None:
        if not self.store.has_root(root_id):
            self.store.finish_root(root_id)
            return
        root = self.store.root(root_id)
        if self.has_due_backup(root):
            return
        self.store.recover_snapshot(root)
        if is_served and root.state is not RootState.BUILDING:
            return
        if root.is_passing:
            self.drop(root_id)
        else:
            self.tree(root_id).reap_all()
            self.store.finish_root(root_id)

    def has_due_backup(self, root: Root) -> bool:
        """Return whether *root* was a head and is still to be sealed as a backup."""
        if root.kind is not RootKind.HEAD:
            return False
        agent = self.store.agent_by_id(root.agent_id)
        return agent is not None and agent.superseded == root.root_id

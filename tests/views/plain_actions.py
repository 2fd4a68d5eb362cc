"""The verbs that views and mounted tests need, straight on the store: no labels bumped, no records."""

import os
from collections.abc import Generator

import msgspec

from kaifs.base.errors import DirectoryNotEmptyError
from kaifs.base.types import RootId
from kaifs.meta.records import RootState, SnapshotRecord, VersionRecord
from kaifs.tree.forest import Forest
from kaifs.tree.manifest import Manifests
from kaifs.tree.seal import SealedTree, seal
from kaifs.views.attributes import Caller


class PlainActions:
    """`Actions` of the name space, and seal and rollback in their simplest form."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.store = forest.store

    def make_agent(self, name: str, caller: Caller) -> None:
        self.make_agent_owned(name, caller.uid, caller.gid)

    def make_agent_owned(self, name: str, uid: int, gid: int) -> None:
        tree = self.forest.new_tree(0o755, uid, gid)
        self.store.add_agent(name, uid, gid, tree.root)
        self.store.set_root_state(tree.root, RootState.WRITABLE)

    def remove_agent(self, name: str, caller: Caller) -> None:
        agent = self.store.get_agent(name)
        if self.store.versions(agent.agent_id) or self.store.snapshots(agent.agent_id):
            raise DirectoryNotEmptyError(name)
        self.store.remove_agent(name)

    def make_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        self.snapshot(agent, name, caller.uid, caller.gid)

    def snapshot(
        self, agent: str, name: str, uid: int | None = None, gid: int | None = None
    ) -> None:
        record = self.store.get_agent(agent)
        self.store.check_new_snapshot(record, name)
        base = self.forest.clone(self.forest.tree(record.head))
        self.store.set_root_state(base.root, RootState.SEALED)
        clone = self.forest.clone(base)
        self.store.add_snapshot(
            SnapshotRecord(
                agent_id=record.agent_id,
                name=name,
                root=clone.root.root_id,
                base=base.root.root_id,
                version=record.version,
                status="ready",
                read_only=False,
                uid=os.getuid() if uid is None else uid,
                gid=os.getgid() if gid is None else gid,
                created_ns=self.store.clock.now_ns(),
            )
        )

    def discard_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        self.discard(agent, name)

    def discard(self, agent: str, name: str) -> None:
        self.store.remove_snapshot(self.store.get_agent(agent).agent_id, name)

    def rename_snapshot(self, agent: str, name: str, new_name: str, caller: Caller) -> None:
        record = self.store.get_agent(agent)
        self.store.check_new_snapshot(record, new_name)
        self.store.rename_snapshot(self.store.get_snapshot(record, name), new_name)

    def seal(self, agent: str, label: str) -> RootId:
        record = self.store.get_agent(agent)
        sealed = self._sealed(record.head)
        root = sealed.tree.root
        parent = record.version or None
        self.store.add_version(
            VersionRecord(
                agent_id=record.agent_id,
                label=label,
                root=root.root_id,
                record=msgspec.json.encode({"version": label, "parent": parent}),
                hash=sealed.hash,
                created_ns=self.store.clock.now_ns(),
                size=root.size,
                inodes=root.inodes,
            )
        )
        changed = msgspec.structs.replace(self.store.get_agent(agent), version=label)
        self.store.put_agent(changed)
        return root.root_id

    def _sealed(self, head: RootId) -> SealedTree:
        finished: list[SealedTree] = []

        def run() -> Generator[int, None, None]:
            source = self.forest.tree(head)
            finished.append((yield from seal(self.forest, Manifests(), source, None)))

        for _ in run():
            pass
        return finished[0]

    def rollback(self, agent: str, label: str) -> RootId:
        record = self.store.get_agent(agent)
        version = self.store.get_version(record, label)
        old = self.store.root(record.head)
        clone = self.forest.clone(self.forest.tree(version.root))
        self.store.switch_head(record, clone.root, label)
        self.store.set_root_state(old, RootState.SUPERSEDED)
        return clone.root.root_id

    def remove_version(self, agent: str, label: str) -> None:
        self.store.remove_version(self.store.get_agent(agent).agent_id, label)

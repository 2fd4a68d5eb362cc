"""A store with one agent, and the verbs of it in their shortest form."""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from kaifs.base.clock import ManualClock
from kaifs.base.types import TOP_INO, Ino
from kaifs.blocks.device import Device
from kaifs.meta.records import AgentRecord, RootState, SnapshotRecord, VersionRecord
from kaifs.store.store import Store, StoreOptions
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from kaifs.tree.manifest import Manifests
from kaifs.tree.seal import SealedTree, seal
from kaifs.tree.tree import Tree

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
AGENT = "a"

R = TypeVar("R")


def exhaust(steps: Generator[Any, Any, R]) -> R:
    """Run *steps* to their end and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result


class Grove:
    """One agent's trees in a store of its own. Each change happens at another moment."""

    def __init__(
        self, path: Path, options: StoreOptions | None = None, device: Device | None = None
    ) -> None:
        self.path = path
        self.options = options or StoreOptions()
        self.clock = ManualClock(1_000_000_000)
        self.store = Store.create(path, clock=self.clock, options=self.options, device=device)
        self._begin()
        self.store.add_agent(AGENT, 0, 0, self.forest.new_tree(0o755, 0, 0).root)

    @classmethod
    def opened(
        cls, path: Path, options: StoreOptions | None = None, device: Device | None = None
    ) -> Grove:
        """Open a grove that was made before."""
        grove = cls.__new__(cls)
        grove.path = path
        grove.options = options or StoreOptions()
        grove.clock = ManualClock(2_000_000_000)
        grove.store = Store.open(path, clock=grove.clock, options=grove.options, device=device)
        grove._begin()
        grove.forest.recover()
        return grove

    def _begin(self) -> None:
        self.forest = Forest(self.store)
        self.manifests = Manifests()

    def reopen(self, *, commit: bool = True) -> None:
        """Close the store and open it as a new process would."""
        self.store.close(commit=commit)
        self.store = Store.open(self.path, clock=self.clock, options=self.options)
        self._begin()
        self.forest.recover()

    @property
    def now_ns(self) -> int:
        """A moment later than the one before."""
        self.clock.advance_ns(1000)
        return self.clock.now_ns()

    @property
    def agent(self) -> AgentRecord:
        """The agent as it is now."""
        return self.store.get_agent(AGENT)

    @property
    def current(self) -> Tree:
        """The tree that the agent's current shows."""
        return self.forest.tree(self.agent.head)

    def version(self, label: str) -> Tree:
        """Return the tree of a version."""
        return self.forest.tree(self.store.get_version(self.agent, label).root)

    def put(self, path: bytes, payload: bytes = b"", tree: Tree | None = None) -> Ino:
        """Make the file *path*, with the directories above it, or replace what it holds."""
        tree = tree or self.current
        *above, name = path.split(b"/")
        parent = TOP_INO
        for one in above:
            found = tree.find(parent, one)
            parent = found or tree.make(parent, one, DIRECTORY, 0, 0, self.now_ns)
        ino = tree.find(parent, name)
        if ino is None:
            ino = tree.make(parent, name, FILE, 0, 0, self.now_ns)
        tree.truncate(ino, 0, self.now_ns)
        tree.write(ino, 0, payload, self.now_ns)
        return ino

    def seal(self, label: str, source: Tree | None = None) -> SealedTree:
        """Seal *source* or current as the version *label*, from the version it is based on."""
        source = source or self.current
        base = self.store.find_version(self.agent.agent_id, self.agent.version)
        base_tree = None if base is None else self.forest.tree(base.root)
        sealed = exhaust(seal(self.forest, self.manifests, source, base_tree))
        self.add_version(label, sealed)
        self.store.put_agent(replace(self.agent, version=label))
        return sealed

    def seal_as_text(self, label: str) -> bytes:
        """Seal current as the version *label* and return its manifest."""
        return self.manifests.render(self.seal(label).tree)

    def add_version(self, label: str, sealed: SealedTree) -> None:
        """Let *sealed* be the version *label*."""
        root = sealed.tree.root
        version = VersionRecord(
            agent_id=self.agent.agent_id,
            label=label,
            root=root.root_id,
            record=b"{}",
            hash=sealed.hash,
            created_ns=self.now_ns,
            size=root.size,
            inodes=root.inodes,
        )
        self.store.add_version(version)

    def snapshot(self, name: str, source: Tree | None = None, *, read_only: bool = False) -> Tree:
        """Make a snapshot of *source* or current."""
        source = source or self.current
        clone = self.forest.clone(source)
        base = self.forest.clone(source)
        self.store.set_root_state(base.root, RootState.SEALED)
        snapshot = SnapshotRecord(
            agent_id=self.agent.agent_id,
            name=name,
            root=clone.root.root_id,
            base=base.root.root_id,
            version="",
            status="ready",
            read_only=read_only,
            uid=0,
            gid=0,
            created_ns=self.now_ns,
        )
        self.store.add_snapshot(snapshot)
        return clone

    def rollback(self, label: str) -> None:
        """Let current show a version; the old head is dropped, as when nobody knows it."""
        clone = self.forest.clone(self.version(label))
        old = self.agent.head
        self.store.switch_head(self.agent, clone.root, label)
        self.forest.drop(old)

    def check(self) -> None:
        """Check every invariant."""
        assert [str(finding) for finding in check(self.store)] == []


Plant = Callable[..., Grove]


@contextmanager
def planted(path: Path, *args: Any, **options: Any) -> Iterator[Grove]:
    """Make a grove in *path*, check it when done, and let it go."""
    grove = Grove(path, *args, **options)
    try:
        yield grove
        grove.check()
    finally:
        grove.store.close(commit=False)


def listing(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    """Return everything that a user sees of *tree*, inode numbers and times aside."""
    found: dict[bytes, tuple[object, ...]] = {}
    for path, ino, inode in ((entry.path, entry.ino, entry.inode) for entry in tree.walk()):
        kind = stat.S_IFMT(inode.mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = tree.read(ino, 0, inode.size)
        elif kind == stat.S_IFLNK:
            content = tree.readlink(ino)
        owner = (inode.mode, inode.uid, inode.gid, inode.rdev)
        found[path] = (*owner, content, tuple(sorted(tree.xattrs(ino).items())))
    return found


def assert_known(grove: Grove, sealed: SealedTree) -> None:
    """Check that what was kept of other trees gives what a fresh rendering gives."""
    fresh = Manifests()
    assert grove.manifests.render(sealed.tree) == fresh.render(sealed.tree)
    assert sealed.hash == fresh.hash(sealed.tree)
    assert sealed.tree_digest == fresh.tree_digest(sealed.tree)

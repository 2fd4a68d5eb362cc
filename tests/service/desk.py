"""A store that tests run verbs on, and folders to import."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from kaifs.base.clock import ManualClock
from kaifs.base.types import Ino
from kaifs.service import embedded
from kaifs.service.context import Caller, Context
from kaifs.service.host_source import HostSource
from kaifs.service.host_target import FolderTarget, feeder
from kaifs.service.record import Description
from kaifs.service.steps import OnProgress, Signer, Source
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.tree import Tree

OWNER = Caller(os.getuid(), os.getgid())
STRANGER = Caller(54321, 54321)


class Desk:
    """A new store, open; verbs run on it as the daemon runs them: nothing is abandoned."""

    def __init__(self, path: Path, *, is_new: bool = True) -> None:
        self.clock = ManualClock()
        self.path = path
        if is_new:
            Store.create(path, clock=self.clock).close()
        self._open()

    def _open(self) -> None:
        self.store = Store.open(self.path, clock=self.clock)
        self.forest = Forest(self.store)
        self.forest.recover()
        self.context = Context(self.store, self.forest, OWNER)

    def reopen(self) -> None:
        """Close and open the store again, as a process that starts does."""
        self.store.close()
        self._open()

    def crashed(self, path: Path) -> "Desk":
        """Return what a process finds that starts after this one died: a copy of the files."""
        shutil.copytree(self.path, path)
        return Desk(path, is_new=False)

    def run(
        self,
        verb: str,
        *,
        caller: Caller = OWNER,
        items: Source | None = None,
        output: bytearray | None = None,
        on_progress: OnProgress | None = None,
        signer: Signer | None = None,
        **params: Any,
    ) -> Any:
        """Run *verb* and return its result."""
        self.clock.advance_ns(1_000_000_000)
        context = replace(self.context, caller=caller)
        found = VERBS[verb]
        take = None if output is None else output.extend
        return embedded.run(
            context, found, found.params(**params), items, on_progress, take, signer
        )

    def take(self, agent: str, label: str, folder: Path, **description: Any) -> Any:
        """Import *folder*."""
        return self.run(
            "import",
            items=iter(HostSource(folder, self.path)),
            agent=agent,
            label=label,
            description=Description(**description),
        )

    def export(self, reference: str, folder: Path) -> FolderTarget:
        """Export to *folder*."""
        target = FolderTarget(folder)
        try:
            context = self.context
            params = VERBS["export"].params(reference=reference)
            embedded.run(context, VERBS["export"], params, on_output=feeder(target))
        finally:
            target.abandon()
        return target

    def current(self, agent: str) -> Tree:
        """Return the tree of an agent's current."""
        return self.forest.tree(self.store.get_agent(agent).head)

    def write(self, agent: str, path: bytes, payload: bytes) -> Ino:
        """Put *payload* into a file of current, which is made if need be."""
        tree = self.current(agent)
        folder, _, name = path.rpartition(b"/")
        parent = tree.resolve(folder)
        ino = tree.find(parent, name)
        now_ns = self.clock.now_ns()
        if ino is None:
            ino = tree.make(parent, name, 0o644, OWNER.uid, OWNER.gid, now_ns)
        tree.truncate(ino, 0, now_ns)
        tree.write(ino, 0, payload, now_ns)
        return ino

    def read(self, tree: Tree, path: bytes) -> bytes:
        """Return what a file holds."""
        ino = tree.resolve(path)
        return tree.read(ino, 0, tree.inode(ino).size)

    def state(self) -> bytes:
        """Return everything that the registry says, to compare before with after."""
        store = self.store
        agents = store.agents()
        return msgspec.json.encode(
            [
                [agents, store.root_ids()],
                [[version.label for version in store.versions(a.agent_id)] for a in agents],
                [store.snapshots(agent.agent_id) for agent in agents],
            ]
        )


@dataclass(frozen=True, slots=True)
class Fact:
    """What is to survive an import and an export."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes
    xattrs: dict[str, bytes]
    same_as: bytes
    """The first path of the same inode."""


def facts(folder: Path) -> dict[bytes, Fact]:
    """Return what is in *folder*, by path."""
    first: dict[int, bytes] = {}
    found = {}
    top = os.fsencode(folder)
    for path in [top, *sorted(_walk(top))]:
        status = os.lstat(path)
        shown = os.path.relpath(path, top)
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        is_directory = stat.S_ISDIR(status.st_mode)
        same_as = shown if is_directory else first.setdefault(status.st_ino, shown)
        found[shown] = Fact(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            content,
            xattrs,
            same_as,
        )
    return found


def _walk(top: bytes) -> Iterator[bytes]:
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            yield os.path.join(folder, name)

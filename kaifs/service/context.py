"""What a verb works on, and who asked for it.

Store owner and root may do all; the owner of an agent's folder that agent's
verbs; others only read, and only what modes let them read.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kaifs.base.errors import AccessDeniedError
from kaifs.base.types import RootId
from kaifs.meta.records import AgentRecord, InodeRecord
from kaifs.service.alerts import Alert
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.manifest import Manifests
from kaifs.tree.tree import Tree

READ = 4
WRITE = 2
SEARCH = 1


@dataclass(frozen=True, slots=True)
class Caller:
    """The user who asked for a verb, as the system vouches for it."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """Supplementary groups, if they are known: the kernel does not tell those of a mount's users,
    whose modes it checks itself."""


def this_caller() -> Caller:
    """Return the user of this process, with whose rights it opens files."""
    return Caller(os.geteuid(), os.getegid(), frozenset(os.getgroups()))


def no_alert(alert: Alert) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Context:
    """A store that is open, and the caller whose rights count."""

    store: Store
    forest: Forest
    caller: Caller
    mountpoint: Path | None = None
    """Where the whole store is mounted, if it is."""
    mounted: tuple[Path, ...] = ()
    """Where the store, an agent's folder or a view of it is mounted."""
    alert: Callable[[Alert], None] = no_alert
    """Tells administrators. Does not block and does not fail."""
    scrub_ns: int = 0
    """From the end of a scrub to the next one in the background; 0: none."""

    @property
    def manifests(self) -> Manifests:
        """Renders manifests, and keeps what was rendered."""
        return self.forest.manifests

    def owns_store(self) -> bool:
        """Return whether the caller may do everything."""
        return self.caller.uid in (0, os.stat(self.store.path).st_uid)

    def require_store_owner(self, does: str) -> None:
        """Check that the caller may do everything.

        Raises:
            AccessDeniedError: only the store's owner *does* that.
        """
        if not self.owns_store():
            raise AccessDeniedError(f"only the store's owner {does}")

    def owns(self, agent: AgentRecord) -> bool:
        """Return whether the caller may do everything to *agent*."""
        return self.caller.uid == agent.uid or self.owns_store()

    def require_maker(self) -> None:
        """Check that the caller may add an agent.

        Raises:
            AccessDeniedError: the store's folder is not theirs to write to.
        """
        status = os.stat(self.store.path)
        if not self.owns_store() and not _allows(
            self.caller, status.st_uid, status.st_gid, status.st_mode, WRITE | SEARCH
        ):
            raise AccessDeniedError("only the store's owner adds agents")

    def require_owner(self, agent: AgentRecord) -> None:
        """Check that the caller may change *agent*.

        Raises:
            AccessDeniedError: they own neither the store nor the agent.
        """
        if not self.owns(agent):
            raise AccessDeniedError(agent.name)

    def require_reader(self, agent: AgentRecord) -> None:
        """Check that the caller may look into *agent*.

        Raises:
            AccessDeniedError: the mode of the agent's folder keeps them out.
        """
        if not self.owns(agent) and not _allows(
            self.caller, agent.uid, agent.gid, agent.mode, READ | SEARCH
        ):
            raise AccessDeniedError(agent.name)

    def require_content(self, agent: AgentRecord, root: RootId) -> None:
        """Check that modes let the caller read every file of *root*. O(files) for strangers.

        Raises:
            AccessDeniedError: one is closed to them; it is named.
        """
        self.require_reader(agent)
        if self.owns(agent):
            return
        for found in self.forest.tree(root).walk():
            if not _may_read(self.caller, found.inode):
                name = os.fsdecode(found.path) or "its top folder"
                raise AccessDeniedError(f"{agent.name}: {name}")

    @contextmanager
    def frozen(self, root: RootId) -> Iterator[Tree]:
        """Lend the tree of *root* as it is now: later changes and gc do not touch it. O(1)."""
        clone = self.forest.clone(self.forest.tree(root))
        try:
            yield clone
        finally:
            self.forest.drop(clone.root.root_id)


def _may_read(caller: Caller, inode: InodeRecord) -> bool:
    kind = stat.S_IFMT(inode.mode)
    if kind == stat.S_IFDIR:
        return _allows(caller, inode.uid, inode.gid, inode.mode, READ | SEARCH)
    if kind == stat.S_IFREG:
        return _allows(caller, inode.uid, inode.gid, inode.mode, READ)
    return True


def _allows(caller: Caller, uid: int, gid: int, mode: int, wanted: int) -> bool:
    """Return whether permission bits *mode* grant *wanted*, as path_resolution(7) has it."""
    if caller.uid == uid:
        granted = mode >> 6
    elif caller.gid == gid or gid in caller.groups:
        granted = mode >> 3
    else:
        granted = mode
    return granted & wanted == wanted

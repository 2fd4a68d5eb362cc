"""The name space of a mount: what each request of the kernel reads or changes.

A node is (root id, inode number). Root id 0 is the virtual folders; any other
is a tree, whose top directory is the root of a view. Everything here is
synchronous: a request is done before the next one starts, so none sees
another half done. It knows no transport; nodes, names and bytes come in, plain
values go out, and a refusal is a `KaifsError`.

What a request changes outside trees (an agent, a snapshot) goes through
`Actions`, because verbs live beside this layer and not below it.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntFlag
from itertools import islice
from typing import Final, Protocol

import msgspec
from msgspec import structs

from kaifs.base.errors import (
    BadNameError,
    ChecksumMismatchError,
    CrossViewError,
    EntryExistsError,
    InvalidOperationError,
    KaifsError,
    LentError,
    NameTooLongError,
    NoAttributeError,
    NoEntryError,
    NoSpaceError,
    NotPermittedError,
    NotSupportedError,
    PastEndError,
    QuotaError,
    SealedError,
    StoreDamagedError,
)
from kaifs.base.types import (
    MAX_INO,
    NAME_MAX,
    TOP_INO,
    Ino,
    KernelNode,
    RootId,
    kernel_node,
    split_kernel_node,
    stat_ino,
)
from kaifs.meta.records import InodeRecord, RootKind
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.tree import INODE_CHARGE, LINK_CHARGE, AttributeChange, RenameFlags, Tree
from kaifs.views.aliases import Aliases, ToldAliases
from kaifs.views.attributes import (
    BLOCK_SIZE,
    FOREVER_S,
    LEAF_LINKS,
    Attributes,
    Caller,
    FileSystemSpace,
    Listed,
)
from kaifs.views.folders import Folders
from kaifs.views.known import Known, KnownNodes
from kaifs.views.marks import MARK_PREFIX, view_mark
from kaifs.views.numbers import ROOT_NODE, VIRTUAL_ROOT, Kind, split_virtual, virtual_node

_DOT_COOKIE: Final = 1
_DOT_DOT_COOKIE: Final = 2

_SELINUX: Final = b"security.selinux"
"""Where a file has none, the answer is that there are none at all: `ls -l` asks for each file
until it hears that, and the kernel remembers no attribute."""

_SNAPSHOTS_PREFIX: Final = "@snapshots/"
_VERSIONS_PREFIX: Final = "@versions/"
# Plain numbers: an IntFlag takes ten times as long to look into.
_EXCHANGE: Final = int(RenameFlags.EXCHANGE)
_WHITEOUT: Final = int(RenameFlags.WHITEOUT)
_RENAME_FLAGS: Final = int(RenameFlags.NOREPLACE) | _EXCHANGE | _WHITEOUT
_STEP_NS: Final = 10_000_000
"""The longest step of the clock by which files are stamped."""
_CURRENT: Final = "current"
_QUARANTINED: Final = RootKind.QUARANTINED


class FallocateMode(IntFlag):
    """What fallocate(2) is asked for; the kernel passes no other modes."""

    KEEP_SIZE = 0x01
    PUNCH_HOLE = 0x02
    ZERO_RANGE = 0x10


_ALLOCATE_MODES: Final = (
    FallocateMode.KEEP_SIZE | FallocateMode.PUNCH_HOLE | FallocateMode.ZERO_RANGE
)


class Actions(Protocol):
    """What requests change outside trees. Errors are `KaifsError`s; nothing is half done."""

    def make_agent(self, name: str, caller: Caller) -> None:
        """Make an agent with an empty current, owned by *caller*."""
        ...

    def remove_agent(self, name: str, caller: Caller) -> None:
        """Remove an agent that has neither versions nor snapshots."""
        ...

    def make_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        """Make a writable snapshot of the agent's current, owned by *caller*."""
        ...

    def discard_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        """Discard a snapshot with all that is in it."""
        ...

    def rename_snapshot(self, agent: str, name: str, new_name: str, caller: Caller) -> None:
        """Give a snapshot another name."""
        ...


@dataclass(frozen=True, slots=True)
class MountScope:
    """What the root of a mount shows: everything, one agent's folder, or one view of it."""

    agent: str = ""
    """Empty: the folder of all agents."""
    view: str = ""
    """`current`, `@versions/LABEL`, `@snapshots/NAME`; empty: the agent's folder."""
    root: RootId | None = None
    """The root of the view, if it is to stay that one whatever the names become."""


@dataclass(frozen=True, slots=True)
class Squash:
    """Whoever looks owns everything; what they make is the owner's.

    For a sandbox, whose only user is none that the store knows.
    """

    uid: int
    """As whom everything is shown."""
    gid: int
    owner_uid: int
    """To whom what is made belongs."""
    owner_gid: int


@dataclass(frozen=True, slots=True)
class FoldersIn:
    """Directories in a directory."""

    entries: int
    """How many entries were looked through for them."""
    folders: list[KernelNode]
    """Those that the kernel knows."""
    parents: list[KernelNode]
    """Those of them that have directories themselves."""


class Remembered(msgspec.Struct, frozen=True, array_like=True):
    """What the kernel knows through one connection, as another process is told of it."""

    known: Known
    orphans: list[int]
    nameless: list[int]
    aliases: ToldAliases
    lent: list[int]
    foreign: list[int]


@dataclass(slots=True)
class Namespace:
    """One mount's name space."""

    forest: Forest
    actions: Actions
    scope: MountScope = field(default_factory=MountScope)
    read_only: bool = False
    on_root_forgotten: Callable[[RootId], None] = lambda _root: None
    """Called when the kernel knows no node of a root any more."""
    uid: int | None = None
    """Who owns the folder of all agents; None: who owns the store's folder."""
    gid: int | None = None

    quota: int | None = None
    """Bytes that changes of the view may take; None: any number. Only for a mount of one view."""
    squash: Squash | None = None
    lent: set[RootId] = field(default_factory=set)
    """Roots that another connection writes: here they are read, and not cached. Set by `lend`."""
    on_damage: Callable[[RootId, str], None] = lambda _root, _where: None
    """Called when a request meets damage: with the root, and with view and file in words."""

    keeps_tops: bool = field(default=False, init=False)
    """Whether `current` stays one node whatever tree it shows: a switch then makes every name that
    the kernel remembers stale, at once."""
    known: KnownNodes = field(default_factory=KnownNodes, init=False)
    acting: bool = field(default=False, init=False)
    """Whether a request is changing the registry: the kernel updates its own cache then."""
    _store: Store = field(init=False)
    _folders: Folders = field(init=False)
    _orphans: set[KernelNode] = field(default_factory=set, init=False)
    """Unlinked inodes that the kernel still knows."""
    _nameless: set[KernelNode] = field(default_factory=set, init=False)
    """Those of them that never had a name: they may get one."""
    _aliases: Aliases = field(default_factory=Aliases, init=False)
    _foreign: set[RootId] = field(default_factory=set, init=False)
    """Roots that another connection writes or has written."""
    _stamp_ns: int = field(default=0, init=False)
    """The newest ctime that the kernel has sent; those it makes itself."""

    def __post_init__(self) -> None:
        self._store = self.forest.store
        self._folders = Folders(self.forest, self.uid, self.gid)

    # --- nodes ------------------------------------------------------------------------

    def scope_node(self) -> KernelNode:
        """Return the node that the root of the mount stands for.

        Raises:
            NoEntryError: what the mount shows is gone.
        """
        if not self.scope.agent:
            return ROOT_NODE
        if self.scope.root is not None:
            return kernel_node(self.scope.root, TOP_INO)
        agent = self._store.find_agent(self.scope.agent)
        if agent is None:
            raise NoEntryError(self.scope.agent)
        view = self.scope.view
        root: RootId | None = None
        if not view:
            return virtual_node(Kind.AGENT, agent.agent_id)
        if view == _CURRENT:
            root = agent.head
        elif view.startswith(_VERSIONS_PREFIX):
            label = view.removeprefix(_VERSIONS_PREFIX)
            version = self._store.find_version(agent.agent_id, label)
            aside = self._store.find_quarantined(agent.agent_id, label)
            root = version.root if version else aside.root if aside else None
        elif view.startswith(_SNAPSHOTS_PREFIX):
            name = view.removeprefix(_SNAPSHOTS_PREFIX)
            snapshot = self._store.find_snapshot(agent.agent_id, name)
            root = snapshot.root if snapshot else None
        if root is None:
            raise NoEntryError(f"{self.scope.agent}/{view}")
        return kernel_node(root, TOP_INO)

    def shows(self, root: RootId) -> bool:
        """Return whether the tree of *root* can be reached in this mount, as far as names lead."""
        if not self.scope.view:
            return True
        try:
            return split_kernel_node(self.scope_node())[0] == root
        except NoEntryError:
            return False

    def holds_nothing_sealed(self) -> bool:
        """Return whether the mount shows one view alone, and that can be written."""
        if not self.scope.view:
            return False
        return self._tree(split_kernel_node(self.scope_node())[0]).is_writable

    def _inner(self, node: KernelNode) -> KernelNode:
        """Return the node that the kernel's *node* means."""
        if node > MAX_INO:
            return node
        if node == ROOT_NODE:
            return self.scope_node() if self.scope.agent else node
        kind, number = split_virtual(Ino(node))
        if kind is Kind.CURRENT:
            return kernel_node(self._folders.agent(number).head, TOP_INO)
        if kind is Kind.ALIAS:
            meant = self._aliases.meant(node)
            if meant is None:
                raise NoEntryError
            return meant
        return node

    def meant(self, node: KernelNode) -> KernelNode:
        """Return the file that the kernel's *node* is, whatever it is called at the moment.

        Raises:
            NoEntryError: a former server called it so, and it is not known what it was.
        """
        return self._inner(node)

    def shown_node(self, node: KernelNode) -> KernelNode:
        """Return what the kernel calls *node*: the mount's root, and any current, is an alias."""
        if self.scope.agent and node == self.scope_node():
            return ROOT_NODE
        root, ino = split_kernel_node(node)
        if self.keeps_tops and ino == TOP_INO and root != VIRTUAL_ROOT:
            agent_id = self._store.root(root).agent_id
            agent = self._store.agent_by_id(agent_id)
            if agent is not None and agent.head == root:
                return virtual_node(Kind.CURRENT, agent_id)
        return node

    def _split(self, node: KernelNode) -> tuple[RootId, Ino]:
        return split_kernel_node(self._inner(node))

    def _tree(self, root: RootId) -> Tree:
        """Return the tree of *root*.

        Raises:
            NoEntryError: there is none any more.
        """
        if not self._store.has_root(root):
            raise NoEntryError
        tree = self.forest.tree(root)
        if tree.root.kind is _QUARANTINED:
            raise ChecksumMismatchError(f"{self._where(root)} is in quarantine")
        return tree

    def _where(self, root: RootId) -> str:
        """Return what a user calls the view that shows *root*."""
        record = self._store.root(root)
        agent = self._store.agent_by_id(record.agent_id)
        name = "" if agent is None else agent.name
        match record.kind:
            case RootKind.VERSION | RootKind.QUARANTINED:
                return f"{name}@{record.name}"
            case RootKind.SNAPSHOT:
                return f"{name}/{_SNAPSHOTS_PREFIX}{record.name}"
            case _:
                return name

    def _damaged(self, root: RootId, ino: Ino, error: KaifsError) -> ChecksumMismatchError:
        """Return *error*, met at an inode, with the names of view and file; tell who cares."""
        paths: list[bytes] = []
        with suppress(KaifsError):
            paths = self.forest.tree(root).paths(ino)
        file = os.fsdecode(paths[0]) if paths and paths[0] else f"inode {ino}"
        where = f"{self._where(root)}: {file.encode('unicode_escape').decode()}"
        self.on_damage(root, where)
        return ChecksumMismatchError(f"{where}: {error.subject}")

    def _writable_tree(self, root: RootId) -> Tree:
        """Return the tree of *root* for a change.

        Raises:
            SealedError: the view is sealed, or the mount read-only.
        """
        tree = self._tree(root)
        if self.read_only or not tree.is_writable:
            raise SealedError
        if root in self.lent:
            raise LentError
        return tree

    def lend(self, roots: set[RootId]) -> None:
        """Take it that other connections write *roots*, and no others, from now on."""
        for root in roots - self.lent:
            self._aliases.begin(self.known_nodes(root))
        self._foreign |= roots
        self._foreign = {root for root in self._foreign if self._store.has_root(root)}
        self.lent = roots

    def is_cached(self, node: KernelNode) -> bool:
        """Return whether the kernel may keep pages of *node*."""
        return not self.lent or self._split(node)[0] not in self.lent

    def _owner(self, caller: Caller) -> Caller:
        """Return who owns what *caller* makes."""
        if self.squash is None:
            return caller
        return Caller(self.squash.owner_uid, self.squash.owner_gid)

    def _check_quota(self, tree: Tree, size: int) -> None:
        """Check that *size* bytes more have room.

        Raises:
            QuotaError: they have not.
            NoSpaceError: the disk has only what is kept for freeing some.
        """
        self._store.check_room()
        if self.quota is not None and tree.root.own + size > self.quota:
            raise QuotaError

    def now_ns(self) -> int:
        """Return the time, ns since 1970, for a stamp that is not before one of the kernel's.

        The kernel stamps what is written. Its clock moves in steps, as ours does, and in
        between it never goes behind a finer stamp that it has given anywhere.
        """
        now_ns = self._store.clock.now_ns()
        # One from far ahead is of before the clock was set back.
        return self._stamp_ns if now_ns < self._stamp_ns < now_ns + _STEP_NS else now_ns

    def path_of(self, node: KernelNode) -> bytes | None:
        """Return a path of *node* from the root of the mount, None if it has none any more."""
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT or not self._store.has_root(root):
            return None
        record = self._store.root(root)
        agent = self._store.agent_by_id(record.agent_id)
        paths = self.forest.tree(root).paths(ino)
        if agent is None or not paths:
            return None
        match record.kind:
            case RootKind.VERSION:
                view = _VERSIONS_PREFIX + record.name
            case RootKind.SNAPSHOT:
                view = _SNAPSHOTS_PREFIX + record.name
            case _ if agent.head == root:
                view = _CURRENT
            case _:
                return None
        above = "" if self.scope.view else view if self.scope.agent else f"{agent.name}/{view}"
        return b"/".join(part for part in (above.encode(), paths[0]) if part)

    # --- attributes -------------------------------------------------------------------

    def getattr(self, node: KernelNode) -> Attributes:
        """Return the attributes of *node*.

        Raises:
            NoEntryError: it is gone.
        """
        return self._attributes(self._inner(node))

    def setattr(
        self, node: KernelNode, change: AttributeChange, *, kill_privileges: bool = False
    ) -> Attributes:
        """Change attributes of *node* and return them all.

        Args:
            node: What to change.
            change: The new values; with a cached write behind it, times too.
            kill_privileges: Whether set-id bits go when the size changes.

        Raises:
            SealedError: the view is sealed.
            NotPermittedError: a virtual folder.
        """
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            raise self._refusal(ino)
        tree = self._writable_tree(root)
        if change.ctime_ns is not None:
            self._stamp_ns = change.ctime_ns
        if self.squash is not None:
            # The kernel lets the one user there is change owners to themselves only.
            change = structs.replace(change, uid=None, gid=None)
        tree.set_attributes(ino, change, self.now_ns(), kill_privileges=kill_privileges)
        return self._tree_attributes(tree, root, ino)

    def _attributes(self, node: KernelNode) -> Attributes:
        root, ino = split_kernel_node(node)
        if root == VIRTUAL_ROOT:
            return self._shown(self._folders.attributes(ino))
        return self._tree_attributes(self._tree(root), root, ino)

    def _shown(self, attributes: Attributes) -> Attributes:
        """Return *attributes* of a virtual inode with the node that the kernel knows."""
        if not self.scope.agent:
            return attributes
        return structs.replace(attributes, node=self.shown_node(attributes.node))

    def _tree_attributes(self, tree: Tree, root: RootId, ino: Ino) -> Attributes:
        try:
            inode: InodeRecord = tree.inode(ino)
        except StoreDamagedError as error:
            raise self._damaged(root, ino, error) from error
        node = kernel_node(root, ino)
        uid, gid = inode.uid, inode.gid
        if self.squash is not None:
            uid, gid = self.squash.uid, self.squash.gid
        timeout_s = FOREVER_S
        shown = node
        if ino == TOP_INO:
            shown = self.shown_node(node)
        if root in self._foreign:
            is_lent = root in self.lent
            if is_lent:
                timeout_s = 0.0
            if stat.S_ISREG(inode.mode):
                shown = self._aliases.shown(node, inode, is_foreign=is_lent)
        return Attributes(
            node=shown,
            st_ino=ino if self.scope.view else stat_ino(self._store.slot_of(root), ino),
            mode=inode.mode,
            nlink=inode.nlink,
            uid=uid,
            gid=gid,
            size=inode.size,
            rdev=inode.rdev,
            blocks=-(-inode.allocated // BLOCK_SIZE),
            atime_ns=inode.atime_ns,
            mtime_ns=inode.mtime_ns,
            ctime_ns=inode.ctime_ns,
            btime_ns=inode.btime_ns,
            entry_timeout_s=timeout_s,
            attr_timeout_s=timeout_s,
        )

    # --- names ------------------------------------------------------------------------

    def lookup(self, parent: KernelNode, name: bytes) -> Attributes | None:
        """Return what *parent* has under *name*.

        None means that nothing is there, and that the kernel may remember it:
        names in trees appear by its own requests only. `.` and `..` work too
        (file handles that outlive the cache are resolved by them).

        Raises:
            NoEntryError: nothing is there, and that may change behind the kernel's back.
        """
        _check_name(name)
        root, ino = self._split(parent)
        if name == b".":
            return self._attributes(kernel_node(root, ino))
        if name == b"..":
            return self._attributes(self._parent(root, ino))
        if root == VIRTUAL_ROOT:
            node = self._folders.find(ino, name)
            if node is None:
                raise NoEntryError
            return self._attributes(node)
        tree = self._tree(root)
        try:
            found = tree.find(ino, name)
        except StoreDamagedError as error:
            raise self._damaged(root, ino, error) from error
        if found is None and root in self.lent:
            raise NoEntryError
        return None if found is None else self._tree_attributes(tree, root, found)

    def _parent(self, root: RootId, ino: Ino) -> KernelNode:
        """Return the directory around a directory; the mount's root is its own."""
        node = kernel_node(root, ino)
        if self.scope.agent and node == self.scope_node():
            return node
        if root == VIRTUAL_ROOT:
            return self._folders.parent(ino)
        if ino != TOP_INO:
            return kernel_node(root, self._tree(root).parent(ino))
        record = self._store.root(root)
        match record.kind:
            case RootKind.VERSION:
                return virtual_node(Kind.VERSIONS, record.agent_id)
            case RootKind.SNAPSHOT:
                return virtual_node(Kind.SNAPSHOTS, record.agent_id)
            case _:
                return virtual_node(Kind.AGENT, record.agent_id)

    def readdir(self, node: KernelNode, cookie: int) -> Iterator[Listed]:
        """Yield the entries of directory *node* that follow *cookie* (0: all), `.` and `..` first.

        Entries that come or go meanwhile move no other: a cookie is the
        position that an entry keeps as long as it lives.

        Raises:
            NotDirectoryError: *node* is no directory.
        """
        inner = self._inner(node)
        root, ino = split_kernel_node(inner)
        if cookie < _DOT_COOKIE:
            yield Listed(b".", _DOT_COOKIE, self._attributes(inner), counted=False)
        if cookie < _DOT_DOT_COOKIE:
            parent = self._parent(root, ino)
            attributes = self._attributes(inner if self._is_hidden(parent) else parent)
            yield Listed(b"..", _DOT_DOT_COOKIE, attributes, counted=False)
        after = max(cookie - _DOT_DOT_COOKIE, 0)
        if root != VIRTUAL_ROOT:
            tree = self._tree(root)
            try:
                for entry in tree.entries(ino, after):
                    child = kernel_node(root, entry.ino)
                    attributes, counted = self._listed(child, entry.type)
                    yield Listed(entry.name, entry.seq + _DOT_DOT_COOKIE, attributes, counted)
            except StoreDamagedError as error:
                raise self._damaged(root, ino, error) from error
            return
        for found in self._folders.entries(ino, after):
            attributes, counted = self._listed(found.node, stat.S_IFDIR)
            yield Listed(found.name, found.position + _DOT_DOT_COOKIE, attributes, counted)

    def folders_above(self, node: KernelNode) -> Iterator[KernelNode]:
        """Yield the directories of the view above a file, by one of its paths, the nearest first."""
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            return
        links = self._tree(root).links
        while ino != TOP_INO and (found := links(ino)):
            ino = found[0][0]
            yield self.shown_node(kernel_node(root, ino))

    def stamp(self, node: KernelNode) -> tuple[int, ...] | None:
        """Return what stays the same as long as nothing changes in the view that has *node*.

        None: it can change in other ways, or is in no tree.
        """
        root_id = self._split(node)[0]
        if root_id == VIRTUAL_ROOT or root_id in self._foreign:
            return None
        root = self._tree(root_id).root
        return root_id, root.changes, root.top

    def folders_in(self, node: KernelNode, limit: int) -> FoldersIn:
        """Look through the first *limit* entries of a directory in a view."""
        root, ino = self._split(node)
        tree = self._tree(root)
        entries = list(islice(tree.entries(ino), limit))
        found = FoldersIn(len(entries), [], [])
        for one in entries:
            if one.type == stat.S_IFDIR and (below := kernel_node(root, one.ino)) in self.known:
                found.folders.append(below)
                if tree.inode(one.ino).nlink > LEAF_LINKS:
                    found.parents.append(below)
        return found

    def _listed(self, node: KernelNode, kind: int) -> tuple[Attributes, bool]:
        """Return the attributes of what a listing names, and whether the kernel gets to know it.

        What is damaged must not keep the rest from being listed: it is told with its type
        alone, and asked for again when somebody wants it.
        """
        try:
            return self._attributes(node), True
        except (StoreDamagedError, ChecksumMismatchError):
            return Attributes(
                node=node,
                st_ino=split_kernel_node(node)[1],
                mode=kind,
                nlink=1,
                uid=0,
                gid=0,
                size=0,
                rdev=0,
                blocks=0,
                atime_ns=0,
                mtime_ns=0,
                ctime_ns=0,
                btime_ns=0,
                entry_timeout_s=0,
                attr_timeout_s=0,
            ), False

    def _is_hidden(self, node: KernelNode) -> bool:
        """Return whether *node* is a folder outside of what the mount shows."""
        root, ino = split_kernel_node(node)
        if not self.scope.agent or root != VIRTUAL_ROOT:
            return False
        return bool(self.scope.view) or split_virtual(ino)[0] is Kind.ROOT

    def make(
        self,
        parent: KernelNode,
        name: bytes,
        mode: int,
        caller: Caller,
        rdev: int = 0,
        umask: int = 0,
    ) -> Attributes:
        """Make an inode of the type in *mode* as *name*: mknod(2), mkdir(2), open(2).

        A folder in the root is an agent, one in `@snapshots/` a snapshot of current.

        Args:
            parent: Where.
            name: Under which name.
            mode: Type and permission bits.
            caller: Who owns it.
            rdev: Of device nodes.
            umask: Bits to take off, unless a default ACL says otherwise; 0 if the kernel has.
        """
        _check_name(name)
        root, ino = self._split(parent)
        if root == VIRTUAL_ROOT:
            if not stat.S_ISDIR(mode):
                self._check_absent(ino, name)
                raise self._refusal(ino)
            return self._make_folder(ino, name, caller)
        tree = self._writable_tree(root)
        self._check_quota(tree, INODE_CHARGE)
        owner = self._owner(caller)
        made = tree.make(
            ino, name, mode, owner.uid, owner.gid, self.now_ns(), rdev=rdev, umask=umask
        )
        return self._tree_attributes(tree, root, made)

    def make_nameless(
        self, parent: KernelNode, mode: int, caller: Caller, umask: int = 0
    ) -> Attributes:
        """Make a regular file without a name, which may get one by `link` (O_TMPFILE)."""
        root, ino = self._split(parent)
        if root == VIRTUAL_ROOT:
            raise self._refusal(ino)
        tree = self._writable_tree(root)
        self._check_quota(tree, INODE_CHARGE)
        owner = self._owner(caller)
        made = tree.make_nameless(ino, mode, owner.uid, owner.gid, self.now_ns(), umask=umask)
        node = kernel_node(root, made)
        self._orphans.add(node)
        self._nameless.add(node)
        return self._tree_attributes(tree, root, made)

    def symlink(self, parent: KernelNode, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link to *target*."""
        _check_name(name)
        root, ino = self._split(parent)
        if root == VIRTUAL_ROOT:
            self._check_absent(ino, name)
            raise self._refusal(ino)
        tree = self._writable_tree(root)
        self._check_quota(tree, INODE_CHARGE + len(target))
        owner = self._owner(caller)
        made = tree.symlink(ino, name, target, owner.uid, owner.gid, self.now_ns())
        return self._tree_attributes(tree, root, made)

    def link(self, node: KernelNode, parent: KernelNode, name: bytes) -> Attributes:
        """Give the file *node* another name.

        Raises:
            CrossViewError: *parent* is in another view.
        """
        _check_name(name)
        root, ino = self._split(node)
        parent_root, parent_ino = self._split(parent)
        if root != parent_root:
            raise CrossViewError
        if root == VIRTUAL_ROOT:
            raise self._refusal(parent_ino)
        tree = self._writable_tree(root)
        self._check_quota(tree, LINK_CHARGE)
        # The kernel lets only those that never had a name have one; which they are, a server that
        # is no more has known.
        is_nameless = node in self._nameless or (
            self.known.is_inherited(node) and tree.inode(ino).nlink == 0
        )
        tree.link(ino, parent_ino, name, self.now_ns(), nameless=is_nameless)
        if is_nameless:
            self._nameless.discard(node)
            self._orphans.discard(node)
        return self._tree_attributes(tree, root, ino)

    def unlink(self, parent: KernelNode, name: bytes) -> None:
        """Take away the name of a file; the file stays as long as the kernel knows it."""
        _check_name(name)
        root, ino = self._split(parent)
        if root == VIRTUAL_ROOT:
            self._check_present(ino, name)
            raise self._refusal(ino)
        tree = self._writable_tree(root)
        self._let_go(tree, root, tree.unlink(ino, name, self.now_ns()))

    def rmdir(self, parent: KernelNode, name: bytes, caller: Caller) -> None:
        """Remove an empty directory, an agent without versions, or a snapshot with its content."""
        _check_name(name)
        root, ino = self._split(parent)
        if root == VIRTUAL_ROOT:
            self._remove_folder(ino, name, caller)
            return
        tree = self._writable_tree(root)
        self._let_go(tree, root, tree.rmdir(ino, name, self.now_ns()))

    def rename(
        self,
        parent: KernelNode,
        name: bytes,
        new_parent: KernelNode,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        """Move a name, as renameat2(2) does.

        Raises:
            CrossViewError: from one view or folder into another.
            InvalidOperationError: a flag is unknown.
        """
        _check_name(name)
        _check_name(new_name)
        if flags & ~_RENAME_FLAGS:
            raise InvalidOperationError
        root, ino = self._split(parent)
        new_root, new_ino = self._split(new_parent)
        if root != new_root:
            raise CrossViewError
        if root == VIRTUAL_ROOT:
            if ino != new_ino:
                raise CrossViewError
            if flags & _WHITEOUT:
                raise InvalidOperationError
            self._rename_folder(ino, name, new_name, flags, caller)
            return
        tree = self._writable_tree(root)
        leaves_whiteout = bool(flags & _WHITEOUT)
        if leaves_whiteout:
            if flags & _EXCHANGE:
                raise InvalidOperationError
            self._check_quota(tree, INODE_CHARGE)
        now_ns = self.now_ns()
        displaced = tree.rename(ino, name, new_ino, new_name, now_ns, flags & ~_WHITEOUT)
        if leaves_whiteout and tree.find(ino, name) is None:
            owner = self._owner(caller)
            tree.make(ino, name, stat.S_IFCHR, owner.uid, owner.gid, now_ns)
        if displaced is not None:
            self._let_go(tree, root, displaced)

    def readlink(self, node: KernelNode) -> bytes:
        """Return the target of a symbolic link."""
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            raise InvalidOperationError
        try:
            return self._tree(root).readlink(ino)
        except StoreDamagedError as error:
            raise self._damaged(root, ino, error) from error

    # --- agents and snapshots ------------------------------------------------------------

    def is_snapshots(self, node: KernelNode) -> bool:
        """Return whether *node* is `@snapshots/`: a folder made there shows what was written."""
        root, ino = self._split(node)
        return root == VIRTUAL_ROOT and split_virtual(ino)[0] is Kind.SNAPSHOTS

    def _make_folder(self, ino: Ino, name: bytes, caller: Caller) -> Attributes:
        kind, number = split_virtual(ino)
        self._check_absent(ino, name)
        if self.read_only or kind not in (Kind.ROOT, Kind.SNAPSHOTS):
            raise self._refusal(ino)
        text = _text(name)
        self._store.check_room()
        with self._acting():
            if kind is Kind.ROOT:
                self.actions.make_agent(text, caller)
            else:
                agent = self._folders.agent(number)
                self.actions.make_snapshot(agent.name, text, caller)
        node = self._folders.find(ino, name)
        assert node is not None, "an action that returns has made what it was asked for"
        return self._attributes(node)

    def _remove_folder(self, ino: Ino, name: bytes, caller: Caller) -> None:
        kind, number = split_virtual(ino)
        self._check_present(ino, name)
        if self.read_only or kind not in (Kind.ROOT, Kind.SNAPSHOTS):
            raise self._refusal(ino)
        text = _text(name)
        with self._acting():
            if kind is Kind.ROOT:
                self.actions.remove_agent(text, caller)
            else:
                self.actions.discard_snapshot(self._folders.agent(number).name, text, caller)

    def _rename_folder(
        self, ino: Ino, name: bytes, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        kind, number = split_virtual(ino)
        self._check_present(ino, name)
        if self.read_only or kind is not Kind.SNAPSHOTS:
            raise self._refusal(ino)
        if flags & _EXCHANGE:
            raise InvalidOperationError
        if name == new_name:
            return
        if self._folders.find(ino, new_name) is not None:
            raise EntryExistsError(os.fsdecode(new_name))
        agent = self._folders.agent(number)
        with self._acting():
            self.actions.rename_snapshot(agent.name, _text(name), _text(new_name), caller)

    @contextmanager
    def _acting(self) -> Iterator[None]:
        self.acting = True
        try:
            yield
        finally:
            self.acting = False

    def _check_absent(self, ino: Ino, name: bytes) -> None:
        if self._folders.find(ino, name) is not None:
            raise EntryExistsError

    def _check_present(self, ino: Ino, name: bytes) -> None:
        if self._folders.find(ino, name) is None:
            raise NoEntryError

    def _refusal(self, ino: Ino) -> SealedError | NotPermittedError:
        """Return why a virtual folder cannot be changed like that.

        What belongs to versions is read-only like them; the rest is kaifs's own.
        """
        kind, _ = split_virtual(ino)
        of_versions = (Kind.VERSIONS, Kind.META, Kind.RECORD, Kind.SIGNATURE, Kind.MANIFEST)
        if self.read_only or kind in of_versions:
            return SealedError()
        return NotPermittedError()

    # --- content ----------------------------------------------------------------------

    def open(self, node: KernelNode, flags: int, caller: Caller) -> bool:
        """Check what *flags* ask for, truncate if they say so; return whether they allow to write.

        A sealed file must be refused here: once it is open for writing, a
        write lands in the kernel's cache and every reader sees it, whatever
        the reply to the WRITE is.

        Raises:
            SealedError: opened for writing, and the view is sealed.
        """
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            if writes:
                raise SealedError
            self._folders.attributes(ino)
            return False
        if not writes:
            self._tree(root).inode(ino)
            return False
        tree = self._writable_tree(root)
        tree.inode(ino)
        if flags & os.O_TRUNC:
            # The kernel leaves a truncation at open wholly to the server, set-id bits included;
            # root keeps them (CAP_FSETID).
            change = AttributeChange(size=0)
            tree.set_attributes(ino, change, self.now_ns(), kill_privileges=caller.uid != 0)
        return True

    def read(self, node: KernelNode, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Return up to *size* bytes from *offset*; fewer only at the end of the file.

        Raises:
            ColdBlockError: it takes time to read them, and this is not to *wait*.
        """
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            return self._folders.content(ino)[offset : offset + size]
        tree = self._tree(root)
        try:
            return tree.read(ino, offset, size, wait=wait)
        except (ChecksumMismatchError, StoreDamagedError) as error:
            raise self._damaged(root, ino, error) from error

    def fetcher(self, node: KernelNode, offset: int, size: int) -> Callable[[], None]:
        """Return what brings that part of a file into memory, for any thread to call."""
        root, ino = self._split(node)
        return self._tree(root).fetcher(ino, offset, size)

    def write(
        self,
        node: KernelNode,
        offset: int,
        data: bytes | memoryview,
        *,
        kill_privileges: bool = False,
        keep_times: bool = True,
    ) -> int:
        """Write *data* at *offset*.

        Args:
            node: The file.
            offset: Where, in bytes.
            data: What.
            kill_privileges: Whether set-id bits go. A kernel that keeps that to itself has
                sent a SETATTR before.
            keep_times: Whether times stay: with the writeback cache the kernel keeps them, and
                sends them.
        """
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            raise SealedError
        tree = self._writable_tree(root)
        self._store.check_room()
        if self.quota is not None:
            self._check_quota(tree, len(data) - tree.own_size(ino, offset, offset + len(data)))
        now_ns = None if keep_times else self.now_ns()
        return tree.write(ino, offset, data, now_ns, kill_privileges=kill_privileges)

    def seek(self, node: KernelNode, offset: int, *, hole: bool) -> int:
        """Return where data, or a *hole*, is at or after *offset*, as lseek(2) does.

        Raises:
            PastEndError: there is none.
        """
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            size = len(self._folders.content(ino))
            if offset >= size:
                raise PastEndError
            return size if hole else offset
        tree = self._tree(root)
        return tree.seek_hole(ino, offset) if hole else tree.seek_data(ino, offset)

    def allocate(
        self,
        node: KernelNode,
        offset: int,
        length: int,
        mode: int,
        *,
        kill_privileges: bool = False,
        keep_times: bool = True,
    ) -> None:
        """Extend a file or make a hole in it, as fallocate(2) does; `write` tells the rest.

        Raises:
            NotSupportedError: *mode* asks for what cannot be done.
            QuotaError, NoSpaceError: what is to be reserved has no room now.
        """
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            raise SealedError
        tree = self._writable_tree(root)
        if mode & ~_ALLOCATE_MODES:
            raise NotSupportedError
        clear = bool(mode & (FallocateMode.PUNCH_HOLE | FallocateMode.ZERO_RANGE))
        if not clear:
            self._check_room(tree, ino, offset, length)
        tree.allocate(
            ino,
            offset,
            offset + length,
            None if keep_times else self.now_ns(),
            clear=clear,
            keep_size=bool(mode & (FallocateMode.KEEP_SIZE | FallocateMode.PUNCH_HOLE)),
            kill_privileges=kill_privileges,
        )

    def _check_room(self, tree: Tree, ino: Ino, offset: int, length: int) -> None:
        """Check that *length* bytes would have room if they were written now."""
        if self.quota is not None:
            self._check_quota(tree, length - tree.own_size(ino, offset, offset + length))
        space = self.statfs()
        if length > space.available * space.block_size:
            raise NoSpaceError("fallocate")

    def copy_range(
        self,
        source: KernelNode,
        start: int,
        node: KernelNode,
        offset: int,
        length: int,
        *,
        kill_privileges: bool = False,
        keep_times: bool = True,
    ) -> int:
        """Copy between two files by sharing blocks, also from view to view; return how many bytes.

        Raises:
            NotSupportedError: the source is in no tree; the kernel copies then.
        """
        source_root, source_ino = self._split(source)
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            raise SealedError
        tree = self._writable_tree(root)
        if source_root == VIRTUAL_ROOT:
            raise NotSupportedError
        source_tree = self._tree(source_root)
        if self.quota is not None:
            copied = tree.copied_extents(source_tree, source_ino, start, offset, length)
            new = sum(map(tree.content.own_size, copied.extents))
            self._check_quota(tree, new - tree.own_size(ino, offset, offset + copied.length))
        return tree.copy_range(
            source_tree,
            source_ino,
            start,
            ino,
            offset,
            length,
            None if keep_times else self.now_ns(),
            kill_privileges=kill_privileges,
        )

    # --- extended attributes --------------------------------------------------------------

    def getxattr(self, node: KernelNode, name: bytes) -> bytes:
        """Return the value of an extended attribute; `user.kaifs.*` on roots of views too."""
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            raise NoAttributeError
        if name.startswith(MARK_PREFIX):
            if ino != TOP_INO:
                raise NoAttributeError
            return view_mark(self._store, root, name)
        try:
            return self._tree(root).getxattr(ino, name)
        except NoAttributeError:
            if name == _SELINUX:
                raise NotSupportedError from None
            raise

    def listxattr(self, node: KernelNode) -> list[bytes]:
        """Return the names of extended attributes, none of `user.kaifs.*` among them."""
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            return []
        names = self._tree(root).listxattr(ino)
        return [name for name in names if not name.startswith(MARK_PREFIX)]

    def setxattr(
        self,
        node: KernelNode,
        name: bytes,
        value: bytes,
        flags: int = 0,
        *,
        kill_set_gid: bool = False,
    ) -> None:
        """Set an extended attribute; XATTR_CREATE and XATTR_REPLACE in *flags* are obeyed."""
        tree, ino = self._tree_for_xattr(node, name)
        self._check_quota(tree, len(value))
        tree.setxattr(ino, name, value, self.now_ns(), flags, kill_set_gid=kill_set_gid)

    def removexattr(self, node: KernelNode, name: bytes) -> None:
        """Remove an extended attribute."""
        tree, ino = self._tree_for_xattr(node, name)
        tree.removexattr(ino, name, self.now_ns())

    def _tree_for_xattr(self, node: KernelNode, name: bytes) -> tuple[Tree, Ino]:
        if name.startswith(MARK_PREFIX):
            raise NotPermittedError
        root, ino = self._split(node)
        if root == VIRTUAL_ROOT:
            raise self._refusal(ino)
        return self._writable_tree(root), ino

    # --- the file system -------------------------------------------------------------------

    def statfs(self) -> FileSystemSpace:
        """Return the space of the disk under the store, or the quota as the disk's size."""
        disk = os.statvfs(self._store.path)
        if self.quota is not None:
            root, _ = split_kernel_node(self.scope_node())
            free = max(self.quota - self._store.root(root).own, 0)
            return FileSystemSpace(
                block_size=disk.f_frsize,
                blocks=self.quota // disk.f_frsize,
                free=min(free // disk.f_frsize, disk.f_bfree),
                available=min(free // disk.f_frsize, disk.f_bavail),
                inodes=self.quota // INODE_CHARGE,
                inodes_free=free // INODE_CHARGE,
            )
        return FileSystemSpace(
            block_size=disk.f_frsize,
            blocks=disk.f_blocks,
            free=disk.f_bfree,
            available=disk.f_bavail,
            inodes=disk.f_files,
            inodes_free=disk.f_ffree,
        )

    # --- what the kernel knows -------------------------------------------------------------

    def remember(self, node: KernelNode) -> None:
        """Count a reply that named *node*."""
        if node <= MAX_INO and node not in self.known:
            meant = self._aliases.meant(node)
            if meant is not None:
                # Known by whatever name.
                self.known.remember(meant)
        self.known.remember(node)

    def remember_all(self, nodes: Sequence[KernelNode]) -> None:
        """Count a reply that named all *nodes*."""
        if nodes and min(nodes) > MAX_INO:
            self.known.remember_all(nodes)
        else:
            for node in nodes:
                self.remember(node)

    def forget(self, node: KernelNode, lookups: int) -> None:
        """Take *lookups* off the count of *node*; reap it if it was unlinked and is now unknown."""
        if not self.known.forget(node, lookups):
            return
        if node <= MAX_INO:
            meant = self._aliases.forget(node)
            if meant is not None:
                self.forget(meant, 1)
            return
        root, ino = split_kernel_node(node)
        if node in self._orphans:
            self._orphans.remove(node)
            self._nameless.discard(node)
            if self._store.has_root(root):
                tree = self.forest.tree(root)
                if tree.is_writable:
                    tree.reap(ino)
        if root in self._foreign:
            self._aliases.forget_node(node)
        if not self.known.has_root(root):
            self.on_root_forgotten(root)

    def forget_all(self) -> None:
        """Forget every node: the mount is gone, and nothing of it can be open."""
        self.known.disown()
        for node in self.known.nodes():
            self.forget(node, 1 << 63)

    def told(self) -> Remembered:
        """Return what the kernel knows, for another process that goes on with the connection."""
        return Remembered(
            self.known.told(),
            list(self._orphans),
            list(self._nameless),
            self._aliases.told(),
            list(self.lent),
            list(self._foreign),
        )

    def adopt(self, remembered: Remembered) -> None:
        """Go on with what another process has told of the connection at its end."""
        self.known.adopt(remembered.known)
        self._orphans = set(map(KernelNode, remembered.orphans))
        self._nameless = set(map(KernelNode, remembered.nameless))
        self._aliases.adopt(remembered.aliases)
        self.lent = set(map(RootId, remembered.lent))
        self._foreign = set(map(RootId, remembered.foreign))

    def inherit(self) -> None:
        """Take it that the kernel knows everything there is: another process has served it."""
        next_inos: dict[RootId, Ino] = {}
        for agent in self._store.agents():
            snapshots = self._store.snapshots(agent.agent_id)
            for root_id in (agent.head, *(snapshot.root for snapshot in snapshots)):
                with suppress(StoreDamagedError):
                    root = self._store.root(root_id)
                    if root.is_writable:
                        next_inos[root_id] = root.next_ino
        self.known.inherit(RootId(self._store.next_root), next_inos)

    def known_nodes(self, root: RootId) -> list[KernelNode]:
        """Return every node of *root* that the kernel may know."""
        if not self.known.has_inherited(root):
            return self.known.nodes_of(root) + self._aliases.of_root(root)
        with suppress(StoreDamagedError):
            return [kernel_node(root, ino) for ino in self.forest.tree(root).inos()]
        # What cannot be listed could hardly be looked up.
        return self.known.nodes_of(root)

    def _let_go(self, tree: Tree, root: RootId, ino: Ino) -> None:
        """Reap inode *ino* if its last name is gone, now or when the kernel forgets it."""
        node = kernel_node(root, ino)
        if node not in self.known:
            tree.reap(ino)
        elif tree.inode(ino).nlink == 0 and not self.known.is_inherited(node):
            self._orphans.add(node)


def _check_name(name: bytes) -> None:
    """Check a name's length: the kernel lets up to 1,024 bytes through.

    Raises:
        NameTooLongError: more than 255 bytes.
    """
    if len(name) > NAME_MAX:
        raise NameTooLongError


def _text(name: bytes) -> str:
    """Return the name of an agent or a snapshot as text.

    Raises:
        BadNameError: it is not ASCII.
    """
    if not name.isascii():
        raise BadNameError(ascii(os.fsdecode(name)))
    return name.decode()

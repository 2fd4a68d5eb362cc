"""The folders around the views, and the files in `@meta/`: rendered, never stored.

::

    /                        all agents
      AGENT/                 current, @versions, @snapshots, @meta
        @versions/LABEL      top directory of a version's tree
        @snapshots/NAME      top directory of a snapshot's tree
        @meta/LABEL.json     the version's record
        @meta/LABEL.json.sig its signature, if it has one
        @meta/LABEL.mtree    the version's manifest
        @quarantine/LABEL/quarantine.json
                             why a version was set aside. The folder is there if one was

Listing positions are ids that grow and are never reused (agent ids, root
ids), so a listing that is read in pieces neither repeats nor skips an entry.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kaifs.base.errors import NoEntryError
from kaifs.base.types import MAX_ROOT_ID, TOP_INO, Ino, KernelNode, RootId, kernel_node
from kaifs.meta.records import AgentRecord, QuarantineRecord, RootKind, VersionRecord
from kaifs.store.quarantine import QUARANTINE_FILE, quarantine_json
from kaifs.tree.forest import Forest
from kaifs.views.attributes import BLOCK_SIZE, FOREVER_S, Attributes
from kaifs.views.numbers import (
    ROOT_NODE,
    Kind,
    signature_id,
    split_virtual,
    virtual_node,
    virtual_stat_ino,
)

CURRENT: Final = b"current"
VERSIONS: Final = b"@versions"
SNAPSHOTS: Final = b"@snapshots"
META: Final = b"@meta"
QUARANTINE: Final = b"@quarantine"

_NOTE: Final = QUARANTINE_FILE.encode()
_RECORD_SUFFIX: Final = ".json"
_SIGNATURE_SUFFIX: Final = ".json.sig"
_MANIFEST_SUFFIX: Final = ".mtree"
_META_FILES: Final = (
    (_RECORD_SUFFIX, Kind.RECORD),
    (_SIGNATURE_SUFFIX, Kind.SIGNATURE),
    (_MANIFEST_SUFFIX, Kind.MANIFEST),
)

_MANIFESTS_KEPT: Final = 4
"""Rendered manifests that are kept, so that reading one in pieces renders it once."""


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """One name in a virtual folder."""

    position: int
    """Grows along the listing; at least 1."""
    name: bytes
    node: KernelNode


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the attributes of a virtual inode are made of."""

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    changed_ns: int


class Folders:
    """The virtual inodes of one store. Numbers in, plain values out."""

    def __init__(self, forest: Forest, uid: int | None, gid: int | None) -> None:
        """Show the store of *forest*; the folder of all agents is owned by *uid* and *gid*.

        None means as the store's own folder is.
        """
        self._store = forest.store
        self._forest = forest
        owner = os.stat(self._store.path)
        self._uid = owner.st_uid if uid is None else uid
        self._gid = owner.st_gid if gid is None else gid
        self._changed_ns = owner.st_mtime_ns
        self._manifests: dict[RootId, bytes] = {}

    def agent(self, number: int) -> AgentRecord:
        """Return the agent with id *number*.

        Raises:
            NoEntryError: it is gone.
        """
        agent = self._store.agent_by_id(number)
        if agent is None:
            raise NoEntryError
        return agent

    def find(self, ino: Ino, name: bytes) -> KernelNode | None:
        """Return the node called *name* in the folder *ino*.

        Raises:
            NoEntryError: the folder is gone, or *ino* is none.
        """
        kind, number = split_virtual(ino)
        text = _decoded(name)
        if kind is Kind.ROOT:
            agent = None if text is None else self._store.find_agent(text)
            return None if agent is None else virtual_node(Kind.AGENT, agent.agent_id)
        if kind is Kind.ASIDE:
            self._aside(number)
            return virtual_node(Kind.NOTE, number) if name == _NOTE else None
        agent = self.agent(number)
        match kind:
            case Kind.AGENT:
                if name == QUARANTINE and not self._store.quarantined(number):
                    return None
                return {
                    CURRENT: kernel_node(agent.head, TOP_INO),
                    VERSIONS: virtual_node(Kind.VERSIONS, number),
                    SNAPSHOTS: virtual_node(Kind.SNAPSHOTS, number),
                    META: virtual_node(Kind.META, number),
                    QUARANTINE: virtual_node(Kind.QUARANTINE, number),
                }.get(name)
            case Kind.VERSIONS if text is not None:
                version = self._store.find_version(number, text)
                return None if version is None else kernel_node(version.root, TOP_INO)
            case Kind.SNAPSHOTS if text is not None:
                snapshot = self._store.find_snapshot(number, text)
                return None if snapshot is None else kernel_node(snapshot.root, TOP_INO)
            case Kind.META if text is not None:
                return self._find_meta(number, text)
            case Kind.QUARANTINE if text is not None:
                aside = self._store.find_quarantined(number, text)
                is_shown = aside is not None and aside.root
                return virtual_node(Kind.ASIDE, aside.root) if aside and is_shown else None
            case _:
                return None

    def entries(self, ino: Ino, after: int) -> Iterator[FolderEntry]:
        """Yield the entries of the folder *ino* whose position is greater than *after*, in order.

        Raises:
            NoEntryError: the folder is gone, or *ino* is none.
        """
        for entry in self._all_entries(ino):
            if entry.position > after:
                yield entry

    def parent(self, ino: Ino) -> KernelNode:
        """Return the folder around the virtual inode *ino*; the root is its own.

        Raises:
            NoEntryError: *ino* is gone.
        """
        kind, number = split_virtual(ino)
        match kind:
            case Kind.ROOT | Kind.AGENT:
                return ROOT_NODE
            case Kind.VERSIONS | Kind.SNAPSHOTS | Kind.META | Kind.QUARANTINE:
                return virtual_node(Kind.AGENT, number)
            case Kind.ASIDE:
                return virtual_node(Kind.QUARANTINE, self._aside(number).agent_id)
            case Kind.NOTE:
                return virtual_node(Kind.ASIDE, number)
            case Kind.SIGNATURE:
                return virtual_node(Kind.META, self._signed(number).agent_id)
            case _:
                return virtual_node(Kind.META, self._version(number).agent_id)

    def attributes(self, ino: Ino) -> Attributes:
        """Return the attributes of the virtual inode *ino*.

        Raises:
            NoEntryError: *ino* is gone.
        """
        kind, number = split_virtual(ino)
        if kind is None:
            raise NoEntryError
        shape = self._shape(kind, number)
        node = virtual_node(kind, number)
        # Every path walk checks the permissions of each folder on the way, so attributes that
        # the kernel did not keep would cost it two messages a system call. What a verb changes
        # is taken out of its cache (see `stale`).
        return Attributes(
            node=node,
            st_ino=virtual_stat_ino(node),
            mode=shape.mode,
            nlink=shape.nlink,
            uid=shape.uid,
            gid=shape.gid,
            size=shape.size,
            rdev=0,
            blocks=-(-shape.size // BLOCK_SIZE),
            atime_ns=shape.changed_ns,
            mtime_ns=shape.changed_ns,
            ctime_ns=shape.changed_ns,
            btime_ns=shape.changed_ns,
            entry_timeout_s=FOREVER_S,
            attr_timeout_s=FOREVER_S,
        )

    def content(self, ino: Ino) -> bytes:
        """Return the bytes of the virtual file *ino*.

        Raises:
            NoEntryError: *ino* is gone, or no file.
        """
        kind, number = split_virtual(ino)
        match kind:
            case Kind.RECORD:
                return self._version(number).record
            case Kind.MANIFEST:
                return self._manifest(self._version(number).root)
            case Kind.SIGNATURE:
                return self._signed(number).signature
            case Kind.NOTE:
                return quarantine_json(self._aside(number))
            case _:
                raise NoEntryError

    def _shape(self, kind: Kind, number: int) -> _Shape:
        # A folder's nlink is 1, as on btrfs: how many there are in it is not counted, for there
        # may be many.
        if kind is Kind.ROOT:
            changed_ns = max(self._changed_ns, self._store.agents_changed_ns)
            return _Shape(stat.S_IFDIR | 0o755, 1, self._uid, self._gid, 0, changed_ns)
        if kind in (Kind.RECORD, Kind.MANIFEST):
            version = self._version(number)
            agent = self.agent(version.agent_id)
            size = len(self.content(_ino(kind, number)))
            # A manifest has digests of files that their modes may close to others.
            mode = stat.S_IFREG | (0o400 if kind is Kind.MANIFEST else 0o444)
            return _Shape(mode, 1, agent.uid, agent.gid, size, version.created_ns)
        if kind is Kind.SIGNATURE:
            version = self._signed(number)
            agent = self.agent(version.agent_id)
            size = len(version.signature)
            return _Shape(stat.S_IFREG | 0o444, 1, agent.uid, agent.gid, size, version.signed_ns)
        if kind in (Kind.ASIDE, Kind.NOTE):
            aside = self._aside(number)
            agent = self.agent(aside.agent_id)
            mode, size = stat.S_IFDIR | 0o555, 0
            if kind is Kind.NOTE:
                mode, size = stat.S_IFREG | 0o444, len(quarantine_json(aside))
            return _Shape(mode, 1, agent.uid, agent.gid, size, aside.quarantined_ns)
        agent = self.agent(number)
        match kind:
            case Kind.AGENT:
                mode, changed_ns = agent.mode, agent.created_ns
            case Kind.SNAPSHOTS:
                mode, changed_ns = 0o755, agent.changed_ns
            case _:
                mode, changed_ns = 0o555, agent.changed_ns
        return _Shape(stat.S_IFDIR | mode, 1, agent.uid, agent.gid, 0, changed_ns)

    def _all_entries(self, ino: Ino) -> list[FolderEntry]:
        kind, number = split_virtual(ino)
        found: list[FolderEntry]
        match kind:
            case Kind.ROOT:
                found = [
                    FolderEntry(
                        agent.agent_id + 1,
                        agent.name.encode(),
                        virtual_node(Kind.AGENT, agent.agent_id),
                    )
                    for agent in self._store.agents()
                ]
            case Kind.AGENT:
                agent = self.agent(number)
                found = [
                    FolderEntry(1, CURRENT, kernel_node(agent.head, TOP_INO)),
                    FolderEntry(2, VERSIONS, virtual_node(Kind.VERSIONS, number)),
                    FolderEntry(3, SNAPSHOTS, virtual_node(Kind.SNAPSHOTS, number)),
                    FolderEntry(4, META, virtual_node(Kind.META, number)),
                ]
                if self._store.quarantined(number):
                    node = virtual_node(Kind.QUARANTINE, number)
                    found.append(FolderEntry(5, QUARANTINE, node))
            case Kind.QUARANTINE:
                self.agent(number)
                found = [
                    FolderEntry(
                        aside.root + 1, aside.label.encode(), virtual_node(Kind.ASIDE, aside.root)
                    )
                    for aside in self._store.quarantined(number)
                    if aside.root
                ]
            case Kind.ASIDE:
                self._aside(number)
                found = [FolderEntry(1, _NOTE, virtual_node(Kind.NOTE, number))]
            case Kind.VERSIONS:
                self.agent(number)
                found = [
                    FolderEntry(
                        version.root + 1, version.label.encode(), kernel_node(version.root, TOP_INO)
                    )
                    for version in self._store.versions(number)
                ]
            case Kind.SNAPSHOTS:
                self.agent(number)
                found = [
                    FolderEntry(
                        snapshot.root + 1,
                        snapshot.name.encode(),
                        kernel_node(snapshot.root, TOP_INO),
                    )
                    for snapshot in self._store.snapshots(number)
                ]
            case Kind.META:
                self.agent(number)
                found = [
                    entry
                    for version in self._store.versions(number)
                    for entry in _meta_entries(version)
                ]
            case _:
                raise NoEntryError
        return sorted(found, key=lambda entry: entry.position)

    def _find_meta(self, agent_id: int, name: str) -> KernelNode | None:
        for suffix, kind in _META_FILES:
            if name.endswith(suffix):
                version = self._store.find_version(agent_id, name.removesuffix(suffix))
                if version is not None and (kind is not Kind.SIGNATURE or version.signature):
                    return _meta_node(kind, version)
        return None

    def _version(self, number: int) -> VersionRecord:
        """Return the version whose root id is *number*."""
        if not self._store.has_root(RootId(number)):
            raise NoEntryError
        root = self._store.root(RootId(number))
        if root.kind is not RootKind.VERSION:
            raise NoEntryError
        version = self._store.find_version(root.agent_id, root.name)
        if version is None or version.root != number:
            raise NoEntryError
        return version

    def _aside(self, number: int) -> QuarantineRecord:
        """Return what is in quarantine and has the root id *number*."""
        if self._store.has_root(RootId(number)):
            root = self._store.root(RootId(number))
            aside = self._store.find_quarantined(root.agent_id, root.name)
            if aside is not None and aside.root == number:
                return aside
        raise NoEntryError

    def _signed(self, number: int) -> VersionRecord:
        """Return the version whose latest signature has the id *number*."""
        version = self._version(number & MAX_ROOT_ID)
        if not version.signature or signature_id(version.root, version.signatures) != number:
            raise NoEntryError
        return version

    def _manifest(self, root: RootId) -> bytes:
        text = self._manifests.get(root)
        if text is None:
            text = self._forest.manifests.render(self._forest.tree(root))
            while len(self._manifests) >= _MANIFESTS_KEPT:
                del self._manifests[next(iter(self._manifests))]
            self._manifests[root] = text
        return text


def meta_names(label: str) -> list[bytes]:
    """Return the names in `@meta/` that belong to the version *label*."""
    return [(label + suffix).encode() for suffix, _ in _META_FILES]


def signature_name(label: str) -> bytes:
    """Return the name in `@meta/` of the signature of the version *label*."""
    return (label + _SIGNATURE_SUFFIX).encode()


def _meta_entries(version: VersionRecord) -> list[FolderEntry]:
    first = len(_META_FILES) * version.root + 1
    return [
        FolderEntry(first + place, (version.label + suffix).encode(), _meta_node(kind, version))
        for place, (suffix, kind) in enumerate(_META_FILES)
        if kind is not Kind.SIGNATURE or version.signature
    ]


def _meta_node(kind: Kind, version: VersionRecord) -> KernelNode:
    if kind is Kind.SIGNATURE:
        return virtual_node(kind, signature_id(version.root, version.signatures))
    return virtual_node(kind, version.root)


def _ino(kind: Kind, number: int) -> Ino:
    return Ino(virtual_node(kind, number))


def _decoded(name: bytes) -> str | None:
    """Return *name* as text, or None if nothing in the registry can be called that."""
    return name.decode() if name.isascii() else None

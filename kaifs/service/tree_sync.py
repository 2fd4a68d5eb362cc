"""Makes a tree equal to a stream of items, touching only what differs.

What is equal already (type, mode, owner, modification time, attributes and the
SHA-256 of the content) keeps its inode, and so its nodes and blocks stay shared
with the tree that this one was cloned from. Access times of such files are
left alone: reading the source changes them.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from kaifs.base.digest import sha256
from kaifs.base.errors import ChecksumMismatchError, SourceError
from kaifs.base.types import TOP_INO, Ino
from kaifs.meta.records import InodeRecord
from kaifs.service.steps import Data, End, Entry, Item
from kaifs.tree.tree import AttributeChange, Tree

_COMPARE_SIZE: Final = 1 << 20


@dataclass(slots=True)
class _Directory:
    """One directory that the stream is in."""

    ino: Ino
    entry: Entry
    unseen: set[bytes]
    """Names that the tree has and the stream has not told yet."""


@dataclass(slots=True)
class _File:
    """The regular file whose data the stream tells."""

    ino: Ino
    entry: Entry
    before: InodeRecord
    is_same: bool
    """Whether the tree's bytes [0, position) and the stream's are equal and nothing was written."""
    position: int = 0


class TreeSync:
    """Takes items one by one and brings *tree* in line with them."""

    def __init__(self, tree: Tree, now_ns: int) -> None:
        self._tree = tree
        self._now_ns = now_ns
        self._directories: list[_Directory] = []
        self._file: _File | None = None
        self._links: dict[tuple[int, int], Ino] = {}
        self._linked: set[Ino] = set()
        """Inodes that had several names and have been given to a file of the stream."""
        self.is_complete = False
        self.files = 0
        self.size = 0

    def take(self, item: Item) -> None:
        """Bring the tree in line with *item*.

        Raises:
            SourceError: the items make no tree.
            FileError: the tree cannot hold it.
        """
        match item:
            case Entry():
                self._finish_file()
                self.files += 1
                if item.path:
                    self._entry(item)
                else:
                    self._enter(TOP_INO, item)
            case Data():
                self._data(item)
            case End():
                self._finish_file()
                while self._directories:
                    self._leave()
                self.is_complete = True

    def _entry(self, entry: Entry) -> None:
        folder, _, name = entry.path.rpartition(b"/")
        while self._directories and self._directories[-1].entry.path != folder:
            self._leave()
        if not self._directories or name in (b"", b".", b".."):
            raise SourceError("items out of order")
        parent = self._directories[-1]
        is_known = name in parent.unseen
        parent.unseen.discard(name)
        existing = self._tree.find(parent.ino, name) if is_known else None
        if entry.link is not None and (ino := self._links.get(entry.link)) is not None:
            if existing != ino:
                self._remove(parent.ino, name)
                self._tree.link(ino, parent.ino, name, self._now_ns)
            return
        ino, is_new = self._same_or_new(parent.ino, name, existing, entry)
        if entry.link is not None:
            self._links[entry.link] = ino
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFDIR:
            self._enter(ino, entry)
        elif kind == stat.S_IFREG:
            self._file = _File(ino, entry, self._tree.inode(ino), is_same=not is_new)
        else:
            self._attributes(ino, entry)

    def _same_or_new(
        self, parent: Ino, name: bytes, existing: Ino | None, entry: Entry
    ) -> tuple[Ino, bool]:
        """Return the inode for *entry*, and whether it had to be made."""
        if existing is not None:
            inode = self._tree.inode(existing)
            if self._is_reusable(existing, inode, entry):
                if inode.nlink > 1 and not stat.S_ISDIR(inode.mode):
                    self._linked.add(existing)
                return existing, False
            self._remove(parent, name)
        owner = (entry.uid, entry.gid, self._now_ns)
        if stat.S_ISLNK(entry.mode):
            return self._tree.symlink(parent, name, entry.target, *owner), True
        return self._tree.make(parent, name, entry.mode, *owner, rdev=entry.rdev), True

    def _is_reusable(self, ino: Ino, inode: InodeRecord, entry: Entry) -> bool:
        """Return whether the inode can become *entry* without being made anew."""
        kind = stat.S_IFMT(entry.mode)
        if kind != stat.S_IFMT(inode.mode) or ino in self._linked:
            return False
        if kind == stat.S_IFLNK:
            return self._tree.readlink(ino) == entry.target
        return inode.rdev == entry.rdev

    def _enter(self, ino: Ino, entry: Entry) -> None:
        names = {found.name for found in self._tree.entries(ino)}
        self._directories.append(_Directory(ino, entry, names))

    def _leave(self) -> None:
        # Attributes last: what happens in a directory changes its times.
        directory = self._directories.pop()
        for name in sorted(directory.unseen):
            self._remove(directory.ino, name)
        self._attributes(directory.ino, directory.entry)

    def _remove(self, parent: Ino, name: bytes) -> None:
        """Remove *name* and all that is below, if it is there."""
        ino = self._tree.find(parent, name)
        if ino is None:
            return
        if not stat.S_ISDIR(self._tree.inode(ino).mode):
            self._tree.reap(self._tree.unlink(parent, name, self._now_ns))
            return
        pending = [(parent, name, ino)]
        while pending:
            folder, child, child_ino = pending[-1]
            below = [(found.name, found.ino, found.type) for found in self._tree.entries(child_ino)]
            for below_name, below_ino, kind in below:
                if stat.S_ISDIR(kind):
                    pending.append((child_ino, below_name, below_ino))
                else:
                    self._tree.reap(self._tree.unlink(child_ino, below_name, self._now_ns))
            if pending[-1] == (folder, child, child_ino):
                pending.pop()
                self._tree.reap(self._tree.rmdir(folder, child, self._now_ns))

    def _data(self, data: Data) -> None:
        file = self._file
        stop = data.offset + len(data.payload)
        if file is None or data.offset < file.position or stop > file.entry.size:
            raise SourceError("items out of order")
        self.size += len(data.payload)
        if file.is_same and not self._holds(file, data):
            self._diverge(file)
        if not file.is_same:
            self._tree.write(file.ino, data.offset, data.payload, self._now_ns)
        file.position = stop

    def _holds(self, file: _File, data: Data) -> bool:
        """Return whether the tree has *data*, and nothing in the hole before it."""
        before = file.before
        size = len(data.payload)
        if size == before.size and before.sha256:
            return sha256(data.payload).digest() == before.sha256
        if data.offset + size > before.size:
            return False
        try:
            return (
                self._is_zero(file.ino, file.position, data.offset)
                and self._tree.read(file.ino, data.offset, size) == data.payload
            )
        except ChecksumMismatchError:
            # The old version is damaged here; the new one gets the good bytes.
            return False

    def _is_zero(self, ino: Ino, start: int, stop: int) -> bool:
        while start < stop:
            size = min(stop - start, _COMPARE_SIZE)
            if any(self._tree.read(ino, start, size)):
                return False
            start += size
        return True

    def _diverge(self, file: _File) -> None:
        """From here on the stream's bytes are written: drop the tree's."""
        self._tree.truncate(file.ino, file.position, self._now_ns)
        file.is_same = False

    def _finish_file(self) -> None:
        file = self._file
        if file is None:
            return
        size = file.entry.size
        if file.is_same and not (
            file.before.size == size and self._is_zero(file.ino, file.position, size)
        ):
            self._diverge(file)
        if not file.is_same and self._tree.inode(file.ino).size != size:
            self._tree.truncate(file.ino, size, self._now_ns)
        self._attributes(file.ino, file.entry)
        self._file = None

    def _attributes(self, ino: Ino, entry: Entry) -> None:
        """Give the inode the entry's attributes where they differ."""
        tree = self._tree
        wanted = dict(entry.xattrs)
        held = {name: tree.getxattr(ino, name) for name in tree.listxattr(ino)}
        for name in held.keys() - wanted.keys():
            tree.removexattr(ino, name, self._now_ns)
        for name, value in wanted.items():
            if held.get(name) != value:
                tree.setxattr(ino, name, value, self._now_ns)
        inode = tree.inode(ino)
        if (inode.uid, inode.gid) != (entry.uid, entry.gid):
            change = AttributeChange(uid=entry.uid, gid=entry.gid)
            inode = tree.set_attributes(ino, change, self._now_ns)
        # After the owner: a change of owner clears the set-id bits.
        if (inode.mode, inode.mtime_ns) != (entry.mode, entry.mtime_ns):
            change = AttributeChange(
                mode=entry.mode, atime_ns=entry.atime_ns, mtime_ns=entry.mtime_ns
            )
            tree.set_attributes(ino, change, self._now_ns)

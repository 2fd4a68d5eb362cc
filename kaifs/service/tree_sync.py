"""Makes a tree equal to a stream of items, touching only what differs.

What is equal already (type, mode, owner, modification time, attributes and the
SHA-256 of the content) keeps its inode, and so its nodes and blocks stay shared
with the tree that this one was cloned from. What is new goes straight into
canonical blocks: a seal need not read it again. Access times of such files are
left alone: reading the source changes them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kaifs.base.digest import Sha256, sha256
from kaifs.base.errors import SourceError
from kaifs.base.types import FILE_SIZE_MAX, TOP_INO, Ino
from kaifs.meta.records import InodeRecord
from kaifs.service.steps import Data, End, Entry, Item
from kaifs.tree.seal import ExtentWriter
from kaifs.tree.tree import AttributeChange, Tree

_ZEROS: Final = bytes(1 << 20)
_ID_MAX: Final = (1 << 32) - 1
_KINDS: Final = frozenset(
    {
        *(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO),
        *(stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
    }
)


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
    before: bytes
    """SHA-256 of what the tree has; empty if that is not known."""
    digest: Sha256
    writer: ExtentWriter
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

    def take(self, item: Item) -> Iterator[None]:
        """Bring the tree in line with *item*. Yields where it takes long, to let others run.

        Raises:
            SourceError: the items make no tree.
            FileError: the tree cannot hold it.
        """
        match item:
            case Entry():
                yield from self._finish_file()
                self.files += 1
                _check(item, is_top=self.files == 1)
                if item.path:
                    self._entry(item)
                else:
                    self._enter(TOP_INO, item)
            case Data():
                yield from self._data(item)
            case End():
                yield from self._finish_file()
                if not self._directories:
                    raise SourceError("items out of order")
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
        existing = self._tree.find(parent.ino, name)
        if existing is not None and not is_known:
            raise SourceError("items out of order")
        parent.unseen.discard(name)
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
            before = b"" if is_new else self._tree.inode(ino).sha256
            self._file = _File(ino, entry, before, sha256(), ExtentWriter(self._tree))
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
        tree = self._tree
        owner = (entry.uid, entry.gid, self._now_ns)
        if stat.S_ISLNK(entry.mode):
            return tree.symlink(parent, name, entry.target, *owner, inherit=False), True
        ino = tree.make(parent, name, entry.mode, *owner, rdev=entry.rdev, inherit=False)
        return ino, True

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

    def _data(self, data: Data) -> Iterator[None]:
        file = self._file
        stop = data.offset + len(data.payload)
        if file is None or data.offset < file.position or stop > file.entry.size:
            raise SourceError("items out of order")
        self.size += len(data.payload)
        yield from _hash_zeros(file.digest, data.offset - file.position)
        file.digest.update(data.payload)
        file.position = stop
        is_whole = len(data.payload) == file.entry.size
        if is_whole and file.digest.digest() == file.before:
            # The usual case of an import of a second version: nothing to store, and the
            # block store need not be asked.
            return
        file.writer.feed(data.offset, data.payload)

    def _finish_file(self) -> Iterator[None]:
        file = self._file
        if file is None:
            return
        size = file.entry.size
        yield from _hash_zeros(file.digest, size - file.position)
        digest = file.digest.digest()
        # The blocks of an equal file that came in several pieces were found in the store and
        # not put again, so leaving the tree's extents is all there is to do.
        if digest != file.before:
            self._tree.set_content(file.ino, file.writer.finish(), size, digest)
            self._tree.set_attributes(file.ino, AttributeChange(), self._now_ns)
        self._attributes(file.ino, file.entry)
        self._file = None

    def _attributes(self, ino: Ino, entry: Entry) -> None:
        """Give the inode the entry's attributes where they differ."""
        tree = self._tree
        wanted = dict(entry.xattrs)
        held = tree.xattrs(ino)
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


def _check(entry: Entry, *, is_top: bool) -> None:
    """Check what the tree would take as it comes: the items may be anybody's."""
    kind = stat.S_IFMT(entry.mode)
    if is_top != (not entry.path) or (is_top and kind != stat.S_IFDIR):
        raise SourceError("items out of order")
    if (
        kind not in _KINDS
        or not 0 <= entry.uid <= _ID_MAX
        or not 0 <= entry.gid <= _ID_MAX
        or not 0 <= entry.size <= FILE_SIZE_MAX
        or not 0 <= entry.rdev < 1 << 63
        or max(abs(entry.atime_ns), abs(entry.mtime_ns)) >= 1 << 63
    ):
        raise SourceError(f"{os.fsdecode(entry.path)!a}: impossible attributes")


def _hash_zeros(digest: Sha256, count: int) -> Iterator[None]:
    while count > 0:
        step = min(count, len(_ZEROS))
        digest.update(memoryview(_ZEROS)[:step])
        count -= step
        yield

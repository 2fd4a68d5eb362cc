"""A file system inside one root: names, inodes, attributes, content.

Each method checks everything first and changes only then, so an error leaves
the tree as it was. Nobody may await between two of these calls that belong
together: a commit would take the half of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from kaifs.base.errors import (
    AccessError,
    AttributeTooLargeError,
    DirectoryNotEmptyError,
    EntryExistsError,
    FileTooLargeError,
    InvalidOperationError,
    IsDirectoryError,
    NameTooLongError,
    NoAttributeError,
    NoEntryError,
    NoSpaceError,
    NotDirectoryError,
    NotPermittedError,
    NotSupportedError,
    PastEndError,
    SealedError,
    TooManyLinksError,
)
from kaifs.base.types import (
    FILE_SIZE_MAX,
    LINK_MAX,
    MAX_INO,
    NAME_MAX,
    SYMLINK_MAX,
    TIME_MAX_NS,
    TIME_MIN_NS,
    TOP_INO,
    TREE_SIZE_MAX,
    XATTR_NAME_MAX,
    XATTR_SIZE_MAX,
    BlockId,
    Ino,
)
from kaifs.meta import keys
from kaifs.meta.records import (
    INODE,
    Extent,
    InodeRecord,
    decode_dentry,
    decode_dir_index,
    decode_extent,
    dentry_ino,
    encode_dentry,
    encode_dir_index,
)
from kaifs.store.roots import Root
from kaifs.store.store import Store
from kaifs.tree import acl
from kaifs.tree.btree import BTree
from kaifs.tree.content import Content, moved

_NO_BLOCK: Final = BlockId(0)
_PERMISSIONS: Final = 0o7777

INODE_CHARGE: Final = 1024
"""Bytes that an inode counts in a tree's own size: its keys in the B+tree, roughly."""
LINK_CHARGE: Final = 512
"""Bytes that each further name of a file counts."""


class RenameFlags(IntFlag):
    """Flags of renameat2(2)."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4
    """Leave a whiteout (character device 0:0) behind. Whoever renames makes it."""


# Plain numbers: an IntFlag takes ten times as long to look into.
_NOREPLACE: Final = int(RenameFlags.NOREPLACE)
_EXCHANGE: Final = int(RenameFlags.EXCHANGE)


@dataclass(frozen=True, slots=True)
class DirEntry:
    """One entry of a directory."""

    seq: int
    """Its position: grows with each new entry, never reused."""
    name: bytes
    ino: Ino
    type: int
    """File type as in st_mode (S_IFMT bits)."""


@dataclass(frozen=True, slots=True)
class WalkEntry:
    """One object met by a walk."""

    path: bytes
    """From the top, without a leading slash; empty for the top itself."""
    ino: Ino
    inode: InodeRecord


class AttributeChange(Struct, frozen=True, kw_only=True, gc=False):
    """What to set of an inode; None leaves it. Times are ns since 1970."""

    mode: int | None = None
    """Permission bits; type bits are ignored."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """A range of one file as another one is to have it."""

    length: int
    """Bytes, holes included."""
    extents: list[Extent]
    """What is not in a hole, at its new place."""
    is_whole: bool
    """Whether it is all of the file."""


class Tree:
    """The file system of one root."""

    def __init__(self, store: Store, root: Root) -> None:
        self.store = store
        self.root = root
        self.btree = BTree(store.nodes, root)
        self.content = Content(self.btree, store.payload, root)

    @property
    def is_writable(self) -> bool:
        """Whether the tree may change."""
        return self.root.is_writable

    # --- inodes ------------------------------------------------------------------------

    def inode(self, ino: Ino) -> InodeRecord:
        """Return the inode.

        Raises:
            NoEntryError: there is none.
        """
        inode = self.btree.get_decoded(keys.inode_key(ino), INODE.decode)
        if inode is None:
            raise NoEntryError(f"inode {ino}")
        return inode

    def put_inode(self, ino: Ino, inode: InodeRecord) -> None:
        """Set the inode's record. For what keeps a tree whole by other means."""
        self.root.changes += 1
        self.btree.put_decoded(keys.inode_key(ino), INODE.encode(inode), inode)

    def make_top(self, mode: int, uid: int, gid: int, now_ns: int) -> None:
        """Make the top directory of an empty tree."""
        assert self.root.next_ino == TOP_INO, "the tree is not empty"
        self._new_inode(stat.S_IFDIR | mode & _PERMISSIONS, uid, gid, now_ns, nlink=2)

    def _new_inode(
        self,
        mode: int,
        uid: int,
        gid: int,
        now_ns: int,
        *,
        nlink: int,
        rdev: int = 0,
        size: int = 0,
    ) -> Ino:
        ino = self.root.next_ino
        if ino > MAX_INO:
            raise NoSpaceError("every inode number is used up")
        self.root.next_ino = Ino(ino + 1)
        self.root.inodes += 1
        self.root.charge(INODE_CHARGE)
        times = (now_ns, now_ns, now_ns, now_ns)
        self.put_inode(ino, InodeRecord(mode, uid, gid, nlink, size, rdev, *times, 0, 1, b""))
        return ino

    def _check_writable(self) -> None:
        if not self.root.is_writable:
            raise SealedError

    def _directory(self, ino: Ino) -> InodeRecord:
        inode = self.inode(ino)
        if not stat.S_ISDIR(inode.mode):
            raise NotDirectoryError(f"inode {ino}")
        return inode

    # --- names -------------------------------------------------------------------------

    def find(self, parent: Ino, name: bytes) -> Ino | None:
        """Return what *name* is in the directory *parent*, None if it is nothing."""
        value = self.btree.get(keys.dentry_key(parent, name))
        return None if value is None else dentry_ino(value)

    def get(self, parent: Ino, name: bytes) -> Ino:
        """Return what *name* is in the directory *parent*.

        Raises:
            NoEntryError: it is nothing.
        """
        ino = self.find(parent, name)
        if ino is None:
            raise NoEntryError(os.fsdecode(name))
        return ino

    def entries(self, ino: Ino, after: int = 0) -> Iterator[DirEntry]:
        """Yield a directory's entries whose position is greater than *after*, by position.

        An entry that stays keeps its position, so a reader that comes back with
        the last one it saw meets each such entry exactly once.
        """
        start = keys.dir_index_key(ino, after + 1)
        for key, value in self.btree.scan(start, keys.prefix(ino, keys.DIR_INDEX + 1)):
            child, kind, name = decode_dir_index(value)
            yield DirEntry(keys.number_at_end(key), name, child, kind << 12)

    def sorted_entries(self, ino: Ino) -> Iterator[DirEntry]:
        """Yield a directory's entries by the bytes of their names."""
        start, stop = keys.prefix(ino, keys.DENTRY), keys.prefix(ino, keys.DENTRY + 1)
        for key, value in self.btree.scan(start, stop):
            child, seq, kind = decode_dentry(value)
            yield DirEntry(seq, key[keys.PREFIX_SIZE :], child, kind << 12)

    def links(self, ino: Ino) -> list[tuple[Ino, bytes]]:
        """Return the directories and names under which *ino* is known."""
        start, stop = keys.prefix(ino, keys.LINK), keys.prefix(ino, keys.LINK + 1)
        found = []
        for key, _ in self.btree.scan(start, stop):
            rest = key[keys.PREFIX_SIZE :]
            found.append((Ino(int.from_bytes(rest[:8], "big")), rest[8:]))
        return found

    def parent(self, ino: Ino) -> Ino:
        """Return the directory that the directory *ino* is in; the top's is itself."""
        if ino == TOP_INO:
            return TOP_INO
        links = self.links(ino)
        # A removed directory that a process still sits in has no parent any more.
        return links[0][0] if links else TOP_INO

    def paths(self, ino: Ino) -> list[bytes]:
        """Return every path of *ino* from the top, without a leading slash, sorted."""
        if ino == TOP_INO:
            return [b""]
        found = []
        for parent, name in self.links(ino):
            path = name
            while parent != TOP_INO:
                links = self.links(parent)
                if not links:
                    break
                parent, above = links[0]
                path = above + b"/" + path
            else:
                found.append(path)
        return sorted(found)

    def resolve(self, path: bytes) -> Ino:
        """Return what *path* is, from the top, without following symbolic links.

        Raises:
            NoEntryError: it is nothing.
        """
        ino = TOP_INO
        for name in path.split(b"/"):
            if name and name != b".":
                ino = self.get(ino, name)
        return ino

    def walk(self, ino: Ino = TOP_INO, path: bytes = b"") -> Iterator[WalkEntry]:
        """Yield *ino* and everything below: each directory before its entries, names sorted."""
        stack = [(path, ino)]
        while stack:
            path, ino = stack.pop()
            inode = self.inode(ino)
            yield WalkEntry(path, ino, inode)
            if stat.S_ISDIR(inode.mode):
                prefix = path + b"/" if path else b""
                below = [(prefix + entry.name, entry.ino) for entry in self.sorted_entries(ino)]
                stack += reversed(below)

    def make(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        now_ns: int,
        *,
        rdev: int = 0,
        inherit: bool = True,
        umask: int = 0,
    ) -> Ino:
        """Make a file, directory, FIFO, socket or device, told by the type bits of *mode*.

        Args:
            parent: Directory to make it in.
            name: Its name there.
            mode: As mknod(2); no type bits mean a regular file.
            uid: Owner.
            gid: Group, unless the parent's set-gid bit says otherwise.
            now_ns: The time, ns since 1970.
            rdev: Device number, for devices.
            inherit: Whether the parent's set-gid bit and default ACL count (inode(7), acl(5)).
            umask: Bits to take off *mode*, unless the parent has a default ACL.

        Raises:
            FileError: as mknod(2) and mkdir(2).
        """
        above = self._check_new_name(parent, name)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind == stat.S_IFLNK:
            raise InvalidOperationError("a symbolic link needs a target")
        mode = kind | mode & _PERMISSIONS
        is_directory = kind == stat.S_IFDIR
        if is_directory and above.nlink >= LINK_MAX:
            raise TooManyLinksError(os.fsdecode(name))
        if inherit and above.mode & stat.S_ISGID:
            gid = above.gid
            if is_directory:
                mode |= stat.S_ISGID
        default = self._default_list(parent) if inherit else None
        mode, lists = _inherited(mode, umask, default)
        ino = self._new_inode(mode, uid, gid, now_ns, nlink=2 if is_directory else 1, rdev=rdev)
        self._put_lists(ino, lists)
        self._insert(parent, above, name, ino, kind, now_ns)
        return ino

    def make_nameless(
        self, parent: Ino, mode: int, uid: int, gid: int, now_ns: int, *, umask: int = 0
    ) -> Ino:
        """Make a regular file without a name, as O_TMPFILE of open(2) does.

        It is an orphan, for the caller to reap or to `link`. The set-gid bit and
        the default ACL of the directory *parent* count as for `make`.

        Raises:
            FileError: as open(2).
        """
        self._check_writable()
        above = self._directory(parent)
        if above.mode & stat.S_ISGID:
            gid = above.gid
        default = self._default_list(parent)
        mode, lists = _inherited(stat.S_IFREG | mode & _PERMISSIONS, umask, default)
        ino = self._new_inode(mode, uid, gid, now_ns, nlink=0)
        self._put_lists(ino, lists)
        self._make_orphan(ino, self.inode(ino))
        return ino

    def _default_list(self, ino: Ino) -> bytes | None:
        """Return the default ACL of a directory. Mostly it is remembered that there is none."""
        return self.btree.get_decoded(keys.xattr_key(ino, acl.DEFAULT), bytes)

    def _put_lists(self, ino: Ino, lists: dict[bytes, bytes]) -> None:
        for name, value in lists.items():
            self.root.charge(len(value))
            self.btree.put(keys.xattr_key(ino, name), value)

    def symlink(
        self,
        parent: Ino,
        name: bytes,
        target: bytes,
        uid: int,
        gid: int,
        now_ns: int,
        *,
        inherit: bool = True,
    ) -> Ino:
        """Make a symbolic link to *target*.

        Raises:
            FileError: as symlink(2).
        """
        above = self._check_new_name(parent, name)
        if not target:
            raise NoEntryError("empty target")
        if len(target) > SYMLINK_MAX:
            raise NameTooLongError("target")
        if inherit and above.mode & stat.S_ISGID:
            gid = above.gid
        ino = self._new_inode(stat.S_IFLNK | 0o777, uid, gid, now_ns, nlink=1, size=len(target))
        # Also a target of over INLINE_MAX bytes is inline: it has no other home.
        self.content.put_extent(ino, Extent(0, len(target), _NO_BLOCK, 0, target))
        self.root.charge(len(target))
        self._insert(parent, above, name, ino, stat.S_IFLNK, now_ns)
        return ino

    def readlink(self, ino: Ino) -> bytes:
        """Return where a symbolic link leads.

        Raises:
            InvalidOperationError: it is none.
        """
        inode = self.inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise InvalidOperationError(f"inode {ino} is no symbolic link")
        return self.content.read(ino, 0, inode.size)

    def link(
        self, ino: Ino, parent: Ino, name: bytes, now_ns: int, *, nameless: bool = False
    ) -> None:
        """Give a file another name, or its first if it may be *nameless*.

        Raises:
            FileError: as link(2).
        """
        above = self._check_new_name(parent, name)
        inode = self.inode(ino)
        if stat.S_ISDIR(inode.mode):
            raise NotPermittedError("hard link of a directory")
        if inode.nlink == 0 and not nameless:
            raise NoEntryError(f"inode {ino} has no name any more")
        if inode.nlink >= LINK_MAX:
            raise TooManyLinksError(os.fsdecode(name))
        if inode.nlink == 0:
            self.btree.delete(keys.orphan_key(ino))
        else:
            self.root.charge(LINK_CHARGE)
        self.put_inode(ino, replace(inode, nlink=inode.nlink + 1, ctime_ns=now_ns))
        self._insert(parent, above, name, ino, stat.S_IFMT(inode.mode), now_ns)

    def unlink(self, parent: Ino, name: bytes, now_ns: int) -> Ino:
        """Take a name away from a file. Return the file.

        If that was its last name it is an orphan, which still can be read and
        written: the caller reaps it when nobody holds it.

        Raises:
            FileError: as unlink(2).
        """
        self._check_writable()
        above = self._directory(parent)
        ino, seq, _ = self._entry(parent, name)
        inode = self.inode(ino)
        if stat.S_ISDIR(inode.mode):
            raise IsDirectoryError(os.fsdecode(name))
        self._drop_entry(parent, name, ino, seq)
        self._put_directory(parent, above, now_ns, entries=-1)
        self._drop_link(ino, inode, now_ns)
        return ino

    def rmdir(self, parent: Ino, name: bytes, now_ns: int) -> Ino:
        """Take an empty directory away. Return it: an orphan for the caller to reap.

        Raises:
            FileError: as rmdir(2).
        """
        self._check_writable()
        above = self._directory(parent)
        ino, seq, _ = self._entry(parent, name)
        inode = self._directory(ino)
        if inode.size:
            raise DirectoryNotEmptyError(os.fsdecode(name))
        self._drop_entry(parent, name, ino, seq)
        self._put_directory(parent, above, now_ns, entries=-1, directories=-1)
        self._make_orphan(ino, replace(inode, nlink=0, ctime_ns=now_ns))
        return ino

    def rename(
        self,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        now_ns: int,
        flags: int = 0,
    ) -> Ino | None:
        """Move *name* to *new_name*, replacing or exchanging what is there.

        Returns:
            What was replaced, if that was its last name: an orphan for the caller to reap.

        Raises:
            FileError: as renameat2(2).
        """
        self._check_writable()
        if flags not in (0, _NOREPLACE, _EXCHANGE):
            raise InvalidOperationError(f"rename flags {flags:#x}")
        self._check_name(new_name)
        above = self._directory(parent)
        target = above if new_parent == parent else self._directory(new_parent)
        if target.nlink == 0:
            raise NoEntryError("the directory was removed")
        ino, seq, _ = self._entry(parent, name)
        inode = self.inode(ino)
        found = self.btree.get(keys.dentry_key(new_parent, new_name))
        if found is None:
            if flags & _EXCHANGE:
                raise NoEntryError(os.fsdecode(new_name))
            self._check_not_below(ino, inode, new_parent)
            if stat.S_ISDIR(inode.mode) and parent != new_parent and target.nlink >= LINK_MAX:
                raise TooManyLinksError(f"inode {new_parent}")
            self._move(parent, name, seq, new_parent, new_name, None, ino, inode, now_ns)
            return None
        if flags & _NOREPLACE:
            raise EntryExistsError(os.fsdecode(new_name))
        other, other_seq, _ = decode_dentry(found)
        if other == ino:
            return None
        self._check_not_below(ino, inode, new_parent)
        displaced = self.inode(other)
        if flags & _EXCHANGE:
            self._check_not_below(other, displaced, parent)
            self._exchange(parent, name, seq, ino, new_parent, new_name, other_seq, other, now_ns)
            return None
        self._check_replaceable(inode, displaced, new_name)
        self.btree.discard(keys.link_key(other, new_parent, new_name))
        is_directory = stat.S_ISDIR(displaced.mode)
        self._put_directory(
            new_parent, target, now_ns, entries=-1, directories=-1 if is_directory else 0
        )
        if is_directory:
            self._make_orphan(other, replace(displaced, nlink=0, ctime_ns=now_ns))
        else:
            self._drop_link(other, displaced, now_ns)
        self._move(parent, name, seq, new_parent, new_name, other_seq, ino, inode, now_ns)
        return other if is_directory or displaced.nlink == 1 else None

    def _check_replaceable(self, inode: InodeRecord, displaced: InodeRecord, name: bytes) -> None:
        if stat.S_ISDIR(displaced.mode):
            if not stat.S_ISDIR(inode.mode):
                raise IsDirectoryError(os.fsdecode(name))
            if displaced.size:
                raise DirectoryNotEmptyError(os.fsdecode(name))
        elif stat.S_ISDIR(inode.mode):
            raise NotDirectoryError(os.fsdecode(name))

    def _check_not_below(self, ino: Ino, inode: InodeRecord, directory: Ino) -> None:
        if stat.S_ISDIR(inode.mode):
            while directory != TOP_INO:
                if directory == ino:
                    raise InvalidOperationError("a directory cannot be moved into itself")
                directory = self.parent(directory)

    def _move(
        self,
        parent: Ino,
        name: bytes,
        seq: int,
        new_parent: Ino,
        new_name: bytes,
        new_seq: int | None,
        ino: Ino,
        inode: InodeRecord,
        now_ns: int,
    ) -> None:
        """Give *ino* another name, which takes the place *new_seq* in the listing.

        None: the place of the old name if it is the same directory, else a new one. Who
        reads the directory meanwhile sees a name that goes to and fro once, and ends.
        """
        above = self.inode(parent)
        kind = stat.S_IFMT(inode.mode)
        directories = 1 if kind == stat.S_IFDIR else 0
        if parent == new_parent:
            if new_seq is None:
                new_seq = seq
            self._put_directory(parent, above, now_ns)
        else:
            self._put_directory(parent, above, now_ns, entries=-1, directories=-directories)
            target = self.inode(new_parent)
            next_seq = target.next_seq
            if new_seq is None:
                new_seq = next_seq
                next_seq += 1
            self._put_directory(
                new_parent, target, now_ns, entries=1, directories=directories, next_seq=next_seq
            )
        self._drop_entry(parent, name, ino, seq if parent != new_parent or new_seq != seq else None)
        self._put_entry(new_parent, new_name, ino, new_seq, kind)
        self.put_inode(ino, replace(inode, ctime_ns=now_ns))

    def _exchange(
        self,
        parent: Ino,
        name: bytes,
        seq: int,
        ino: Ino,
        new_parent: Ino,
        new_name: bytes,
        other_seq: int,
        other: Ino,
        now_ns: int,
    ) -> None:
        kind, other_kind = (stat.S_IFMT(self.inode(one).mode) for one in (ino, other))
        self.btree.discard(keys.link_key(ino, parent, name))
        self.btree.discard(keys.link_key(other, new_parent, new_name))
        self._put_entry(new_parent, new_name, ino, other_seq, kind)
        self._put_entry(parent, name, other, seq, other_kind)
        moved_in = (other_kind == stat.S_IFDIR) - (kind == stat.S_IFDIR)
        self._put_directory(parent, self.inode(parent), now_ns, directories=moved_in)
        self._put_directory(new_parent, self.inode(new_parent), now_ns, directories=-moved_in)
        for one in (ino, other):
            self.put_inode(one, replace(self.inode(one), ctime_ns=now_ns))

    def _check_name(self, name: bytes) -> None:
        if len(name) > NAME_MAX:
            raise NameTooLongError(os.fsdecode(name[:40]) + "...")
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise InvalidOperationError(f"name {name!r}")

    def _check_new_name(self, parent: Ino, name: bytes) -> InodeRecord:
        self._check_writable()
        self._check_name(name)
        above = self._directory(parent)
        if above.nlink == 0:
            raise NoEntryError("the directory was removed")
        if self.find(parent, name) is not None:
            raise EntryExistsError(os.fsdecode(name))
        return above

    def _insert(
        self, parent: Ino, above: InodeRecord, name: bytes, ino: Ino, kind: int, now_ns: int
    ) -> None:
        """Add an entry at the end of the listing."""
        seq = above.next_seq
        self._put_entry(parent, name, ino, seq, kind)
        directories = 1 if kind == stat.S_IFDIR else 0
        self._put_directory(
            parent, above, now_ns, entries=1, directories=directories, next_seq=seq + 1
        )

    def _entry(self, parent: Ino, name: bytes) -> tuple[Ino, int, int]:
        """Return inode number, place in the listing and kind of an entry.

        Raises:
            NoEntryError: there is none.
        """
        value = self.btree.get(keys.dentry_key(parent, name))
        if value is None:
            raise NoEntryError(os.fsdecode(name))
        return decode_dentry(value)

    def _put_entry(self, parent: Ino, name: bytes, ino: Ino, seq: int, kind: int) -> None:
        """Let *name*, at the place *seq* of the listing, be *ino*. Counts are the caller's."""
        put = self.btree.put
        put(keys.dentry_key(parent, name), encode_dentry(ino, seq, kind >> 12))
        put(keys.dir_index_key(parent, seq), encode_dir_index(ino, kind >> 12, name))
        put(keys.link_key(ino, parent, name), b"")

    def _drop_entry(self, parent: Ino, name: bytes, ino: Ino, seq: int | None) -> None:
        """Take an entry away; not its place in the listing, if *seq* is None."""
        discard = self.btree.discard
        discard(keys.dentry_key(parent, name))
        if seq is not None:
            discard(keys.dir_index_key(parent, seq))
        discard(keys.link_key(ino, parent, name))

    def _put_directory(
        self,
        ino: Ino,
        inode: InodeRecord,
        now_ns: int,
        *,
        entries: int = 0,
        directories: int = 0,
        next_seq: int | None = None,
    ) -> None:
        """Note that the content of a directory has changed, by how many entries and directories."""
        changed = replace(
            inode,
            size=inode.size + entries,
            nlink=inode.nlink + directories,
            next_seq=inode.next_seq if next_seq is None else next_seq,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
        )
        self.put_inode(ino, changed)

    # --- orphans -----------------------------------------------------------------------

    def _drop_link(self, ino: Ino, inode: InodeRecord, now_ns: int) -> None:
        changed = replace(inode, nlink=inode.nlink - 1, ctime_ns=now_ns)
        if changed.nlink:
            self.root.charge(-LINK_CHARGE)
            self.put_inode(ino, changed)
        else:
            self._make_orphan(ino, changed)

    def _make_orphan(self, ino: Ino, inode: InodeRecord) -> None:
        self.put_inode(ino, inode)
        self.btree.put(keys.orphan_key(ino), b"")
        self.store.note_unfinished(self.root)

    def orphans(self) -> list[Ino]:
        """Return the inodes without a name."""
        start = keys.prefix(keys.NO_INO, keys.ORPHAN)
        stop = keys.prefix(keys.NO_INO, keys.ORPHAN + 1)
        return [Ino(keys.number_at_end(key)) for key, _ in self.btree.scan(start, stop)]

    def inos(self) -> list[Ino]:
        """Return every inode, orphans included. O(everything in the tree)."""
        start, stop = keys.inode_key(TOP_INO), keys.inode_key(Ino(MAX_INO))
        return sorted({keys.split_key(key)[0] for key, _ in self.btree.scan(start, stop)})

    def reap(self, ino: Ino) -> None:
        """Delete *ino* for good if it is an orphan."""
        if not self.btree.delete(keys.orphan_key(ino)):
            return
        inode = self.inode(ino)
        freed, attributes = 0, 0
        start, stop = keys.inode_key(ino), keys.inode_key(Ino(ino + 1))
        for key, value in self.btree.take(start, stop):
            kind = key[keys.PREFIX_SIZE - 1]
            if kind == keys.EXTENT:
                freed += self.content.own_size(decode_extent(keys.number_at_end(key), value))
            elif kind == keys.XATTR:
                attributes += len(value)
        # Only what this tree brought gives room back: who deletes what was there before gets none.
        if ino >= self.root.first_ino:
            freed += INODE_CHARGE + attributes
        self.root.charge(-freed)
        self.root.inodes -= 1
        if stat.S_ISREG(inode.mode):
            self.root.size -= inode.size
        self.root.changes += 1

    def reap_all(self) -> None:
        """Delete every orphan."""
        for ino in self.orphans():
            self.reap(ino)

    # --- attributes --------------------------------------------------------------------

    def set_attributes(
        self, ino: Ino, change: AttributeChange, now_ns: int, *, kill_privileges: bool = False
    ) -> InodeRecord:
        """Set attributes; ctime becomes *now_ns* unless told. Return the new inode.

        A new owner or group takes the set-id bits away from what is no directory
        (chown(2)); a new size does so if *kill_privileges*.

        Raises:
            FileError: as chmod(2), chown(2), truncate(2), utimensat(2).
        """
        self._check_writable()
        inode = self.inode(ino)
        if change.size is not None:
            self._check_resize(inode, change.size)
        mode = inode.mode
        if change.mode is not None:
            mode = stat.S_IFMT(mode) | change.mode & _PERMISSIONS
        elif (change.uid is not None or change.gid is not None) or (
            change.size is not None and kill_privileges
        ):
            mode = without_set_id(mode)
        if change.mode is not None:
            self._update_list(ino, mode)
        if change.size is not None:
            inode = self._resize(ino, inode, change.size, now_ns)
        inode = replace(
            inode,
            mode=mode,
            uid=inode.uid if change.uid is None else change.uid,
            gid=inode.gid if change.gid is None else change.gid,
            atime_ns=inode.atime_ns if change.atime_ns is None else _cut_time(change.atime_ns),
            mtime_ns=inode.mtime_ns if change.mtime_ns is None else _cut_time(change.mtime_ns),
            ctime_ns=now_ns if change.ctime_ns is None else _cut_time(change.ctime_ns),
        )
        self.put_inode(ino, inode)
        return inode

    def _update_list(self, ino: Ino, mode: int) -> None:
        """Let the ACL of *ino* say what *mode* says, if there is one."""
        key = keys.xattr_key(ino, acl.ACCESS)
        value = self.btree.get(key)
        if value is not None:
            self.btree.put(key, acl.Acl.decode(value).with_mode(mode).encode())

    def _check_resize(self, inode: InodeRecord, size: int) -> None:
        if stat.S_ISDIR(inode.mode):
            raise IsDirectoryError
        if not stat.S_ISREG(inode.mode) or size < 0:
            raise InvalidOperationError("only a regular file has a size")
        if size > FILE_SIZE_MAX:
            raise FileTooLargeError
        self._check_tree_size(inode, size)

    def _check_tree_size(self, inode: InodeRecord, size: int) -> None:
        if self.root.size + size - inode.size > TREE_SIZE_MAX:
            raise NoSpaceError("the sizes of a tree's files cannot be counted any more")

    def _resize(self, ino: Ino, inode: InodeRecord, size: int, now_ns: int) -> InodeRecord:
        allocated = inode.allocated
        if size < inode.size:
            allocated -= self.content.punch(ino, size, FILE_SIZE_MAX)
        self.root.size += size - inode.size
        return replace(inode, size=size, allocated=allocated, mtime_ns=now_ns, sha256=b"")

    # --- content -----------------------------------------------------------------------

    def read(self, ino: Ino, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Return up to *size* bytes from *offset*; fewer only at the end of the file.

        Raises:
            ChecksumMismatchError: a block is damaged.
            ColdBlockError: a block must come from the disk, and this is not to *wait*.
            FileError: as read(2).
        """
        inode = self.inode(ino)
        _check_regular(inode)
        stop = min(offset + size, inode.size)
        return self.content.read(ino, offset, stop, wait=wait) if stop > offset else b""

    def fetcher(self, ino: Ino, offset: int, size: int) -> Callable[[], None]:
        """Return what brings that part of a file into memory, for any thread to call."""
        return self.content.fetcher(ino, offset, offset + size)

    def write(
        self,
        ino: Ino,
        offset: int,
        payload: bytes | memoryview,
        now_ns: int | None,
        *,
        kill_privileges: bool = False,
    ) -> int:
        """Put *payload* at *offset*; the file grows if need be. Return the bytes written.

        Args:
            ino: A regular file.
            offset: Position of the first byte.
            payload: What to write. It is not kept.
            now_ns: New mtime and ctime; None leaves them (the kernel keeps them).
            kill_privileges: Take the set-id bits away.

        Raises:
            FileError: as write(2).
            NoSpaceError: the disk is full; the file is as it was.
        """
        inode = self._regular(ino)
        stop = offset + len(payload)
        if stop > FILE_SIZE_MAX:
            raise FileTooLargeError
        if not payload:
            return 0
        size = max(inode.size, stop)
        self._check_tree_size(inode, size)
        grown = self.content.write(ino, offset, payload, inode.size)
        self._put_content_change(ino, inode, size, grown, now_ns, kill_privileges)
        return len(payload)

    def allocate(
        self,
        ino: Ino,
        start: int,
        stop: int,
        now_ns: int | None,
        *,
        clear: bool = False,
        keep_size: bool = False,
        kill_privileges: bool = False,
    ) -> None:
        """Extend a file to *stop* bytes, or turn its bytes [start, stop) into a hole.

        Nothing is reserved: what is written later takes new room in any case,
        for blocks never change.

        Args:
            ino: A regular file.
            start: First byte.
            stop: Just past the last byte; greater than *start*.
            now_ns: As for `write`.
            clear: Make the hole.
            keep_size: Let the size be.
            kill_privileges: Take the set-id bits away.

        Raises:
            FileError: as fallocate(2).
            NoSpaceError: the tree's files would be too large together.
        """
        inode = self._regular(ino)
        if stop > FILE_SIZE_MAX:
            raise FileTooLargeError
        size = inode.size if keep_size else max(inode.size, stop)
        self._check_tree_size(inode, size)
        grown = -self.content.punch(ino, start, stop) if clear else 0
        self._put_content_change(ino, inode, size, grown, now_ns, kill_privileges)

    def copy_range(
        self,
        source: Tree,
        source_ino: Ino,
        start: int,
        ino: Ino,
        offset: int,
        length: int,
        now_ns: int | None,
        *,
        kill_privileges: bool = False,
    ) -> int:
        """Let *length* bytes at *offset* be those of another file from *start*, sharing its blocks.

        Holes stay holes. The trees must be of one store. What is copied ends at the
        source's end; return how many bytes that is.

        Args:
            source: The tree of the file to copy from; may be this one.
            source_ino: A regular file; may be *ino*, if the ranges do not overlap.
            start: First byte to copy.
            ino: The regular file to copy to.
            offset: Where in it.
            length: Bytes, at most.
            now_ns: As for `write`.
            kill_privileges: Take the set-id bits away.

        Raises:
            FileError: as copy_file_range(2).
            NoSpaceError: the tree's files would be too large together.
        """
        inode = self._regular(ino)
        copied = self.copied_extents(source, source_ino, start, offset, length)
        if not copied.length:
            return 0
        stop = offset + copied.length
        if stop > FILE_SIZE_MAX:
            raise FileTooLargeError
        size = max(inode.size, stop)
        self._check_tree_size(inode, size)
        grown = self.content.put_range(ino, offset, stop, copied.extents)
        sha256 = b""
        if inode.size == offset == 0 and copied.is_whole:
            sha256 = source.inode(source_ino).sha256
        self._put_content_change(ino, inode, size, grown, now_ns, kill_privileges, sha256)
        return copied.length

    def copied_extents(
        self, source: Tree, source_ino: Ino, start: int, offset: int, length: int
    ) -> Copied:
        """Return what `copy_range` puts at *offset*.

        Raises:
            FileError: the source is no regular file.
        """
        inode = source.inode(source_ino)
        _check_regular(inode)
        stop = min(start + length, inode.size)
        extents = [
            moved(extent.cut(max(extent.offset, start), min(extent.stop, stop)), offset - start)
            for extent in (source.content.extents(source_ino, start, stop) if stop > start else [])
        ]
        return Copied(max(stop - start, 0), extents, start == 0 and stop == inode.size)

    def _regular(self, ino: Ino) -> InodeRecord:
        """Return a file for a change of its content."""
        self._check_writable()
        inode = self.inode(ino)
        _check_regular(inode)
        return inode

    def _put_content_change(
        self,
        ino: Ino,
        inode: InodeRecord,
        size: int,
        grown: int,
        now_ns: int | None,
        kill_privileges: bool,
        sha256: bytes = b"",
    ) -> None:
        self.root.size += size - inode.size
        changed = replace(
            inode,
            size=size,
            allocated=inode.allocated + grown,
            sha256=sha256,
            mode=without_set_id(inode.mode) if kill_privileges else inode.mode,
            mtime_ns=inode.mtime_ns if now_ns is None else now_ns,
            ctime_ns=inode.ctime_ns if now_ns is None else now_ns,
        )
        self.put_inode(ino, changed)

    def own_size(self, ino: Ino, start: int, stop: int) -> int:
        """Return how many bytes of [start, stop) are not shared with what the tree was cloned of."""
        extents = self.content.extents(ino, start, stop)
        parts = (
            extent.cut(max(extent.offset, start), min(extent.stop, stop)) for extent in extents
        )
        return sum(map(self.content.own_size, parts))

    def truncate(self, ino: Ino, size: int, now_ns: int) -> None:
        """Cut or extend a file to *size* bytes; what is new is a hole.

        Raises:
            FileError: as truncate(2).
            NoSpaceError: the tree's files would be too large together.
        """
        self.set_attributes(ino, AttributeChange(size=size), now_ns)

    def set_content(self, ino: Ino, extents: list[Extent], size: int, sha256: bytes) -> None:
        """Let a file consist of *extents*, *size* bytes with that SHA-256; times stay."""
        self._check_writable()
        inode = self.inode(ino)
        self._check_tree_size(inode, size)
        self.content.replace(ino, extents)
        self.root.size += size - inode.size
        allocated = sum(extent.length for extent in extents)
        self.put_inode(ino, replace(inode, size=size, allocated=allocated, sha256=sha256))

    def seek_data(self, ino: Ino, offset: int) -> int:
        """Return where the next byte that is not in a hole is, at or after *offset*.

        Raises:
            PastEndError: there is none.
        """
        inode = self.inode(ino)
        for extent in self.content.extents(ino, offset, inode.size) if offset < inode.size else ():
            return max(extent.offset, offset)
        raise PastEndError

    def seek_hole(self, ino: Ino, offset: int) -> int:
        """Return where the next hole is, at or after *offset*; the end counts as one.

        Raises:
            PastEndError: *offset* is not inside the file.
        """
        inode = self.inode(ino)
        if offset >= inode.size:
            raise PastEndError
        position = offset
        for extent in self.content.extents(ino, offset, inode.size):
            if extent.offset > position:
                break
            position = extent.stop
        return position

    # --- extended attributes -----------------------------------------------------------

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return the value of an extended attribute.

        Raises:
            NoAttributeError: it does not exist.
        """
        value = self.btree.get(keys.xattr_key(ino, name))
        if value is None:
            raise NoAttributeError(os.fsdecode(name))
        return value

    def setxattr(
        self,
        ino: Ino,
        name: bytes,
        value: bytes,
        now_ns: int,
        flags: int = 0,
        *,
        kill_set_gid: bool = False,
    ) -> None:
        """Set an extended attribute; XATTR_CREATE and XATTR_REPLACE count in *flags*.

        An ACL changes the mode with it. One that says no more than a mode is not kept.

        Args:
            ino: Whose.
            name: Its name.
            value: Its value.
            now_ns: New ctime.
            flags: As setxattr(2).
            kill_set_gid: Take the set-gid bit away if an ACL changes the mode.

        Raises:
            FileError: as setxattr(2).
        """
        self._check_writable()
        inode = self.inode(ino)
        if not name or len(name) > XATTR_NAME_MAX:
            raise NameTooLongError(os.fsdecode(name[:40]))
        if len(value) > XATTR_SIZE_MAX:
            raise AttributeTooLargeError(os.fsdecode(name))
        key = keys.xattr_key(ino, name)
        if flags:
            exists = self.btree.get(key) is not None
            if flags & os.XATTR_CREATE and exists:
                raise EntryExistsError(os.fsdecode(name))
            if flags & os.XATTR_REPLACE and not exists:
                raise NoAttributeError(os.fsdecode(name))
        mode, is_kept = inode.mode, True
        if name in (acl.ACCESS, acl.DEFAULT):
            if stat.S_ISLNK(mode):
                raise NotSupportedError
            entries = acl.Acl.decode(value)
            if name == acl.DEFAULT and not stat.S_ISDIR(mode):
                raise AccessError
            if name == acl.ACCESS:
                mode = mode & ~0o777 | entries.permissions
                if kill_set_gid:
                    mode &= ~stat.S_ISGID
                is_kept = not entries.is_minimal
        old = self.btree.get(key)
        self.root.charge((len(value) if is_kept else 0) - len(old or b""))
        if is_kept:
            self.btree.put(key, value)
        elif old is not None:
            self.btree.delete(key)
        self.put_inode(ino, replace(inode, mode=mode, ctime_ns=now_ns))

    def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names of all extended attributes, sorted."""
        start, stop = keys.prefix(ino, keys.XATTR), keys.prefix(ino, keys.XATTR + 1)
        return [key[keys.PREFIX_SIZE :] for key, _ in self.btree.scan(start, stop)]

    def xattrs(self, ino: Ino) -> dict[bytes, bytes]:
        """Return all extended attributes."""
        start, stop = keys.prefix(ino, keys.XATTR), keys.prefix(ino, keys.XATTR + 1)
        return {key[keys.PREFIX_SIZE :]: value for key, value in self.btree.scan(start, stop)}

    def removexattr(self, ino: Ino, name: bytes, now_ns: int) -> None:
        """Remove an extended attribute.

        Raises:
            FileError: as removexattr(2).
        """
        self._check_writable()
        inode = self.inode(ino)
        self.root.charge(-len(self.getxattr(ino, name)))
        self.btree.delete(keys.xattr_key(ino, name))
        self.put_inode(ino, replace(inode, ctime_ns=now_ns))


def _inherited(mode: int, umask: int, default: bytes | None) -> tuple[int, dict[bytes, bytes]]:
    """Return mode and ACLs of what is made with *mode* where *default* is the default ACL."""
    if default is None:
        return mode & ~umask, {}
    entries = acl.Acl.decode(default).inherited(mode)
    lists = {} if entries.is_minimal else {acl.ACCESS: entries.encode()}
    if stat.S_ISDIR(mode):
        lists[acl.DEFAULT] = default
    return mode & ~0o777 | entries.permissions, lists


def _check_regular(inode: InodeRecord) -> None:
    if not stat.S_ISREG(inode.mode):
        raise IsDirectoryError if stat.S_ISDIR(inode.mode) else InvalidOperationError


def _cut_time(time_ns: int) -> int:
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


def without_set_id(mode: int) -> int:
    """Return *mode* as a write or chown by a stranger leaves it (inode(7), chown(2)).

    The set-gid bit of a file that its group cannot execute is no privilege and stays.
    """
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode

"""A tree is a POSIX file system: what each call does, and what each refuses."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from kaifs.base.errors import (
    AttributeTooLargeError,
    DirectoryNotEmptyError,
    EntryExistsError,
    FileError,
    FileTooLargeError,
    InvalidOperationError,
    IsDirectoryError,
    NameTooLongError,
    NoAttributeError,
    NoEntryError,
    NoSpaceError,
    NotDirectoryError,
    NotPermittedError,
    SealedError,
    TooManyLinksError,
)
from kaifs.base.types import (
    FILE_SIZE_MAX,
    LINK_MAX,
    MAX_INO,
    TIME_MAX_NS,
    TIME_MIN_NS,
    TOP_INO,
    TREE_SIZE_MAX,
    Ino,
)
from kaifs.meta import keys
from kaifs.meta.records import RootState
from kaifs.tree.tree import AttributeChange, RenameFlags, Tree, without_set_id
from tests.tree.grove import DIRECTORY, FILE, Grove, listing

NOREPLACE, EXCHANGE = RenameFlags.NOREPLACE, RenameFlags.EXCHANGE


def names(tree: Tree, ino: Ino = TOP_INO) -> list[bytes]:
    return [entry.name for entry in tree.sorted_entries(ino)]


def set_nlink(tree: Tree, ino: Ino, nlink: int) -> None:
    tree.put_inode(ino, replace(tree.inode(ino), nlink=nlink))


# --- making ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK],
)
def test_every_type_is_made_with_its_attributes(grove: Grove, kind: int) -> None:
    tree, now_ns = grove.current, grove.now_ns

    ino = tree.make(TOP_INO, b"x", kind | 0o7751, 1, 2, now_ns, rdev=0x1234)

    inode = tree.inode(ino)
    assert inode.mode == kind | 0o7751
    assert (inode.uid, inode.gid, inode.size, inode.rdev) == (1, 2, 0, 0x1234)
    assert inode.nlink == (2 if kind == stat.S_IFDIR else 1)
    assert {inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns} == {now_ns}
    assert tree.find(TOP_INO, b"x") == ino
    assert [entry.type for entry in tree.entries(TOP_INO)] == [kind]


def test_no_type_is_a_regular_file_and_a_link_needs_a_target(grove: Grove) -> None:
    ino = grove.current.make(TOP_INO, b"x", 0o644, 0, 0, grove.now_ns)

    assert stat.S_ISREG(grove.current.inode(ino).mode)
    with pytest.raises(InvalidOperationError):
        grove.current.make(TOP_INO, b"y", stat.S_IFLNK | 0o777, 0, 0, grove.now_ns)


def test_an_entry_changes_its_directory(grove: Grove) -> None:
    tree = grove.current
    before, now_ns = tree.inode(TOP_INO), grove.now_ns

    tree.make(TOP_INO, b"d", DIRECTORY, 0, 0, now_ns)

    after = tree.inode(TOP_INO)
    assert (after.size, after.nlink) == (before.size + 1, before.nlink + 1)
    assert after.mtime_ns == after.ctime_ns == now_ns
    assert after.atime_ns == before.atime_ns


def test_a_set_gid_directory_gives_its_group_on(grove: Grove) -> None:
    tree = grove.current
    shared = tree.make(TOP_INO, b"d", stat.S_IFDIR | 0o2775, 0, 7, grove.now_ns)

    file = tree.inode(tree.make(shared, b"f", FILE, 1, 1, grove.now_ns))
    below = tree.inode(tree.make(shared, b"d", DIRECTORY, 1, 1, grove.now_ns))
    link = tree.inode(tree.symlink(shared, b"l", b"t", 1, 1, grove.now_ns))
    own = tree.inode(tree.make(shared, b"o", DIRECTORY, 1, 1, grove.now_ns, inherit=False))
    own_link = tree.inode(tree.symlink(shared, b"k", b"t", 1, 1, grove.now_ns, inherit=False))

    assert [one.gid for one in (file, below, link, own, own_link)] == [7, 7, 7, 1, 1]
    assert not file.mode & stat.S_ISGID
    assert below.mode & stat.S_ISGID
    assert not own.mode & stat.S_ISGID


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_what_can_be_no_name_is_refused(grove: Grove, name: bytes) -> None:
    with pytest.raises(InvalidOperationError):
        grove.current.make(TOP_INO, name, FILE, 0, 0, grove.now_ns)


def test_a_name_is_bytes_and_at_most_255(grove: Grove) -> None:
    tree = grove.current

    for name in (b"\xff\xfe", b"\n", b"a b", b"x" * 255):
        tree.make(TOP_INO, name, FILE, 0, 0, grove.now_ns)

    assert names(tree) == [b"\n", b"a b", b"x" * 255, b"\xff\xfe"]
    with pytest.raises(NameTooLongError):
        tree.make(TOP_INO, b"x" * 256, FILE, 0, 0, grove.now_ns)


def test_a_path_of_many_long_names_works(grove: Grove) -> None:
    path = b"/".join([b"n" * 255] * 40)

    grove.put(path, b"deep")

    assert grove.current.paths(grove.current.resolve(path)) == [path]


def test_making_is_refused_where_it_cannot_be(grove: Grove) -> None:
    tree, now_ns = grove.current, grove.now_ns
    file = grove.put(b"f")
    gone = tree.make(TOP_INO, b"d", DIRECTORY, 0, 0, now_ns)
    tree.rmdir(TOP_INO, b"d", now_ns)
    before = listing(tree)

    for parent, name, error in (
        (TOP_INO, b"f", EntryExistsError),
        (file, b"x", NotDirectoryError),
        (gone, b"x", NoEntryError),
        (Ino(99), b"x", NoEntryError),
    ):
        with pytest.raises(error):
            tree.make(parent, name, FILE, 0, 0, now_ns)
        with pytest.raises(error):
            tree.symlink(parent, name, b"t", 0, 0, now_ns)
        with pytest.raises(error):
            tree.link(file, parent, name, now_ns)
    assert listing(tree) == before


def test_used_up_numbers_are_no_space(grove: Grove) -> None:
    root = grove.current.root
    before = root.next_ino
    root.next_ino = Ino(MAX_INO + 1)

    with pytest.raises(NoSpaceError):
        grove.put(b"f")

    root.next_ino = before


def test_a_directory_has_a_greatest_number_of_subdirectories(grove: Grove) -> None:
    tree = grove.current
    full = tree.make(TOP_INO, b"full", DIRECTORY, 0, 0, grove.now_ns)
    tree.make(TOP_INO, b"other", DIRECTORY, 0, 0, grove.now_ns)
    set_nlink(tree, full, LINK_MAX)

    with pytest.raises(TooManyLinksError):
        tree.make(full, b"d", DIRECTORY, 0, 0, grove.now_ns)
    with pytest.raises(TooManyLinksError):
        tree.rename(TOP_INO, b"other", full, b"d", grove.now_ns)

    tree.make(full, b"f", FILE, 0, 0, grove.now_ns)
    set_nlink(tree, full, 2)


# --- symbolic links --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 600, 4095])
def test_a_link_keeps_its_target(grove: Grove, size: int) -> None:
    ino = grove.current.symlink(TOP_INO, b"l", b"t" * size, 1, 2, grove.now_ns)

    inode = grove.current.inode(ino)
    assert grove.current.readlink(ino) == b"t" * size
    assert (inode.mode, inode.size, inode.uid) == (stat.S_IFLNK | 0o777, size, 1)


def test_a_target_is_neither_empty_nor_too_long(grove: Grove) -> None:
    with pytest.raises(NoEntryError):
        grove.current.symlink(TOP_INO, b"l", b"", 0, 0, grove.now_ns)
    with pytest.raises(NameTooLongError):
        grove.current.symlink(TOP_INO, b"l", b"t" * 4096, 0, 0, grove.now_ns)
    with pytest.raises(InvalidOperationError):
        grove.current.readlink(TOP_INO)


# --- names of files --------------------------------------------------------------------------


def test_a_file_has_several_names_and_one_content(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"d/a", b"x")
    now_ns = grove.now_ns

    tree.link(ino, TOP_INO, b"b", now_ns)

    assert tree.paths(ino) == [b"b", b"d/a"]
    inode = tree.inode(ino)
    assert (inode.nlink, inode.ctime_ns) == (2, now_ns)
    tree.write(tree.resolve(b"b"), 0, b"y", now_ns)
    assert tree.read(tree.resolve(b"d/a"), 0, 9) == b"y"


def test_linking_is_refused_where_it_cannot_be(grove: Grove) -> None:
    tree, now_ns = grove.current, grove.now_ns
    ino = grove.put(b"f")
    gone = grove.put(b"gone")
    tree.unlink(TOP_INO, b"gone", now_ns)

    with pytest.raises(NotPermittedError):
        tree.link(TOP_INO, TOP_INO, b"x", now_ns)
    with pytest.raises(NoEntryError):
        tree.link(gone, TOP_INO, b"x", now_ns)
    set_nlink(tree, ino, LINK_MAX)
    with pytest.raises(TooManyLinksError):
        tree.link(ino, TOP_INO, b"x", now_ns)
    set_nlink(tree, ino, 1)


def test_an_unlinked_file_is_readable_and_writable_until_it_is_reaped(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"f", b"old")
    size, inodes = tree.root.size, tree.root.inodes

    assert tree.unlink(TOP_INO, b"f", grove.now_ns) == ino
    tree.write(ino, 3, b"er", grove.now_ns)

    assert tree.read(ino, 0, 9) == b"older"
    assert tree.orphans() == [ino]
    assert tree.inode(ino).nlink == 0
    assert tree.paths(ino) == []
    grove.check()
    tree.reap(ino)
    assert tree.orphans() == []
    assert (tree.root.size, tree.root.inodes) == (size - 3, inodes - 1)
    with pytest.raises(NoEntryError):
        tree.inode(ino)


def test_reaping_what_has_a_name_does_nothing(grove: Grove) -> None:
    ino = grove.put(b"f")

    grove.current.reap(ino)

    assert grove.current.resolve(b"f") == ino


def test_one_name_of_two_goes_and_the_file_stays(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"a")
    tree.link(ino, TOP_INO, b"b", grove.now_ns)
    now_ns = grove.now_ns

    tree.unlink(TOP_INO, b"a", now_ns)

    assert tree.orphans() == []
    assert (tree.inode(ino).nlink, tree.inode(ino).ctime_ns) == (1, now_ns)


def test_a_directory_is_removed_when_it_is_empty(grove: Grove) -> None:
    tree = grove.current
    grove.put(b"d/f")
    directory = tree.resolve(b"d")

    with pytest.raises(DirectoryNotEmptyError):
        tree.rmdir(TOP_INO, b"d", grove.now_ns)
    tree.unlink(directory, b"f", grove.now_ns)
    tree.rmdir(TOP_INO, b"d", grove.now_ns)

    assert tree.inode(TOP_INO).nlink == 2
    assert tree.parent(directory) == TOP_INO, "a process may still sit in it"
    assert list(tree.entries(directory)) == []
    tree.reap_all()
    assert tree.root.inodes == 1


def test_unlink_and_rmdir_are_for_their_own(grove: Grove) -> None:
    tree, now_ns = grove.current, grove.now_ns
    grove.put(b"d/f")

    with pytest.raises(IsDirectoryError):
        tree.unlink(TOP_INO, b"d", now_ns)
    with pytest.raises(NotDirectoryError):
        tree.rmdir(tree.resolve(b"d"), b"f", now_ns)
    with pytest.raises(NotDirectoryError):
        tree.unlink(tree.resolve(b"d/f"), b"f", now_ns)
    for gone in (tree.unlink, tree.rmdir):
        with pytest.raises(NoEntryError):
            gone(TOP_INO, b"none", now_ns)


# --- looking ---------------------------------------------------------------------------------


def test_positions_of_entries_stay_while_others_come_and_go(grove: Grove) -> None:
    """A reader that comes back with the last position meets each entry that stayed once."""
    tree = grove.current
    for number in range(10):
        grove.put(b"f%d" % number)
    first = list(tree.entries(TOP_INO))[:4]

    tree.unlink(TOP_INO, b"f2", grove.now_ns)
    tree.unlink(TOP_INO, b"f7", grove.now_ns)
    grove.put(b"f2")
    rest = list(tree.entries(TOP_INO, first[-1].seq))

    assert [entry.name for entry in rest] == [b"f4", b"f5", b"f6", b"f8", b"f9", b"f2"]
    assert [entry.seq for entry in rest] == sorted(entry.seq for entry in rest)


def test_a_path_leads_to_an_inode_and_back(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"a/b/c")

    assert tree.resolve(b"a/b/c") == tree.resolve(b"/a//./b/c/") == ino
    assert tree.resolve(b"") == TOP_INO
    assert tree.paths(TOP_INO) == [b""]
    assert tree.parent(TOP_INO) == TOP_INO
    assert tree.parent(tree.resolve(b"a/b")) == tree.resolve(b"a")
    with pytest.raises(NoEntryError):
        tree.resolve(b"a/x")


def test_what_is_in_a_directory_that_is_gone_has_no_path(grove: Grove) -> None:
    """Cannot happen by calls; a reader of a damaged tree must still come to an end."""
    tree = grove.current
    ino = grove.put(b"d/f")
    directory = tree.resolve(b"d")
    tree.btree.delete(keys.link_key(directory, TOP_INO, b"d"))

    assert tree.paths(ino) == []

    tree.btree.put(keys.link_key(directory, TOP_INO, b"d"), b"")


def test_a_walk_meets_a_directory_before_its_entries_and_names_in_order(grove: Grove) -> None:
    for path in (b"b/z", b"b/a", b"a", b"b-", b"c/d/e"):
        grove.put(path)

    paths = [entry.path for entry in grove.current.walk()]

    assert paths == [b"", b"a", b"b", b"b/a", b"b/z", b"b-", b"c", b"c/d", b"c/d/e"]
    below = grove.current.walk(grove.current.resolve(b"c"), b"here")
    assert [entry.path for entry in below] == [b"here", b"here/d", b"here/d/e"]


# --- renaming --------------------------------------------------------------------------------


def test_a_file_moves_with_all_it_has(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"d/f", b"content")
    now_ns = grove.now_ns

    assert tree.rename(tree.resolve(b"d"), b"f", TOP_INO, b"g", now_ns) is None

    assert tree.paths(ino) == [b"g"]
    assert tree.inode(ino).ctime_ns == now_ns
    assert tree.read(ino, 0, 9) == b"content"
    assert tree.inode(tree.resolve(b"d")).size == 0


def test_a_directory_moves_with_what_is_below_and_parents_count_it(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"a/b/f")
    grove.put(b"c/x")

    tree.rename(tree.resolve(b"a"), b"b", tree.resolve(b"c"), b"b2", grove.now_ns)

    assert tree.paths(ino) == [b"c/b2/f"]
    assert tree.inode(tree.resolve(b"a")).nlink == 2
    assert tree.inode(tree.resolve(b"c")).nlink == 3
    assert tree.parent(tree.resolve(b"c/b2")) == tree.resolve(b"c")


def test_what_is_replaced_is_returned_when_that_was_its_last_name(grove: Grove) -> None:
    tree = grove.current
    old = grove.put(b"old", b"1")
    grove.put(b"new", b"2")

    assert tree.rename(TOP_INO, b"new", TOP_INO, b"old", grove.now_ns) == old

    assert tree.orphans() == [old]
    assert tree.read(tree.resolve(b"old"), 0, 9) == b"2"


def test_what_is_replaced_and_has_another_name_stays(grove: Grove) -> None:
    tree = grove.current
    old = grove.put(b"old")
    tree.link(old, TOP_INO, b"also", grove.now_ns)
    grove.put(b"new")

    assert tree.rename(TOP_INO, b"new", TOP_INO, b"old", grove.now_ns) is None

    assert tree.inode(old).nlink == 1


def test_an_empty_directory_is_replaced_by_a_directory(grove: Grove) -> None:
    tree = grove.current
    grove.put(b"a/f")
    empty = tree.make(TOP_INO, b"b", DIRECTORY, 0, 0, grove.now_ns)

    assert tree.rename(TOP_INO, b"a", TOP_INO, b"b", grove.now_ns) == empty

    assert tree.resolve(b"b/f")
    assert tree.inode(TOP_INO).nlink == 3


def test_two_names_of_one_file_renamed_to_each_other_stay(grove: Grove) -> None:
    """rename(2): if both are links of one file, nothing is done."""
    tree = grove.current
    ino = grove.put(b"a")
    tree.link(ino, TOP_INO, b"b", grove.now_ns)

    assert tree.rename(TOP_INO, b"a", TOP_INO, b"b", grove.now_ns) is None

    assert names(tree) == [b"a", b"b"]


def test_exchange_swaps_and_loses_nothing(grove: Grove) -> None:
    tree = grove.current
    file, below = grove.put(b"f", b"x"), grove.put(b"p/d/g")
    now_ns = grove.now_ns

    assert tree.rename(TOP_INO, b"f", tree.resolve(b"p"), b"d", now_ns, EXCHANGE) is None

    assert tree.paths(file) == [b"p/d"]
    assert tree.paths(below) == [b"f/g"]
    assert tree.inode(file).ctime_ns == tree.inode(tree.resolve(b"f")).ctime_ns == now_ns
    assert tree.inode(tree.resolve(b"p")).nlink == 2
    assert tree.inode(TOP_INO).nlink == 4


def test_noreplace_moves_to_a_free_name(grove: Grove) -> None:
    grove.put(b"a")

    grove.current.rename(TOP_INO, b"a", TOP_INO, b"b", grove.now_ns, NOREPLACE)

    assert names(grove.current) == [b"b"]


@pytest.mark.parametrize(
    ("old", "new", "flags", "error"),
    [
        (b"none", b"x", 0, NoEntryError),
        (b"none", b"f", EXCHANGE, NoEntryError),
        (b"f", b"none", EXCHANGE, NoEntryError),
        (b"f", b"g", NOREPLACE, EntryExistsError),
        (b"f", b"f", NOREPLACE, EntryExistsError),
        (b"f", b"d", 0, IsDirectoryError),
        (b"d", b"f", 0, NotDirectoryError),
        (b"empty", b"d", 0, DirectoryNotEmptyError),
        (b"d", b"d/e/x", 0, InvalidOperationError),
        (b"d", b"d/x", 0, InvalidOperationError),
        (b"d/e", b"d", 0, DirectoryNotEmptyError),
        (b"d", b"d/e", EXCHANGE, InvalidOperationError),
        (b"d/e", b"d", EXCHANGE, InvalidOperationError),
        (b"f", b"g", 3, InvalidOperationError),
        (b"f", b"g", 4, InvalidOperationError),
        (b"f", b"x" * 256, 0, NameTooLongError),
        (b"f", b"..", 0, InvalidOperationError),
        (b"f", b"g/x", 0, NotDirectoryError),
    ],
)
def test_renaming_is_refused_where_it_cannot_be(
    grove: Grove, old: bytes, new: bytes, flags: int, error: type[FileError]
) -> None:
    tree = grove.current
    for path in (b"f", b"g", b"d/e/deep"):
        grove.put(path)
    tree.make(TOP_INO, b"empty", DIRECTORY, 0, 0, grove.now_ns)
    before, top = listing(tree), tree.root.top

    def split(path: bytes) -> tuple[Ino, bytes]:
        above, _, name = path.rpartition(b"/")
        return tree.resolve(above), name

    with pytest.raises(error):
        tree.rename(*split(old), *split(new), grove.now_ns, RenameFlags(flags))

    assert listing(tree) == before
    assert tree.root.top == top


def test_nothing_moves_into_a_directory_that_is_gone(grove: Grove) -> None:
    tree = grove.current
    grove.put(b"f")
    gone = tree.make(TOP_INO, b"d", DIRECTORY, 0, 0, grove.now_ns)
    tree.rmdir(TOP_INO, b"d", grove.now_ns)

    with pytest.raises(NoEntryError):
        tree.rename(TOP_INO, b"f", gone, b"f", grove.now_ns)


# --- attributes ------------------------------------------------------------------------------


def test_attributes_are_set_alone_and_the_type_stays(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"f", b"12345")
    before, now_ns = tree.inode(ino), grove.now_ns
    change = AttributeChange(mode=0o140777, atime_ns=-5, mtime_ns=6)

    after = tree.set_attributes(ino, change, now_ns)

    assert after == tree.inode(ino)
    assert after == replace(
        before, mode=stat.S_IFREG | 0o777, atime_ns=-5, mtime_ns=6, ctime_ns=now_ns
    )
    told = tree.set_attributes(ino, AttributeChange(uid=1, gid=2, ctime_ns=9), now_ns)
    assert (told.uid, told.gid, told.ctime_ns) == (1, 2, 9)


def test_times_that_cannot_be_kept_are_cut(grove: Grove) -> None:
    """`touch -d 9999-01-01`: a file system with fewer bits keeps the last time that it can."""
    change = AttributeChange(atime_ns=-(10**30), mtime_ns=10**30, ctime_ns=10**30)

    inode = grove.current.set_attributes(TOP_INO, change, grove.now_ns)

    assert (inode.atime_ns, inode.mtime_ns) == (TIME_MIN_NS, TIME_MAX_NS)
    assert inode.ctime_ns == TIME_MAX_NS
    grove.reopen()
    assert grove.current.inode(TOP_INO) == inode


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        (stat.S_IFREG | 0o6755, stat.S_IFREG | 0o755),
        (stat.S_IFREG | 0o6745, stat.S_IFREG | 0o2745),
        (stat.S_IFREG | 0o1644, stat.S_IFREG | 0o1644),
        (stat.S_IFDIR | 0o6755, stat.S_IFDIR | 0o6755),
    ],
)
def test_privileges_go_but_mandatory_locking_and_directories_keep_theirs(
    mode: int, left: int
) -> None:
    assert without_set_id(mode) == left


def test_a_new_owner_or_a_strangers_write_takes_privileges(grove: Grove) -> None:
    tree = grove.current

    def privileged() -> Ino:
        ino = grove.put(b"f%d" % grove.now_ns, b"x")
        tree.set_attributes(ino, AttributeChange(mode=0o6755), grove.now_ns)
        return ino

    chowned, truncated, written, kept, told = (privileged() for _ in range(5))
    tree.set_attributes(chowned, AttributeChange(uid=1), grove.now_ns)
    change = AttributeChange(size=0)
    tree.set_attributes(truncated, change, grove.now_ns, kill_privileges=True)
    tree.write(written, 0, b"y", grove.now_ns, kill_privileges=True)
    tree.write(kept, 0, b"y", grove.now_ns)
    tree.truncate(kept, 0, grove.now_ns)
    tree.set_attributes(told, AttributeChange(mode=0o4755, uid=1), grove.now_ns)

    modes = [tree.inode(ino).mode & 0o7777 for ino in (chowned, truncated, written, kept, told)]
    assert modes == [0o755, 0o755, 0o755, 0o6755, 0o4755]


# --- content ---------------------------------------------------------------------------------


def test_writing_changes_times_unless_the_kernel_keeps_them(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"f", b"x")
    before, now_ns = tree.inode(ino), grove.now_ns

    tree.write(ino, 0, b"y", None)
    assert tree.inode(ino) == before
    tree.write(ino, 0, b"z", now_ns)

    after = tree.inode(ino)
    assert (after.mtime_ns, after.ctime_ns, after.atime_ns) == (now_ns, now_ns, before.atime_ns)


def test_writing_nothing_changes_nothing(grove: Grove) -> None:
    ino = grove.put(b"f", b"x")
    before = grove.current.inode(ino)

    assert grove.current.write(ino, 100, b"", grove.now_ns) == 0

    assert grove.current.inode(ino) == before


@pytest.mark.parametrize(
    ("kind", "error"), [(DIRECTORY, IsDirectoryError), (stat.S_IFIFO, InvalidOperationError)]
)
def test_only_a_regular_file_has_content(grove: Grove, kind: int, error: type[FileError]) -> None:
    tree = grove.current
    ino = tree.make(TOP_INO, b"x", kind, 0, 0, grove.now_ns)

    with pytest.raises(error):
        tree.read(ino, 0, 1)
    with pytest.raises(error):
        tree.write(ino, 0, b"x", grove.now_ns)
    with pytest.raises(error):
        tree.truncate(ino, 0, grove.now_ns)


def test_sizes_have_an_end(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"f")

    with pytest.raises(FileTooLargeError):
        tree.write(ino, FILE_SIZE_MAX, b"x", grove.now_ns)
    with pytest.raises(FileTooLargeError):
        tree.truncate(ino, FILE_SIZE_MAX + 1, grove.now_ns)
    with pytest.raises(InvalidOperationError):
        tree.truncate(ino, -1, grove.now_ns)
    tree.write(ino, FILE_SIZE_MAX - 1, b"x", grove.now_ns)
    assert tree.read(ino, FILE_SIZE_MAX - 2, 9) == b"\0x"


def test_the_sizes_of_a_tree_can_always_be_counted(grove: Grove) -> None:
    """A few sparse files of the greatest size are more bytes than a record can tell."""
    tree = grove.current
    first, second, third = (grove.put(name) for name in (b"1", b"2", b"3"))
    tree.truncate(first, FILE_SIZE_MAX, grove.now_ns)
    tree.truncate(second, FILE_SIZE_MAX, grove.now_ns)

    for refused in (
        lambda: tree.truncate(third, 2, grove.now_ns),
        lambda: tree.write(third, 0, b"xx", grove.now_ns),
        lambda: tree.set_content(third, [], 2, b""),
    ):
        with pytest.raises(NoSpaceError):
            refused()

    assert tree.inode(third).size == 0
    tree.write(third, 0, b"x", grove.now_ns)
    grove.reopen()
    assert grove.current.root.size == TREE_SIZE_MAX


def test_holes_take_nothing_and_a_file_forgets_what_was_cut_off(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"f", b"secret")

    tree.truncate(ino, 0, grove.now_ns)
    tree.truncate(ino, 6, grove.now_ns)

    assert tree.read(ino, 0, 9) == bytes(6)
    assert tree.inode(ino).allocated == 0


# --- extended attributes ---------------------------------------------------------------------


def test_attributes_come_and_go(grove: Grove) -> None:
    tree = grove.current
    ino = grove.put(b"f")
    tree.setxattr(ino, b"user.b", b"", grove.now_ns)
    now_ns = grove.now_ns
    tree.setxattr(ino, b"user.a", b"\0" * 65536, now_ns)

    assert tree.listxattr(ino) == [b"user.a", b"user.b"]
    assert tree.xattrs(ino) == {b"user.a": b"\0" * 65536, b"user.b": b""}
    assert tree.getxattr(ino, b"user.b") == b""
    assert tree.inode(ino).ctime_ns == now_ns
    tree.removexattr(ino, b"user.b", grove.now_ns)
    assert tree.listxattr(ino) == [b"user.a"]
    for missing in (
        lambda: tree.getxattr(ino, b"user.b"),
        lambda: tree.removexattr(ino, b"user.b", now_ns),
    ):
        with pytest.raises(NoAttributeError):
            missing()


def test_setting_an_attribute_heeds_its_flags_and_limits(grove: Grove) -> None:
    tree, now_ns = grove.current, grove.now_ns
    tree.setxattr(TOP_INO, b"user.a", b"1", now_ns, os.XATTR_CREATE)
    tree.setxattr(TOP_INO, b"user.a", b"2", now_ns, os.XATTR_REPLACE)

    for name, value, flags, error in (
        (b"user.a", b"3", os.XATTR_CREATE, EntryExistsError),
        (b"user.x", b"3", os.XATTR_REPLACE, NoAttributeError),
        (b"", b"", 0, NameTooLongError),
        (b"n" * 256, b"", 0, NameTooLongError),
        (b"user.a", bytes(65537), 0, AttributeTooLargeError),
    ):
        with pytest.raises(error):
            tree.setxattr(TOP_INO, name, value, now_ns, flags)

    assert tree.xattrs(TOP_INO) == {b"user.a": b"2"}


# --- what is sealed --------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RootState.SEALED, RootState.SUPERSEDED])
def test_a_tree_that_is_sealed_or_superseded_changes_in_no_way(
    grove: Grove, state: RootState
) -> None:
    tree, now_ns = grove.current, grove.now_ns
    ino = grove.put(b"f", b"x")
    tree.make(TOP_INO, b"d", DIRECTORY, 0, 0, now_ns)
    tree.setxattr(ino, b"user.a", b"", now_ns)
    before, top = listing(tree), tree.root.top
    grove.store.set_root_state(tree.root, state)

    changes: list[Callable[[], object]] = [
        lambda: tree.make(TOP_INO, b"x", FILE, 0, 0, now_ns),
        lambda: tree.symlink(TOP_INO, b"x", b"t", 0, 0, now_ns),
        lambda: tree.link(ino, TOP_INO, b"x", now_ns),
        lambda: tree.unlink(TOP_INO, b"f", now_ns),
        lambda: tree.rmdir(TOP_INO, b"d", now_ns),
        lambda: tree.rename(TOP_INO, b"f", TOP_INO, b"g", now_ns),
        lambda: tree.write(ino, 0, b"y", now_ns),
        lambda: tree.truncate(ino, 0, now_ns),
        lambda: tree.set_content(ino, [], 0, b""),
        lambda: tree.set_attributes(ino, AttributeChange(mode=0), now_ns),
        lambda: tree.setxattr(ino, b"user.b", b"", now_ns),
        lambda: tree.removexattr(ino, b"user.a", now_ns),
    ]
    for change in changes:
        with pytest.raises(SealedError):
            change()

    assert not tree.is_writable
    assert listing(tree) == before
    assert tree.root.top == top
    grove.store.set_root_state(tree.root, RootState.WRITABLE)


# --- what a tree takes -----------------------------------------------------------------------


def test_a_clone_takes_what_was_changed_in_it_and_gives_it_back(grove: Grove) -> None:
    """The measure of a quota: what is shared with the source is free, deleting it gives nothing."""
    shared = grove.put(b"shared", b"x" * 5000)
    tree = grove.snapshot("s")
    assert tree.root.own == 0
    assert tree.own_size(shared, 0, 5000) == 0

    tree.write(shared, 1000, b"y" * 1000, grove.now_ns)
    own = grove.put(b"own", b"z" * 3000, tree)
    taken = tree.root.own

    assert tree.own_size(shared, 500, 1600) == 600
    assert tree.own_size(own, 0, 5000) == 3000
    assert taken >= 4000
    tree.reap(tree.unlink(TOP_INO, b"own", grove.now_ns))
    assert tree.root.own <= taken - 3000
    tree.reap(tree.unlink(TOP_INO, b"shared", grove.now_ns))
    assert tree.root.own <= taken - 4000

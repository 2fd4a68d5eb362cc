"""Three-way merge: laws on random trees, and each kind of conflict by example."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.clock import ManualClock
from kaifs.base.errors import FileError
from kaifs.base.types import TOP_INO, Ino
from kaifs.meta.records import RootKind, RootState
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from kaifs.tree.merge import Conflict, ConflictKind, Merged, merge
from kaifs.tree.tree import AttributeChange, RenameFlags, Tree


class Site:
    """A store with trees that nobody owns."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.store = Store.create(path, clock=self.clock)
        self.forest = Forest(self.store)
        self.trees: list[Tree] = []

    def now_ns(self) -> int:
        self.clock.advance_ns(1_000)
        return self.clock.now_ns()

    def new(self) -> Tree:
        return self._keep(self.forest.new_tree(0o755, 0, 0))

    def clone(self, tree: Tree) -> Tree:
        return self._keep(self.forest.clone(tree))

    def _keep(self, tree: Tree) -> Tree:
        self.trees.append(tree)
        return tree

    def merge(self, base: Tree, ours: Tree, theirs: Tree) -> Merged:
        """Merge, and check that the three inputs and every invariant hold."""
        before = [picture(tree) for tree in (base, ours, theirs)]
        merged = merge(self.forest, base, ours, theirs, self.now_ns())
        assert [picture(tree) for tree in (base, ours, theirs)] == before
        if merged.tree is not None:
            self._keep(merged.tree)
            assert not merged.conflicts
        self.check()
        return merged

    def check(self) -> None:
        """Every invariant but the ones about who owns a root."""
        assert [finding for finding in check(self.store) if finding.number != 13] == []

    def close(self) -> None:
        self.store.close(commit=False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "store")
    yield site
    site.close()


@dataclass(frozen=True)
class Seen:
    """What one path is, its inode number aside."""

    mode: int
    owner: tuple[int, int]
    rdev: int
    content: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    times: tuple[int, int, int]
    first: bytes
    """The first path of the same object."""


def picture(tree: Tree, *, times: bool = True) -> dict[bytes, Seen]:
    """Return everything that a tree shows, by path."""
    first: dict[Ino, bytes] = {}
    seen = {}
    for entry in tree.walk():
        inode = entry.inode
        content = b""
        if stat.S_ISREG(inode.mode):
            content = tree.read(entry.ino, 0, inode.size)
        elif stat.S_ISLNK(inode.mode):
            content = tree.readlink(entry.ino)
        seen[entry.path] = Seen(
            inode.mode,
            (inode.uid, inode.gid),
            inode.rdev,
            content,
            tuple(tree.xattrs(entry.ino).items()),
            (inode.atime_ns, inode.mtime_ns, inode.ctime_ns) if times else (0, 0, 0),
            first.setdefault(entry.ino, entry.path),
        )
    return seen


# --- laws on random trees --------------------------------------------------------------

NAMES = (b"a", b"b", b"c")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)
payloads = st.sampled_from([b"", b"one", b"two", b"x" * 300, bytes(range(256)) * 600])

Step = Callable[[Tree, int], object]


def _place(tree: Tree, path: bytes) -> tuple[Ino, bytes]:
    folder, _, name = path.rpartition(b"/")
    return tree.resolve(folder), name


def _write(path: bytes, payload: bytes) -> Step:
    def step(tree: Tree, now_ns: int) -> None:
        ino = tree.resolve(path)
        tree.truncate(ino, 0, now_ns)
        tree.write(ino, 0, payload, now_ns)

    return step


def _make(path: bytes, kind: int, payload: bytes) -> Step:
    def step(tree: Tree, now_ns: int) -> None:
        if kind == stat.S_IFLNK:
            tree.symlink(*_place(tree, path), payload[:40] or b"t", 1, 2, now_ns)
            return
        ino = tree.make(*_place(tree, path), kind | 0o755, 1, 2, now_ns)
        if kind == stat.S_IFREG:
            tree.write(ino, 0, payload, now_ns)

    return step


def _replace(path: bytes, payload: bytes) -> Step:
    """Save as editors do: a new file, renamed over the old one."""

    def step(tree: Tree, now_ns: int) -> None:
        parent, name = _place(tree, path)
        tree.get(parent, name)
        ino = tree.make(TOP_INO, b"temporary", stat.S_IFREG | 0o600, 1, 2, now_ns)
        tree.write(ino, 0, payload, now_ns)
        try:
            displaced = tree.rename(TOP_INO, b"temporary", parent, name, now_ns)
        except FileError:
            tree.reap(tree.unlink(TOP_INO, b"temporary", now_ns))
            raise
        if displaced is not None:
            tree.reap(displaced)

    return step


def _remove(path: bytes) -> Step:
    def step(tree: Tree, now_ns: int) -> None:
        parent, name = _place(tree, path)
        ino = tree.get(parent, name)
        if not stat.S_ISDIR(tree.inode(ino).mode):
            tree.reap(tree.unlink(parent, name, now_ns))
            return
        for entry in list(tree.entries(ino)):
            _remove(path + b"/" + entry.name)(tree, now_ns)
        tree.reap(tree.rmdir(parent, name, now_ns))

    return step


def _rename(old: bytes, new: bytes, flags: RenameFlags) -> Step:
    def step(tree: Tree, now_ns: int) -> None:
        displaced = tree.rename(*_place(tree, old), *_place(tree, new), now_ns, flags)
        if displaced is not None:
            tree.reap(displaced)

    return step


def _link(old: bytes, new: bytes) -> Step:
    return lambda tree, now_ns: tree.link(tree.resolve(old), *_place(tree, new), now_ns)


def _chmod(path: bytes, mode: int) -> Step:
    return lambda tree, now_ns: tree.set_attributes(
        tree.resolve(path), AttributeChange(mode=mode), now_ns
    )


def _chown(path: bytes, uid: int) -> Step:
    return lambda tree, now_ns: tree.set_attributes(
        tree.resolve(path), AttributeChange(uid=uid), now_ns
    )


def _setxattr(path: bytes, value: bytes) -> Step:
    return lambda tree, now_ns: tree.setxattr(tree.resolve(path), b"user.x", value, now_ns)


def _removexattr(path: bytes) -> Step:
    return lambda tree, now_ns: tree.removexattr(tree.resolve(path), b"user.x", now_ns)


kinds = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO])
steps = st.one_of(
    st.builds(_make, paths, kinds, payloads),
    st.builds(_make, paths, kinds, payloads),
    st.builds(_write, paths, payloads),
    st.builds(_replace, paths, payloads),
    st.builds(_remove, paths),
    st.builds(_rename, paths, paths, st.sampled_from([RenameFlags.NONE, RenameFlags.EXCHANGE])),
    st.builds(_rename, paths, paths, st.just(RenameFlags.NONE)),
    st.builds(_link, paths, paths),
    st.builds(_chmod, paths, st.sampled_from([0o600, 0o700, 0o2755])),
    st.builds(_chown, paths, st.integers(0, 2)),
    st.builds(_setxattr, paths, payloads.map(lambda payload: payload[:5])),
    st.builds(_removexattr, paths),
)
histories = st.lists(steps, max_size=14)


def play(site: Site, tree: Tree, history: list[Step]) -> Tree:
    """Do what can be done of *history*."""
    for step in history:
        try:
            step(tree, site.now_ns())
        except FileError:
            continue
    return tree


def some_store(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("merge") / "store")


@given(before=histories, after=histories)
def test_merging_with_an_unchanged_side_gives_the_other(
    tmp_path_factory: pytest.TempPathFactory, before: list[Step], after: list[Step]
) -> None:
    """merge(b, b, x) = merge(b, x, b) = merge(b, x, x) = x."""
    site = some_store(tmp_path_factory)
    base = play(site, site.new(), before)
    x = play(site, site.clone(base), after)
    same = site.clone(base)

    for ours, theirs in ((same, x), (x, same), (x, site.clone(x))):
        merged = site.merge(base, ours, theirs)

        assert merged.conflicts == ()
        assert merged.tree is not None
        assert picture(merged.tree) == picture(x)
    site.close()


@given(before=histories, after=histories)
def test_the_same_changes_made_twice_merge_to_themselves(
    tmp_path_factory: pytest.TempPathFactory, before: list[Step], after: list[Step]
) -> None:
    """The inode numbers and times of the two differ; what they show does not."""
    site = some_store(tmp_path_factory)
    base = play(site, site.new(), before)
    first, second = site.clone(base), site.clone(base)
    ino = second.make(TOP_INO, b"pushes numbers", stat.S_IFREG, 0, 0, site.now_ns())
    second.reap(second.unlink(TOP_INO, b"pushes numbers", site.now_ns()))
    play(site, first, after)
    play(site, second, after)

    merged = site.merge(base, first, second)

    assert ino
    assert merged.conflicts == ()
    assert merged.tree is not None
    assert picture(merged.tree, times=False) == picture(first, times=False)
    site.close()


@given(before=histories, left=histories, right=histories)
def test_merging_is_symmetric(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[Step],
    left: list[Step],
    right: list[Step],
) -> None:
    """Either both orders give the same tree, or both the same conflicts."""
    site = some_store(tmp_path_factory)
    base = play(site, site.new(), before)
    x, y = play(site, site.clone(base), left), play(site, site.clone(base), right)

    one, other = site.merge(base, x, y), site.merge(base, y, x)

    assert swapped(one) == sorted(other.conflicts)
    if one.tree is not None and other.tree is not None:
        assert picture(one.tree) == picture(other.tree)
    site.close()


def swapped(merged: Merged) -> list[Conflict]:
    return sorted(Conflict(c.path, c.kind, c.theirs, c.ours) for c in merged.conflicts)


@given(before=histories, left=histories, right=histories)
def test_changes_in_different_folders_never_conflict(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[Step],
    left: list[Step],
    right: list[Step],
) -> None:
    """Each side changes a subtree of its own: the merge has both."""
    site = some_store(tmp_path_factory)
    base = site.new()
    folders = [
        base.make(TOP_INO, name, stat.S_IFDIR | 0o755, 0, 0, site.now_ns())
        for name in (b"left", b"right")
    ]
    for folder in folders:
        play(site, Below(base, folder), before)
    x, y = site.clone(base), site.clone(base)
    play(site, Below(x, folders[0]), left)
    play(site, Below(y, folders[1]), right)

    merged = site.merge(base, x, y)

    assert merged.conflicts == ()
    assert merged.tree is not None
    seen = picture(merged.tree)
    for name, side in ((b"left", x), (b"right", y)):
        shown = {path: one for path, one in picture(side).items() if path.startswith(name)}
        assert {path: one for path, one in seen.items() if path.startswith(name)} == shown
    site.close()


class Below(Tree):
    """A tree seen from one of its directories, so that a history happens inside it."""

    def __init__(self, tree: Tree, top: Ino) -> None:
        super().__init__(tree.store, tree.root)
        self._top = top

    def resolve(self, path: bytes) -> Ino:
        ino = self._top
        for name in path.split(b"/"):
            if name:
                ino = self.get(ino, name)
        return ino


# --- examples ----------------------------------------------------------------------------


@pytest.fixture
def base(site: Site) -> Tree:
    """`file`, `other`, `two` = `names` (one file), `link`, `dir/inner`, `dir2/`."""
    tree = site.new()
    for step in (
        _make(b"file", stat.S_IFREG, b"file"),
        _make(b"other", stat.S_IFREG, b"other"),
        _make(b"two", stat.S_IFREG, b"linked"),
        _link(b"two", b"names"),
        _make(b"link", stat.S_IFLNK, b"target"),
        _make(b"dir", stat.S_IFDIR, b""),
        _make(b"dir/inner", stat.S_IFREG, b"inner"),
        _make(b"dir2", stat.S_IFDIR, b""),
    ):
        step(tree, site.now_ns())
    return tree


NONE = RenameFlags.NONE

CONFLICTS: dict[str, tuple[list[Step], list[Step], list[tuple[bytes, ConflictKind]]]] = {
    "content": (
        [_write(b"file", b"ours")],
        [_write(b"file", b"theirs")],
        [(b"file", ConflictKind.MODIFY_MODIFY)],
    ),
    "content, saved as editors do": (
        [_write(b"file", b"ours")],
        [_replace(b"file", b"theirs")],
        [(b"file", ConflictKind.MODIFY_MODIFY)],
    ),
    "mode": (
        [_chmod(b"file", 0o600)],
        [_chmod(b"file", 0o700)],
        [(b"file", ConflictKind.MODIFY_MODIFY)],
    ),
    "attribute": (
        [_setxattr(b"file", b"1")],
        [_setxattr(b"file", b"2")],
        [(b"file", ConflictKind.MODIFY_MODIFY)],
    ),
    "deleted": (
        [_write(b"file", b"ours")],
        [_remove(b"file")],
        [(b"file", ConflictKind.MODIFY_DELETE)],
    ),
    "folder deleted": (
        [_make(b"dir/new", stat.S_IFREG, b"")],
        [_remove(b"dir")],
        [(b"dir", ConflictKind.MODIFY_DELETE)],
    ),
    "added": (
        [_make(b"new", stat.S_IFREG, b"ours")],
        [_make(b"new", stat.S_IFREG, b"theirs")],
        [(b"new", ConflictKind.ADD_ADD)],
    ),
    "added folder and file": (
        [_make(b"new", stat.S_IFREG, b"ours")],
        [_make(b"new", stat.S_IFDIR, b"")],
        [(b"new", ConflictKind.DIRECTORY_FILE)],
    ),
    "renamed twice": (
        [_rename(b"file", b"ours", NONE)],
        [_rename(b"file", b"theirs", NONE)],
        [(b"file", ConflictKind.RENAME_RENAME)],
    ),
    "renamed to one name": (
        [_rename(b"file", b"new", NONE)],
        [_rename(b"other", b"new", NONE)],
        [(b"new", ConflictKind.RENAME_RENAME)],
    ),
    "renamed and deleted": (
        [_rename(b"file", b"new", NONE)],
        [_remove(b"file")],
        [(b"file", ConflictKind.RENAME_DELETE)],
    ),
    "type": (
        [_write(b"file", b"ours")],
        [_remove(b"file"), _make(b"file", stat.S_IFLNK, b"x")],
        [(b"file", ConflictKind.TYPE)],
    ),
    "folder became a file": (
        [_make(b"dir/new", stat.S_IFREG, b"")],
        [_remove(b"dir"), _make(b"dir", stat.S_IFREG, b"x")],
        [(b"dir", ConflictKind.DIRECTORY_FILE)],
    ),
    "cycle": (
        [_rename(b"dir", b"dir2/dir", NONE)],
        [_rename(b"dir2", b"dir/dir2", NONE)],
        [(b"dir", ConflictKind.DIRECTORY_CYCLE)],
    ),
    "hard links split": (
        [_write(b"two", b"ours")],
        [_replace(b"names", b"theirs")],
        [(b"names", ConflictKind.HARD_LINKS)],
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_conflicts_are_told_by_kind_and_path(site: Site, base: Tree, case: str) -> None:
    """From either side, and nothing is made."""
    left, right, expected = CONFLICTS[case]
    x, y = play(site, site.clone(base), left), play(site, site.clone(base), right)
    roots = site.store.root_ids()

    one, other = site.merge(base, x, y), site.merge(base, y, x)

    assert [(conflict.path, conflict.kind) for conflict in one.conflicts] == expected
    assert swapped(one) == list(other.conflicts)
    assert (one.tree, other.tree) == (None, None)
    assert site.store.root_ids() == roots


def test_an_edit_follows_a_rename_of_its_folder(site: Site, base: Tree) -> None:
    x = play(site, site.clone(base), [_rename(b"dir", b"dir2/moved", NONE)])
    y = play(site, site.clone(base), [_write(b"dir/inner", b"edited"), _chmod(b"dir", 0o700)])

    merged = site.merge(base, x, y).tree

    assert merged is not None
    seen = picture(merged)
    assert b"dir" not in seen
    assert seen[b"dir2/moved/inner"].content == b"edited"
    assert stat.S_IMODE(seen[b"dir2/moved"].mode) == 0o700


def test_content_and_mode_of_one_file_merge(site: Site, base: Tree) -> None:
    x = play(site, site.clone(base), [_write(b"file", b"new"), _setxattr(b"file", b"1")])
    y = play(site, site.clone(base), [_chmod(b"file", 0o600), _chown(b"file", 2)])

    merged = site.merge(base, x, y).tree

    assert merged is not None
    seen = picture(merged)[b"file"]
    assert (seen.content, stat.S_IMODE(seen.mode), seen.owner) == (b"new", 0o600, (2, 2))
    assert seen.xattrs == ((b"user.x", b"1"),)


def test_two_names_are_exchanged_while_the_other_side_edits(site: Site, base: Tree) -> None:
    x = play(site, site.clone(base), [_write(b"file", b"edited")])
    y = play(site, site.clone(base), [_rename(b"file", b"dir", RenameFlags.EXCHANGE)])

    merged = site.merge(base, x, y).tree

    assert merged is not None
    seen = picture(merged)
    assert seen[b"dir"].content == b"edited"
    assert seen[b"file/inner"].content == b"inner"


def test_the_same_number_for_different_objects_is_no_confusion(site: Site, base: Tree) -> None:
    """Both branches give the next inode number away; theirs gets another in the merge."""
    x = play(site, site.clone(base), [_make(b"x", stat.S_IFREG, b"x")])
    y = play(site, site.clone(base), [_make(b"y", stat.S_IFDIR, b""), _link(b"file", b"y/file")])
    assert x.resolve(b"x") == y.resolve(b"y")

    merged = site.merge(base, x, y).tree

    assert merged is not None
    assert merged.resolve(b"x") == x.resolve(b"x")
    assert merged.resolve(b"y") != y.resolve(b"y")
    assert merged.resolve(b"y/file") == base.resolve(b"file")


def test_merging_costs_what_changed(site: Site) -> None:
    """A few nodes for a few changes in a tree of thousands of files."""
    base = site.new()
    for number in range(5_000):
        base.make(TOP_INO, b"%d" % number, stat.S_IFREG | 0o644, 0, 0, site.now_ns())
    x = play(site, site.clone(base), [_write(b"17", b"x")])
    y = play(site, site.clone(base), [_write(b"4711", b"y"), _remove(b"42")])
    visits = site.store.nodes.visits

    merged = merge(site.forest, base, x, y, site.now_ns())

    assert merged.tree is not None
    assert site.store.nodes.visits - visits < 1_000


def test_large_content_is_shared_not_copied(site: Site, base: Tree) -> None:
    x = play(site, site.clone(base), [_chmod(b"other", 0o600)])
    y = play(site, site.clone(base), [_make(b"big", stat.S_IFREG, os.urandom(1 << 20))])
    blocks = site.store.payload.next_block

    merged = site.merge(base, x, y).tree

    assert merged is not None
    assert site.store.payload.next_block == blocks
    assert merged.read(merged.resolve(b"big"), 0, 1 << 20) == y.read(y.resolve(b"big"), 0, 1 << 20)


def test_a_failed_merge_leaves_no_root(site: Site, base: Tree) -> None:
    """The file system's limits hold for the result."""
    x = play(site, site.clone(base), [_chmod(b"other", 0o600)])
    y = play(site, site.clone(base), [_make(b"new", stat.S_IFREG, b"")])
    site.store.own_root(y.root, RootKind.NONE, 0, "", site.store.new_slot())
    site.store.set_root_state(y.root, RootState.WRITABLE)
    roots = site.store.root_ids()
    merged = merge(site.forest, base, x, y, site.now_ns())
    assert merged.tree is not None

    site.forest.drop(merged.tree.root.root_id)

    assert site.store.root_ids() == roots

"""The whole synchronous core against plain dicts: every call, every verb, gc and restarts between.

The model of a tree is two dicts: inodes, and names of directories. It predicts
the class of each error, so a refusal is compared as well as a success.
"""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kaifs.base.errors import (
    DirectoryNotEmptyError,
    EntryExistsError,
    FileError,
    InvalidOperationError,
    IsDirectoryError,
    NoAttributeError,
    NoEntryError,
    NotDirectoryError,
    NotPermittedError,
    SealedError,
)
from kaifs.base.types import TOP_INO, Ino
from kaifs.store.gc import CommitWanted, GcStep, collect
from kaifs.store.store import StoreOptions
from kaifs.tree.diff import diff
from kaifs.tree.fsck import check
from kaifs.tree.manifest import Manifests, manifest_hash
from kaifs.tree.seal import SealedTree, seal
from kaifs.tree.tree import AttributeChange, RenameFlags, Tree
from tests.tree.grove import DIRECTORY, FILE, Grove, assert_known, exhaust

FIFO = stat.S_IFIFO | 0o600
R = TypeVar("R")
EXCHANGE, NOREPLACE = RenameFlags.EXCHANGE, RenameFlags.NOREPLACE

NAMES = [b"a", b"b", b"c", b"\xff \n", b"d" * 255]
names = st.sampled_from(NAMES)
choices = st.integers(0, 1 << 16)
offsets = st.integers(0, 200_000) | st.sampled_from([0, 1, 512, 4096])
sizes = st.sampled_from([0, 1, 300, 513, 4096, 70_000])
attributes = st.sampled_from([b"user.a", b"user.b"])


@dataclass
class Node:
    """One inode of the model."""

    mode: int
    uid: int = 0
    gid: int = 0
    content: bytes = b""
    """Of a file its bytes, of a symbolic link its target."""
    names: dict[bytes, Ino] = field(default_factory=dict)
    """Of a directory."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    nlink: int = 1

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


class Model:
    """One tree as dicts. Inode numbers are taken from the tree: they are not what is tested."""

    def __init__(self) -> None:
        self.nodes: dict[Ino, Node] = {TOP_INO: Node(DIRECTORY)}
        self.is_writable = True

    def copy(self, *, writable: bool) -> Model:
        """Return a clone: without orphans, which are held by whoever knows this tree."""
        clone = Model()
        clone.nodes = {
            ino: copy.deepcopy(node) for ino, node in self.nodes.items() if node.nlink > 0
        }
        clone.is_writable = writable
        return clone

    def pick(self, number: int) -> Ino:
        return sorted(self.nodes)[number % len(self.nodes)]

    def pick_directory(self, number: int) -> Ino:
        """Return a directory, orphans included, or sometimes what is none."""
        found = [ino for ino in sorted(self.nodes) if self.nodes[ino].is_directory]
        return self.pick(number) if number % 16 == 15 else found[number % len(found)]

    def parent_of(self, ino: Ino) -> Ino | None:
        for above, node in self.nodes.items():
            if ino in node.names.values():
                return above
        return None

    def is_below(self, ino: Ino, directory: Ino) -> bool:
        """Whether the directory *ino* is *directory* or above it."""
        place: Ino | None = directory
        while place is not None and place != TOP_INO:
            if place == ino:
                return True
            place = self.parent_of(place)
        return False

    # Each of these returns the class of error that the call must raise, None if it must work.

    def refuse_new(self, parent: Ino, name: bytes) -> type[FileError] | None:
        node = self.nodes[parent]
        if not self.is_writable:
            return SealedError
        if not node.is_directory:
            return NotDirectoryError
        if node.nlink == 0:
            return NoEntryError
        return EntryExistsError if name in node.names else None

    def refuse_removal(
        self, parent: Ino, name: bytes, *, directory: bool
    ) -> type[FileError] | None:
        if not self.is_writable:
            return SealedError
        if not self.nodes[parent].is_directory:
            return NotDirectoryError
        ino = self.nodes[parent].names.get(name)
        if ino is None:
            return NoEntryError
        node = self.nodes[ino]
        if not directory:
            return IsDirectoryError if node.is_directory else None
        if not node.is_directory:
            return NotDirectoryError
        return DirectoryNotEmptyError if node.names else None

    def refuse_rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: RenameFlags
    ) -> type[FileError] | None:
        if not self.is_writable:
            return SealedError
        above, below = self.nodes[parent], self.nodes[new_parent]
        if not above.is_directory or not below.is_directory:
            return NotDirectoryError
        if below.nlink == 0 or name not in above.names:
            return NoEntryError
        ino, other = above.names[name], below.names.get(new_name)
        if flags is NOREPLACE and other is not None:
            return EntryExistsError
        if flags is EXCHANGE and other is None:
            return NoEntryError
        if other == ino:
            return None
        node = self.nodes[ino]
        if node.is_directory and self.is_below(ino, new_parent):
            return InvalidOperationError
        if other is None:
            return None
        displaced = self.nodes[other]
        if flags is EXCHANGE:
            is_above = displaced.is_directory and self.is_below(other, parent)
            return InvalidOperationError if is_above else None
        if displaced.is_directory:
            if not node.is_directory:
                return IsDirectoryError
            return DirectoryNotEmptyError if displaced.names else None
        return NotDirectoryError if node.is_directory else None

    def refuse_content(self, ino: Ino) -> type[FileError] | None:
        if not self.is_writable:
            return SealedError
        node = self.nodes[ino]
        if node.is_directory:
            return IsDirectoryError
        return None if node.kind == stat.S_IFREG else InvalidOperationError

    def insert(self, parent: Ino, name: bytes, ino: Ino | None, node: Node) -> None:
        assert ino is not None
        above = self.nodes[parent]
        if above.mode & stat.S_ISGID:
            node.gid = above.gid
            node.mode |= stat.S_ISGID if node.is_directory else 0
        self.nodes[ino] = node
        above.names[name] = ino

    def drop_name(self, parent: Ino, name: bytes) -> Ino:
        ino = self.nodes[parent].names.pop(name)
        node = self.nodes[ino]
        node.nlink = 0 if node.is_directory else node.nlink - 1
        return ino

    def listing(self) -> dict[bytes, tuple[object, ...]]:
        """Return what a user sees, with inode numbers, which name the sets of hard links."""
        found: dict[bytes, tuple[object, ...]] = {}
        stack = [(b"", TOP_INO)]
        while stack:
            path, ino = stack.pop()
            node = self.nodes[ino]
            found[path] = (ino, *seen(node))
            prefix = path + b"/" if path else b""
            stack += [(prefix + name, child) for name, child in node.names.items()]
        return found


def seen(node: Node) -> tuple[object, ...]:
    nlink = node.nlink
    return (node.mode, node.uid, node.gid, nlink, node.content, tuple(sorted(node.xattrs.items())))


def tree_seen(tree: Tree, ino: Ino) -> tuple[object, ...]:
    inode = tree.inode(ino)
    content = b""
    nlink = inode.nlink
    if stat.S_ISREG(inode.mode):
        content = tree.read(ino, 0, inode.size)
    elif stat.S_ISLNK(inode.mode):
        content = tree.readlink(ino)
    elif stat.S_ISDIR(inode.mode) and nlink:
        # The model counts a directory's one name; 2 and its subdirectories are fsck's I7.
        nlink = 1
    return (
        inode.mode, inode.uid, inode.gid, nlink, content, tuple(sorted(tree.xattrs(ino).items())),
    )  # fmt: skip


def tree_listing(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    return {entry.path: (entry.ino, *tree_seen(tree, entry.ino)) for entry in tree.walk()}


class CoreMachine(RuleBasedStateMachine):
    """One agent's current, its versions and snapshots, and a model of each."""

    folder: ClassVar[Path]
    options: ClassVar[StoreOptions]
    runs: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        CoreMachine.runs += 1
        self.grove = Grove(self.folder / str(self.runs), self.options)
        self.models: dict[str, Model] = {"current": Model()}
        self.hashes: dict[str, str] = {}
        self.gc: Generator[GcStep, None, object] | None = None
        self.count = 0
        self.commit()

    def teardown(self) -> None:
        self.finish_gc()
        self.agrees()
        self.versions_are_what_they_were()
        self.reopen(commit=True)
        self.agrees()
        assert [str(finding) for finding in check(self.grove.store)] == []
        self.grove.store.close()

    # --- helpers ---------------------------------------------------------------------------

    @property
    def number(self) -> int:
        self.count += 1
        return self.count

    def save(self) -> None:
        """Remember the models as those of the last commit."""
        self.saved = copy.deepcopy((self.models, self.hashes))

    def tree(self, which: str) -> Tree:
        if which == "current":
            return self.grove.current
        if which in self.hashes:
            return self.grove.version(which)
        return self.grove.forest.tree(self.grove.store.get_snapshot(self.grove.agent, which).root)

    def target(self, number: int) -> tuple[Tree, Model]:
        """Return one of the trees, current in half of the cases."""
        which = ["current", *sorted(self.models)]
        name = which[number % len(which)] if number % 2 else "current"
        return self.tree(name), self.models[name]

    def expect(self, error: type[FileError] | None, call: Callable[[], R]) -> R | None:
        """Make the call, which must raise exactly *error*."""
        if error is None:
            return call()
        with pytest.raises(error) as raised:
            call()
        assert raised.type is error
        return None

    # --- calls -----------------------------------------------------------------------------

    @rule(
        where=choices,
        parent=choices,
        name=names,
        mode=st.sampled_from([FILE, FILE, DIRECTORY, DIRECTORY, FIFO, stat.S_IFREG | 0o4755]),
    )
    def make(self, where: int, parent: int, name: bytes, mode: int) -> None:
        tree, model = self.target(where)
        above = model.pick_directory(parent)
        error = model.refuse_new(above, name)
        ino = self.expect(error, lambda: tree.make(above, name, mode, 0, 0, self.grove.now_ns))
        if error is None:
            assert ino not in model.nodes
            model.insert(above, name, ino, Node(mode))

    @rule(where=choices, parent=choices, name=names, leads=st.sampled_from([b"a", b"/x" * 400]))
    def symlink(self, where: int, parent: int, name: bytes, leads: bytes) -> None:
        tree, model = self.target(where)
        above = model.pick_directory(parent)
        error = model.refuse_new(above, name)
        ino = self.expect(error, lambda: tree.symlink(above, name, leads, 1, 2, self.grove.now_ns))
        if error is None:
            model.insert(above, name, ino, Node(stat.S_IFLNK | 0o777, 1, 2, leads))

    @rule(where=choices, which=choices, parent=choices, name=names)
    def link(self, where: int, which: int, parent: int, name: bytes) -> None:
        tree, model = self.target(where)
        ino, above = model.pick(which), model.pick_directory(parent)
        error = model.refuse_new(above, name)
        if error is None and model.nodes[ino].is_directory:
            error = NotPermittedError
        elif error is None and model.nodes[ino].nlink == 0:
            error = NoEntryError
        self.expect(error, lambda: tree.link(ino, above, name, self.grove.now_ns))
        if error is None:
            model.nodes[above].names[name] = ino
            model.nodes[ino].nlink += 1

    @rule(where=choices, parent=choices, name=names, directory=st.booleans(), held=st.booleans())
    def remove(self, where: int, parent: int, name: bytes, directory: bool, held: bool) -> None:
        """Unlink or rmdir; what has no name any more is reaped, or held by a process."""
        tree, model = self.target(where)
        above = model.pick_directory(parent)
        error = model.refuse_removal(above, name, directory=directory)
        call = tree.rmdir if directory else tree.unlink
        ino = self.expect(error, lambda: call(above, name, self.grove.now_ns))
        if error is None:
            assert model.drop_name(above, name) == ino
            if not held and model.nodes[Ino(ino)].nlink == 0:
                tree.reap(Ino(ino))
                del model.nodes[Ino(ino)]

    @rule(where=choices)
    def let_go(self, where: int) -> None:
        """The processes that held files without a name end."""
        tree, model = self.target(where)
        for ino in [ino for ino, node in model.nodes.items() if node.nlink == 0]:
            tree.reap(ino)
            del model.nodes[ino]

    @rule(
        where=choices,
        parent=choices,
        name=names,
        new_parent=choices,
        new_name=names,
        flags=st.sampled_from([*[RenameFlags.NONE] * 3, NOREPLACE, EXCHANGE]),
    )
    def rename(
        self,
        where: int,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: RenameFlags,
    ) -> None:
        tree, model = self.target(where)
        above, below = model.pick_directory(parent), model.pick_directory(new_parent)
        error = model.refuse_rename(above, name, below, new_name, flags)
        gone = self.expect(
            error, lambda: tree.rename(above, name, below, new_name, self.grove.now_ns, flags)
        )
        if error is not None:
            return
        ino, other = model.nodes[above].names[name], model.nodes[below].names.get(new_name)
        if other == ino:
            assert gone is None
            return
        if flags is EXCHANGE:
            assert other is not None
            model.nodes[above].names[name] = other
        else:
            if other is not None:
                model.drop_name(below, new_name)
                assert gone == (other if model.nodes[other].nlink == 0 else None)
            del model.nodes[above].names[name]
        model.nodes[below].names[new_name] = ino

    @rule(where=choices, which=choices, offset=offsets, size=sizes)
    def write(self, where: int, which: int, offset: int, size: int) -> None:
        tree, model = self.target(where)
        ino = model.pick(which)
        payload = (b"%d " % self.number * size)[:size]
        error = model.refuse_content(ino)
        self.expect(error, lambda: tree.write(ino, offset, payload, self.grove.now_ns))
        if error is None and payload:
            node = model.nodes[ino]
            old = node.content.ljust(offset, b"\0")
            node.content = old[:offset] + payload + old[offset + size :]

    @rule(where=choices, which=choices, size=offsets)
    def truncate(self, where: int, which: int, size: int) -> None:
        tree, model = self.target(where)
        ino = model.pick(which)
        error = model.refuse_content(ino)
        self.expect(error, lambda: tree.truncate(ino, size, self.grove.now_ns))
        if error is None:
            node = model.nodes[ino]
            node.content = node.content[:size].ljust(size, b"\0")

    @rule(
        where=choices,
        which=choices,
        mode=st.none() | st.sampled_from([0o600, 0o6755, 0o1777]),
        uid=st.none() | st.sampled_from([0, 1000]),
    )
    def set_attributes(self, where: int, which: int, mode: int | None, uid: int | None) -> None:
        tree, model = self.target(where)
        ino = model.pick(which)
        change = AttributeChange(mode=mode, uid=uid, gid=uid)
        if not model.is_writable:
            self.expect(SealedError, lambda: tree.set_attributes(ino, change, 0))
            return
        tree.set_attributes(ino, change, self.grove.now_ns)
        node = model.nodes[ino]
        if mode is not None:
            node.mode = node.kind | mode
        elif uid is not None and not node.is_directory:
            node.mode &= ~0o4000 & ~(0o2000 if node.mode & 0o010 else 0)
        if uid is not None:
            node.uid = node.gid = uid

    @rule(
        where=choices,
        which=choices,
        name=attributes,
        size=st.sampled_from([0, 5, 700, 60_000]),
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
    )
    def setxattr(self, where: int, which: int, name: bytes, size: int, flags: int) -> None:
        tree, model = self.target(where)
        ino = model.pick(which)
        exists = name in model.nodes[ino].xattrs
        error: type[FileError] | None = None if model.is_writable else SealedError
        if error is None and exists and flags == os.XATTR_CREATE:
            error = EntryExistsError
        elif error is None and not exists and flags == os.XATTR_REPLACE:
            error = NoAttributeError
        value = b"%d" % self.number * size
        value = value[:size]
        self.expect(error, lambda: tree.setxattr(ino, name, value, self.grove.now_ns, flags))
        if error is None:
            model.nodes[ino].xattrs[name] = value

    @rule(where=choices, which=choices, name=attributes)
    def removexattr(self, where: int, which: int, name: bytes) -> None:
        tree, model = self.target(where)
        ino = model.pick(which)
        error: type[FileError] | None = None if model.is_writable else SealedError
        if error is None and name not in model.nodes[ino].xattrs:
            error = NoAttributeError
        self.expect(error, lambda: tree.removexattr(ino, name, self.grove.now_ns))
        if error is None:
            del model.nodes[ino].xattrs[name]

    # --- verbs -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.models) < 8)
    @rule(where=choices, read_only=st.booleans())
    def snapshot(self, where: int, read_only: bool) -> None:
        name = f"s{self.number}"
        tree, model = self.target(where)
        self.grove.snapshot(name, tree, read_only=read_only)
        self.models[name] = model.copy(writable=not read_only)

    @precondition(lambda self: self.snapshots())
    @rule(which=choices)
    def discard(self, which: int) -> None:
        name = self.snapshots()[which % len(self.snapshots())]
        root_id = self.grove.store.get_snapshot(self.grove.agent, name).root
        self.grove.store.remove_snapshot(self.grove.agent.agent_id, name)
        self.grove.forest.drop(root_id)
        del self.models[name]

    def snapshots(self) -> list[str]:
        return sorted(self.models.keys() - self.hashes.keys() - {"current"})

    @precondition(lambda self: len(self.models) < 8 and self.gc is None)
    @rule(where=choices)
    def seal(self, where: int) -> None:
        tree, model = self.target(where)
        label = f"{self.number}.0.0"
        sealed = self.grove.seal(label, tree)
        assert_known(self.grove, sealed)
        self.models[label] = model.copy(writable=False)
        self.hashes[label] = sealed.hash

    @precondition(lambda self: len(self.models) < 8 and self.gc is None)
    @rule(changes=st.lists(st.tuples(choices, choices, offsets, sizes), min_size=1, max_size=4))
    def seal_while_it_changes(self, changes: list[tuple[int, int, int, int]]) -> None:
        """What is sealed is what was there when the seal began."""
        label = f"{self.number}.0.0"
        expected = self.models["current"].copy(writable=False)
        agent = self.grove.agent
        base = self.grove.version(agent.version) if agent.version in self.hashes else None
        steps = seal(self.grove.forest, self.grove.manifests, self.grove.current, base)
        sealed: SealedTree | None = None
        for where, which, offset, size in changes:
            try:
                next(steps)
            except StopIteration as end:
                sealed = end.value
                break
            self.write(where & ~1, which, offset, size)
        sealed = sealed or exhaust(steps)
        self.grove.add_version(label, sealed)
        self.models[label] = expected
        self.hashes[label] = sealed.hash

    @precondition(lambda self: self.hashes)
    @rule(which=choices)
    def rollback(self, which: int) -> None:
        label = sorted(self.hashes)[which % len(self.hashes)]
        self.grove.rollback(label)
        self.models["current"] = self.models[label].copy(writable=True)

    @precondition(lambda self: self.hashes)
    @rule(which=choices)
    def remove_version(self, which: int) -> None:
        label = sorted(self.hashes)[which % len(self.hashes)]
        root_id = self.grove.version(label).root.root_id
        self.grove.store.remove_version(self.grove.agent.agent_id, label)
        self.grove.forest.drop(root_id)
        del self.models[label], self.hashes[label]

    # --- the store -------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.grove.store.commit()
        self.save()

    @rule()
    def commit_that_fails(self) -> None:
        """The disk refuses: what was in the commit is part of the next one."""
        commit = self.grove.store.prepare_commit()
        self.grove.store.fail_commit(commit)

    @precondition(lambda self: self.gc is None)
    @rule()
    def abandon(self) -> None:
        self.grove.store.abandon()
        self.models, self.hashes = copy.deepcopy(self.saved)

    @rule(commit=st.booleans())
    def reopen(self, commit: bool) -> None:
        """A new process: files without a name are gone, gc begins anew another time."""
        if self.gc is not None:
            self.gc.close()
            self.gc = None
        if commit:
            self.save()
        self.grove.reopen(commit=commit)
        self.models, self.hashes = copy.deepcopy(self.saved)
        for model in self.models.values():
            model.nodes = {ino: node for ino, node in model.nodes.items() if node.nlink}

    @precondition(lambda self: self.gc is None)
    @rule()
    def begin_gc(self) -> None:
        self.gc = collect(self.grove.store)

    @precondition(lambda self: self.gc is not None)
    @rule(count=st.integers(1, 40))
    def go_on_with_gc(self, count: int) -> None:
        """Other rules run between the steps of gc."""
        assert self.gc is not None
        for _ in range(count):
            step = next(self.gc, None)
            if step is None:
                self.gc = None
                return
            if isinstance(step, CommitWanted):
                self.commit()

    def finish_gc(self) -> None:
        while self.gc is not None:
            self.go_on_with_gc(100)

    # --- what holds ------------------------------------------------------------------------

    @rule()
    def differences_are_the_differences(self) -> None:
        """Applied to the paths of the old tree, a diff gives the new tree."""
        for label in self.hashes:
            old, new = self.tree(label), self.grove.current
            check_diff(self.models[label], self.models["current"], old, new)
            check_diff(self.models["current"], self.models[label], new, old)

    @rule()
    def fsck(self) -> None:
        assert [str(finding) for finding in check(self.grove.store)] == []

    @rule()
    def versions_are_what_they_were(self) -> None:
        for label, digest in self.hashes.items():
            assert manifest_hash(Manifests().render(self.tree(label))) == digest

    @invariant()
    def agrees(self) -> None:
        for name, model in self.models.items():
            tree = self.tree(name)
            assert tree.is_writable == model.is_writable
            assert tree_listing(tree) == model.listing()
            orphans = [ino for ino, node in model.nodes.items() if node.nlink == 0]
            assert tree.orphans() == sorted(orphans)
            for ino in orphans:
                assert tree_seen(tree, ino) == seen(model.nodes[ino])


def check_diff(before: Model, after: Model, old: Tree, new: Tree) -> None:
    """Check that the differences lead from one tree to the other, and tell nothing twice."""
    told = list(diff(old, new))
    paths = [(one.status == "D", one.path) for one in told]
    assert len(set(paths)) == len(paths)
    assert [one.path for one in told] == sorted(one.path for one in told)
    moved = {one.old_path: one.path for one in told if one.status == "R"}
    gone = {one.path for one in told if one.status == "D"}
    come = {one.path for one in told if one.status == "A"}
    changed = {one.path for one in told if one.status in "MT"}
    left, right = before.listing(), after.listing()
    arrived: dict[bytes, bytes | None] = {}
    for path in sorted(left):
        above, _, name = path.rpartition(b"/")
        if path in gone:
            arrived[path] = None
        elif path in moved:
            arrived[path] = moved[path]
        elif path == b"":
            arrived[path] = b""
        else:
            place = arrived[above]
            assert place is not None, f"nothing is told of {path!r}, whose directory is gone"
            arrived[path] = place + b"/" + name if place else name
    kept = {place: path for path, place in arrived.items() if place is not None}
    assert kept.keys() | come == right.keys()
    assert not kept.keys() & come
    for place, path in kept.items():
        # Inode number, number of names and time are no difference.
        same = plain(left[path]) == plain(right[place])
        if place in changed:
            assert not same
        elif path not in moved:
            assert same, f"{place!r} differs, untold"


def plain(entry: tuple[object, ...]) -> tuple[object, ...]:
    _, mode, uid, gid, _, content, xattrs = entry
    return mode, uid, gid, content, xattrs


class SteppedMachine(CoreMachine):
    """As above, with a rule first that makes sure of something to work on."""

    @initialize()
    def plant(self) -> None:
        for number, mode in enumerate([DIRECTORY, FILE, DIRECTORY]):
            self.make(0, 0, NAMES[number], mode)
        self.write(0, 2, 0, 4096)
        self.seal(0)


def run(folder: Path, options: StoreOptions) -> None:
    run_state_machine_as_test(
        type("Machine", (SteppedMachine,), {"folder": folder, "options": options})
    )


def test_the_core_agrees_with_dicts(tmp_path: Path) -> None:
    run(tmp_path, StoreOptions())


def test_the_core_agrees_with_dicts_with_tiny_caches_and_segments(tmp_path: Path) -> None:
    """Every node is read anew, every block is compressed and read anew, every segment is full."""
    tiny = StoreOptions(
        zstd_level=1, node_cache=1, block_cache=1, segment_size=20_000, map_size=1 << 18
    )
    run(tmp_path, tiny)

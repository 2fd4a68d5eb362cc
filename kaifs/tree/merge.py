"""Three-way merge of trees of one lineage, by what changed since their base.

Objects are matched by inode number and time of birth, so a moved file meets the
other side's edit of it; a file that was replaced under its name (as editors
save) counts as modified. What is merged is, for each directory, which object
each name stands for, and for each object its content, mode, owner and
attributes, each as a whole: files are not merged line by line. The same change
on both sides is no conflict. First everything is planned; only a plan without
conflicts is applied, to a clone.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, TypeVar

from msgspec.structs import replace

from kaifs.base.types import TOP_INO, Ino
from kaifs.meta import keys
from kaifs.meta.records import INODE, InodeRecord, decode_dentry
from kaifs.store.differing import differing
from kaifs.tree.diff import same_content
from kaifs.tree.forest import Forest
from kaifs.tree.tree import AttributeChange, Tree


class ConflictKind(StrEnum):
    """In which way two changes exclude each other."""

    MODIFY_MODIFY = "modify/modify"
    """Both changed the same of one object, differently."""
    MODIFY_DELETE = "modify/delete"
    """One deleted what the other changed, or put something into."""
    ADD_ADD = "add/add"
    """Both gave one name to different objects."""
    RENAME_RENAME = "rename/rename"
    """Both moved one object to different places, or different objects to one place."""
    RENAME_DELETE = "rename/delete"
    """One deleted what the other moved."""
    TYPE = "type"
    """One made it another type of object, and the other changed it."""
    DIRECTORY_FILE = "directory/file"
    """One name stands for a directory on one side and for something else on the other."""
    DIRECTORY_CYCLE = "directory cycle"
    """Each moved a directory into the one that the other moved."""
    HARD_LINKS = "hard links"
    """One split the names of a file, and the other changed the file or its names."""


@dataclass(frozen=True, slots=True, order=True)
class Conflict:
    """One place where the sides exclude each other."""

    path: bytes
    """In the base if it was there, else where a side has it."""
    kind: ConflictKind
    ours: bytes | None = None
    """Path on our side, if it is there and is another one."""
    theirs: bytes | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge came to: a tree, or the reasons why there is none."""

    tree: Tree | None
    """Of nobody yet and still being built; None if there are conflicts."""
    conflicts: tuple[Conflict, ...] = ()
    """Sorted by path."""


class _Object(NamedTuple):
    """An object whichever side one looks from."""

    origin: str
    """`base` for what the base has, else the side that made it: `ours` or `theirs`."""
    ino: Ino
    """In the tree of its origin."""


class _Slot(NamedTuple):
    """A name in a directory."""

    parent: _Object
    name: bytes


_BASE: Final = "base"
_OURS: Final = "ours"
_THEIRS: Final = "theirs"
_TOP: Final = _Object(_BASE, TOP_INO)

T = TypeVar("T")


def merge(forest: Forest, base: Tree, ours: Tree, theirs: Tree, now_ns: int) -> Merged:
    """Return *ours* with what changed from *base* to *theirs*. O(changes).

    None of the three is changed. Inode numbers of *ours* stay; what *theirs* has
    added gets new ones.

    Raises:
        FileError: the result would break a limit of the file system.
    """
    plan = plan_merge(base, ours, theirs)
    if plan.conflicts:
        return Merged(None, plan.conflicts)
    target = forest.clone(ours)
    try:
        _Application(plan, target, now_ns).run()
    except BaseException:
        forest.drop(target.root.root_id)
        raise
    return Merged(target)


@dataclass(slots=True)
class MergePlan:
    """What to do with a clone of our tree, or why nothing can be done."""

    base: _Base
    ours: _Side
    theirs: _Side
    conflicts: tuple[Conflict, ...] = ()
    slots: dict[_Slot, tuple[_Object | None, _Object | None]] = field(default_factory=dict)
    """Names to change in our tree: what they stand for there, and what they shall stand for."""
    contents: list[_Object] = field(default_factory=list)
    """Objects of both sides whose content theirs has."""
    twins: list[tuple[_Object, _Object]] = field(default_factory=list)
    """Objects that both sides made alike: ours, theirs."""


def plan_merge(base: Tree, ours: Tree, theirs: Tree) -> MergePlan:
    """Return what leads to the merge of *ours* and *theirs*. Changes nothing."""
    return _Planning(base, ours, theirs).run()


# --- the three trees -----------------------------------------------------------------------


def _find(tree: Tree, ino: Ino) -> InodeRecord | None:
    """Return the inode if it has a name."""
    value = tree.btree.get(keys.inode_key(ino))
    inode = None if value is None else INODE.decode(value)
    return None if inode is None or inode.nlink == 0 else inode


class _Base:
    """What both sides began with."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._depths: dict[Ino, int] = {TOP_INO: 0}

    def depth(self, ino: Ino) -> int:
        """Return how far below the top the (first) directory of *ino* is."""
        return _depth(self.tree, ino, self._depths)

    def names(self, ino: Ino) -> set[_Slot]:
        """Return where an object is."""
        return {_Slot(_Object(_BASE, parent), name) for parent, name in self.tree.links(ino)}


def _depth(tree: Tree, ino: Ino, known: dict[Ino, int]) -> int:
    chain = []
    while ino not in known:
        chain.append(ino)
        links = tree.links(ino)
        if not links:
            known[ino] = 0
            break
        ino = links[0][0]
    depth = known[ino]
    for below in reversed(chain):
        if below not in known:
            depth += 1
            known[below] = depth
        depth = known[below]
    return depth


class _Side:
    """One side: how its objects correspond to the base's, and which names it changed."""

    def __init__(self, base: _Base, tree: Tree, origin: str) -> None:
        self.base = base
        self.tree = tree
        self.origin = origin
        self.kinds: dict[Ino, set[int]] = {}
        """Inode numbers of which some key differs, with the kinds of those keys."""
        self._successor: dict[Ino, Ino] = {}
        """Base objects that are gone, to the object that has their name now."""
        self._predecessor: dict[Ino, Ino] = {}
        self._known: dict[Ino, bool] = {}
        self.aliases: dict[_Object, _Object] = {}
        """Objects that this side made, to the other side's that are the same."""
        self.slots: dict[_Slot, tuple[_Object | None, _Object | None]] = {}
        """Names that this side changed: what they stand for in the base, and here."""
        entries: list[tuple[Ino, bytes, Ino | None, Ino | None]] = []
        for key, old, new in differing(tree.store.nodes, base.tree.root.top, tree.root.top):
            ino, kind, name = keys.split_key(key)
            if ino == keys.NO_INO:
                continue
            self.kinds.setdefault(ino, set()).add(kind)
            if kind == keys.DENTRY:
                before = None if old is None else decode_dentry(old)[0]
                after = None if new is None else decode_dentry(new)[0]
                entries.append((ino, name, before, after))
        self._match_replaced()
        self._collect_slots(entries)

    # --- objects -----------------------------------------------------------------------

    def has_same(self, ino: Ino) -> bool:
        """Whether inode number *ino* is one and the same object here and in the base."""
        if ino not in self.kinds:
            return True
        same = self._known.get(ino)
        if same is None:
            before, after = _find(self.base.tree, ino), _find(self.tree, ino)
            same = (
                before is not None
                and after is not None
                and before.btime_ns == after.btime_ns
                and stat.S_IFMT(before.mode) == stat.S_IFMT(after.mode)
            )
            self._known[ino] = same
        return same

    def _match_replaced(self) -> None:
        """Find what now has the name of each base object that is gone."""
        gone = [ino for ino in self.kinds if not self.has_same(ino) and _find(self.base.tree, ino)]
        # Directories before what was in them: a name is looked up in what replaced its folder.
        for ino in sorted(gone, key=lambda ino: (self.base.depth(ino), ino)):
            before = self.base.tree.inode(ino)
            for parent, name in self.base.tree.links(ino):
                here = self._here(parent)
                found = None if here is None else self.tree.find(here, name)
                if found is None or found in self._predecessor or self._is_of_base(found):
                    continue
                after = self.tree.inode(found)
                if stat.S_IFMT(after.mode) == stat.S_IFMT(before.mode):
                    self._successor[ino] = found
                    self._predecessor[found] = ino
                    break

    def _is_of_base(self, ino: Ino) -> bool:
        return self.has_same(ino) and _find(self.base.tree, ino) is not None

    def _here(self, base_ino: Ino) -> Ino | None:
        return base_ino if self.has_same(base_ino) else self._successor.get(base_ino)

    def object_of(self, ino: Ino) -> _Object:
        """Return the object that has number *ino* here."""
        if ino in self._predecessor:
            return _Object(_BASE, self._predecessor[ino])
        if self.has_same(ino):
            return _Object(_BASE, ino)
        own = _Object(self.origin, ino)
        return self.aliases.get(own, own)

    def ino_of(self, one: _Object) -> Ino | None:
        """Return the number that an object has here, None if it is not here."""
        if one.origin == _BASE:
            return self._here(one.ino)
        return one.ino if one.origin == self.origin else None

    def is_touched(self, base_ino: Ino) -> bool:
        """Whether this side may have changed a base object in any way."""
        return base_ino in self.kinds

    def inode(self, one: _Object) -> InodeRecord:
        """Return the inode of an object that is here."""
        ino = self.ino_of(one)
        assert ino is not None
        return self.tree.inode(ino)

    def path(self, one: _Object) -> bytes | None:
        """Return the first path of an object, None if it is not here."""
        ino = self.ino_of(one)
        paths = [] if ino is None else self.tree.paths(ino)
        return paths[0] if paths else None

    # --- names -------------------------------------------------------------------------

    def _collect_slots(self, entries: Iterable[tuple[Ino, bytes, Ino | None, Ino | None]]) -> None:
        before: dict[_Slot, _Object] = {}
        after: dict[_Slot, _Object] = {}
        whole: set[Ino] = set()
        for ino, name, old, new in entries:
            if not self.has_same(ino):
                # Not the same directory: what the two have in common is a coincidence.
                whole.add(ino)
                continue
            slot = _Slot(_Object(_BASE, ino), name)
            if old is not None:
                before[slot] = _Object(_BASE, old)
            if new is not None:
                after[slot] = self.object_of(new)
        whole.update(ino for ino in self.kinds if not self.has_same(ino))
        for ino in whole:
            for name, child in _listing(self.base.tree, ino):
                before[_Slot(_Object(_BASE, ino), name)] = _Object(_BASE, child)
            for name, child in _listing(self.tree, ino):
                after[_Slot(self.object_of(ino), name)] = self.object_of(child)
        for slot in before.keys() | after.keys():
            pair = before.get(slot), after.get(slot)
            if pair[0] != pair[1]:
                self.slots[slot] = pair

    def now(self, slot: _Slot) -> _Object | None:
        """Return what a name stands for here."""
        if slot in self.slots:
            return self.slots[slot][1]
        return self.then(slot)

    def then(self, slot: _Slot) -> _Object | None:
        """Return what a name stands for in the base."""
        if slot.parent.origin != _BASE:
            return None
        found = self.base.tree.find(slot.parent.ino, slot.name)
        return None if found is None else _Object(_BASE, found)

    def names(self, one: _Object) -> set[_Slot]:
        """Return where an object is here."""
        ino = self.ino_of(one)
        if ino is None:
            return set()
        return {_Slot(self.object_of(parent), name) for parent, name in self.tree.links(ino)}

    def rename_objects(self, aliases: dict[_Object, _Object]) -> None:
        """From now on call some objects that this side made by the other side's names."""
        self.aliases.update(aliases)
        renamed = {}
        for slot, (old, new) in self.slots.items():
            parent = aliases.get(slot.parent, slot.parent)
            renamed[_Slot(parent, slot.name)] = (
                old,
                None if new is None else aliases.get(new, new),
            )
        self.slots = renamed


def _listing(tree: Tree, ino: Ino) -> Iterator[tuple[bytes, Ino]]:
    inode = _find(tree, ino)
    if inode is not None and stat.S_ISDIR(inode.mode):
        for entry in tree.sorted_entries(ino):
            yield entry.name, entry.ino


# --- planning ------------------------------------------------------------------------------


class _Planning:
    def __init__(self, base: Tree, ours: Tree, theirs: Tree) -> None:
        self._base = _Base(base)
        self._ours = _Side(self._base, ours, _OURS)
        self._theirs = _Side(self._base, theirs, _THEIRS)
        self._conflicts: set[Conflict] = set()
        self._twins: dict[_Object, _Object] = {}
        """Objects that both made alike: ours to theirs."""
        self._deleted: dict[Ino, bool] = {}

    def run(self) -> MergePlan:
        """Make the plan."""
        plan = MergePlan(self._base, self._ours, self._theirs)
        self._find_twins()
        merged = self._merge_slots()
        plan.contents = self._merge_objects()
        self._check_parents(merged)
        self._check_cycles(merged)
        plan.twins = list(self._twins.items())
        plan.conflicts = tuple(sorted(self._conflicts))
        for slot, shall in merged.items():
            has = self._ours.now(slot)
            if has != shall:
                plan.slots[slot] = (has, shall)
        return plan

    def _conflict(self, kind: ConflictKind, one: _Object, *others: _Object) -> None:
        paths = [self._path_in(side, one, *others) for side in (self._ours, self._theirs)]
        known = self._base.tree.paths(one.ino) if one.origin == _BASE else []
        path = known[0] if known else min(found for found in paths if found is not None)
        ours, theirs = (None if found == path else found for found in paths)
        self._conflicts.add(Conflict(path, kind, ours, theirs))

    def _path_in(self, side: _Side, *objects: _Object) -> bytes | None:
        return next((path for one in objects if (path := side.path(one)) is not None), None)

    def _slot_conflict(self, kind: ConflictKind, slot: _Slot) -> None:
        """Tell of a conflict about a name, which has the same path on both sides or in one."""
        for side in (self._ours, self._theirs):
            parent = side.path(slot.parent)
            if parent is not None:
                path = parent + b"/" + slot.name if parent else slot.name
                self._conflicts.add(Conflict(path, kind))
                return

    # --- names -------------------------------------------------------------------------

    def _find_twins(self) -> None:
        """Match what both sides made alike in the same place, from the top down."""
        ours, theirs = self._ours, self._theirs
        aliases: dict[_Object, _Object] = {}
        below: dict[_Object, list[bytes]] = {}
        for slot in theirs.slots:
            if slot.parent.origin == _THEIRS:
                below.setdefault(slot.parent, []).append(slot.name)
        todo = sorted((slot, slot) for slot in theirs.slots if slot in ours.slots)
        while todo:
            ours_slot, theirs_slot = todo.pop()
            one, other = ours.now(ours_slot), theirs.now(theirs_slot)
            if one is None or other is None or other in aliases or one in self._twins:
                continue
            if one.origin != _OURS or other.origin != _THEIRS:
                continue
            if not self._are_twins(one, other):
                continue
            aliases[other] = one
            self._twins[one] = other
            todo += [
                (_Slot(one, name), _Slot(other, name))
                for name in below.get(other, ())
                if _Slot(one, name) in ours.slots
            ]
        theirs.rename_objects(aliases)

    def _are_twins(self, one: _Object, other: _Object) -> bool:
        ours, theirs = self._ours, self._theirs
        before, after = ours.inode(one), theirs.inode(other)
        if (before.mode, before.uid, before.gid, before.rdev) != (
            after.mode,
            after.uid,
            after.gid,
            after.rdev,
        ):
            return False
        return ours.tree.xattrs(one.ino) == theirs.tree.xattrs(other.ino) and _same_bytes(
            ours.tree, one.ino, theirs.tree, other.ino
        )

    def _merge_slots(self) -> dict[_Slot, _Object | None]:
        ours, theirs = self._ours, self._theirs
        merged: dict[_Slot, _Object | None] = {}
        for slot in ours.slots.keys() | theirs.slots.keys():
            then, one, other = ours.then(slot), ours.now(slot), theirs.now(slot)
            if one == other or other == then:
                merged[slot] = one
            elif one == then:
                merged[slot] = other
            elif one is None or other is None:
                merged[slot] = one or other
                if then is not None and len(self._base.names(then.ino)) > 1:
                    # One took this name away from a file with several, one gave it to another.
                    self._slot_conflict(ConflictKind.HARD_LINKS, slot)
            else:
                merged[slot] = one
                self._slot_conflict(self._kind_of_collision(one, other), slot)
        for slot, shall in merged.items():
            self._check_split(slot, shall)
        return merged

    def _kind_of_collision(self, one: _Object, other: _Object) -> ConflictKind:
        modes = self._ours.inode(one).mode, self._theirs.inode(other).mode
        if stat.S_ISDIR(modes[0]) != stat.S_ISDIR(modes[1]):
            return ConflictKind.DIRECTORY_FILE
        if one.origin == _BASE and other.origin == _BASE:
            return ConflictKind.RENAME_RENAME
        return ConflictKind.ADD_ADD

    def _check_split(self, slot: _Slot, shall: _Object | None) -> None:
        """Refuse that one side splits a name off a file that the other side changed."""
        then = self._ours.then(slot)
        if then is None or shall is None or shall == then:
            return
        if len(self._base.names(then.ino)) < 2:
            return
        for side, other in ((self._ours, self._theirs), (self._theirs, self._ours)):
            if (
                side.now(slot) == shall
                and other.now(slot) == then
                and self._is_modified(other, then)
            ):
                self._slot_conflict(ConflictKind.HARD_LINKS, slot)

    # --- objects -----------------------------------------------------------------------

    def _merge_objects(self) -> list[_Object]:
        """Check base objects that a side touched; return those whose content theirs has."""
        ours, theirs = self._ours, self._theirs
        contents = []
        for ino in sorted(ours.kinds.keys() | theirs.kinds.keys()):
            if _find(self._base.tree, ino) is None:
                continue
            one = _Object(_BASE, ino)
            is_ours, is_theirs = ours.ino_of(one) is not None, theirs.ino_of(one) is not None
            if is_ours and is_theirs:
                self._check_moves(one)
                if self._merge_facets(one):
                    contents.append(one)
            elif is_ours:
                self._check_deletion(one, ours, theirs)
            elif is_theirs:
                self._check_deletion(one, theirs, ours)
        return contents

    def _check_moves(self, one: _Object) -> None:
        if not (self._ours.is_touched(one.ino) and self._theirs.is_touched(one.ino)):
            return
        then = self._base.names(one.ino)
        here, there = self._ours.names(one), self._theirs.names(one)
        if (then - here) & (then - there) and here - then != there - then:
            both = here - then and there - then
            kind = ConflictKind.RENAME_RENAME if both else ConflictKind.RENAME_DELETE
            self._conflict(kind, one)

    def _check_deletion(self, one: _Object, keeper: _Side, deleter: _Side) -> None:
        """Refuse that *deleter* deletes what *keeper* changed or moved."""
        moved = keeper.is_touched(one.ino) and keeper.names(one) - self._base.names(one.ino)
        if self._is_modified(keeper, one):
            is_retyped = self._replacement_type(deleter, one) not in (None, self._type(one))
            kind = ConflictKind.TYPE if is_retyped else ConflictKind.MODIFY_DELETE
            self._conflict(kind, one)
        elif moved:
            self._conflict(ConflictKind.RENAME_DELETE, one)

    def _type(self, one: _Object) -> int:
        return stat.S_IFMT(self._base.tree.inode(one.ino).mode)

    def _replacement_type(self, side: _Side, one: _Object) -> int | None:
        """Return the type of what has a base object's name on a side now, None if nothing has."""
        for slot in sorted(self._base.names(one.ino)):
            found = side.now(slot)
            if found is not None and found != one:
                return stat.S_IFMT(side.inode(found).mode)
        return None

    def _is_modified(self, side: _Side, one: _Object) -> bool:
        """Whether a side changed a base object in more than times and names."""
        if not side.is_touched(one.ino):
            return False
        ino = side.ino_of(one)
        if ino is None:
            return False
        before, after = self._base.tree.inode(one.ino), side.tree.inode(ino)
        return (
            _plain_facets(before) != _plain_facets(after)
            or self._base.tree.xattrs(one.ino) != side.tree.xattrs(ino)
            or not _same_bytes(self._base.tree, one.ino, side.tree, ino)
        )

    def _merge_facets(self, one: _Object) -> bool:
        """Check an object that both sides have. Return whether its content is to be theirs."""
        ours, theirs = self._ours, self._theirs
        if not theirs.is_touched(one.ino):
            return False
        if not ours.is_touched(one.ino):
            return self._has_other_content(theirs, one)
        before = self._base.tree.inode(one.ino)
        here, there = ours.inode(one), theirs.inode(one)
        for facet in (_permissions, _owner, _device):
            if _collide(facet(before), facet(here), facet(there)):
                self._conflict(ConflictKind.MODIFY_MODIFY, one)
        attributes = [
            tree.xattrs(ino)
            for tree, ino in (
                (self._base.tree, one.ino),
                (ours.tree, ours.ino_of(one) or one.ino),
                (theirs.tree, theirs.ino_of(one) or one.ino),
            )
        ]
        for name in set().union(*attributes):
            if _collide(*(found.get(name) for found in attributes)):
                self._conflict(ConflictKind.MODIFY_MODIFY, one)
        if not self._has_other_content(theirs, one) or self._have_same_content(one):
            return False
        if self._has_other_content(ours, one):
            self._conflict(ConflictKind.MODIFY_MODIFY, one)
        return True

    def _has_other_content(self, side: _Side, one: _Object) -> bool:
        ino = side.ino_of(one)
        assert ino is not None
        return not _same_bytes(self._base.tree, one.ino, side.tree, ino)

    def _have_same_content(self, one: _Object) -> bool:
        here, there = self._ours.ino_of(one), self._theirs.ino_of(one)
        assert here is not None
        assert there is not None
        return _same_bytes(self._ours.tree, here, self._theirs.tree, there)

    # --- what must hold of the result ----------------------------------------------------

    def _check_parents(self, merged: dict[_Slot, _Object | None]) -> None:
        """Refuse that one side puts something into a directory that the other deleted."""
        for slot, shall in merged.items():
            if shall is not None and slot.parent.origin == _BASE:
                is_ours = self._ours.ino_of(slot.parent) is not None
                is_theirs = self._theirs.ino_of(slot.parent) is not None
                if is_ours != is_theirs:
                    deleter = self._theirs if is_ours else self._ours
                    is_retyped = self._replacement_type(deleter, slot.parent) is not None
                    kinds = ConflictKind.MODIFY_DELETE, ConflictKind.DIRECTORY_FILE
                    self._conflict(kinds[is_retyped], slot.parent)

    def _check_cycles(self, merged: dict[_Slot, _Object | None]) -> None:
        """Refuse that directories end up inside each other."""
        places = {
            shall: slot.parent
            for slot, shall in merged.items()
            if shall is not None and self._is_directory(shall)
        }
        safe: set[_Object] = {_TOP}
        for start in places:
            chain: list[_Object] = []
            seen: set[_Object] = set()
            one: _Object | None = start
            while one is not None and one not in safe and one not in seen:
                chain.append(one)
                seen.add(one)
                one = places.get(one) or self._base_parent(one)
            if one is not None and one in seen:
                moved = sorted(chain[chain.index(one) :])
                self._conflict(ConflictKind.DIRECTORY_CYCLE, moved[0])
            safe.update(chain)

    def _is_directory(self, one: _Object) -> bool:
        side = self._theirs if self._ours.ino_of(one) is None else self._ours
        return stat.S_ISDIR(side.inode(one).mode)

    def _base_parent(self, one: _Object) -> _Object | None:
        if one.origin != _BASE:
            return None
        links = self._base.tree.links(one.ino)
        return _Object(_BASE, links[0][0]) if links else None


def _permissions(inode: InodeRecord) -> int:
    return inode.mode


def _owner(inode: InodeRecord) -> tuple[int, int]:
    return inode.uid, inode.gid


def _device(inode: InodeRecord) -> int:
    return inode.rdev


def _plain_facets(inode: InodeRecord) -> list[object]:
    return [_permissions(inode), _owner(inode), _device(inode)]


def _collide(before: object, here: object, there: object) -> bool:
    return before not in (here, there) and here != there


def _same_bytes(old: Tree, old_ino: Ino, new: Tree, new_ino: Ino) -> bool:
    """Return whether two objects of one type have the same content or target."""
    kind = stat.S_IFMT(old.inode(old_ino).mode)
    if kind == stat.S_IFREG:
        return same_content(old, old_ino, new, new_ino)
    return kind != stat.S_IFLNK or old.readlink(old_ino) == new.readlink(new_ino)


# --- applying ------------------------------------------------------------------------------


class _Application:
    """Turns a clone of our tree into the merge."""

    def __init__(self, plan: MergePlan, target: Tree, now_ns: int) -> None:
        self._plan = plan
        self._target = target
        self._now_ns = now_ns
        self._made: dict[_Object, Ino] = {}
        """What was inserted of theirs."""
        self._parked: dict[_Object, list[bytes]] = {}
        """What was taken from its place, by its names in the parking directory."""
        self._parking = Ino(0)

    def run(self) -> None:
        """Do it. Everything is reachable by a name all the time."""
        plan, target, now_ns = self._plan, self._target, self._now_ns
        keeps = {shall for _, shall in plan.slots.values() if shall is not None}
        moves = [slot for slot, (has, _) in plan.slots.items() if has is not None and has in keeps]
        parking = b""
        if moves:
            parking = _unused_name(target)
            self._parking = target.make(TOP_INO, parking, stat.S_IFDIR | 0o700, 0, 0, now_ns)
            for number, slot in enumerate(moves):
                self._park(slot, b"%d" % number)
        self._remove(set(plan.slots) - set(moves))
        self._insert()
        if moves:
            self._clear_parking()
            target.rmdir(TOP_INO, parking, now_ns)
        for one in plan.contents:
            self._copy_content(one)
        self._merge_attributes()
        target.reap_all()

    def _ino(self, one: _Object) -> Ino:
        ino = self._plan.ours.ino_of(one)
        return self._made[one] if ino is None else ino

    def _park(self, slot: _Slot, name: bytes) -> None:
        has = self._plan.slots[slot][0]
        assert has is not None
        self._target.rename(self._ino(slot.parent), slot.name, self._parking, name, self._now_ns)
        self._parked.setdefault(has, []).append(name)

    def _remove(self, slots: set[_Slot]) -> None:
        ours = self._plan.ours
        depths: dict[Ino, int] = {TOP_INO: 0}
        gone = []
        for slot in slots:
            has = self._plan.slots[slot][0]
            if has is not None:
                parent = self._ino(slot.parent)
                gone.append((_depth(ours.tree, parent, depths), parent, slot.name, has))
        # What is deepest first, so that directories are empty when they go.
        for _, parent, name, has in sorted(gone, key=lambda found: (-found[0], *found[1:3])):
            if stat.S_ISDIR(ours.inode(has).mode):
                self._target.rmdir(parent, name, self._now_ns)
            else:
                self._target.unlink(parent, name, self._now_ns)

    def _insert(self) -> None:
        theirs = self._plan.theirs
        depths: dict[Ino, int] = {TOP_INO: 0}

        def order(item: tuple[_Slot, _Object]) -> tuple[bool, int, bytes]:
            # New directories first, from the top down: the rest may go into them.
            slot, one = item
            is_new = one.origin == _THEIRS and stat.S_ISDIR(theirs.inode(one).mode)
            return not is_new, _depth(theirs.tree, one.ino, depths) if is_new else 0, slot.name

        wanted = [
            (slot, shall) for slot, (_, shall) in self._plan.slots.items() if shall is not None
        ]
        for slot, one in sorted(wanted, key=order):
            parent = self._ino(slot.parent)
            if self._parked.get(one):
                name = self._parked[one].pop()
                self._target.rename(self._parking, name, parent, slot.name, self._now_ns)
            elif one.origin == _THEIRS and one not in self._made:
                self._made[one] = self._copy_object(one, parent, slot.name)
            else:
                self._target.link(self._ino(one), parent, slot.name, self._now_ns)

    def _clear_parking(self) -> None:
        # A file that lost more names than it got.
        for names in self._parked.values():
            for name in names:
                self._target.unlink(self._parking, name, self._now_ns)

    def _copy_object(self, one: _Object, parent: Ino, name: bytes) -> Ino:
        """Insert an object of theirs as *name*."""
        source, target, now_ns = self._plan.theirs.tree, self._target, self._now_ns
        inode = source.inode(one.ino)
        if stat.S_ISLNK(inode.mode):
            link = source.readlink(one.ino)
            ino = target.symlink(parent, name, link, inode.uid, inode.gid, now_ns, inherit=False)
        else:
            ino = target.make(
                parent,
                name,
                inode.mode,
                inode.uid,
                inode.gid,
                now_ns,
                rdev=inode.rdev,
                inherit=False,
            )
        if stat.S_ISREG(inode.mode):
            target.set_content(ino, source.content.extents(one.ino), inode.size, inode.sha256)
        for attribute, value in source.xattrs(one.ino).items():
            target.setxattr(ino, attribute, value, now_ns)
        # Born when theirs was, so that a later merge or diff takes it for what it is.
        made = replace(target.inode(ino), mode=inode.mode, btime_ns=inode.btime_ns)
        target.put_inode(ino, made)
        return ino

    def _copy_content(self, one: _Object) -> None:
        plan, target = self._plan, self._target
        source, ino = plan.theirs.ino_of(one), self._ino(one)
        assert source is not None
        inode = plan.theirs.tree.inode(source)
        if stat.S_ISREG(inode.mode):
            extents = plan.theirs.tree.content.extents(source)
            target.set_content(ino, extents, inode.size, inode.sha256)
        else:
            link = plan.theirs.tree.readlink(source)
            target.content.replace(ino, [plan.theirs.tree.content.extents(source)[0]])
            target.put_inode(ino, replace(target.inode(ino), size=len(link)))

    def _merge_attributes(self) -> None:
        """Set modes, owners, attributes and times of everything that theirs touched."""
        plan = self._plan
        for ino in plan.theirs.kinds:
            one = _Object(_BASE, ino)
            if _find(plan.base.tree, ino) is None or plan.theirs.ino_of(one) is None:
                continue
            if plan.ours.ino_of(one) is not None:
                self._merge_base_object(one)
        for mine, other in plan.twins:
            self._merge_times(mine.ino, None, plan.ours.inode(mine), plan.theirs.inode(other))
        for one, made in self._made.items():
            inode = plan.theirs.inode(one)
            self._merge_times(made, inode, inode, inode)
        self._merge_base_object(_TOP)

    def _merge_base_object(self, one: _Object) -> None:
        plan, target = self._plan, self._target
        ino, source = self._ino(one), plan.theirs.ino_of(one)
        assert source is not None
        before, here, there = (
            plan.base.tree.inode(one.ino),
            plan.ours.inode(one),
            plan.theirs.inode(one),
        )
        old, new = plan.base.tree.xattrs(one.ino), plan.theirs.tree.xattrs(source)
        for name in old.keys() | new.keys():
            if old.get(name) == new.get(name):
                continue
            if name in new:
                target.setxattr(ino, name, new[name], self._now_ns)
            elif name in target.xattrs(ino):
                target.removexattr(ino, name, self._now_ns)
        inode = replace(
            target.inode(ino),
            mode=_pick(before.mode, here.mode, there.mode),
            uid=_pick(before.uid, here.uid, there.uid),
            gid=_pick(before.gid, here.gid, there.gid),
            rdev=_pick(before.rdev, here.rdev, there.rdev),
        )
        target.put_inode(ino, inode)
        self._merge_times(ino, before, here, there)

    def _merge_times(
        self, ino: Ino, before: InodeRecord | None, here: InodeRecord, there: InodeRecord
    ) -> None:
        def pick(get: Callable[[InodeRecord], int]) -> int:
            if before is not None and get(here) == get(before):
                return get(there)
            if before is not None and get(there) == get(before):
                return get(here)
            return max(get(here), get(there))

        times = AttributeChange(
            atime_ns=pick(lambda inode: inode.atime_ns),
            mtime_ns=pick(lambda inode: inode.mtime_ns),
            ctime_ns=pick(lambda inode: inode.ctime_ns),
        )
        self._target.set_attributes(ino, times, self._now_ns)


def _pick(before: T, here: T, there: T) -> T:
    return there if here == before else here


def _unused_name(tree: Tree) -> bytes:
    number = 0
    while tree.find(TOP_INO, b".kaifs-merge-%d" % number) is not None:
        number += 1
    return b".kaifs-merge-%d" % number

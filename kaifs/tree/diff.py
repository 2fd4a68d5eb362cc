"""What differs between two trees, as paths, in O(changes) if they share a lineage.

Trees of one lineage share nodes, which are skipped, and inode numbers: an inode
that is in both with the same time of birth is the same object, so a moved one
is told as renamed. Trees of different lineages are walked side by side.
"""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from kaifs.base.errors import NoEntryError
from kaifs.base.types import TOP_INO, Ino
from kaifs.meta import keys
from kaifs.meta.records import INODE, InodeRecord
from kaifs.store.differing import differing
from kaifs.tree.tree import Tree

READ_SIZE: Final = 1 << 20
"""Bytes of a file compared at once."""
STEP: Final = 512
"""Objects compared between two yields."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One path at which two trees differ."""

    status: str
    """A added, D deleted, M modified, R renamed, T type changed."""
    path: bytes
    """In the new tree; for D in the old one."""
    old_ino: Ino | None
    new_ino: Ino | None
    old_path: bytes | None = None
    """Where it was, if it was elsewhere."""


def changed_inos(old: Tree, new: Tree) -> dict[Ino, set[int]]:
    """Return each inode of which some key differs, with the kinds of those keys."""
    found: dict[Ino, set[int]] = {}
    for key, _, _ in differing(old.store.nodes, old.root.top, new.root.top):
        ino, kind, _ = keys.split_key(key)
        if ino != keys.NO_INO:
            found.setdefault(ino, set()).add(kind)
    return found


def directories_to_render(old: Tree, new: Tree, changed: dict[Ino, set[int]]) -> set[Ino]:
    """Return the directories of *new* whose listing differs from that in *old*."""
    found: set[Ino] = set()
    for ino, kinds in changed.items():
        if keys.DENTRY in kinds:
            found.add(ino)
        found.update(parent for tree in (old, new) for parent, _ in tree.links(ino))
    return found


def diff(old: Tree, new: Tree) -> Iterator[Difference]:
    """Yield what leads from *old* to *new*, sorted by path.

    Times alone make no difference, nor do the times and size of a directory
    whose entries changed: the entries are told.
    """
    steps = diff_steps(old, new)
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        yield from stop.value


def diff_steps(old: Tree, new: Tree) -> Generator[int, None, list[Difference]]:
    """Return what `diff` yields. Yields how many objects were compared, to let others run.

    Neither tree may change meanwhile.
    """
    if old.root.top == new.root.top:
        return []
    found: list[Difference] = []
    if old.root.lineage == new.root.lineage:
        yield from _diff_lineage(old, new, found)
    else:
        yield from _diff_walks(old, new, found)
    # A path that lost a directory and won another is first told as deleted.
    return sorted(found, key=lambda difference: (difference.path, difference.status))


def by_file(old: Tree, new: Tree, differences: Iterable[Difference]) -> Iterator[Difference]:
    """Yield *differences* with each file that a renamed directory took along.

    What also changed in one is told with the path that it had before.
    """
    differences = list(differences)
    moved = {
        found.path: found.old_path
        for found in differences
        if found.status == "R" and found.new_ino and _is_directory(new.inode(found.new_ino))
    }
    told = {found.path for found in differences if found.status != "D"}
    for found in differences:
        above = _nearest(found.path, moved) if found.status in "MT" else None
        if above is not None:
            old_path = (moved[above] or b"") + found.path[len(above) :]
            if found.old_ino == find_path(old, old_path):
                found = replace(found, old_path=old_path)
        yield found
        if found.path in moved and found.status == "R" and found.new_ino is not None:
            yield from _taken_along(old, new, found, moved, told)


def _taken_along(
    old: Tree, new: Tree, folder: Difference, moved: dict[bytes, bytes | None], told: set[bytes]
) -> Iterator[Difference]:
    assert folder.new_ino is not None
    assert folder.old_path is not None
    for entry in new.walk(folder.new_ino, folder.path):
        if stat.S_ISDIR(entry.inode.mode) or entry.path in told:
            continue
        if _nearest(entry.path, moved) == folder.path:
            old_path = folder.old_path + entry.path[len(folder.path) :]
            if find_path(old, old_path) == entry.ino:
                yield Difference("R", entry.path, entry.ino, entry.ino, old_path)


def _nearest(path: bytes, folders: dict[bytes, bytes | None]) -> bytes | None:
    """Return the innermost of *folders* that *path* is below."""
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        if path in folders:
            return path
    return None


def diff_path(old: Tree, new: Tree, path: bytes) -> list[Difference]:
    """Return what leads from *old* to *new* at *path* or below it, as `diff` does.

    For anything but a directory this costs some lookups, however much differs elsewhere.
    """
    if old.root.top == new.root.top:
        return []
    before, after = find_path(old, path), find_path(new, path)
    sides = [side for side in ((old, before), (new, after)) if side[1] is not None]
    if any(_is_directory(tree.inode(ino)) for tree, ino in sides if ino is not None):
        return [found for found in diff(old, new) if _concerns(found, path)]
    if before is not None and after is not None:
        found = _compare(old, before, new, after, path)
        return [] if found is None else [found]
    if before is None and after is None:
        return []
    is_lineage = old.root.lineage == new.root.lineage
    if after is not None:
        left = _moved_from(new, after, old) if is_lineage else []
        if left:
            return [Difference("R", path, after, after, left[0])]
        return [Difference("A", path, None, after)]
    assert before is not None
    come = _moved_from(old, before, new) if is_lineage else []
    if come:
        return [Difference("R", come[0], before, before, path)]
    return [Difference("D", path, before, None)]


def find_path(tree: Tree, path: bytes) -> Ino | None:
    """Return what *path* is, from the top, without following symbolic links; None if nothing."""
    try:
        return tree.resolve(path)
    except NoEntryError:
        return None


def _concerns(difference: Difference, path: bytes) -> bool:
    for changed in (difference.path, difference.old_path):
        if changed is None:
            continue
        if changed == path or changed.startswith(path + b"/"):
            return True
        # A folder above that was renamed took it along.
        if difference.status == "R" and path.startswith(changed + b"/"):
            return True
    return False


def _moved_from(here: Tree, ino: Ino, there: Tree) -> list[bytes]:
    """Return the paths that *ino* of *here* has in *there* and not in *here*."""
    if not _is_same(_find(here, ino), _find(there, ino)):
        return []
    return [path for path in there.paths(ino) if find_path(here, path) != ino]


def _find(tree: Tree, ino: Ino) -> InodeRecord | None:
    value = tree.btree.get(keys.inode_key(ino))
    inode = None if value is None else INODE.decode(value)
    return None if inode is None or inode.nlink == 0 else inode


def _diff_lineage(old: Tree, new: Tree, found: list[Difference]) -> Generator[int, None, None]:
    gone: dict[bytes, Ino] = {}
    come: dict[bytes, Ino] = {}
    for number, (ino, kinds) in enumerate(changed_inos(old, new).items()):
        if number % STEP == 0:
            yield number
        before, after = _find(old, ino), _find(new, ino)
        moved = keys.LINK in kinds or (before is None) != (after is None)
        if before is not None and after is not None and before.btime_ns != after.btime_ns:
            # Two branches of a lineage gave the same number to different objects.
            moved = True
        if moved:
            gone.update((path, ino) for path in (old.paths(ino) if before else []))
            come.update((path, ino) for path in (new.paths(ino) if after else []))
        elif (
            before is not None and after is not None and _differ(old, ino, before, new, ino, after)
        ):
            found += [Difference("M", path, ino, ino) for path in new.paths(ino)]
    known: dict[tuple[Ino, Ino], str] = {}
    for number, path in enumerate(sorted(gone.keys() & come.keys())):
        if number % STEP == 0:
            yield number
        if _is_moved_directory(old, gone[path], new, come[path]):
            # Told as renamed; what is below it has not changed and goes with it.
            continue
        difference = _compare(old, gone.pop(path), new, come.pop(path), path, known)
        if difference is not None:
            found.append(difference)
    found += _pair(old, gone, new, come)


def _is_moved_directory(old: Tree, old_ino: Ino, new: Tree, new_ino: Ino) -> bool:
    """Return whether a path that leads elsewhere now has lost or won a directory by a rename."""
    if old_ino == new_ino:
        return False
    return any(
        _is_same(_find(old, ino), inode := _find(new, ino)) and _is_directory(inode)
        for ino in (old_ino, new_ino)
    )


def _is_same(before: InodeRecord | None, after: InodeRecord | None) -> bool:
    return before is not None and after is not None and before.btime_ns == after.btime_ns


def _is_directory(inode: InodeRecord | None) -> bool:
    return inode is not None and stat.S_ISDIR(inode.mode)


def _pair(old: Tree, gone: dict[bytes, Ino], new: Tree, come: dict[bytes, Ino]) -> list[Difference]:
    """Tell what left one path and came to another as renamed; the rest as deleted and added."""
    left: dict[Ino, list[bytes]] = {}
    for path in sorted(gone):
        left.setdefault(gone[path], []).append(path)
    found: list[Difference] = []
    for path in sorted(come):
        ino = come[path]
        if left.get(ino) and _is_same(_find(old, ino), _find(new, ino)):
            old_path = left[ino].pop(0)
            del gone[old_path]
            found.append(Difference("R", path, ino, ino, old_path))
        else:
            found.append(Difference("A", path, None, ino))
    found += [Difference("D", path, ino, None) for path, ino in gone.items()]
    return found


def _compare(
    old: Tree,
    old_ino: Ino,
    new: Tree,
    new_ino: Ino,
    path: bytes,
    known: dict[tuple[Ino, Ino], str] | None = None,
) -> Difference | None:
    """Return how two objects of one path differ.

    What was found is kept in *known*: a file with many names is looked at once.
    """
    known = {} if known is None else known
    status = known.get((old_ino, new_ino))
    if status is None:
        status = known[old_ino, new_ino] = _status(old, old_ino, new, new_ino)
    return Difference(status, path, old_ino, new_ino) if status else None


def _status(old: Tree, old_ino: Ino, new: Tree, new_ino: Ino) -> str:
    """Return T, M, or nothing if the two are the same."""
    before, after = old.inode(old_ino), new.inode(new_ino)
    if stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode):
        return "T"
    is_different = _differ(old, old_ino, before, new, new_ino, after) or linked_elsewhere(
        old, old_ino, new, new_ino
    )
    return "M" if is_different else ""


def linked_elsewhere(old: Tree, old_ino: Ino, new: Tree, new_ino: Ino) -> bool:
    """Return whether what two objects of one path are hard links of has changed.

    Only names that are there before and after count: one that came or went is told itself.
    """
    before, after = old.inode(old_ino), new.inode(new_ino)
    if stat.S_ISDIR(before.mode) or stat.S_ISDIR(after.mode):
        return False
    if before.nlink < 2 and after.nlink < 2:
        return False
    names, others = set(old.paths(old_ino)), set(new.paths(new_ino))
    return any(
        find_path(new if path in names else old, path) is not None for path in names ^ others
    )


def _differ(
    old: Tree, old_ino: Ino, before: InodeRecord, new: Tree, new_ino: Ino, after: InodeRecord
) -> bool:
    """Return whether two objects of one type differ in more than times."""
    if (before.mode, before.uid, before.gid, before.rdev) != (
        after.mode,
        after.uid,
        after.gid,
        after.rdev,
    ):
        return True
    if stat.S_ISREG(before.mode) and not same_content(old, old_ino, new, new_ino):
        return True
    if stat.S_ISLNK(before.mode) and old.readlink(old_ino) != new.readlink(new_ino):
        return True
    return old.xattrs(old_ino) != new.xattrs(new_ino)


def same_content(old: Tree, old_ino: Ino, new: Tree, new_ino: Ino) -> bool:
    """Return whether two regular files hold the same bytes."""
    before, after = old.inode(old_ino), new.inode(new_ino)
    if before.size != after.size:
        return False
    if before.sha256 and after.sha256:
        return before.sha256 == after.sha256
    extents = old.content.extents(old_ino)
    shared = set(extents).intersection(new.content.extents(new_ino))
    position = 0
    for extent in [one for one in extents if one in shared]:
        if not _same_range(old, old_ino, new, new_ino, position, extent.offset):
            return False
        position = extent.stop
    return _same_range(old, old_ino, new, new_ino, position, before.size)


def _same_range(old: Tree, old_ino: Ino, new: Tree, new_ino: Ino, start: int, stop: int) -> bool:
    return all(
        old.read(old_ino, offset, min(READ_SIZE, stop - offset))
        == new.read(new_ino, offset, min(READ_SIZE, stop - offset))
        for offset in range(start, stop, READ_SIZE)
    )


def _diff_walks(old: Tree, new: Tree, found: list[Difference]) -> Generator[int, None, None]:
    """Walk two trees side by side, by path. O(both)."""
    number = 0
    stack = [(TOP_INO, TOP_INO, b"")]
    linked: dict[tuple[Ino, Ino], str] = {}
    while stack:
        old_ino, new_ino, path = stack.pop()
        before, after = old.inode(old_ino), new.inode(new_ino)
        # A directory's links are its subdirectories, and it is met once anyway.
        has_names = max(before.nlink, after.nlink) > 1 and not stat.S_ISDIR(before.mode)
        known = linked if has_names else None
        difference = _compare(old, old_ino, new, new_ino, path, known)
        if difference is not None:
            found.append(difference)
        number += 1
        if number % STEP == 0:
            yield number
        ours = _names(old, old_ino) if stat.S_ISDIR(before.mode) else {}
        theirs = _names(new, new_ino) if stat.S_ISDIR(after.mode) else {}
        for name in ours.keys() | theirs.keys():
            below = path + b"/" + name if path else name
            if name not in theirs:
                found += _all_below(old, ours[name], below, "D")
            elif name not in ours:
                found += _all_below(new, theirs[name], below, "A")
            else:
                stack.append((ours[name], theirs[name], below))


def _names(tree: Tree, ino: Ino) -> dict[bytes, Ino]:
    return {entry.name: entry.ino for entry in tree.sorted_entries(ino)}


def _all_below(tree: Tree, ino: Ino, path: bytes, status: str) -> Iterator[Difference]:
    for entry in tree.walk(ino, path):
        old, new = (entry.ino, None) if status == "D" else (None, entry.ino)
        yield Difference(status, entry.path, old, new)

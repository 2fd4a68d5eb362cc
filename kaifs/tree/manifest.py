"""The canonical manifest of a tree, and its SHA-256.

The text is mtree(5) in its original, nested form: a directory's lines stand
between its own line and `..`, entries sorted by the bytes of their names,
names spelled as vis(3) with VIS_OCTAL. It says type, permission bits, size,
link target and SHA-256, and nothing that depends on when, where or by whom the
tree was made. A line speaks of one name only, so what a directory says of its
entries is kept as long as none of them changes.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kaifs.base.digest import sha256
from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import TOP_INO, Ino, RootId
from kaifs.meta.records import InodeRecord
from kaifs.store.roots import Root
from kaifs.tree.tree import Tree

HEADER: Final = b"#mtree\n"
UP: Final = b"..\n"

_TYPES: Final = {
    stat.S_IFREG: b"file",
    stat.S_IFDIR: b"dir",
    stat.S_IFLNK: b"link",
    stat.S_IFIFO: b"fifo",
    stat.S_IFSOCK: b"socket",
    stat.S_IFCHR: b"char",
    stat.S_IFBLK: b"block",
}
# Graphic ASCII, less what mtree gives a meaning: '#', '=', the backslash, and the
# characters of glob(7).
_PLAIN: Final = bytes(code for code in range(0x21, 0x7F) if code not in b"#=\\*?[]")
_SPELLING: Final = tuple(
    bytes([code]) if code in _PLAIN else b"\\%03o" % code for code in range(256)
)


def spell(text: bytes) -> bytes:
    r"""Return *text* as mtree(5) spells it: other than plain characters as `\ooo`."""
    if not text.translate(None, _PLAIN):
        return text
    return b"".join([_SPELLING[code] for code in text])


def spell_name(name: bytes) -> bytes:
    """Return *name* as mtree(8) takes it for that name alone.

    What is a pattern of glob(7) after mtree has read it is matched as one, so it is quoted.
    """
    if any(code in name for code in b"*?["):
        name = b"".join([b"\\%c" % code if code in b"*?[\\" else b"%c" % code for code in name])
    return spell(name)


def line(name: bytes, inode: InodeRecord, target: bytes = b"") -> bytes:
    """Return the manifest's line for one object called *name*.

    Raises:
        StoreDamagedError: a regular file's SHA-256 is not known.
    """
    kind = stat.S_IFMT(inode.mode)
    text = b"%s type=%s mode=%04o" % (spell_name(name), _TYPES[kind], stat.S_IMODE(inode.mode))
    if kind == stat.S_IFREG:
        if not inode.sha256:
            raise StoreDamagedError(f"SHA-256 of {name!r} is not known: the tree is not sealed")
        text += b" size=%d sha256=%s" % (inode.size, inode.sha256.hex().encode())
    elif kind == stat.S_IFLNK:
        text += b" link=%s" % spell(target)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        text += b" device=native,%d,%d" % (_major(inode.rdev), _minor(inode.rdev))
    return text + b"\n"


def _major(rdev: int) -> int:
    return (rdev >> 8 & 0xFFF) | (rdev >> 32 & ~0xFFF)


def _minor(rdev: int) -> int:
    return (rdev & 0xFF) | (rdev >> 12 & ~0xFF)


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a directory says of its entries: text, and where which directory comes in."""

    pieces: tuple[bytes, ...]
    """One more than there are subdirectories; each ends with that subdirectory's line."""
    below: tuple[Ino, ...]


_Listings = dict[Ino, _Listing]


class Manifests:
    """Renders manifests, keeping the listings of the trees rendered last."""

    KEPT: Final = 8
    """Trees of which listings are kept."""

    def __init__(self) -> None:
        self._known: OrderedDict[RootId, tuple[Root, _Listings]] = OrderedDict()

    def render(self, tree: Tree, *, base: Tree | None = None, changed: Iterable[Ino] = ()) -> bytes:
        """Return the manifest of a *tree* that does not change any more.

        With a *base* rendered before, only the directories among *changed* are
        read: those that differ from the base in an entry, or in an entry's inode.

        Raises:
            StoreDamagedError: a regular file's SHA-256 is not known.
        """
        root_id = tree.root.root_id
        listings = self._find(tree)
        if listings is None:
            listings = dict((base and self._find(base)) or {})
            for ino in changed:
                listings.pop(ino, None)
            self._known[root_id] = tree.root, listings
        self._known.move_to_end(root_id)
        while len(self._known) > self.KEPT:
            self._known.popitem(last=False)
        pieces = [HEADER, line(b".", tree.inode(TOP_INO))]
        _collect(tree, listings, pieces)
        return b"".join(pieces)

    def _find(self, tree: Tree) -> _Listings | None:
        root, listings = self._known.get(tree.root.root_id, (None, None))
        # After `abandon` the store gives the same id to another root.
        return listings if root is tree.root else None

    def forget(self, root_id: RootId) -> None:
        """Drop what is kept of a root."""
        self._known.pop(root_id, None)


def _collect(tree: Tree, listings: _Listings, pieces: list[bytes]) -> None:
    # A stack and no recursion: an agent may nest directories as deep as it likes.
    stack = [(_listing(tree, listings, TOP_INO), 0)]
    while stack:
        listing, index = stack.pop()
        pieces.append(listing.pieces[index])
        if index < len(listing.below):
            stack.append((listing, index + 1))
            stack.append((_listing(tree, listings, listing.below[index]), 0))
        else:
            pieces.append(UP)


def _listing(tree: Tree, listings: _Listings, ino: Ino) -> _Listing:
    listing = listings.get(ino)
    if listing is None:
        listing = listings[ino] = _render_directory(tree, ino)
    return listing


def _render_directory(tree: Tree, ino: Ino) -> _Listing:
    pieces: list[bytes] = []
    below: list[Ino] = []
    lines: list[bytes] = []
    for entry in tree.sorted_entries(ino):
        inode = tree.inode(entry.ino)
        target = tree.readlink(entry.ino) if entry.type == stat.S_IFLNK else b""
        lines.append(line(entry.name, inode, target))
        if entry.type == stat.S_IFDIR:
            pieces.append(b"".join(lines))
            lines.clear()
            below.append(entry.ino)
    pieces.append(b"".join(lines))
    return _Listing(tuple(pieces), tuple(below))


def manifest_hash(text: bytes) -> str:
    """Return the SHA-256 of a manifest, lower-case hex: a version's `hash`."""
    return sha256(text).hexdigest()

"""The canonical manifest of a tree, its SHA-256, and the digest of all metadata.

The manifest is mtree(5) in its original, nested form: a directory's lines
stand between its own line and `..`, entries sorted by the bytes of their names,
names spelled as vis(3) with VIS_OCTAL. It says type, permission bits, size,
link target and SHA-256, and nothing that depends on when, where or by whom the
tree was made.

The tree digest is over the rest as well: owners, modification times, extended
attributes, and which names are one file. Access and status change times are in
neither: reading and copying change them.

A line speaks of one name only, so what a directory says of its entries, and the
SHA-256 of what the tree digest has of them, is kept as long as none of them changes.
"""

from __future__ import annotations

import re
import stat
from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from kaifs.base.digest import sha256
from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import TOP_INO, Ino, RootId
from kaifs.meta import keys
from kaifs.meta.records import INODE, InodeRecord
from kaifs.store.roots import Root
from kaifs.tree.tree import Tree

HEADER: Final = b"#mtree\n"
UP: Final = b"..\n"
DIGEST_HEADER: Final = b"#kaifs-tree 1\n"

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

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_QUOTED: Final = re.compile(rb"\\(.)", re.DOTALL)
_CHOICES_KEPT: Final = 8
"""States of choices for which a listing keeps its lines: an agent may choose anew at each seal."""
_RENDERED_AT_ONCE: Final = 2000
"""Entries after which others may run."""


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


def unspell_name(word: bytes) -> bytes:
    """Return the name that `spell_name` made *word* of."""
    if b"\\" not in word:
        return word
    name = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), word)
    return _QUOTED.sub(rb"\1", name) if any(code in name for code in b"*?[") else name


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


def detail(inode: InodeRecord, xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return what the tree digest says of an object beside the manifest's line.

    Args:
        inode: The object.
        xattrs: Its extended attributes, ACLs among them, sorted by the bytes of their names.
    """
    text = b" uid=%d gid=%d mtime=%d" % (inode.uid, inode.gid, inode.mtime_ns)
    for name, value in xattrs:
        text += b" xattr.%s=%s" % (spell(name), sha256(value).hexdigest().encode())
    return text


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a directory says of its entries: text, and where which directory comes in."""

    pieces: tuple[bytes, ...]
    """One more than there are subdirectories; each ends with that subdirectory's line."""
    below: tuple[tuple[bytes, Ino], ...]
    """Names and inodes of the subdirectories."""
    linked: tuple[tuple[bytes, Ino], ...]
    """Names and inodes of files that have more than one name."""
    digest: bytes
    """SHA-256 of all that the tree digest has of the entries, as hex."""
    chosen: dict[Hashable, tuple[tuple[bytes, ...], ...]] = field(default_factory=dict)
    """For a state of a `Choice`, the lines of each piece that it takes."""


_Listings = dict[Ino, _Listing]
_State = TypeVar("_State", bound=Hashable)


class Choice(Protocol[_State]):
    """Says which regular files are meant, by their paths, from the top down."""

    def top(self) -> _State:
        """Return what counts for the entries of the top."""
        ...

    def below(self, state: _State, name: bytes) -> _State:
        """Return what counts for the entries of the directory *name*."""
        ...

    def takes(self, state: _State, name: bytes) -> bool:
        """Return whether the file *name* is meant."""
        ...


@dataclass(slots=True)
class _Kept:
    """The listings of one tree."""

    root: Root
    listings: _Listings
    size: int = 0
    """Bytes of text, those of directories that are shared with other trees too."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a walk is: in a directory, before or between its subdirectories."""

    names: list[bytes]
    """The path of the directory. The walk's own list: it changes when the walk goes on."""
    listing: _Listing
    index: int
    """How many of its subdirectories came already."""


class Manifests:
    """Renders manifests and tree digests, keeping the listings of the trees rendered last."""

    KEPT: Final = 8
    """Trees of which listings are kept."""
    KEPT_SIZE: Final = 256 << 20
    """Bytes of text that are kept, less the tree rendered last, whatever that has."""

    def __init__(self) -> None:
        self._known: OrderedDict[RootId, _Kept] = OrderedDict()

    def prepare(
        self, tree: Tree, *, base: Tree | None = None, changed: Iterable[Ino] = ()
    ) -> Generator[None, None, _Listings]:
        """Read what is not known yet of a *tree* that does not change any more.

        Yields now and then, to let others run. With a *base* prepared before, only the
        directories among *changed* are read: those that differ from the base in an
        entry, or in an entry's inode or attributes.

        Raises:
            StoreDamagedError: a regular file's SHA-256 is not known.
        """
        root_id = tree.root.root_id
        kept = self._find(tree)
        if kept is None:
            before = None if base is None else self._find(base)
            kept = _Kept(tree.root, {} if before is None else before.listings.copy())
            for ino in changed:
                kept.listings.pop(ino, None)
            kept.size = sum(sum(map(len, known.pieces)) for known in kept.listings.values())
            self._known[root_id] = kept
        done = 0
        stack = [TOP_INO]
        while stack:
            ino = stack.pop()
            listing = kept.listings.get(ino)
            if listing is None:
                listing = yield from _read_directory(tree, ino)
                kept.listings[ino] = listing
                kept.size += sum(map(len, listing.pieces))
            stack += [child for _, child in listing.below]
            done += 1
            if done % _RENDERED_AT_ONCE == 0:
                yield
        # While others ran they may have pushed this tree out, so it comes in again.
        self._known[root_id] = kept
        self._known.move_to_end(root_id)
        self._shrink()
        return kept.listings

    def _listings(self, tree: Tree) -> _Listings:
        preparing = self.prepare(tree)
        try:
            while True:
                next(preparing)
        except StopIteration as stop:
            listings: _Listings = stop.value
            return listings

    def render(self, tree: Tree) -> bytes:
        """Return the manifest of a *tree* that does not change any more.

        Raises:
            StoreDamagedError: a regular file's SHA-256 is not known.
        """
        return b"".join(self.lines(tree))

    def lines(self, tree: Tree) -> Iterator[bytes]:
        """Yield the manifest of *tree* in pieces, as `render` has it whole."""
        listings = self._listings(tree)
        yield HEADER
        yield line(b".", tree.inode(TOP_INO))
        for place in _walk(listings):
            yield place.listing.pieces[place.index]
            if place.index == len(place.listing.below):
                yield UP

    def hash(self, tree: Tree) -> str:
        """Return the SHA-256 of a tree's manifest, lower-case hex: a version's `hash`."""
        digest = sha256()
        for piece in self.lines(tree):
            digest.update(piece)
        return digest.hexdigest()

    def tree_digest(self, tree: Tree) -> str:
        """Return the SHA-256 over all metadata of *tree*, lower-case hex. O(directories).

        Raises:
            StoreDamagedError: as `render`.
        """
        listings = self._listings(tree)
        top = tree.inode(TOP_INO)
        digest = sha256(DIGEST_HEADER)
        digest.update(line(b".", top)[:-1] + detail(top, sorted(tree.xattrs(TOP_INO).items())))
        digest.update(b"\n")
        linked: dict[Ino, list[bytes]] = {}
        for place in _walk(listings):
            if place.index == 0:
                digest.update(place.listing.digest + b"\n")
                for name, ino in place.listing.linked:
                    linked.setdefault(ino, []).append(b"/".join([*place.names, name]))
        for paths in sorted(sorted(paths) for paths in linked.values()):
            digest.update(b"links %s\n" % b" ".join(map(spell, paths)))
        return digest.hexdigest()

    def chosen(self, tree: Tree, choice: Choice[_State]) -> Iterator[list[bytes]]:
        """Yield the manifest's lines of the files that *choice* takes, in the manifest's order.

        Each comes with its folder before it: `./etc/app.toml type=file …`. O(directories), and
        O(changes) in what is asked of *choice*. What is yielded may be empty: others may run then.

        Raises:
            StoreDamagedError: as `render`.
        """
        states = [choice.top()]
        for place in _walk(self._listings(tree)):
            depth = len(place.names)
            del states[max(depth + (place.index > 0), 1) :]
            if place.index == 0 and depth:
                states.append(choice.below(states[depth - 1], place.names[-1]))
            state = states[depth]
            lines = _choose(place.listing, choice, state)[place.index]
            folder = b""
            if lines:
                folder = b"".join([spell_name(name) + b"/" for name in (b".", *place.names)])
            yield [folder + text for text in lines]

    def _find(self, tree: Tree) -> _Kept | None:
        kept = self._known.get(tree.root.root_id)
        # After `abandon` the store gives the same id to another root.
        return kept if kept is not None and kept.root is tree.root else None

    def _shrink(self) -> None:
        size = sum(kept.size for kept in self._known.values())
        while len(self._known) > 1 and (len(self._known) > self.KEPT or size > self.KEPT_SIZE):
            size -= self._known.popitem(last=False)[1].size

    def forget(self, root_id: RootId) -> None:
        """Drop what is kept of a root."""
        self._known.pop(root_id, None)


def _walk(listings: _Listings) -> Iterator[_Place]:
    """Go through all directories in the manifest's order."""
    # A stack and no recursion: an agent may nest directories as deep as it likes. Nor does a
    # step hold a path of its own, which would be as long as it is deep.
    names: list[bytes] = []
    stack = [(listings[TOP_INO], 0)]
    while stack:
        listing, index = stack.pop()
        yield _Place(names, listing, index)
        if index < len(listing.below):
            name, ino = listing.below[index]
            stack += ((listing, index + 1), (listings[ino], 0))
            names.append(name)
        elif names:
            names.pop()


def _choose(
    listing: _Listing, choice: Choice[_State], state: _State
) -> tuple[tuple[bytes, ...], ...]:
    found = listing.chosen.get(state)
    if found is None:
        if len(listing.chosen) >= _CHOICES_KEPT:
            listing.chosen.clear()
        found = listing.chosen[state] = tuple(
            tuple(
                text for text in piece.splitlines(keepends=True) if _is_meant(text, choice, state)
            )
            for piece in listing.pieces
        )
    return found


def _is_meant(text: bytes, choice: Choice[_State], state: _State) -> bool:
    word, _, attributes = text.partition(b" ")
    return attributes.startswith(b"type=file ") and choice.takes(state, unspell_name(word))


def _read_directory(tree: Tree, ino: Ino) -> Generator[None, None, _Listing]:
    pieces: list[bytes] = []
    below: list[tuple[bytes, Ino]] = []
    linked: list[tuple[bytes, Ino]] = []
    lines: list[bytes] = []
    digest = sha256()
    for count, entry in enumerate(tree.sorted_entries(ino), 1):
        inode, xattrs = _inode_with_xattrs(tree, entry.ino)
        target = tree.readlink(entry.ino) if entry.type == stat.S_IFLNK else b""
        text = line(entry.name, inode, target)
        lines.append(text)
        digest.update(text[:-1] + detail(inode, xattrs) + b"\n")
        if entry.type == stat.S_IFDIR:
            pieces.append(b"".join(lines))
            lines.clear()
            below.append((entry.name, entry.ino))
        elif inode.nlink > 1:
            linked.append((entry.name, entry.ino))
        if count % _RENDERED_AT_ONCE == 0:
            yield
    pieces.append(b"".join(lines))
    hexed = digest.hexdigest().encode()
    return _Listing(tuple(pieces), tuple(below), tuple(linked), hexed)


def _inode_with_xattrs(tree: Tree, ino: Ino) -> tuple[InodeRecord, list[tuple[bytes, bytes]]]:
    """Return the inode and its extended attributes, sorted by their names, with one look."""
    inode: InodeRecord | None = None
    xattrs = []
    for key, value in tree.btree.scan(keys.inode_key(ino), keys.prefix(ino, keys.DENTRY)):
        kind = key[keys.PREFIX_SIZE - 1]
        if kind == keys.INODE:
            inode = INODE.decode(value)
        elif kind == keys.XATTR:
            xattrs.append((key[keys.PREFIX_SIZE :], value))
    if inode is None:
        raise StoreDamagedError(f"inode {ino} is missing")
    return inode, xattrs


def manifest_hash(text: bytes) -> str:
    """Return the SHA-256 of a manifest, lower-case hex: a version's `hash`."""
    return sha256(text).hexdigest()

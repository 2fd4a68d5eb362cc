"""What differs at one path, as text: git's extended headers and a unified diff.

What git has no header for (directories and devices, owners, attributes, hard links,
binary content) is told in lines between the patches, which `patch` and `git apply`
skip: the rest of the patch can be applied.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kaifs.base.types import Ino
from kaifs.meta.records import InodeRecord
from kaifs.service.line_diff import changes, hunks, split_lines
from kaifs.service.text import quote_path
from kaifs.tree.diff import Difference, linked_elsewhere, same_content
from kaifs.tree.tree import Tree

TEXT_MAX: Final = 4 << 20
"""Bytes of the larger side above which no line diff is made: both are held in memory."""
SNIFF_SIZE: Final = 8000
"""Source: git's buffer_is_binary looks at as many bytes for a NUL."""
NOTE: Final = b"# "
"""What a line begins with that only tells something."""

_ABBREVIATED: Final = 10
"""Digits of a blob's name that are told."""
_KINDS: Final = {
    stat.S_IFREG: b"file",
    stat.S_IFDIR: b"directory",
    stat.S_IFLNK: b"symbolic link",
    stat.S_IFIFO: b"fifo",
    stat.S_IFSOCK: b"socket",
    stat.S_IFCHR: b"character device",
    stat.S_IFBLK: b"block device",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two objects of a difference."""

    tree: Tree
    ino: Ino
    inode: InodeRecord

    @property
    def kind(self) -> int:
        """Its S_IFMT bits."""
        return stat.S_IFMT(self.inode.mode)

    @property
    def has_text(self) -> bool:
        """Whether git has patches for such objects: files and symbolic links."""
        return self.kind in (stat.S_IFREG, stat.S_IFLNK)

    @property
    def is_large(self) -> bool:
        """Whether it is a file too large for a line diff."""
        return self.kind == stat.S_IFREG and self.inode.size > TEXT_MAX

    @property
    def is_binary(self) -> bool:
        """Whether it is a file, and begins with what is no text."""
        if self.kind != stat.S_IFREG:
            return False
        return b"\0" in self.tree.read(self.ino, 0, min(SNIFF_SIZE, self.inode.size))

    def lines(self) -> list[bytes]:
        """Return the lines of the file, or of the link's target."""
        if self.kind == stat.S_IFLNK:
            return split_lines(self.tree.readlink(self.ino))
        return split_lines(self.tree.read(self.ino, 0, self.inode.size))


def find_side(tree: Tree, ino: Ino | None) -> Side | None:
    """Return the object *ino* of *tree*, None if there is none on this side."""
    return None if ino is None else Side(tree, ino, tree.inode(ino))


def has_lines(old: Side | None, new: Side | None) -> bool:
    """Return whether a line diff of the two can be shown."""
    sides = [side for side in (old, new) if side is not None]
    return (
        all(side.has_text for side in sides)
        and not any(side.is_large for side in sides)
        and not any(side.is_binary for side in sides)
    )


def count_lines(old: Side | None, new: Side | None) -> tuple[int, int]:
    """Return how many lines were added and removed."""
    if not has_lines(old, new) or not differs_in_content(old, new):
        return 0, 0
    found = changes(_lines(old), _lines(new))
    added = sum(change.new_stop - change.new_start for change in found)
    return added, sum(change.stop - change.start for change in found)


def differs_in_content(old: Side | None, new: Side | None) -> bool:
    """Return whether the bytes of two files, or the targets of two links, differ."""
    if old is None or new is None:
        return True
    if old.kind != new.kind:
        return True
    if old.kind == stat.S_IFREG:
        return not same_content(old.tree, old.ino, new.tree, new.ino)
    return old.kind == stat.S_IFLNK and old.lines() != new.lines()


def what_differs(old: Side | None, new: Side | None) -> tuple[str, ...]:
    """Return which facts of an object that is on both sides differ."""
    if old is None or new is None:
        return ()
    before, after = old.inode, new.inode
    found = []
    if old.kind != new.kind:
        found.append("type")
    elif differs_in_content(old, new):
        found.append("target" if old.kind == stat.S_IFLNK else "content")
    if stat.S_IMODE(before.mode) != stat.S_IMODE(after.mode):
        found.append("mode")
    if (before.uid, before.gid) != (after.uid, after.gid):
        found.append("owner")
    if before.rdev != after.rdev:
        found.append("device")
    if old.tree.xattrs(old.ino) != new.tree.xattrs(new.ino):
        found.append("xattrs")
    if linked_elsewhere(old.tree, old.ino, new.tree, new.ino):
        found.append("links")
    return tuple(found)


def render(difference: Difference, old: Side | None, new: Side | None) -> bytes:
    """Return the patch for one difference, and what it cannot say."""
    if old is not None and new is not None and old.kind != new.kind:
        # As git does: one object goes, another comes.
        return render(difference, old, None) + render(difference, None, new)
    path = quote_path(difference.path) or b"."
    lines = [NOTE + path + b": " + note + b"\n" for note in _notes(difference, old, new)]
    if all(side is None or side.has_text for side in (old, new)):
        lines += _patch(difference, old, new)
    return b"".join(lines)


def _notes(difference: Difference, old: Side | None, new: Side | None) -> Iterator[bytes]:
    """Yield what git has no header for."""
    side = new if new is not None else old
    assert side is not None
    kind = _KINDS[side.kind]
    if old is None or new is None:
        if not side.has_text:
            yield b"%s %s, %s" % (b"new" if old is None else b"removed", kind, _facts(side))
    elif not side.has_text:
        if difference.old_path is not None:
            yield b"%s renamed from %s" % (kind, quote_path(difference.old_path))
        if old.inode.mode != new.inode.mode:
            yield b"%s, old mode %06o, new mode %06o" % (kind, old.inode.mode, new.inode.mode)
        if old.inode.rdev != new.inode.rdev:
            yield b"%s, old device %s, new device %s" % (kind, _device(old), _device(new))
    if old is not None and new is not None:
        before, after = old.inode, new.inode
        if (before.uid, before.gid) != (after.uid, after.gid):
            ids = (before.uid, before.gid, after.uid, after.gid)
            yield b"old owner %d:%d, new owner %d:%d" % ids
        if linked_elsewhere(old.tree, old.ino, new.tree, new.ino):
            yield b"hard links changed: now %s" % _names(new, difference.path)
    elif new is not None and new.has_text and new.inode.nlink > 1:
        yield b"hard link, as are: %s" % _names(new, difference.path)
    yield from _attribute_notes(old, new)


def _attribute_notes(old: Side | None, new: Side | None) -> Iterator[bytes]:
    if new is None:
        return
    held = {} if old is None else old.tree.xattrs(old.ino)
    wanted = new.tree.xattrs(new.ino)
    for name in sorted(held.keys() | wanted.keys()):
        if held.get(name) != wanted.get(name):
            what = b"changed" if name in held and name in wanted else b"added"
            if name not in wanted:
                what = b"removed"
            yield b"xattr %s %s" % (what, quote_path(name))


def _facts(side: Side) -> bytes:
    text = b"mode %06o" % side.inode.mode
    if side.kind in (stat.S_IFCHR, stat.S_IFBLK):
        text += b", device " + _device(side)
    return text


def _device(side: Side) -> bytes:
    return b"%d:%d" % (os.major(side.inode.rdev), os.minor(side.inode.rdev))


def _names(side: Side, path: bytes) -> bytes:
    others = [quote_path(other) for other in side.tree.paths(side.ino) if other != path]
    return b", ".join(others) or b"none"


def _patch(difference: Difference, old: Side | None, new: Side | None) -> Iterator[bytes]:
    old_path = b"a/" + (difference.old_path or difference.path)
    new_path = b"b/" + difference.path
    names = [quote_path(old_path), quote_path(new_path)]
    lines = list(_headers(difference, old, new))
    is_different = differs_in_content(old, new)
    is_shown = has_lines(old, new)
    if is_shown and is_different:
        lines.append(_index(old, new))
    # With a header git would want the content of binary files too.
    if lines and (is_shown or (old is not None and new is not None)):
        yield b"diff --git %s %s\n" % (_title(old_path), _title(new_path))
        yield from lines
    if not is_different:
        return
    if old is None:
        names[0] = b"/dev/null"
    if new is None:
        names[1] = b"/dev/null"
    if is_shown:
        body = list(hunks(_lines(old), _lines(new)))
        if body:
            yield b"--- %s\n+++ %s\n" % (_heading(names[0]), _heading(names[1]))
            yield from body
    elif any(side is not None and side.is_binary for side in (old, new)):
        yield b"Binary files %s and %s differ\n" % (names[0], names[1])
    else:
        yield b"Files %s and %s differ: too large for a patch\n" % (names[0], names[1])


def _headers(difference: Difference, old: Side | None, new: Side | None) -> Iterator[bytes]:
    if old is None and new is not None:
        yield b"new file mode %06o\n" % new.inode.mode
    elif new is None and old is not None:
        yield b"deleted file mode %06o\n" % old.inode.mode
    elif old is not None and new is not None and old.inode.mode != new.inode.mode:
        yield b"old mode %06o\nnew mode %06o\n" % (old.inode.mode, new.inode.mode)
    if difference.old_path is not None:
        yield b"rename from %s\n" % quote_path(difference.old_path)
        yield b"rename to %s\n" % quote_path(difference.path)


def _index(old: Side | None, new: Side | None) -> bytes:
    """Return the line that names both contents as git does; patch(1) reads the type off it."""
    line = b"index %s..%s" % (_blob(old), _blob(new))
    if old is not None and new is not None and old.inode.mode == new.inode.mode:
        is_executable = old.inode.mode & stat.S_IXUSR
        line += (
            b" 120000" if old.kind == stat.S_IFLNK else b" 100755" if is_executable else b" 100644"
        )
    return line + b"\n"


def _blob(side: Side | None) -> bytes:
    if side is None:
        return b"0" * _ABBREVIATED
    text = b"".join(side.lines())
    # Git's name of a content, which protects nothing here.
    digest = hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False)
    return digest.hexdigest()[:_ABBREVIATED].encode()


def _title(path: bytes) -> bytes:
    quoted = quote_path(path)
    # patch(1) takes a name that is not in quotes to end at a blank.
    return b'"%s"' % quoted if b" " in quoted and not quoted.startswith(b'"') else quoted


def _heading(name: bytes) -> bytes:
    # Without the tab a reader takes what is behind a blank for a time. Source: git's diff.c.
    return name + b"\t" if b" " in name and not name.startswith(b'"') else name


def _lines(side: Side | None) -> list[bytes]:
    return [] if side is None else side.lines()

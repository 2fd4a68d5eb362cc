"""What differs in one file, as text: git's extended headers and a unified diff.

What git has no header for (owners, attributes, device numbers) gets one in the
same style; `patch` and `git apply` skip what they do not know.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from kaifs.base.types import Ino
from kaifs.meta.records import InodeRecord
from kaifs.service.text import quote_path
from kaifs.tree.diff import Difference
from kaifs.tree.tree import Tree

TEXT_MAX = 4 << 20
"""Bytes of the larger side above which a file is told as binary: a line diff would not end."""
_SNIFF_SIZE = 8000
"""Source: git's buffer_is_binary looks at as many bytes."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two objects of a difference."""

    inode: InodeRecord
    content: bytes | None
    """Of a file or a link's target; None for what has none or is too long for a line diff."""
    xattrs: dict[bytes, bytes]

    @property
    def is_binary(self) -> bool:
        """Whether it has content that is no text."""
        if self.content is None:
            return stat.S_ISREG(self.inode.mode)
        return b"\0" in self.content[:_SNIFF_SIZE]


def load_side(tree: Tree, ino: Ino | None) -> Side | None:
    """Return the object *ino* of *tree*, None if there is none on this side."""
    if ino is None:
        return None
    inode = tree.inode(ino)
    content = None
    if stat.S_ISREG(inode.mode) and inode.size <= TEXT_MAX:
        content = tree.read(ino, 0, inode.size)
    elif stat.S_ISLNK(inode.mode):
        content = tree.readlink(ino)
    return Side(inode, content, tree.xattrs(ino))


def count_lines(old: Side | None, new: Side | None) -> tuple[int, int]:
    """Return how many lines were added and removed."""
    if is_binary(old, new):
        return 0, 0
    before, after = _lines(old), _lines(new)
    added = removed = 0
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, start, stop, new_start, new_stop in matcher.get_opcodes():
        if tag != "equal":
            removed += stop - start
            added += new_stop - new_start
    return added, removed


def is_binary(old: Side | None, new: Side | None) -> bool:
    """Return whether no line diff of the two can be shown."""
    return any(side is not None and side.is_binary for side in (old, new))


def render(difference: Difference, old: Side | None, new: Side | None) -> bytes:
    """Return the patch for one difference."""
    old_path = b"a/" + (difference.old_path or difference.path)
    new_path = b"b/" + difference.path
    lines = [b"diff --git %s %s\n" % (quote_path(old_path), quote_path(new_path))]
    lines += _headers(difference, old, new)
    if is_binary(old, new):
        if _content(old) != _content(new) or None in (_content(old), _content(new)):
            names = [b"/dev/null" if old is None else quote_path(old_path)]
            names.append(b"/dev/null" if new is None else quote_path(new_path))
            if not _same_known_content(old, new):
                lines.append(b"Binary files %s and %s differ\n" % (names[0], names[1]))
    else:
        names = [b"/dev/null" if old is None else quote_path(old_path)]
        names.append(b"/dev/null" if new is None else quote_path(new_path))
        lines += _hunks(_lines(old), _lines(new), names[0], names[1])
    return b"".join(lines)


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
    if old is not None and new is not None:
        before, after = old.inode, new.inode
        if (before.uid, before.gid) != (after.uid, after.gid):
            yield b"old owner %d:%d\n" % (before.uid, before.gid)
            yield b"new owner %d:%d\n" % (after.uid, after.gid)
        if before.rdev != after.rdev:
            yield b"old device %#x\nnew device %#x\n" % (before.rdev, after.rdev)
    held = {} if old is None else old.xattrs
    wanted = {} if new is None else new.xattrs
    for name in sorted(held.keys() | wanted.keys()):
        if held.get(name) != wanted.get(name):
            what = b"changed" if name in held and name in wanted else b"added"
            if name not in wanted:
                what = b"removed"
            yield b"xattr %s %s\n" % (what, quote_path(name))


def _content(side: Side | None) -> bytes | None:
    return b"" if side is None else side.content


def _same_known_content(old: Side | None, new: Side | None) -> bool:
    """Return whether digests say that two files too long to load are equal."""
    if old is None or new is None:
        return False
    before, after = old.inode, new.inode
    return bool(before.sha256) and before.sha256 == after.sha256


def _lines(side: Side | None) -> list[bytes]:
    if side is None or side.content is None:
        return []
    # Not splitlines: it also breaks at form feeds and other characters that diff keeps.
    lines = side.content.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _hunks(before: list[bytes], after: list[bytes], old: bytes, new: bytes) -> Iterator[bytes]:
    for line in difflib.diff_bytes(difflib.unified_diff, before, after, old, new, lineterm=b"\n"):
        if line.endswith(b"\n"):
            yield line
        else:
            yield line + b"\n\\ No newline at end of file\n"

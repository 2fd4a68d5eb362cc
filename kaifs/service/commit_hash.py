"""The commit that a tree was checked out from, told by the git repository inside it.

Only what git itself has in plain files is read: HEAD, loose and packed
references, and for a linked worktree or a submodule the way to its folder, as
long as that stays in the tree. Nothing is followed out of it, nothing of it is
run, and all sizes are bounded. What is odd is no commit; it is never an error.
"""

from __future__ import annotations

import re
import stat
from typing import Final

from kaifs.base.errors import ChecksumMismatchError, FileTooLargeError, StoreIOError
from kaifs.service.tree_files import find_below, join_below, read_regular
from kaifs.tree.tree import Tree

_SMALL_MAX: Final = 4096
"""Bytes in a file with one line."""
_PACKED_MAX: Final = 16 << 20
"""Bytes in packed-refs: some 200,000 references."""
_REFERENCES_MAX: Final = 5
"""References that lead to references. As git has it (refs.c, SYMREF_MAXDEPTH)."""

_COMMIT: Final = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""SHA-1 or SHA-256."""
_REFERENCE: Final = re.compile(rb"ref:[ \t]*(refs/[^\x00-\x20\x7f~^:?*\[\\]{1,1000})")


def commit_hash(tree: Tree) -> str:
    """Return the commit that HEAD of the repository at the top leads to, empty if none does."""
    try:
        folder = _git_folder(tree)
        return "" if folder is None else _resolve(tree, folder)
    except (FileTooLargeError, ChecksumMismatchError, StoreIOError):
        return ""


def _git_folder(tree: Tree) -> bytes | None:
    ino = find_below(tree, b".git")
    if ino is None:
        return None
    if stat.S_ISDIR(tree.inode(ino).mode):
        return b".git"
    text = read_regular(tree, b".git", _SMALL_MAX) or b""
    if not text.startswith(b"gitdir:"):
        return None
    return join_below(b"", text[len(b"gitdir:") :].strip())


def _resolve(tree: Tree, folder: bytes) -> str:
    # Of a linked worktree HEAD is its own, and references are those of the repository.
    common = folder
    told = read_regular(tree, folder + b"/commondir", _SMALL_MAX)
    if told is not None:
        shared = join_below(folder, told.strip())
        if shared is None:
            return ""
        common = shared
    text = read_regular(tree, folder + b"/HEAD", _SMALL_MAX)
    for _ in range(_REFERENCES_MAX):
        if text is None:
            return ""
        text = text.strip()
        if _COMMIT.fullmatch(text):
            return text.decode()
        reference = _REFERENCE.fullmatch(text)
        if reference is None:
            return ""
        text = _reference(tree, common, reference[1])
    return ""


def _reference(tree: Tree, common: bytes, name: bytes) -> bytes | None:
    loose = read_regular(tree, common + b"/" + name, _SMALL_MAX)
    if loose is not None:
        return loose
    packed = b"\n" + (read_regular(tree, common + b"/packed-refs", _PACKED_MAX) or b"")
    end = packed.find(b" " + name + b"\n")
    return None if end < 0 else packed[packed.rfind(b"\n", 0, end) + 1 : end]

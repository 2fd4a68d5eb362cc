"""Reading files of a tree that its author may have made to mislead: bounded, nothing followed."""

from __future__ import annotations

import stat

from kaifs.base.errors import FileTooLargeError
from kaifs.base.types import TOP_INO, Ino
from kaifs.tree.tree import Tree


def find_below(tree: Tree, path: bytes) -> Ino | None:
    """Return what *path* is from the top, None if there is nothing or the way is no folder's.

    Nothing is followed: neither a symbolic link nor `..`.
    """
    ino: Ino = TOP_INO
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        if not stat.S_ISDIR(tree.inode(ino).mode):
            return None
        found = tree.find(ino, name)
        if found is None:
            return None
        ino = found
    return ino


def read_regular(tree: Tree, path: bytes, size_max: int) -> bytes | None:
    """Return the content of a regular file; None if there is none at *path*.

    Raises:
        FileTooLargeError: it has over *size_max* bytes.
    """
    ino = find_below(tree, path)
    if ino is None:
        return None
    inode = tree.inode(ino)
    if not stat.S_ISREG(inode.mode):
        return None
    if inode.size > size_max:
        raise FileTooLargeError(f"over {size_max >> 10} KiB")
    return tree.read(ino, 0, inode.size)


def join_below(folder: bytes, path: bytes) -> bytes | None:
    """Return where *path*, as told in *folder*, leads from the top; None if out of the tree."""
    if path.startswith(b"/"):
        return None
    names: list[bytes] = []
    for name in (*folder.split(b"/"), *path.split(b"/")):
        if name == b"..":
            if not names:
                return None
            names.pop()
        elif name not in (b"", b"."):
            names.append(name)
    return b"/".join(names)

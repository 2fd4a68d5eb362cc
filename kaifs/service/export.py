"""Gives a tree out as items; the caller's process makes files or a tar stream of them."""

import stat
from collections.abc import Generator, Iterator

import msgspec

from kaifs.base.types import Ino
from kaifs.service.context import Context
from kaifs.service.reference import resolve
from kaifs.service.steps import (
    CHUNK_SIZE,
    Data,
    End,
    Entry,
    Item,
    Output,
    Progress,
    Step,
    frame_item,
)
from kaifs.tree.tree import Tree, WalkEntry

_BATCH: int = 256 << 10
"""Bytes of small items that are gathered into one output."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to export."""

    reference: str


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was exported."""

    reference: str
    files: int
    """Names, the top not counted."""
    size: int
    """Bytes of data; holes do not count."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Export a tree as it is now, whatever is written to it meanwhile.

    Raises:
        KaifsError: as `resolve`; E105 if a file is closed to the caller.
        ChecksumMismatchError: stored bytes are damaged.
    """
    target = resolve(context.store, params.reference)
    context.require_content(target.agent, target.root)
    with context.frozen(target.root) as tree:
        total = tree.root.size
        files = -1
        size = 0
        batch = bytearray()
        yield Progress(0, total, "bytes", "exporting")
        for item in tree_items(tree):
            batch += frame_item(item)
            if isinstance(item, Entry):
                files += 1
            elif isinstance(item, Data):
                size += len(item.payload)
            if len(batch) >= _BATCH:
                yield Output(bytes(batch))
                batch.clear()
                yield Progress(min(size, total), total, "bytes", "exporting")
        yield Output(bytes(batch))
        yield Progress(total, total, "bytes", "exporting")
    return Result(reference=str(target), files=files, size=size)


def tree_items(tree: Tree) -> Iterator[Item]:
    """Yield the items that a tree consists of, and the end."""
    seen: set[Ino] = set()
    for found in tree.walk():
        yield _entry(tree, found)
        if stat.S_ISREG(found.inode.mode) and found.ino not in seen:
            if found.inode.nlink > 1:
                seen.add(found.ino)
            yield from _data(tree, found)
    yield End()


def _entry(tree: Tree, found: WalkEntry) -> Entry:
    inode = found.inode
    is_linked = inode.nlink > 1 and not stat.S_ISDIR(inode.mode)
    return Entry(
        path=found.path,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size if stat.S_ISREG(inode.mode) else 0,
        rdev=inode.rdev,
        atime_ns=inode.atime_ns,
        mtime_ns=inode.mtime_ns,
        xattrs=tuple(tree.xattrs(found.ino).items()),
        target=tree.readlink(found.ino) if stat.S_ISLNK(inode.mode) else b"",
        link=(0, found.ino) if is_linked else None,
    )


def _data(tree: Tree, found: WalkEntry) -> Iterator[Data]:
    for start, stop in _data_ranges(tree, found.ino):
        for offset in range(start, stop, CHUNK_SIZE):
            yield Data(offset, tree.read(found.ino, offset, min(CHUNK_SIZE, stop - offset)))


def _data_ranges(tree: Tree, ino: Ino) -> Iterator[tuple[int, int]]:
    """Yield the half-open ranges of a file that are not holes, adjoining extents as one."""
    start = stop = 0
    for extent in tree.content.extents(ino):
        if extent.offset != stop:
            if stop > start:
                yield start, stop
            start = extent.offset
        stop = extent.stop
    if stop > start:
        yield start, stop

"""Sealing: a tree becomes immutable, in canonical blocks, with every SHA-256 known.

What is sealed is a clone, so the source stays writable all the time. Each file
that changed since the base is read once; in that pass its SHA-256 is computed
and its bytes are cut into canonical chunks, which the source then shares.
"""

from __future__ import annotations

import stat
from collections.abc import Generator
from dataclasses import dataclass

from kaifs.base.digest import Sha256, sha256
from kaifs.base.types import BlockId, Ino
from kaifs.blocks.chunking import INLINE_MAX, Chunker
from kaifs.meta import keys
from kaifs.meta.records import INODE, Extent, RootState
from kaifs.tree.diff import changed_inos, directories_to_render
from kaifs.tree.forest import Forest
from kaifs.tree.manifest import Manifests, manifest_hash
from kaifs.tree.tree import Tree

_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class SealedTree:
    """A tree that never changes again, of nobody yet."""

    tree: Tree
    manifest: bytes
    hash: str
    """SHA-256 of the manifest, lower-case hex."""


def seal(
    forest: Forest, manifests: Manifests, source: Tree, base: Tree | None
) -> Generator[int, None, SealedTree]:
    """Seal what *source* is now. Yields the bytes just read, to let others run.

    Args:
        forest: The trees of the store.
        manifests: Renders the manifest.
        source: The tree to seal; goes on being writable.
        base: A sealed tree of the same lineage: only what differs from it is read.

    Returns:
        The sealed clone. *source* shares its blocks, and all of its nodes unless
        it changed meanwhile.
    """
    shares_all = not source.orphans()
    tree = forest.clone(source)
    changes = source.root.changes
    before: dict[Ino, list[Extent]] = {}
    try:
        text = yield from _canonical_manifest(manifests, tree, base, before)
    except BaseException:
        manifests.forget(tree.root.root_id)
        forest.drop(tree.root.root_id)
        raise
    if source.is_writable:
        if shares_all and source.root.changes == changes:
            forest.store.adopt_nodes(source.root, tree.root)
        else:
            _adopt_content(source, tree, before)
    forest.store.set_root_state(tree.root, RootState.SEALED)
    return SealedTree(tree, text, manifest_hash(text))


def _canonical_manifest(
    manifests: Manifests, tree: Tree, base: Tree | None, before: dict[Ino, list[Extent]]
) -> Generator[int, None, bytes]:
    """Put what changed in *tree* since *base* into canonical blocks; *before* is what it had."""
    directories: set[Ino] = set()
    if base is not None and base.root.lineage == tree.root.lineage:
        changed = changed_inos(base, tree)
        directories = directories_to_render(base, tree, changed)
        candidates = list(changed)
    else:
        base = None
        candidates = [entry.ino for entry in tree.walk()]
    for ino in _files_without_digest(tree, candidates):
        before[ino] = tree.content.extents(ino)
        yield from canonicalise(tree, ino)
    return manifests.render(tree, base=base, changed=directories)


def _adopt_content(source: Tree, tree: Tree, before: dict[Ino, list[Extent]]) -> None:
    """Let *source* use the canonical blocks of the files that it still has as they were."""
    for ino, extents in before.items():
        value = source.btree.get(keys.inode_key(ino))
        if value is None:
            continue
        sealed = tree.inode(ino)
        same_size = INODE.decode(value).size == sealed.size
        if same_size and source.content.extents(ino) == extents:
            source.set_content(ino, tree.content.extents(ino), sealed.size, sealed.sha256)


def _files_without_digest(tree: Tree, candidates: list[Ino]) -> list[Ino]:
    found = []
    # A file with several names is met several times.
    for ino in dict.fromkeys(candidates):
        value = tree.btree.get(keys.inode_key(ino))
        if value is not None:
            inode = INODE.decode(value)
            if stat.S_ISREG(inode.mode) and not inode.sha256:
                found.append(ino)
    return found


def canonicalise(tree: Tree, ino: Ino) -> Generator[int, None, None]:
    """Put a file into canonical blocks and note its SHA-256; its bytes stay the same."""
    size = tree.inode(ino).size
    digest = sha256()
    writer = ExtentWriter(tree)
    position = 0
    for extent in tree.content.extents(ino):
        yield from _hash_zeros(digest, extent.offset - position)
        payload = tree.content.load(extent)
        digest.update(payload)
        writer.feed(extent.offset, payload)
        position = extent.stop
        yield len(payload)
    yield from _hash_zeros(digest, size - position)
    tree.set_content(ino, writer.finish(), size, digest.digest())


def _hash_zeros(digest: Sha256, count: int) -> Generator[int, None, None]:
    while count > 0:
        step = min(count, len(_ZEROS))
        digest.update(memoryview(_ZEROS)[:step])
        count -= step
        yield step


class ExtentWriter:
    """Turns the bytes of one file, in order and with gaps, into canonical extents."""

    def __init__(self, tree: Tree) -> None:
        self._payload = tree.store.payload
        self._chunker = Chunker()
        self._start = 0
        self._stop = 0
        self._extents: list[Extent] = []

    def feed(self, offset: int, payload: bytes) -> None:
        """Take in *payload* at *offset*, at or after the end of what came before."""
        if offset != self._stop:
            self._end_run()
            self._start = self._stop = offset
        self._stop = offset + len(payload)
        for chunk in self._chunker.feed(payload):
            self._put(chunk)

    def finish(self) -> list[Extent]:
        """Return the extents of all that came."""
        self._end_run()
        return self._extents

    def _end_run(self) -> None:
        for chunk in self._chunker.finish():
            self._put(chunk)

    def _put(self, chunk: bytes) -> None:
        inline = len(chunk) <= INLINE_MAX
        block = BlockId(0) if inline else self._payload.put(chunk)
        kept = chunk if inline else b""
        self._extents.append(Extent(self._start, len(chunk), block, 0, kept))
        self._start += len(chunk)

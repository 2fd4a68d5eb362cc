"""Sealing: a tree becomes immutable, in canonical blocks, with every SHA-256 known.

What is sealed is a clone, so the source stays writable all the time. Until somebody
shows it, it is a root that is being built: one that a crash leaves is dropped. Each file
that changed since the base is read once; in that pass its SHA-256 is computed
and its bytes are cut into canonical chunks, which the source then shares.
"""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterable
from dataclasses import dataclass

from kaifs.base.digest import Sha256, sha256
from kaifs.base.types import BlockId, Ino
from kaifs.blocks.chunking import INLINE_MAX, Chunker
from kaifs.meta import keys
from kaifs.meta.records import INODE, Extent, InodeRecord
from kaifs.tree.diff import changed_inos, directories_to_render
from kaifs.tree.forest import Forest
from kaifs.tree.manifest import Manifests
from kaifs.tree.tree import Tree

_ZEROS = bytes(1 << 20)
_WALKED_AT_ONCE = 2000
"""Inodes after which others may run."""


@dataclass(frozen=True, slots=True)
class SealedTree:
    """A tree that nobody changes any more, of nobody yet and so still being built."""

    tree: Tree
    hash: str
    """SHA-256 of the manifest, lower-case hex."""
    tree_digest: str
    """SHA-256 over all metadata, lower-case hex."""


def seal(
    forest: Forest, manifests: Manifests, source: Tree, base: Tree | None
) -> Generator[int, None, SealedTree]:
    """Seal what *source* is now. Yields the bytes just read, perhaps 0, to let others run.

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
        yield from _make_canonical(manifests, tree, base, before)
        digests = manifests.hash(tree), manifests.tree_digest(tree)
    except BaseException:
        manifests.forget(tree.root.root_id)
        forest.drop(tree.root.root_id)
        raise
    if source.is_writable:
        if shares_all and source.root.changes == changes:
            forest.store.adopt_nodes(source.root, tree.root)
        else:
            _adopt_content(source, tree, before)
    return SealedTree(tree, *digests)


def _make_canonical(
    manifests: Manifests, tree: Tree, base: Tree | None, before: dict[Ino, list[Extent]]
) -> Generator[int, None, None]:
    """Put what changed in *tree* since *base* into canonical blocks; *before* is what it had."""
    directories: set[Ino] = set()
    if base is not None and base.root.lineage == tree.root.lineage:
        changed = changed_inos(base, tree)
        directories = directories_to_render(base, tree, changed)
        files = _files_without_digest(tree, changed)
    else:
        base = None
        files = yield from _all_without_digest(tree)
    for ino in files:
        before[ino] = tree.content.extents(ino)
        yield from canonicalise(tree, ino)
    for _ in manifests.prepare(tree, base=base, changed=directories):
        yield 0


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


def _files_without_digest(tree: Tree, candidates: Iterable[Ino]) -> list[Ino]:
    found = []
    for ino in candidates:
        value = tree.btree.get(keys.inode_key(ino))
        if value is not None and _lacks_digest(INODE.decode(value)):
            found.append(ino)
    return found


def _all_without_digest(tree: Tree) -> Generator[int, None, list[Ino]]:
    found = []
    for count, entry in enumerate(tree.walk(), 1):
        if _lacks_digest(entry.inode):
            found.append(entry.ino)
        if count % _WALKED_AT_ONCE == 0:
            yield 0
    # A file with several names is met several times.
    return list(dict.fromkeys(found))


def _lacks_digest(inode: InodeRecord) -> bool:
    return stat.S_ISREG(inode.mode) and not inode.sha256


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

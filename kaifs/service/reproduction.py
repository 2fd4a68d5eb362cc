"""Deterministic reproducibility: a version sealed again, from its files, is the same version."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import zip_longest

from kaifs.base.errors import KaifsError
from kaifs.meta.records import VersionRecord
from kaifs.service.context import Context
from kaifs.service.export import tree_items
from kaifs.service.findings import Finding, Findings
from kaifs.service.record import decode_record
from kaifs.service.sealing import seal_tree
from kaifs.service.steps import Data, Item, Progress, Step
from kaifs.service.text import printable_text
from kaifs.service.tree_sync import TreeSync
from kaifs.tree.forest import Forest
from kaifs.tree.seal import SealedTree
from kaifs.tree.tree import Tree

_ITEMS_AT_ONCE = 100


def check_reproduction(
    context: Context, version: VersionRecord
) -> Generator[Step, Item | None, Findings]:
    """Seal the files of a version anew, sharing nothing with it, and compare what comes out."""
    # A forest of its own: nothing that was rendered before is used.
    context = replace(context, forest=Forest(context.store))
    source = context.forest.tree(version.root)
    copy = context.forest.new_tree(0o755, 0, 0)
    try:
        yield from _copy(context, source, copy, version.size)
        sealed = yield from seal_tree(context, copy, None)
        # No step from here on: a sealed tree of nobody must be in no epoch.
        try:
            texts = _differences(context, version, source, sealed)
        finally:
            context.forest.drop(sealed.tree.root.root_id)
    except KaifsError as error:
        texts = [f"it cannot be sealed again: {printable_text(error.subject)}"]
    finally:
        context.forest.drop(copy.root.root_id)
    return Findings(errors=tuple(Finding("reproduction", text) for text in texts))


def _copy(
    context: Context, source: Tree, copy: Tree, size: int
) -> Generator[Step, Item | None, None]:
    sync = TreeSync(copy, context.store.clock.now_ns())
    for count, item in enumerate(tree_items(source), 1):
        for _ in sync.take(item):
            yield Progress(min(sync.size, size), size, "bytes", "reproducing")
        if isinstance(item, Data) or count % _ITEMS_AT_ONCE == 0:
            yield Progress(min(sync.size, size), size, "bytes", "reproducing")


def _differences(
    context: Context, version: VersionRecord, source: Tree, sealed: SealedTree
) -> list[str]:
    found = []
    record = decode_record(version.record)
    for name, made, kept in (
        ("hash", sealed.hash, record.hash),
        ("treeDigest", sealed.tree_digest, record.tree_digest),
    ):
        if made != kept:
            found.append(f"sealed again its {name} is {made}, not {kept}")
    manifests = context.manifests
    lines = zip_longest(
        _lines(manifests.lines(source)), _lines(manifests.lines(sealed.tree)), fillvalue=b""
    )
    for number, (kept_line, made_line) in enumerate(lines, 1):
        if made_line != kept_line:
            texts = [repr(line.rstrip().decode("ascii")) for line in (made_line, kept_line)]
            found.append(f"line {number} of its manifest is {texts[0]}, not {texts[1]}")
            break
    return found


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from piece.splitlines(keepends=True)

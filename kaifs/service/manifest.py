"""Gives the canonical manifest of a tree."""

from collections.abc import Generator

import msgspec

from kaifs.service.context import Context
from kaifs.service.reference import resolve
from kaifs.service.sealing import seal_tree, version_tree
from kaifs.service.steps import CHUNK_SIZE, Item, Output, Step
from kaifs.tree.manifest import manifest_hash


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Of what."""

    reference: str


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the output is."""

    reference: str
    hash: str
    """SHA-256 of the manifest; a version's hash."""
    size: int
    """Bytes of the manifest."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Output the manifest. Of a tree that is not sealed, as it would be if it were.

    Raises:
        KaifsError: as `resolve`; E105 if a file is closed to the caller.
    """
    target = resolve(context.store, params.reference)
    context.require_content(target.agent, target.root)
    if target.version is not None:
        text = context.manifests.render(context.forest.tree(target.root))
    else:
        base = context.store.find_version(target.agent.agent_id, target.label)
        source = context.forest.tree(target.root)
        sealed = yield from seal_tree(context, source, version_tree(context, base))
        text = context.manifests.render(sealed.tree)
        context.forest.drop(sealed.tree.root.root_id)
    for start in range(0, len(text), CHUNK_SIZE):
        yield Output(text[start : start + CHUNK_SIZE])
    return Result(reference=str(target), hash=manifest_hash(text), size=len(text))

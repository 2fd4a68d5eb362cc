"""What a tree says of itself, for the record of a version."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from kaifs.base.digest import sha256
from kaifs.base.errors import KaifsError
from kaifs.service.agent_manifest import NO_MANIFEST, read_agent_manifest
from kaifs.service.commit_hash import commit_hash
from kaifs.service.context import Context
from kaifs.service.dependencies import find_dependencies
from kaifs.service.patterns import Patterns
from kaifs.service.record import VersionDependency
from kaifs.service.steps import Item, Progress, Step
from kaifs.tree.tree import Tree

_FOLDERS_AT_ONCE: Final = 2000
"""Folders after which others may run."""


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """What a sealed tree says of itself."""

    agent_state_checksum: str
    config_checksum: str
    """SHA-256 over the manifest's lines of the files that are state, and that are configuration."""
    commit_hash: str
    """What its git repository has checked out, empty if it has none."""
    dependencies: tuple[VersionDependency, ...]


def read_facts(
    context: Context, tree: Tree, *, is_backup: bool = False
) -> Generator[Step, Item | None, TreeFacts]:
    """Return what *tree*, which is sealed, says of itself.

    Args:
        context: The store.
        tree: A sealed tree.
        is_backup: An agent's manifest that cannot be used counts as none: what must not
            be lost is sealed whatever it is.

    Raises:
        AgentManifestError: the agent's manifest cannot be used.
        ChecksumMismatchError: it is damaged.
    """
    try:
        manifest = read_agent_manifest(tree)
    except KaifsError:
        if not is_backup:
            raise
        manifest = NO_MANIFEST
    state = yield from _checksum(context, tree, manifest.state)
    config = yield from _checksum(context, tree, manifest.config)
    return TreeFacts(state, config, commit_hash(tree), find_dependencies(tree, manifest))


def _checksum(
    context: Context, tree: Tree, patterns: tuple[str, ...]
) -> Generator[Step, Item | None, str]:
    digest = sha256()
    for count, lines in enumerate(context.manifests.chosen(tree, Patterns(patterns)), 1):
        digest.update(b"".join(lines))
        if count % _FOLDERS_AT_ONCE == 0:
            yield Progress(count, 0, "folders", "describing")
    return digest.hexdigest()

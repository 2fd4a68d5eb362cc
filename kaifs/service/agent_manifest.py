"""The agent's manifest: what a tree itself says of the agent that it is.

`agent.toml`, `agent.yaml`, `agent.yml` or `agent.json` at the top, the first
that is there, of the shape that docs/VERSIONS.md describes. The agent wrote it,
so it is read through the tree, of bounded size, and nothing is followed: a
symbolic link is no manifest. Whatever else stands in it is the agent's business.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from kaifs.base.errors import AgentManifestError, BadNameError, FileTooLargeError
from kaifs.service.documents import SIZE_MAX, DocumentError, load_document, one_line
from kaifs.service.patterns import Patterns
from kaifs.service.ranges import parse_range
from kaifs.service.tree_files import read_regular
from kaifs.store.registry import check_agent_name
from kaifs.tree.tree import Tree

MANIFESTS: Final = ("agent.toml", "agent.yaml", "agent.yml", "agent.json")
CONFIG: Final = (
    "**/*.toml",
    "**/*.yaml",
    "**/*.yml",
    "**/*.json",
    "**/*.ini",
    "**/*.cfg",
    "**/*.conf",
)
"""Configuration of an agent that does not say."""
STATE: Final = ("state/**", "memory/**")
"""State of an agent that does not say."""
DEPENDENCIES_MAX: Final = 1000
"""Agents that one agent may depend on."""
_TABLE: Final = "agent"

_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Pattern = Annotated[str, msgspec.Meta(min_length=1)]


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What of a document counts. Members that are not named here are nobody's concern."""

    name: _Text = ""
    version: _Text = ""
    description: _Text = ""
    config: tuple[_Pattern, ...] = CONFIG
    state: tuple[_Pattern, ...] = STATE
    dependencies: Annotated[dict[str, str], msgspec.Meta(max_length=DEPENDENCIES_MAX)] = {}


class AgentManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says of itself."""

    source: str = ""
    """The file that says it; empty if there is none."""
    name: str = ""
    version: str = ""
    """Of the agent as its makers count; labels are not compared with it."""
    description: str = ""
    config: tuple[str, ...] = CONFIG
    """Patterns of configuration, see `kaifs.service.patterns`."""
    state: tuple[str, ...] = STATE
    """Patterns of state."""
    dependencies: dict[str, str] = {}
    """Ranges of versions of other agents, by their names."""
    test: Any = None
    """How it is tested, see `kaifs.service.suite_detect`; None if it does not say."""


NO_MANIFEST: Final = AgentManifest()
"""What counts for a tree that says nothing."""


def read_agent_manifest(tree: Tree) -> AgentManifest:
    """Return the manifest of the agent that *tree* is, `NO_MANIFEST` if it has none.

    Raises:
        AgentManifestError: it cannot be read, or says what cannot be.
    """
    for name in MANIFESTS:
        try:
            payload = read_regular(tree, name.encode(), SIZE_MAX)
        except FileTooLargeError as error:
            raise AgentManifestError(f"{name}: {error.subject}") from error
        if payload is not None:
            return parse_agent_manifest(payload, name)
    return NO_MANIFEST


def parse_agent_manifest(payload: bytes, source: str) -> AgentManifest:
    """Return the manifest in a file called *source* with the bytes *payload*.

    Raises:
        AgentManifestError: there is none in it.
    """
    try:
        document = _flatten(load_document(payload, source), source)
        shape = msgspec.convert(document, _Shape)
        _check(shape)
    except DocumentError as error:
        raise AgentManifestError(str(error)) from error
    except ValueError as error:
        raise AgentManifestError(f"{source}: {one_line(error)}") from error
    return AgentManifest(source=source, test=document.get("test"), **msgspec.structs.asdict(shape))


def _flatten(document: Any, source: str) -> dict[str, Any]:
    """Return the members that count: those of the document, and of its table `agent`."""
    if document is None:
        # An empty YAML file.
        return {}
    if not isinstance(document, dict):
        raise DocumentError(f"{source}: no table of names and values")
    table = document.get(_TABLE)
    if not isinstance(table, dict):
        table = {}
    # A member that is no text can be none of those that count.
    members = {name: value for name, value in document.items() if isinstance(name, str)}
    for name, value in table.items():
        if name in _Shape.__struct_fields__ and name in members:
            raise DocumentError(f"{source}: '{name}' stands in '{_TABLE}' and outside of it")
        if isinstance(name, str):
            members[name] = value
    return members


def _check(shape: _Shape) -> None:
    for text in (shape.name, shape.version, shape.description):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{text[:80]!a} is no Unicode")
    Patterns(shape.config)
    Patterns(shape.state)
    for name, wanted in shape.dependencies.items():
        try:
            check_agent_name(name)
        except BadNameError as error:
            raise ValueError(f"dependencies: {name[:80]!a} is no agent's name") from error
        try:
            parse_range(wanted)
        except ValueError as error:
            raise ValueError(f"dependencies: {name}: {wanted[:80]!a}: {error}") from error

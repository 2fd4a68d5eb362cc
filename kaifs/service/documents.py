"""TOML, YAML and JSON that nobody vouches for, as plain values.

Size and nesting are bounded before a parser sees the text, YAML has no tags,
anchors or aliases, and whatever a parser raises comes out as one line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Final

import msgspec

SIZE_MAX: Final = 64 << 10
"""Bytes in a document that people write. Hostile YAML of this size takes 0.6 s to read."""
DEPTH_MAX: Final = 16
"""Tables and arrays inside each other."""
_TEXT_MAX: Final = 200


class DocumentError(ValueError):
    """A document cannot be read; the text says which and why, in one line."""


def load_document(payload: bytes, name: str, *, size_max: int = SIZE_MAX) -> Any:
    """Return what is in a TOML, YAML or JSON file, as plain values.

    Raises:
        DocumentError: it cannot be read, or is too large or too deep.
    """
    load = _LOADERS.get(PurePath(name).suffix.lower())
    if load is None:
        raise DocumentError(f"{name}: not .toml, .yaml, .yml or .json")
    if len(payload) > size_max:
        raise DocumentError(f"{name}: over {size_max >> 10} KiB")
    try:
        return load(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{name}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return what *error* says without line feeds, cut to what a line of output holds."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 3] + "..."


def _check_depth(text: str, opening: str, closing: str) -> None:
    """Refuse brackets that are nested deeper than any document's. Those in strings count too."""
    depth = 0
    for letter in text:
        depth += (letter in opening) - (letter in closing)
        if depth > DEPTH_MAX * 4:
            raise DocumentError("nested too deeply")


def _load_toml(text: str) -> Any:
    _check_depth(text, "[{", "]}")
    # The cost of a dotted key grows with the square of its parts.
    if any(line.count(".") > 1000 for line in text.splitlines()):
        raise DocumentError("nested too deeply")
    return tomllib.loads(text)


def _load_json(text: str) -> Any:
    _check_depth(text, "[{", "]}")
    return msgspec.json.decode(text)


def _load_yaml(text: str) -> Any:
    # 20 ms to import; most documents are TOML or JSON.
    import yaml

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_MAX:
                raise DocumentError("nested too deeply")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise DocumentError("anchors and aliases are not allowed")
            if getattr(event, "tag", None):
                raise DocumentError("tags are not allowed")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DocumentError(str(error)) from error
    except (TypeError, AttributeError, OverflowError) as error:
        # Keys that cannot be keys, dates that are none.
        raise DocumentError(str(error)) from error


_LOADERS: Final[dict[str, Callable[[str], Any]]] = {
    ".toml": _load_toml,
    ".yaml": _load_yaml,
    ".yml": _load_yaml,
    ".json": _load_json,
}

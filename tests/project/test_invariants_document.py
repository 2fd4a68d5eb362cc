"""INVARIANTS.md and CONCURRENCY.md speak of what the code has."""

import importlib
import re
from pathlib import Path

import pytest

from kaifs.tree.fsck import INVARIANTS

ROOT = Path(__file__).parents[2]
PARTS = ("Why", "Keeps", "Checks", "Breaks", "Mend")


def entries() -> dict[int, tuple[str, str]]:
    """Return sentence and text of each invariant in the document, by number."""
    text = (ROOT / "docs" / "INVARIANTS.md").read_text()
    _, *pieces = re.split(r"^## I(\d+)\. (.+)$", text, flags=re.MULTILINE)
    return {
        int(number): (sentence, body)
        for number, sentence, body in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)
    }


def test_invariants_have_the_numbers_and_sentences_of_the_code() -> None:
    assert {number: sentence for number, (sentence, _) in entries().items()} == INVARIANTS


def test_each_invariant_has_all_its_parts() -> None:
    missing = [
        f"I{number} {part}"
        for number, (_, body) in entries().items()
        for part in PARTS
        if f"\n- {part}: " not in body
    ]

    assert missing == []


@pytest.mark.parametrize("document", ["INVARIANTS", "CONCURRENCY", "tour", "DESIGN"])
def test_every_object_that_is_named_exists(document: str) -> None:
    """A code span `package.module:Class.method` leads somewhere."""
    text = (ROOT / "docs" / f"{document}.md").read_text()
    missing = []
    for module, path in re.findall(r"`([a-z_]+\.[a-z_0-9]+):([A-Za-z_.]+)`", text):
        found: object = importlib.import_module(f"kaifs.{module}")
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is None:
            missing.append(f"{module}:{path}")

    assert missing == []

"""Documents agree with the code and with each other."""

import importlib
import re
from pathlib import Path

import pytest

from kaifs.base.errors import error_classes
from tools import errors_table

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
)


def without_code(text: str) -> str:
    """Return *text* without fenced blocks and code spans, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """Return the anchors that headings get: lower case, hyphens, punctuation dropped."""
    headings = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        missing_anchor = (
            anchor
            and file.suffix == ".md"
            and file.exists()
            and anchor not in anchors(file.read_text())
        )
        if not file.exists() or not file.is_relative_to(ROOT) or missing_anchor:
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_project_that_is_named_exists(document: Path) -> None:
    """A code span that spells a path below a top folder of the project is a real path."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    names = re.findall(r"`((?:kaifs|tests|tools|scripts|docs)/[\w./-]+)`", text)

    assert [name for name in names if not (ROOT / name).exists()] == []


def quoted_constants() -> list[tuple[str, str, str, str]]:
    """Return (document, module, name, value) of each constant that a document quotes.

    A document quotes constants in a fenced block whose first line is
    ```` ```constants module=kaifs.x.y ````; each of its lines is `NAME = value`,
    the value a Python literal or an expression of literals, a comment after it.
    """
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for module, block in re.findall(
            r"^```constants module=(\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
        ):
            for line in block.splitlines():
                if not line.strip() or line.lstrip().startswith("#"):
                    continue
                name, _, value = line.partition("=")
                found.append((document.name, module, name.strip(), value.strip()))
    return found


def test_quoted_constants_are_the_code_s() -> None:
    different = [
        f"{document}: {module}.{name} = {value}"
        for document, module, name, value in quoted_constants()
        if getattr(importlib.import_module(module), name, None) != eval(value, {"__builtins__": {}})
    ]

    assert different == []


def test_the_format_quotes_constants() -> None:
    """FORMAT.md is compared with the code, so it has to quote it."""
    documents = {document for document, *_ in quoted_constants()}

    assert not (ROOT / "docs" / "FORMAT.md").exists() or "FORMAT.md" in documents


def test_error_table_is_up_to_date() -> None:
    assert errors_table.TABLE.read_text() == errors_table.render()


def test_error_table_has_each_code_once() -> None:
    codes = re.findall(r"^\| (E\d+) \|", errors_table.render(), re.MULTILINE)

    assert codes == [str(cls.code) for cls in error_classes()]


def test_adrs_are_numbered_without_gaps_and_have_the_four_parts() -> None:
    adrs = sorted((ROOT / "docs" / "adr").glob("*.md"))

    assert [int(path.name[:4]) for path in adrs] == list(range(1, len(adrs) + 1))
    for path in adrs:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. ")
        for part in ("Status: ", "## Context", "## Decision", "## Consequences"):
            assert part in text, f"{path.name}: {part}"


def test_readme_begins_with_the_two_commands() -> None:
    """The first commands that a newcomer meets set everything up."""
    block = re.search(
        r"^```(?:sh|console)?\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )

    assert block is not None
    commands = [line.split("#")[0].strip() for line in block[1].splitlines()]
    assert commands == ["scripts/demo", "scripts/test"]

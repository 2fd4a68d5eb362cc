"""The packages that an agent needs, read from the files of package managers.

`pyproject.toml` (PEP 621, PEP 735), `requirements.txt` and `package.json` at
the top. Those files are made for other programs: what is wrong in them is told
as a warning, and never stops anything. They are read through the tree, of
bounded size, and nothing is followed out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from kaifs.base.errors import ChecksumMismatchError, FileTooLargeError, StoreIOError
from kaifs.service.documents import DocumentError, load_document, one_line
from kaifs.service.ranges import parse_range
from kaifs.service.record import VersionDependency
from kaifs.service.tree_files import join_below, read_regular
from kaifs.tree.tree import Tree

JSON_MAX: Final = 1 << 20
"""Bytes in package.json and in a file of requirements."""
TOML_MAX: Final = 256 << 10
"""Bytes in pyproject.toml. Hostile TOML of this size takes 0.5 s to read."""
PACKAGES_MAX: Final = 5000
"""Packages that one agent may need: the first ones that are found."""
WARNINGS_MAX: Final = 100
"""Warnings after which nothing more is read."""
_FILES_MAX: Final = 32
"""Files of requirements that include each other."""
_TEXT_MAX: Final = 4096
"""Letters in a name, or in a range."""

_NODE_KINDS: Final = {
    "dependencies": "node",
    "devDependencies": "node-dev",
    "peerDependencies": "node-peer",
    "optionalDependencies": "node-optional",
}
# What npm takes beside a range: a URL, an alias, a folder, a repository on GitHub, a tag.
_NODE_SOURCE: Final = re.compile(r"[a-z][a-z+]*:\S+|[\w.-]+/[\w.-]+(?:#\S*)?|[A-Za-z][\w.-]*")
_COMMENT: Final = re.compile(r"(?:^|\s)#.*$")
_OPTIONS: Final = re.compile(r"\s--?[A-Za-z].*$")
_EGG: Final = re.compile(r"#(?:.*&)?egg=([A-Za-z0-9._-]+)")
_SOURCE: Final = re.compile(r"[A-Za-z][A-Za-z+]*:\S|[./]|.*/|.*\.(?:whl|zip|tar\.gz)$")
"""How a requirement begins that is no name but a place: a URL, a path, an archive."""


@dataclass(slots=True)
class Packages:
    """What was found."""

    dependencies: set[VersionDependency] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    """What could not be understood, each in one line that begins with the file's name."""

    def add(self, kind: str, name: str, wanted: str, where: str) -> None:
        """Note that the package *name* is needed, in the range *wanted*."""
        for text in (name, wanted):
            if len(text) > _TEXT_MAX or any("\ud800" <= letter <= "\udfff" for letter in text):
                self.warn(f"{where}: {text[:80]!a} cannot be a package")
                return
        dependency = VersionDependency(name=name, range=wanted, kind=kind)
        if dependency not in self.dependencies and len(self.dependencies) >= PACKAGES_MAX:
            self.warnings.append(f"{where}: over {PACKAGES_MAX} packages; the others are left out")
            raise _EnoughError
        self.dependencies.add(dependency)

    def warn(self, text: str) -> None:
        """Note what is wrong."""
        if len(self.warnings) >= WARNINGS_MAX:
            self.warnings.append("and more")
            raise _EnoughError
        self.warnings.append(text)


class _EnoughError(Exception):
    """More than any agent's files hold: reading goes no further."""


def read_packages(tree: Tree) -> Packages:
    """Return the packages that *tree* needs."""
    found = Packages()
    with suppress(_EnoughError):
        _read_all(tree, found)
    return found


def _read_all(tree: Tree, found: Packages) -> None:
    for name, size_max, read in (
        ("pyproject.toml", TOML_MAX, _pyproject),
        ("package.json", JSON_MAX, _package_json),
    ):
        payload = _read(tree, name.encode(), size_max, found)
        if payload is None:
            continue
        try:
            document = load_document(payload, name, size_max=size_max)
        except DocumentError as error:
            found.warn(str(error))
            continue
        if isinstance(document, dict):
            read(document, found)
        else:
            found.warn(f"{name}: no table of names and values")
    _RequirementFiles(tree, found).read(b"requirements.txt")


def _read(tree: Tree, path: bytes, size_max: int, found: Packages) -> bytes | None:
    shown = path.decode("utf-8", "backslashreplace")
    try:
        return read_regular(tree, path, size_max)
    except FileTooLargeError as error:
        found.warn(f"{shown}: {error.subject}")
    except (ChecksumMismatchError, StoreIOError) as error:
        found.warn(f"{shown}: {error.message}")
    return None


# --- pyproject.toml ------------------------------------------------------------------------------


def _pyproject(document: dict[str, Any], found: Packages) -> None:
    build = _table(document, "build-system", found)
    for text in _texts(build, "requires", "pyproject.toml: build-system", found):
        _requirement("python-build", text, "pyproject.toml: build-system", found)
    project = _table(document, "project", found)
    for text in _texts(project, "dependencies", "pyproject.toml: project", found):
        _requirement("python", text, "pyproject.toml: project", found)
    extras = _table(project, "optional-dependencies", found)
    for extra in extras:
        for text in _texts(extras, extra, "pyproject.toml: optional-dependencies", found):
            _requirement("python-optional", text, "pyproject.toml: optional-dependencies", found)
    groups = _table(document, "dependency-groups", found)
    for group in groups:
        for text in _texts(groups, group, "pyproject.toml: dependency-groups", found):
            _requirement("python-dev", text, "pyproject.toml: dependency-groups", found)


def _table(document: dict[str, Any], name: str, found: Packages) -> dict[str, Any]:
    table = document.get(name, {})
    if isinstance(table, dict):
        return table
    found.warn(f"pyproject.toml: {name} is no table")
    return {}


def _texts(table: dict[str, Any], name: str, where: str, found: Packages) -> Iterator[str]:
    listed = table.get(name, [])
    if not isinstance(listed, list):
        found.warn(f"{where}: {name[:80]!a} is no list")
        return
    for element in listed:
        if isinstance(element, str):
            yield element
        elif not (isinstance(element, dict) and isinstance(element.get("include-group"), str)):
            found.warn(f"{where}: {name[:80]!a} holds what is no requirement")


def _requirement(kind: str, text: str, where: str, found: Packages) -> None:
    """Note a requirement of PEP 508."""
    # 25 ms to import.
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    if len(text) > _TEXT_MAX:
        found.warn(f"{where}: {text[:80]!a}: over {_TEXT_MAX} letters")
        return
    try:
        parsed = Requirement(text)
    except (InvalidRequirement, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else ""
        found.warn(f"{where}: {text[:80]!a}: {one_line(ValueError(first))}")
        return
    name: str = canonicalize_name(parsed.name)
    if parsed.extras:
        name += f"[{','.join(sorted(parsed.extras))}]"
    wanted = str(parsed.specifier)
    if parsed.url:
        kind, wanted = "python-url", parsed.url
    if parsed.marker is not None:
        wanted += f" ; {parsed.marker}" if wanted else f"; {parsed.marker}"
    found.add(kind, name, wanted, where)


# --- requirements.txt ----------------------------------------------------------------------------


class _RequirementFiles:
    """Reads a file of requirements, as pip has them, and those that it includes."""

    def __init__(self, tree: Tree, found: Packages) -> None:
        self._tree = tree
        self._found = found
        self._seen: set[bytes] = set()

    def read(self, path: bytes) -> None:
        """Read *path* and what it includes, each file once."""
        pending = [path]
        while pending:
            path = pending.pop()
            if path in self._seen:
                continue
            self._seen.add(path)
            shown = path.decode("utf-8", "backslashreplace")
            if len(self._seen) > _FILES_MAX:
                self._found.warn(f"{shown}: over {_FILES_MAX} files include each other")
                return
            payload = _read(self._tree, path, JSON_MAX, self._found)
            if payload is None:
                if len(self._seen) > 1:
                    self._found.warn(f"{shown}: included, and no file that can be read")
                continue
            try:
                text = payload.decode("utf-8-sig")
            except UnicodeDecodeError:
                self._found.warn(f"{shown}: no UTF-8")
                continue
            for number, line in _logical_lines(text):
                included = self._line(line, f"{shown}:{number}")
                if included:
                    self._include(path, included, f"{shown}:{number}", pending)

    def _include(self, path: bytes, told: str, where: str, pending: list[bytes]) -> None:
        folder = path.rpartition(b"/")[0]
        below = None if ":" in told else join_below(folder, told.encode("utf-8", "surrogatepass"))
        if below is None:
            self._found.warn(f"{where}: {told[:80]!a} leads out of the tree")
        else:
            pending.append(below)

    def _line(self, line: str, where: str) -> str:
        """Note what *line* needs. Return the file that it includes, empty if it includes none."""
        if line.startswith("-"):
            option, value = _option(line)
            if option in ("-r", "--requirement"):
                return value
            if option in ("-e", "--editable"):
                self._place("python-editable", value, where)
            # Others say where and how packages are found, not which.
            return ""
        if _SOURCE.match(line) and "@" not in line.partition("/")[0]:
            self._place("python-url", line, where)
        else:
            _requirement("python", _OPTIONS.sub("", line).strip(), where, self._found)
        return ""

    def _place(self, kind: str, text: str, where: str) -> None:
        """Note a package that is told by where it is."""
        place = _OPTIONS.sub("", text).strip()
        egg = _EGG.search(place) if len(place) <= _TEXT_MAX else None
        self._found.add(kind, egg[1] if egg else place, place, where)


def _option(line: str) -> tuple[str, str]:
    """Return an option and its value: `-r x`, `-rx`, `--requirement x` or `--requirement=x`."""
    if line.startswith("--"):
        option, _, value = line.replace("=", " ", 1).partition(" ")
        return option, value.strip()
    return line[:2], line[2:].strip()


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its number: continued ones joined, without comments, none empty.

    Source: pip's documentation, "Requirements File Format".
    """
    joined: list[str] = []
    first = 0
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        first = first or number
        # A comment ends at its line's end, whatever it ends with.
        is_comment = line.lstrip().startswith("#")
        if line.endswith("\\") and not is_comment and number < len(lines):
            joined.append(line[:-1])
            continue
        joined.append(line)
        whole = _COMMENT.sub("", "".join(joined)).strip()
        if whole:
            yield first, whole
        joined, first = [], 0


# --- package.json --------------------------------------------------------------------------------


def _package_json(document: dict[str, Any], found: Packages) -> None:
    for member, kind in _NODE_KINDS.items():
        table = document.get(member, {})
        where = f"package.json: {member}"
        if not isinstance(table, dict):
            found.warn(f"{where} is no object")
            continue
        for name, wanted in table.items():
            if not isinstance(wanted, str):
                found.warn(f"{where}: {name[:80]!a} has no range")
                continue
            if not _is_node_range(wanted.strip()):
                found.warn(f"{where}: {name[:80]!a}: {wanted[:80]!a} is no range of versions")
            found.add(kind, name, wanted, where)


def _is_node_range(text: str) -> bool:
    try:
        parse_range(text)
    except ValueError:
        return _NODE_SOURCE.fullmatch(text) is not None
    return True

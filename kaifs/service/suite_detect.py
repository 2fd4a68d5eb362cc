"""What a tree itself says of how it is tested, for those who name no suite.

The agent's manifest comes first, then the signs by which people know: the first
that is found is used. The agent wrote all of it, so everything is read through
the tree, of bounded size, and nothing is followed: a symbolic link is no sign.
"""

from __future__ import annotations

import configparser
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kaifs.base.errors import AgentManifestError, FileTooLargeError, SuiteError
from kaifs.base.types import TOP_INO
from kaifs.service.agent_manifest import read_agent_manifest
from kaifs.service.documents import SIZE_MAX, DocumentError, load_document
from kaifs.service.suite import TestCase, TestSuite, make_suite
from kaifs.service.tree_files import read_regular
from kaifs.tree.tree import Tree

REPORTS_VARIABLE: Final = "KAIFS_REPORTS"
"""Names, in the environment of a test, the folder where it may leave JUnit XML files."""
DETECTED_TIMEOUT_S: Final = 1800.0
"""Seconds that a whole suite of somebody else's may take."""

_FILE_MAX: Final = 1 << 20
# Neither bytecode nor a cache: the tree that was tested is the one that is committed.
PYTEST: Final = (
    "PYTHONDONTWRITEBYTECODE=1 python3 -m pytest -p no:cacheprovider "
    f'--junitxml="${REPORTS_VARIABLE}/pytest.xml"'
)
_MAKE_TEST: Final = re.compile(rb"^test[ \t]*:(?!=)", re.MULTILINE)
_NPM_DEFAULT: Final = "no test specified"


@dataclass(frozen=True, slots=True)
class Detected:
    """A suite that the tree implies."""

    suite: TestSuite
    source: str
    """What gave it away: a file's name, or a tool's."""


def detect_suite(tree: Tree) -> Detected:
    """Return how *tree* is tested.

    Raises:
        SuiteError: it does not say, or its manifest says what cannot be.
    """
    for detect in (_manifest, _pytest, _npm, _make, _cargo, _go):
        found = detect(tree)
        if found is not None:
            return found
    raise SuiteError("the tree does not say how it is tested; give one with --suite")


def _read(tree: Tree, name: str) -> bytes | None:
    """Return a file at the top, None if there is none or it is too large to be one of these."""
    try:
        return read_regular(tree, name.encode(), _FILE_MAX)
    except FileTooLargeError:
        return None


def _manifest(tree: Tree) -> Detected | None:
    try:
        manifest = read_agent_manifest(tree)
    except AgentManifestError as error:
        raise SuiteError(error.subject) from error
    if manifest.test is None:
        return None
    return Detected(make_suite({"test": _as_list(manifest.test)}, manifest.source), manifest.source)


def _as_list(test: Any) -> Any:
    """Return a manifest's `test`: a list of tables, one table, or just a command."""
    if isinstance(test, str):
        test = {"command": test}
    if isinstance(test, dict):
        test = [{"name": "test", **test}]
    return test


def _command(name: str, command: str | tuple[str, ...]) -> Detected:
    case = TestCase(name=name, command=command, timeout=DETECTED_TIMEOUT_S)
    return Detected(TestSuite(test=(case,)), name)


def _pytest(tree: Tree) -> Detected | None:
    signs: tuple[Callable[[Tree], bool], ...] = (
        lambda tree: _read(tree, "pytest.ini") is not None,
        lambda tree: _read(tree, "conftest.py") is not None,
        lambda tree: b"[tool.pytest" in (_read(tree, "pyproject.toml") or b""),
        lambda tree: _has_section(_read(tree, "setup.cfg"), "tool:pytest"),
        lambda tree: _has_section(_read(tree, "tox.ini"), "pytest"),
        lambda tree: any(_has_python_tests(tree, folder) for folder in (b"", b"tests", b"test")),
    )
    return _command("pytest", PYTEST) if any(sign(tree) for sign in signs) else None


def _has_section(payload: bytes | None, section: str) -> bool:
    if payload is None:
        return False
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(payload.decode("utf-8", "replace"))
    except configparser.Error:
        return False
    return parser.has_section(section)


def _has_python_tests(tree: Tree, folder: bytes) -> bool:
    ino = tree.find(TOP_INO, folder) if folder else TOP_INO
    if ino is None or not stat.S_ISDIR(tree.inode(ino).mode):
        return False
    return any(
        entry.type == stat.S_IFREG
        and entry.name.endswith(b".py")
        and (entry.name.startswith(b"test_") or entry.name.endswith(b"_test.py"))
        for entry in tree.entries(ino)
    )


def _npm(tree: Tree) -> Detected | None:
    payload = _read(tree, "package.json")
    if payload is None or len(payload) > SIZE_MAX:
        return None
    try:
        document = load_document(payload, "package.json")
    except DocumentError:
        return None
    scripts = document.get("scripts") if isinstance(document, dict) else None
    script = scripts.get("test") if isinstance(scripts, dict) else None
    if not isinstance(script, str) or _NPM_DEFAULT in script:
        return None
    return _command("npm test", ("npm", "test"))


def _make(tree: Tree) -> Detected | None:
    for name in ("GNUmakefile", "makefile", "Makefile"):
        payload = _read(tree, name)
        if payload is not None:
            return _command("make test", ("make", "test")) if _MAKE_TEST.search(payload) else None
    return None


def _cargo(tree: Tree) -> Detected | None:
    if _read(tree, "Cargo.toml") is None:
        return None
    return _command("cargo test", ("cargo", "test"))


def _go(tree: Tree) -> Detected | None:
    if _read(tree, "go.mod") is None:
        return None
    return _command("go test", ("go", "test", "./..."))

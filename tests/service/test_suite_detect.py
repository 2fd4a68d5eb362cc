"""Detection: what a tree's own files say of how it is tested."""

import os
from pathlib import Path

import pytest

from kaifs.base.errors import SuiteError
from kaifs.service.suite_detect import PYTEST, detect_suite
from tests.service.desk import Desk


def tree_with(desk: Desk, tmp_path: Path, files: dict[str, bytes]) -> None:
    """Import a folder with *files* as `bot@1.0.0`."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name, payload in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(payload)
    desk.take("bot", "1.0.0", folder)


@pytest.mark.parametrize(
    ("files", "source", "command"),
    [
        ({"agent.toml": b'test = "make it"'}, "agent.toml", "make it"),
        ({"agent.yaml": b"test: {command: [a, b]}"}, "agent.yaml", ("a", "b")),
        ({"agent.json": b'{"test": [{"name": "n", "command": "c"}]}'}, "agent.json", "c"),
        ({"agent.toml": b'name = "x"', "go.mod": b""}, "go test", ("go", "test", "./...")),
        ({"pytest.ini": b""}, "pytest", PYTEST),
        ({"pyproject.toml": b"[tool.pytest.ini_options]\n"}, "pytest", PYTEST),
        ({"setup.cfg": b"[tool:pytest]\n"}, "pytest", PYTEST),
        ({"tests/test_x.py": b""}, "pytest", PYTEST),
        ({"x_test.py": b""}, "pytest", PYTEST),
        ({"package.json": b'{"scripts": {"test": "mocha"}}'}, "npm test", ("npm", "test")),
        ({"Makefile": b"all:\ntest: all\n\ttrue\n"}, "make test", ("make", "test")),
        ({"Cargo.toml": b""}, "cargo test", ("cargo", "test")),
        ({"tests/test_x.py": b"", "Makefile": b"test:\n"}, "pytest", PYTEST),
    ],
)
def test_the_tree_says_how_it_is_tested(
    desk: Desk,
    tmp_path: Path,
    files: dict[str, bytes],
    source: str,
    command: str | tuple[str, ...],
) -> None:
    tree_with(desk, tmp_path, files)

    found = detect_suite(desk.current("bot"))

    assert found.source == source
    assert [case.command for case in found.suite.test] == [command]


@pytest.mark.parametrize(
    "files",
    [
        {"README": b"nothing"},
        {"package.json": b'{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'},
        {"package.json": b"[" * 50_000},
        {"package.json": b'{"scripts": 3}'},
        {"Makefile": b"test := x\ntesting:\n"},
        {"setup.cfg": b"[unclosed"},
        {"tests": b"a file"},
        {"pytest.ini/x": b"a folder"},
    ],
)
def test_a_tree_that_does_not_say_is_refused(
    desk: Desk, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """However odd its files are."""
    tree_with(desk, tmp_path, files)

    with pytest.raises(SuiteError, match="--suite"):
        detect_suite(desk.current("bot"))


def test_a_symbolic_link_is_no_sign(desk: Desk, tmp_path: Path) -> None:
    """Nothing of the host is read, and nothing elsewhere in the tree."""
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "secret.toml").write_text('test = "true"')
    os.symlink(tmp_path / "secret.toml", folder / "agent.toml")
    os.symlink("/etc", folder / "tests")
    desk.take("bot", "1.0.0", folder)

    with pytest.raises(SuiteError, match="--suite"):
        detect_suite(desk.current("bot"))


@pytest.mark.parametrize(
    "payload", [b"test = 3", b"test = []", b"broken", b"test = {command = 3}", b"#" * 70_000]
)
def test_a_manifest_that_makes_no_sense_is_an_error_not_a_fallback(
    desk: Desk, tmp_path: Path, payload: bytes
) -> None:
    """Else an agent's broken manifest would quietly skip its tests."""
    tree_with(desk, tmp_path, {"go.mod": b""})
    desk.write("bot", b"agent.toml", payload)

    with pytest.raises(SuiteError, match=r"agent\.toml"):
        detect_suite(desk.current("bot"))

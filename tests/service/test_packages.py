"""Packages are read from other programs' files; nothing in them stops anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kaifs.service import packages
from kaifs.service.packages import JSON_MAX, Packages, read_packages
from tests.service.desk import Desk


def found_in(desk: Desk, folder: Path, files: dict[str, bytes]) -> Packages:
    """Return the packages of a tree with *files*."""
    top = folder / "project"
    top.mkdir()
    for name, payload in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(payload)
    desk.take("bot", "1.0.0", top)
    return read_packages(desk.current("bot"))


def told(found: Packages) -> list[tuple[str, str, str]]:
    return sorted((one.kind, one.name, one.range) for one in found.dependencies)


def test_requirements_are_read_as_pip_reads_them(desk: Desk, tmp_path: Path) -> None:
    """Comments, continued lines, options, hashes, includes, URLs, editable ones."""
    found = found_in(
        desk,
        tmp_path,
        {
            "requirements.txt": b"\xef\xbb\xbf# comment\n"
            b"--index-url https://example.org/simple\n"
            b"Flask_Login>=1.0,<2  # why\n"
            b"requests [socks,security] == 2.* ; python_version < '4'\n"
            b"pinned==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
            b"-r more/dev.txt\n"
            b"-c constraints.txt\n"
            b"named @ https://example.org/named.whl\n"
            b"git+https://example.org/x.git@v1#egg=from_git\n"
            b"./local/wheel.whl\n"
            b"-e git+https://example.org/e.git#egg=edited\n"
            b"--editable=./here\n",
            "more/dev.txt": b"pytest\n--requirement=../more/dev.txt\n-r again.txt",
            "more/again.txt": b"ruff~=1.0",
        },
    )

    assert found.warnings == []
    assert told(found) == [
        ("python", "flask-login", "<2,>=1.0"),
        ("python", "pinned", "==1.0"),
        ("python", "pytest", ""),
        ("python", "requests[security,socks]", '==2.* ; python_version < "4"'),
        ("python", "ruff", "~=1.0"),
        ("python-editable", "./here", "./here"),
        ("python-editable", "edited", "git+https://example.org/e.git#egg=edited"),
        ("python-url", "./local/wheel.whl", "./local/wheel.whl"),
        ("python-url", "from_git", "git+https://example.org/x.git@v1#egg=from_git"),
        ("python-url", "named", "https://example.org/named.whl"),
    ]


def test_pyproject_is_read_as_its_standards_say(desk: Desk, tmp_path: Path) -> None:
    """PEP 518, 621 and 735."""
    found = found_in(
        desk,
        tmp_path,
        {
            "pyproject.toml": b'[build-system]\nrequires = ["hatchling~=1.2"]\n'
            b'[project]\nname = "x"\ndependencies = ["lmdb>=1"]\n'
            b'[project.optional-dependencies]\nfast = ["uvloop"]\n'
            b'[dependency-groups]\ndev = ["mypy", {include-group = "test"}]\ntest = ["pytest"]\n'
        },
    )

    assert found.warnings == []
    assert told(found) == [
        ("python", "lmdb", ">=1"),
        ("python-build", "hatchling", "~=1.2"),
        ("python-dev", "mypy", ""),
        ("python-dev", "pytest", ""),
        ("python-optional", "uvloop", ""),
    ]


def test_package_json_is_read_as_npm_does(desk: Desk, tmp_path: Path) -> None:
    found = found_in(
        desk,
        tmp_path,
        {
            "package.json": b'{"dependencies": {"@a/b": "^1", "c": "git+https://x/y.git", "d": "latest"},'
            b'"devDependencies": {"e": "npm:f@^2"}, "peerDependencies": {"g": ">= 1 < 3"},'
            b'"optionalDependencies": {"h": "me/repo#main", "i": "file:../i"}}'
        },
    )

    assert found.warnings == []
    assert told(found) == [
        ("node", "@a/b", "^1"),
        ("node", "c", "git+https://x/y.git"),
        ("node", "d", "latest"),
        ("node-dev", "e", "npm:f@^2"),
        ("node-optional", "h", "me/repo#main"),
        ("node-optional", "i", "file:../i"),
        ("node-peer", "g", ">= 1 < 3"),
    ]


@pytest.mark.parametrize(
    ("name", "payload", "warning"),
    [
        ("package.json", b"{", "package.json: "),
        ("package.json", b"[]", "no table"),
        ("package.json", b"[" * 100_000, "deep"),
        ("package.json", b" " * (JSON_MAX + 1), "over 1024 KiB"),
        ("package.json", b'{"dependencies": []}', "no object"),
        ("package.json", b'{"dependencies": {"a": 1}}', "'a' has no range"),
        ("package.json", b'{"dependencies": {"a": "!!"}}', "no range of versions"),
        ("package.json", b'{"dependencies": {"' + b"a" * 5000 + b'": "1"}}', "cannot be"),
        ("pyproject.toml", b"[project", "pyproject.toml: "),
        ("pyproject.toml", b"\xff", "decode"),
        ("pyproject.toml", b"project = 3", "no table"),
        ("pyproject.toml", b"[project]\ndependencies = 'x'", "no list"),
        ("pyproject.toml", b"[project]\ndependencies = [3]", "no requirement"),
        ("pyproject.toml", b"[project]\ndependencies = ['a b c']", "'a b c'"),
        ("requirements.txt", b"ok\nnot ok at all\n", "requirements.txt:2: "),
        ("requirements.txt", b"a ; " + b"(" * 3000, "requirements.txt:1: "),
        ("requirements.txt", b"a" * 5000, "over 4096"),
        ("requirements.txt", b"-r ../../etc/passwd", "leads out of the tree"),
        ("requirements.txt", b"-r /etc/passwd", "leads out of the tree"),
        ("requirements.txt", b"-r https://example.org/r.txt", "leads out of the tree"),
        ("requirements.txt", b"-r missing.txt", "missing.txt: included"),
        ("requirements.txt", b"\xff\xfe", "no UTF-8"),
    ],
)
def test_what_cannot_be_understood_is_a_warning(
    desk: Desk, tmp_path: Path, name: str, payload: bytes, warning: str
) -> None:
    """In one line each, with the file's name."""
    found = found_in(desk, tmp_path, {name: payload, "requirements-not-read.txt": b"x"})

    assert len(found.warnings) == 1
    assert warning in found.warnings[0]
    assert "\n" not in found.warnings[0]
    assert len(found.warnings[0]) < 400


def test_nothing_is_followed_out_of_the_tree(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    os.symlink(tmp_path / "secret.txt", folder / "requirements.txt")
    os.symlink(tmp_path, folder / "pyproject.toml")
    os.mkfifo(folder / "package.json")
    desk.take("bot", "1.0.0", folder)

    assert told(read_packages(desk.current("bot"))) == []

    desk.take("other", "1.0.0", folder / "sub")
    desk.write("other", b"requirements.txt", b"-r link/secret.txt")
    tree = desk.current("other")
    tree.symlink(tree.resolve(b""), b"link", os.fsencode(tmp_path), 0, 0, 0)
    found = read_packages(tree)
    assert told(found) == []
    assert len(found.warnings) == 1


def test_what_no_agent_holds_is_not_read_to_its_end(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a million packages, or of a million mistakes, costs no more than a large one."""
    monkeypatch.setattr(packages, "PACKAGES_MAX", 10)
    many = b"".join(b"p%d\n" % number for number in range(1000))

    found = found_in(desk, tmp_path, {"requirements.txt": many})

    assert len(found.dependencies) == 10
    assert found.warnings == ["requirements.txt:11: over 10 packages; the others are left out"]

    desk.write("bot", b"requirements.txt", b"? ? ?\n" * 1000)
    assert len(read_packages(desk.current("bot")).warnings) == packages.WARNINGS_MAX + 1


def test_files_that_include_each_other_without_end_are_left(desk: Desk, tmp_path: Path) -> None:
    chain = {"requirements.txt": b"-r 0.txt"}
    chain |= {f"{number}.txt": b"-r %d.txt\np%d" % (number + 1, number) for number in range(100)}

    found = found_in(desk, tmp_path, chain)

    assert len(found.dependencies) == 31
    assert "include each other" in found.warnings[0]

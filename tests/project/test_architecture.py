"""The layers hold, and the rules that no linter knows."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kaifs

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def committed_files() -> list[Path]:
    """Return the files that git knows of, those that are about to be added included."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    return [path for name in listing if name and (path := ROOT / os.fsdecode(name)).is_file()]


def test_imports_keep_to_the_layers() -> None:
    """The contracts of pyproject.toml, so that `pytest` alone finds a breach."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:]


def test_layer_contract_is_exhaustive() -> None:
    """A new package has to be given a layer."""
    contract = PYPROJECT["tool"]["importlinter"]["contracts"][0]

    assert contract["exhaustive"] is True
    assert contract["exhaustive_ignores"] == ["__main__"]


def test_banned_time_functions_are_named_by_the_linter() -> None:
    banned = PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]

    assert set(banned) == {"time.time", "time.time_ns"}


def test_the_linter_finds_a_banned_time_function() -> None:
    """TID251 is on: a module that reads the clock itself is refused."""
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ruff",
            "check",
            "--stdin-filename",
            "kaifs/store/x.py",
            "-",
        ],
        cwd=ROOT,
        input='"""X."""\n\nimport time\n\nNOW = time.time()\n',
        capture_output=True,
        text=True,
        check=False,
    )

    assert "TID251" in done.stdout


def test_the_lower_layers_load_nothing_that_waits_or_parses() -> None:
    """Layers 0 to 4 run in a test without trio, pyfuse3, a command line or a terminal."""
    packages = [
        name
        for name in ("base", "linux", "meta", "blocks", "store", "tree")
        if any((ROOT / "kaifs" / name).rglob("*.py"))
    ]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in packages
        for path in sorted((ROOT / "kaifs" / name).rglob("*.py"))
    ]
    program = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(*{'trio', 'pyfuse3', 'argparse', 'rich'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == ""


def test_every_lint_exception_has_a_rule_and_every_type_ignore_a_code() -> None:
    bare = re.compile(r"#\s*noqa(?!:)|#\s*type:\s*ignore(?!\[)")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in committed_files()
        if path.suffix == ".py" and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]

    assert found == []


def test_no_module_is_a_catch_all() -> None:
    """A module is named after what it holds."""
    banned = {"utils", "util", "helpers", "misc", "common"}

    assert [path for path in (ROOT / "kaifs").rglob("*.py") if path.stem in banned] == []


def test_no_file_holds_a_path_of_somebody_s_machine() -> None:
    """Home folders, build machines and private package indexes have no place in the project."""
    private = re.compile(
        r"/(?:home|Users)/(?!USER\b|agent\b)[a-z]\w*|/root/|/work/|/farm/|/opt/|\.pyenv/"
        r"|extra-index-url|find-links|\bindex-url(?! https://example\.org)"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in committed_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if private.search(line)
    ]

    assert found == []


def test_lock_is_exact_hashed_and_without_addresses() -> None:
    """Any index that has the same files will do, through pip as through uv."""
    text = (ROOT / "requirements.lock").read_text()
    entries = [entry for entry in text.split("\n") if entry and not entry.startswith((" ", "#"))]

    assert all(re.match(r"[a-z0-9][a-z0-9-]*==\S+ ", entry) for entry in entries)
    assert text.count("==") >= len(entries)
    for block in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert "--hash=sha256:" in block, block
    assert "//" not in text


def test_lock_has_every_dependency_that_the_project_names() -> None:
    """A dependency that is added without `scripts/lock` would be missing after set-up."""
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    named = PYPROJECT["project"]["dependencies"] + PYPROJECT["dependency-groups"]["dev"]

    assert {re.split(r"[<>=~]", requirement)[0] for requirement in named} <= locked


def test_package_version_is_a_label_and_the_newest_in_the_changelog() -> None:
    headings = re.findall(
        r"^## \[?([^\]\s]+)\]?", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )

    assert headings[0] == "Unreleased"
    assert kaifs.__version__ == (headings[1] if len(headings) > 1 else "0.1.0")

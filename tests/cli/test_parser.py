"""Arguments, help, and what a command costs before it does anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from kaifs import __version__
from kaifs.cli.main import VERBS, main
from tests.cli.conftest import Shell

HEAVY = ("trio", "lmdb", "msgspec", "semver", "rich", "xxhash", "zstandard", "pyfuse3")


def test_help_imports_nothing_that_takes_long() -> None:
    """Start-up is dominated by imports."""
    code = (
        "import sys; from kaifs.cli.main import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: sys.exit(any(name in sys.modules for name in {HEAVY}))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)

    assert done.returncode == 0
    assert b"rollback" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])

    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"kaifs {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["import", "bot"], ["list", "--nonsense"], ["diff"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: kaifs" in capsys.readouterr().err


def test_global_options_stand_before_or_after_the_verb(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    store = str(tmp_path / "store")

    assert main(["--store", store, "init", "--quiet"]) == 0
    assert main(["--json", "list", "--store", store]) == 0
    assert main(["list", "--json", "--store", store]) == 0

    assert capfdbinary.readouterr().out == b"[]\n[]\n"


def test_the_default_store_is_the_users_own(kaifs: Shell, tmp_path: Path) -> None:
    """`$KAIFS_STORE` rules; root's default and XDG's are in contract.md."""
    other = Shell(tmp_path / "other")

    other.fine("init", tmp_path / "named")
    assert (tmp_path / "named" / "superblock").exists()

    other.fine("init")
    assert (tmp_path / "other" / "superblock").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--store", "seal", "nonsense"], "invalid choice: 'nonsense'"),
        (["nonsense", "seal"], "choose from"),
        (["--store"], "expected one argument"),
        (["--json", "--store=x"], "required: VERB"),
        (["-x", "seal"], "required: AGENT"),
    ],
)
def test_what_is_wrong_before_the_verb_is_told(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert error in told


def test_help_before_a_verb_is_that_of_all_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-q", "--help", "seal"])

    assert "rollback" in capsys.readouterr().out

"""The scripts that a newcomer runs."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *(path for path in (ROOT / "scripts").iterdir() if not path.name.startswith(".")),
    ROOT / ".ci" / "run",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    if "bash" in script.read_text().partition("\n")[0]:
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_script_stops_at_the_first_failure(script: Path) -> None:
    text = script.read_text()

    if "bash" in text.partition("\n")[0]:
        assert "set -euo pipefail" in text


def test_setup_that_has_nothing_to_do_says_nothing_and_does_nothing() -> None:
    """A second run only compares; other scripts may call it each time."""
    setup = [ROOT / "scripts" / "setup"]
    subprocess.run(setup, capture_output=True, check=True)
    before = (ROOT / ".venv" / "stamp").stat().st_mtime_ns

    done = subprocess.run(setup, capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout + done.stderr == ""
    assert (ROOT / ".venv" / "stamp").stat().st_mtime_ns == before


def test_setup_compiles_what_commands_load() -> None:
    """Also where Python is told to write no bytecode: else each start compiles it anew."""
    compiled = Path(importlib.util.cache_from_source(str(ROOT / "kaifs" / "daemon" / "app.py")))
    compiled.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}

    subprocess.run([ROOT / "scripts" / "setup"], check=True, env=environment)

    assert compiled.exists()

"""The command as users run it: a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kaifs.store.store import Store
from kaifs.tree.fsck import check

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str
    raw: bytes

    @property
    def document(self) -> Any:
        """What `--json` printed: exactly one document."""
        return json.loads(self.out)


class Shell:
    """Runs `kaifs` with one store."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.environment = os.environ | {"KAIFS_STORE": str(store), "PYTHONPATH": str(ROOT)}
        self.environment.pop("NO_COLOR", None)

    def start(self, *arguments: str | Path, **options: Any) -> "subprocess.Popen[bytes]":
        """Start a command."""
        command = [sys.executable, "-m", "kaifs", *arguments]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options}
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, **options)

    def __call__(self, *arguments: str | Path) -> Done:
        """Run a command to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        text, message = (stream.decode("utf-8", "surrogateescape") for stream in (out, err))
        return Done(process.returncode, text, message, out)

    def fine(self, *arguments: str | Path) -> str:
        """Run a command that must succeed without a word on stderr; return what it printed."""
        done = self(*arguments)
        assert (done.status, done.err) == (0, "")
        return done.out


@pytest.fixture
def kaifs(tmp_path: Path) -> Iterator[Shell]:
    """A command with a store that is not made yet; a store that is, is sound in the end."""
    shell = Shell(tmp_path / "store")
    yield shell
    if (shell.store / "superblock").exists():
        store = Store.open(shell.store)
        assert check(store) == []
        store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder to import."""
    top = tmp_path / "source"
    (top / "lib").mkdir(parents=True)
    (top / "a.txt").write_text("first\n")
    (top / "lib" / "x.py").write_text("x = 1\n")
    return top


@pytest.fixture
def bot(kaifs: Shell, folder: Path) -> Shell:
    """A store with `bot@1.0.0`."""
    kaifs.fine("init")
    kaifs.fine("import", "bot", folder, "--as", "1.0.0")
    return kaifs

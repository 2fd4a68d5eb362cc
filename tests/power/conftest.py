"""The folder that scenarios import."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small project."""
    top = tmp_path / "source"
    (top / "lib").mkdir(parents=True)
    (top / "a.txt").write_text("first\n")
    (top / "lib" / "x.py").write_text("x = 1\n")
    (top / "big").write_bytes(bytes(range(256)) * 800)
    return top

"""A store with an agent for each test; checked when the test is done."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tree.grove import Grove, planted


@pytest.fixture
def grove(tmp_path: Path) -> Iterator[Grove]:
    with planted(tmp_path / "store") as grove:
        yield grove

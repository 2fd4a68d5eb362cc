"""What is left of sandboxes whose warden has died, and only that."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.linux.cgroups import Hierarchy, hierarchies, remove_folder
from kaifs.linux.processes import ProcessId
from kaifs.sandbox.janitor import clean
from kaifs.sandbox.names import VARIABLE, SandboxName, new_name
from tests.sandbox.ground import needs_root

pytestmark = [pytest.mark.root, needs_root]

MINE = "janitor"
DEAD = ProcessId(pid=os.getpid(), started=1)
"""Had this pid before this process."""


@pytest.fixture
def parent() -> Path:
    """A group below which groups can be made."""
    hierarchy: Hierarchy = next(one for one in hierarchies() if os.access(one.own, os.W_OK))
    return hierarchy.own


@pytest.fixture
def make_group(parent: Path) -> Iterator[object]:
    made: list[Path] = []

    def make(name: str) -> Path:
        folder = parent / name
        folder.mkdir()
        made.append(folder)
        return folder

    yield make
    for folder in made:
        remove_folder(folder, 5)


def test_groups_of_the_dead_are_removed_with_what_is_in_them(make_group) -> None:  # type: ignore[no-untyped-def]
    folder = make_group(str(SandboxName(MINE, DEAD, "0123abcd")))
    (folder / "within").mkdir()
    with subprocess.Popen(["sleep", "1234.5"]) as process:
        (folder / "within" / "cgroup.procs").write_text(str(process.pid))

        leftovers = clean(MINE)

        assert process.wait(10) == -9
    assert [leftover.is_removed for leftover in leftovers] == [True]
    assert not folder.exists()


def test_groups_of_the_living_of_others_and_of_similar_names_stay(make_group) -> None:  # type: ignore[no-untyped-def]
    dead = str(SandboxName(MINE, DEAD, "0123abcd"))
    kept = [
        make_group(str(new_name(MINE, os.getpid()))),
        make_group(str(SandboxName("other", DEAD, "0123abcd"))),
        make_group(dead + "x"),
        make_group("x" + dead),
        make_group(dead.replace("-0123abcd", "")),
        make_group(dead.replace("0123abcd", "0123abc;")),
    ]

    assert clean(MINE) == []
    assert all(folder.is_dir() for folder in kept)


def test_processes_around_sandboxes_of_the_dead_are_ended() -> None:
    name = str(SandboxName(MINE, DEAD, "0123abcd"))
    living = str(new_name(MINE, os.getpid()))
    with (
        subprocess.Popen(["sleep", "1234.5"], env={**os.environ, VARIABLE: name}) as left,
        subprocess.Popen(["sleep", "1234.5"], env={**os.environ, VARIABLE: living}) as kept,
        subprocess.Popen(["sleep", "1234.5"], env={**os.environ, VARIABLE: f"x{name}"}) as other,
    ):
        leftovers = clean(MINE)

        assert left.wait(10) == -9
        assert [leftover.what for leftover in leftovers] == [f"process {left.pid}"]
        assert kept.poll() is None
        assert other.poll() is None
        kept.kill()
        other.kill()

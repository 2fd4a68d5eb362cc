"""Control groups, on folders that look like them; the sandbox's tests have real ones."""

import os
from pathlib import Path

import pytest

from kaifs.linux.cgroups import Group, GroupUnavailable, Hierarchy, hierarchies


def hierarchy(
    top: Path, own: str, version: int = 2, controllers: str = "cpu memory pids"
) -> Hierarchy:
    folder = top / own
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.parents):
        if path.is_relative_to(top):
            (path / "cgroup.subtree_control").touch()
    return Hierarchy(version, frozenset(controllers.split()), top, folder)


def make_kernel_files(folder: Path, values: dict[str, str]) -> None:
    for name, value in values.items():
        (folder / name).write_text(value)


def test_group_of_version_2_is_made_where_its_controllers_are_handed_on(tmp_path: Path) -> None:
    """A group with processes cannot do that: the nearest one above that does is taken."""
    tree = hierarchy(tmp_path, "user.slice/session.scope")
    (tmp_path / "user.slice" / "cgroup.subtree_control").write_text("memory pids\n")
    group = Group("kaifs-x")

    group.extend("memory", [tree])
    group.extend("pids", [tree])

    assert group.folders == [tmp_path / "user.slice" / "kaifs-x"]
    assert group.controllers == {"memory", "pids"}


def test_topmost_group_of_version_2_is_told_to_hand_a_controller_on(tmp_path: Path) -> None:
    tree = hierarchy(tmp_path, "somewhere")

    group = Group("kaifs-x")
    group.extend("cpu", [tree])

    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert group.folders == [tmp_path / "kaifs-x"]


def test_version_1_has_it_below_our_own_group(tmp_path: Path) -> None:
    second = hierarchy(tmp_path / "2", "own", controllers="hugetlb")
    first = hierarchy(tmp_path / "1", "own", version=1, controllers="memory")
    group = Group("kaifs-x")

    group.extend("memory", [second, first])

    assert group.folders == [tmp_path / "1" / "own" / "kaifs-x"]


def test_controller_that_nobody_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(GroupUnavailable, match="cpu: no hierarchy has it"):
        Group("kaifs-x").extend("cpu", [hierarchy(tmp_path, "own", controllers="memory")])


def test_group_of_the_same_name_is_not_taken_over(tmp_path: Path) -> None:
    tree = hierarchy(tmp_path, "own", version=1)
    (tmp_path / "own" / "kaifs-x").mkdir()

    with pytest.raises(GroupUnavailable, match="File exists"):
        Group("kaifs-x").extend("memory", [tree])


def test_limits_of_version_2_are_written_and_read_back(tmp_path: Path) -> None:
    group = Group("kaifs-x")
    tree = hierarchy(tmp_path, "")
    for controller in ("cpu", "memory", "pids"):
        group.extend(controller, [tree])
    folder = tmp_path / "kaifs-x"
    make_kernel_files(folder, {"memory.swap.max": "max"})

    group.limit_memory(64 << 20)
    group.limit_cpus(0.5)
    group.limit_pids(20)

    assert (folder / "memory.max").read_text() == str(64 << 20)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert (folder / "pids.max").read_text() == "20"


def test_limit_that_does_not_hold_what_was_written_is_refused(tmp_path: Path) -> None:
    """A hierarchy that only pretends: what is read back is not what was set."""
    group = Group("kaifs-x")
    group.extend("pids", [hierarchy(tmp_path, "")])
    (tmp_path / "kaifs-x" / "pids.max").symlink_to(os.devnull)

    with pytest.raises(GroupUnavailable, match="pids"):
        group.limit_pids(20)


def test_process_that_is_not_in_the_group_after_all_is_refused(tmp_path: Path) -> None:
    group = Group("kaifs-x")
    group.extend("pids", [hierarchy(tmp_path, "")])
    (tmp_path / "kaifs-x" / "cgroup.procs").symlink_to(os.devnull)

    with pytest.raises(GroupUnavailable, match="is not in it"):
        group.add(1)


def test_counters_of_version_2(tmp_path: Path) -> None:
    group = Group("kaifs-x")
    tree = hierarchy(tmp_path, "")
    group.extend("cpu", [tree])
    group.extend("memory", [tree])
    make_kernel_files(
        tmp_path / "kaifs-x",
        {
            "memory.events": "low 0\noom 2\noom_kill 1\n",
            "memory.peak": "4096\n",
            "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
        },
    )

    assert group.oom_kills() == 1
    assert group.memory_peak() == 4096
    assert group.cpu_seconds() == 1.5


def test_group_without_a_controller_counts_nothing() -> None:
    group = Group("kaifs-x")

    assert (group.oom_kills(), group.memory_peak(), group.cpu_seconds()) == (0, None, None)


def test_this_machine_s_hierarchies_hold_this_process() -> None:
    for one in hierarchies():
        assert str(os.getpid()) in (one.own / "cgroup.procs").read_text().split()

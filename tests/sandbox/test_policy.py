"""How users spell what a sandbox allows."""

from pathlib import Path

import pytest

from kaifs.base.errors import ArgumentValueError, SnapshotIsolationError
from kaifs.sandbox.names import new_name, parse_name
from kaifs.sandbox.policy import (
    AllowedPath,
    Policy,
    parse_allowed_path,
    parse_cpus,
    parse_memory,
    parse_network,
    parse_pids,
    parse_storage,
    parse_system_call,
    parse_timeout,
    parse_variable,
)
from kaifs.sandbox.root import Root
from kaifs.sandbox.syscalls import equivalents, user_filter


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512m", 512 << 20),
        ("1g", 1 << 30),
        ("1.5G", 3 << 29),
        ("64MiB", 64 << 20),
        ("64MB", 64 << 20),
        ("33554432", 32 << 20),
    ],
)
def test_memory_is_a_number_with_a_unit(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "-1m", "512x", "1e9", "nan", "0", "1m", "99999999999t", "\u0665m", "1 2m"]
)
def test_memory_that_makes_no_sense_or_is_too_little_is_refused_by_name(text: str) -> None:
    with pytest.raises(ArgumentValueError, match="memory"):
        parse_memory(text)


def test_storage_may_be_small_but_not_nothing() -> None:
    assert parse_storage("1k") == 1024
    with pytest.raises(ArgumentValueError, match="storage"):
        parse_storage("0")


def test_cpus_are_a_share() -> None:
    assert parse_cpus("0.5") == 0.5
    assert parse_cpus("2") == 2
    for text in ("", "0", "-1", "nan", "inf", "0.001", "x", "9999999"):
        with pytest.raises(ArgumentValueError, match="cpus"):
            parse_cpus(text)


def test_pids_are_counted() -> None:
    assert parse_pids("512") == 512
    for text in ("", "0", "3", "1.5", "-1", "max", "9999999"):
        with pytest.raises(ArgumentValueError, match="pids"):
            parse_pids(text)


def test_networks_are_two() -> None:
    assert parse_network("none") == "none"
    assert parse_network("bridge") == "bridge"
    with pytest.raises(ArgumentValueError, match="network"):
        parse_network("host")


def test_timeouts_have_units() -> None:
    assert [parse_timeout(text) for text in ("30", "1.5s", "2m", "1h")] == [30, 1.5, 120, 3600]
    for text in ("", "0", "-1", "1d", "nan", "s"):
        with pytest.raises(ArgumentValueError, match="timeout"):
            parse_timeout(text)


def test_variables_have_a_name() -> None:
    assert parse_variable("A=b=c") == ("A", "b=c")
    assert parse_variable("A=") == ("A", "")
    for text in ("A", "=b", "1A=b", "A B=c", "A=\0"):
        with pytest.raises(ArgumentValueError, match="env"):
            parse_variable(text)


def test_allowed_paths_are_read_only_unless_told() -> None:
    assert parse_allowed_path("/data") == AllowedPath(Path("/data"))
    assert parse_allowed_path("/data:ro") == AllowedPath(Path("/data"))
    assert parse_allowed_path("/data//x/:rw") == AllowedPath(Path("/data/x"), writable=True)
    assert parse_allowed_path("/agent") == AllowedPath(Path("/agent"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data",
        "/",
        "//",
        "/data/../etc",
        "/proc",
        "/proc/1",
        "/sys/fs",
        "/dev/fuse",
        "/tmp",
        "/agent/x",
        "/a\0",
    ],
)
def test_allowed_path_over_what_the_sandbox_has_of_its_own_is_refused(text: str) -> None:
    with pytest.raises(ArgumentValueError, match="allowed path"):
        parse_allowed_path(text)


def test_allowed_path_that_does_not_exist_is_refused(public: Path) -> None:
    policy = Policy(allowed_paths=(AllowedPath(public / "missing"),))

    with pytest.raises(SnapshotIsolationError, match="missing"):
        Root(policy, frozenset())


def test_system_calls_are_refused_with_those_that_do_the_same() -> None:
    assert equivalents("mkdirat") == ["mkdir", "mkdirat"]
    assert equivalents("getpid") == ["getpid"]
    assert len(user_filter(["mkdir"])) > len(user_filter(["getpid"]))


def test_system_call_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ArgumentValueError, match="No Such"):
        parse_system_call("No Such")
    with pytest.raises(SnapshotIsolationError, match="no_such_call"):
        user_filter(["no_such_call"])


def test_system_calls_newer_than_the_library_are_known() -> None:
    user_filter(["fchmodat2", "mseal", "setxattrat"])


def test_name_of_a_sandbox_is_read_back_exactly_or_not_at_all() -> None:
    name = new_name("0123abcd", 1)
    text = str(name)

    assert parse_name(text) == name
    for hostile in (text + "x", text[:-1], "x" + text, text + "\n", text.upper(), "../" + text,
                    text.replace("-1-", "-01-"), text.replace("-1-", "-¹-"), ""):  # fmt: skip
        assert parse_name(hostile) is None

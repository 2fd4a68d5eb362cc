"""How users spell what a sandbox allows."""

from pathlib import Path

import pytest

from kaifs.base.errors import ArgumentValueError
from kaifs.base.limits import (
    AllowedPath,
    parse_allowed_path,
    parse_cpus,
    parse_memory,
    parse_pids,
    parse_storage,
    parse_system_call,
    parse_variable,
)


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


def test_a_refused_variable_does_not_tell_its_value() -> None:
    with pytest.raises(ArgumentValueError) as caught:
        parse_variable("1TOKEN=secret")

    assert "1TOKEN" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_system_calls_are_spelled_as_such() -> None:
    assert parse_system_call("mkdirat") == "mkdirat"
    with pytest.raises(ArgumentValueError, match="No Such"):
        parse_system_call("No Such")

"""What a sandbox allows."""

from pathlib import Path

import pytest

from kaifs.base.errors import ArgumentValueError, SnapshotIsolationError
from kaifs.base.limits import AllowedPath
from kaifs.sandbox.names import new_name, parse_name
from kaifs.sandbox.policy import Policy, parse_network
from kaifs.sandbox.root import Root
from kaifs.sandbox.syscalls import equivalents, user_filter


def test_networks_are_two() -> None:
    assert parse_network("none") == "none"
    assert parse_network("bridge") == "bridge"
    with pytest.raises(ArgumentValueError, match="network"):
        parse_network("host")


def test_allowed_path_that_does_not_exist_is_refused(public: Path) -> None:
    policy = Policy(allowed_paths=(AllowedPath(public / "missing"),))

    with pytest.raises(SnapshotIsolationError, match="missing"):
        Root(policy, frozenset())


def test_system_calls_are_refused_with_those_that_do_the_same() -> None:
    assert equivalents("mkdirat") == ["mkdir", "mkdirat"]
    assert equivalents("getpid") == ["getpid"]
    assert len(user_filter(["mkdir"])) > len(user_filter(["getpid"]))


def test_system_call_that_does_not_exist_is_refused_by_name() -> None:
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

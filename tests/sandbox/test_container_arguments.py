"""What container runtimes are told, and what is believed of their answers; none is needed here."""

import errno
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kaifs.base.errors import ArgumentValueError, SnapshotIsolationError
from kaifs.linux.namespaces import Namespace
from kaifs.sandbox.container.limits import check_limits, group_folders
from kaifs.sandbox.container.profile import make_profile
from kaifs.sandbox.container.runtime import (
    Creation,
    Runtime,
    Volume,
    check_image,
    check_volume,
    docker_lacks,
)
from kaifs.sandbox.defences import ALL
from kaifs.sandbox.limits import make_limits
from kaifs.sandbox.names import new_name
from kaifs.sandbox.policy import Policy
from tests.sandbox.ground import LABEL, needs_root

PODMAN, DOCKER = Runtime("podman", "/bin/podman"), Runtime("docker", "/bin/docker")
CREATION = Creation(
    name="kaifs-x",
    image="an/image:1",
    policy=Policy(memory=64 << 20, cpus=0.25, pids=33, environment={"A": "1\n2"}),
    command=["echo", "--privileged"],
    owner=(1_900_000_000, 1_900_000_001),
    profile=Path("/stage/seccomp.json"),
    volumes=[
        Volume(Path("/stage/agent"), Path("/agent"), writable=True),
        Volume(Path("/stage/path1"), Path("/data"), writable=False),
    ],
    is_interactive=True,
    has_terminal=False,
    labels={"kaifs.store": "abc"},
)
BASE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": errno.ENOSYS,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {
            "names": ["read", "mkdir", "mkdirat", "unlinkat", "rmdir", "clone", "clone3"],
            "action": "SCMP_ACT_ALLOW",
        },
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0}]},
        {"names": ["mount", "ioctl"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_X"]}},
    ],
}


def pairs(arguments: list[str]) -> set[tuple[str, str]]:
    return set(pairwise(arguments))


@pytest.mark.parametrize("runtime", [PODMAN, DOCKER], ids=["podman", "docker"])
def test_both_runtimes_are_told_every_limit(runtime: Runtime) -> None:
    arguments = CREATION.arguments(runtime)

    assert pairs(arguments) >= {
        ("--name", "kaifs-x"),
        ("--pull", "never"),
        ("--label", "kaifs.store=abc"),
        ("--memory", f"{64 << 20}b"),
        ("--memory-swap", f"{64 << 20}b"),
        ("--cpus", "0.25000"),
        ("--pids-limit", "33"),
        ("--network", "none"),
        ("--user", "1900000000:1900000001"),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--security-opt", "seccomp=/stage/seccomp.json"),
        ("--workdir", "/agent"),
        ("--env", "A=1\n2"),
        ("--mount", "type=bind,src=/stage/agent,dst=/agent,bind-propagation=rprivate"),
        ("--mount", "type=bind,src=/stage/path1,dst=/data,bind-propagation=rprivate,readonly"),
    }
    assert {"--read-only", "--interactive"} <= set(arguments)
    assert "--tty" not in arguments


def test_what_docker_does_not_know_it_is_not_told() -> None:
    arguments = CREATION.arguments(DOCKER)

    assert arguments[0] == "create"
    for word in ("--systemd", "--http-proxy=false", "--image-volume", "--read-only-tmpfs=false"):
        assert word not in arguments
        assert word in CREATION.arguments(PODMAN)
    assert "--ignore" not in DOCKER.removal("x")
    assert DOCKER.removal("x")[-1] == PODMAN.removal("x")[-1] == "x"


def test_command_comes_after_the_image_and_is_no_option() -> None:
    arguments = CREATION.arguments(PODMAN)
    after = arguments[arguments.index("an/image:1") + 1 :]

    assert after == ["-c", '"$@"; exit $?', "sh", "echo", "--privileged"]
    assert replace(CREATION, joins_errors=True).arguments(DOCKER)[-4].startswith("exec 2>&1; ")
    policy = replace(CREATION.policy, blocked_syscalls=("fork",))
    assert 'exec "$@"' in replace(CREATION, policy=policy).arguments(PODMAN)


def test_environment_of_a_runtime_is_nothing_of_the_agent_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs as root: LD_PRELOAD in it would be a way out."""
    monkeypatch.setenv("SECRET", "x")

    assert set(PODMAN.environment("kaifs-x")) >= {"PATH", "HOME", "KAIFS_SANDBOX"}
    assert "SECRET" not in PODMAN.environment("")


def test_names_that_could_be_options_are_refused() -> None:
    check_image("registry.example:5000/some/image@sha256:00ff")
    for image in ("", "-v", "--privileged", "a b", "a\n"):
        with pytest.raises(ArgumentValueError):
            check_image(image)
    for path in ("/a,b", '/a"b', "/a:b"):
        with pytest.raises(SnapshotIsolationError):
            check_volume(Volume(Path("/s"), Path(path), writable=False))


def test_docker_that_cannot_hold_a_limit_is_told_so() -> None:
    policy = Policy()
    able = {"ServerVersion": "28", "MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True}

    assert docker_lacks(able, policy) is None
    assert "does not run" in str(docker_lacks({"ServerErrors": ["no"]}, policy))
    assert "PidsLimit" in str(docker_lacks({**able, "PidsLimit": False}, policy))
    assert docker_lacks({**able, "PidsLimit": False}, replace(policy, pids=None)) is None
    assert "SwapLimit" in str(docker_lacks({**able, "SwapTotal": 1}, policy))
    rootless = {**able, "SecurityOptions": ["name=seccomp", "name=rootless"]}
    assert "rootless" in str(docker_lacks(rootless, policy))


def entries(profile: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [entry for entry in profile["syscalls"] if name in entry["names"]]


def test_profile_is_the_runtime_s_without_what_is_refused() -> None:
    profile = make_profile(["mkdir"], BASE)

    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert "archMap" not in profile
    assert len(profile["architectures"]) == 1
    assert [entry["action"] for entry in entries(profile, "read")] == ["SCMP_ACT_ALLOW"]
    assert [entry["action"] for entry in entries(profile, "ioctl")] == ["SCMP_ACT_ALLOW"]
    for name in ("mkdir", "mkdirat", "mount", "ptrace", "unshare"):
        found = entries(profile, name)
        assert [(one["action"], one["errnoRet"]) for one in found] == [("SCMP_ACT_ERRNO", 1)], name
    assert [one["errnoRet"] for one in entries(profile, "clone3")] == [errno.ENOSYS]


def test_profile_lets_conditions_through_that_no_rule_refuses() -> None:
    profile = make_profile(["rmdir", "fork"], BASE)
    namespaces = sum(int(kind) for kind in Namespace)

    def allowed(name: str) -> list[dict[str, Any]]:
        found = [one for one in entries(profile, name) if one["action"] == "SCMP_ACT_ALLOW"]
        return [argument for one in found for argument in one["args"]]

    thread = 0x10000
    index = 1 if os.uname().machine.startswith("s390") else 0
    assert allowed("clone")[0]["value"] == namespaces | thread
    assert allowed("clone")[0]["valueTwo"] == thread
    assert allowed("clone")[0]["index"] in (0, index)
    assert [(one["value"], one["valueTwo"]) for one in allowed("unlinkat")] == [(0x200, 0)]
    assert [one["value"] for one in allowed("socket")] == [1, 2, 10, 16]


def test_profile_without_a_base_refuses_what_a_sandbox_does() -> None:
    profile = make_profile(["ioctl", "clone3"], None)

    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    assert all(entry["action"] == "SCMP_ACT_ERRNO" for entry in profile["syscalls"])
    assert [entry.get("args") for entry in entries(profile, "ioctl")] == [None]
    assert [entry["errnoRet"] for entry in entries(profile, "clone3")] == [errno.EPERM]
    with pytest.raises(SnapshotIsolationError):
        make_profile(["nonsense"], None)
    with pytest.raises(SnapshotIsolationError):
        make_profile([], {**BASE, "defaultAction": "SCMP_ACT_ALLOW"})


def test_process_without_limits_is_found_out() -> None:
    """This one has none, or others."""
    with pytest.raises(SnapshotIsolationError, match=r"memory: .*cpus: .*pids: "):
        check_limits(Policy(memory=33 << 20, cpus=0.011, pids=4_194_303), os.getpid())
    check_limits(Policy(memory=None, cpus=None, pids=None), os.getpid())


@pytest.mark.root
@needs_root
def test_limits_are_read_back_where_they_are_set() -> None:
    policy = Policy(memory=64 << 20, cpus=0.25, pids=33)
    name = str(new_name(LABEL, os.getpid()))
    limits = make_limits(policy, name, ALL)
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        limits.group.add(pid)

        check_limits(policy, pid)
        assert {group_folders(pid)[one].name for one in ("memory", "cpu", "pids")} == {name}
        for wrong in ({"memory": 65 << 20}, {"memory": 63 << 20}, {"cpus": 0.2}, {"pids": 32}):
            with pytest.raises(SnapshotIsolationError, match=f"^.*{next(iter(wrong))}: "):
                check_limits(replace(policy, **wrong), pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        limits.close()

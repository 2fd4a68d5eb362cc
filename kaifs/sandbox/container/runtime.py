"""The two container runtimes, and how they are spelled."""

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from kaifs.base.errors import ArgumentValueError, SnapshotIsolationError
from kaifs.base.limits import AGENT
from kaifs.sandbox.names import VARIABLE
from kaifs.sandbox.network import NAME_SERVER
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.root import HOME

STORE_LABEL: Final = "kaifs.store"
SNAPSHOT_LABEL: Final = "kaifs.snapshot"
WARDEN_LABEL: Final = "kaifs.warden"

_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}")
_PASSED_ON: Final = (
    "CONTAINERS_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "CONTAINERS_STORAGE_CONF",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_HOST",
    "TMPDIR",
)
"""Where a runtime has its own things."""
_OPEN_FILES: Final = (1024, 4096)
_PROCESSES: Final = 4096

# pid 1 is not ended by signals that it does not handle, and has to wait for orphans: the image's
# shell is that, and the command is not. Its statuses 126 and 127 are what they should be.
_SCRIPT: Final = '"$@"; exit $?'
_SCRIPT_WITHOUT_FORK: Final = 'exec "$@"'
_OF_FORKING: Final = frozenset(["clone", "clone3", "fork", "vfork", "wait4", "waitid", "waitpid"])


class RuntimeFailedError(Exception):
    """A runtime's command ended with an error, which is the message."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A container runtime that is installed."""

    name: str
    """`podman` or `docker`."""
    path: str

    @property
    def sees_our_mounts(self) -> bool:
        """Whether it runs in the mount and network namespaces of who starts it."""
        return self.name == "podman"

    def call(self, arguments: Sequence[str], name: str = "") -> str:
        """Run one of its commands and return what it prints.

        Args:
            arguments: After the program's name.
            name: The sandbox's, for the janitor.

        Raises:
            RuntimeFailedError: It fails.
        """
        done = subprocess.run(
            [self.path, *arguments],
            env=self.environment(name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            close_fds=True,
        )
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            reason = lines[-1].removeprefix("Error: ") if lines else f"status {done.returncode}"
            raise RuntimeFailedError(f"{self.name} {arguments[0]}: {reason}")
        return done.stdout.decode(errors="replace")

    def inspect(self, container: str, name: str = "") -> dict[str, Any]:
        """Return what it knows of a container."""
        found = json.loads(self.call(["inspect", "--type", "container", container], name))
        document: dict[str, Any] = found[0]
        return document

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment for its commands: nothing of the agent's, little of ours."""
        passed = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/root", **passed}
        return environment | ({VARIABLE: name} if name else {})

    def removal(self, container: str) -> list[str]:
        """Return the command that ends and removes a container."""
        if self.name == "podman":
            return ["rm", "--force", "--time", "0", "--ignore", "--volumes", container]
        return ["rm", "--force", "--volumes", container]


@dataclass(frozen=True, slots=True)
class Volume:
    """Something of the host that a container shows."""

    source: Path
    target: Path
    writable: bool

    def __str__(self) -> str:
        """Return it as the option `--mount` takes it."""
        text = f"type=bind,src={self.source},dst={self.target},bind-propagation=rprivate"
        return text if self.writable else f"{text},readonly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """What a container is made of."""

    name: str
    image: str
    policy: Policy
    command: Sequence[str]
    owner: tuple[int, int]
    """uid and gid inside, which are the same outside."""
    profile: Path
    """Its filter of system calls."""
    volumes: Sequence[Volume]
    """The agent's files first."""
    is_interactive: bool
    has_terminal: bool
    joins_errors: bool = False
    """Whether stderr goes where stdout goes. Runtimes carry them apart and lose their order."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, runtime: Runtime) -> list[str]:
        """Return the arguments of *runtime* that create the container."""
        is_podman = runtime.name == "podman"
        arguments = ["create", "--name", self.name, "--pull", "never", "--hostname", "sandbox"]
        if is_podman:
            # Neither an init, proxies, nor volumes that nobody asked for.
            arguments += ["--systemd", "false", "--http-proxy=false", "--image-volume", "ignore"]
            arguments += ["--read-only-tmpfs=false"]
            if shutil.which("runc") is not None:
                # crun before 1.9 does not work with both versions of control groups at once.
                arguments = ["--runtime", "runc", *arguments]
        arguments += [word for item in self.labels.items() for word in ("--label", "=".join(item))]
        arguments += ["--log-driver", "none", "--read-only", "--workdir", str(AGENT)]
        arguments += ["--user", "{}:{}".format(*self.owner), "--cap-drop", "ALL"]
        arguments += ["--security-opt", "no-new-privileges"]
        arguments += ["--security-opt", f"seccomp={self.profile}"]
        arguments += ["--ipc", "private", "--cgroupns", "private"]
        arguments += ["--shm-size", str(self.policy.scratch)]
        scratch = f"rw,nosuid,nodev,exec,mode=1777,size={self.policy.scratch}"
        arguments += ["--tmpfs", f"{HOME}:{scratch}"]
        arguments += [*self._limits(), *self._network()]
        for name, value in self._environment().items():
            arguments += ["--env", f"{name}={value}"]
        for volume in self.volumes:
            arguments += ["--mount", str(volume)]
        arguments += ["--interactive"] * self.is_interactive + ["--tty"] * self.has_terminal
        forks = not _OF_FORKING & set(self.policy.blocked_syscalls)
        script = "exec 2>&1; " * self.joins_errors + (_SCRIPT if forks else _SCRIPT_WITHOUT_FORK)
        arguments += ["--entrypoint", "/bin/sh", self.image]
        return [*arguments, "-c", script, "sh", *self.command]

    def _limits(self) -> list[str]:
        policy = self.policy
        arguments = []
        if policy.memory is not None:
            arguments += ["--memory", f"{policy.memory}b", "--memory-swap", f"{policy.memory}b"]
        if policy.cpus is not None:
            arguments += ["--cpus", f"{policy.cpus:.5f}"]
        if policy.pids is not None:
            arguments += ["--pids-limit", str(policy.pids)]
        for name, kind, soft, hard in (
            ("nofile", resource.RLIMIT_NOFILE, *_OPEN_FILES),
            ("nproc", resource.RLIMIT_NPROC, _PROCESSES, _PROCESSES),
            # One byte: with 0 a program of the host that takes core dumps would still be started.
            ("core", resource.RLIMIT_CORE, 1, 1),
        ):
            # Nothing may be raised without CAP_SYS_RESOURCE.
            _, most = resource.getrlimit(kind)
            most = hard if most == resource.RLIM_INFINITY else min(most, hard)
            arguments += ["--ulimit", f"{name}={min(soft, most)}:{most}"]
        return [*arguments, "--oom-score-adj", "500"]

    def _network(self) -> list[str]:
        if self.policy.network == "none":
            return ["--network", "none"]
        # The one that podman itself is in by then, which is the container's own.
        return ["--network", "host", "--dns", str(NAME_SERVER)]

    def _environment(self) -> dict[str, str]:
        environment = {"HOME": HOME, "LANG": "C.UTF-8", "USER": "agent", "LOGNAME": "agent"}
        return {**environment, "SHELL": "/bin/sh", **self.policy.environment}


def check_image(image: str) -> None:
    """Refuse what cannot be the name of an image.

    Raises:
        ArgumentValueError: It cannot be.
    """
    if not _IMAGE.fullmatch(image):
        raise ArgumentValueError(f"image: {image!r} is no name of an image")


def check_volume(volume: Volume) -> None:
    """Refuse a path that the runtimes cannot be told.

    Raises:
        SnapshotIsolationError: It has a character that separates options.
    """
    if any(character in str(volume.target) for character in ',"\n:'):
        reason = "a container's paths may hold no comma, colon, quote or line break"
        raise SnapshotIsolationError(f"allowed path {volume.target}: {reason}")


def find_runtimes() -> list[Runtime]:
    """Return the runtimes that are installed, the preferred one first."""
    found = ((name, shutil.which(name)) for name in ("podman", "docker"))
    return [Runtime(name, path) for name, path in found if path is not None]


def choose_runtime(policy: Policy) -> Runtime:
    """Return the runtime that can enforce *policy*.

    Raises:
        SnapshotIsolationError: There is none.
    """
    if os.geteuid() != 0:
        # A rootless runtime mounts in namespaces of its own, in which the snapshot is not seen,
        # and where control groups are of version 1 it ignores limits with a warning only.
        raise SnapshotIsolationError(
            "containers need root: a rootless runtime neither sees the snapshot nor holds limits "
            "everywhere; without --container an ordinary user gets a sandbox"
        )
    reasons = []
    for runtime in find_runtimes():
        reason = _podman_lacks() if runtime.name == "podman" else _docker_lacks(runtime, policy)
        if reason is None:
            return runtime
        reasons.append(f"{runtime.name}: {reason}")
    raise SnapshotIsolationError(
        "; ".join(reasons) or "there is no container runtime: install podman and runc"
    )


@cache
def _podman_lacks() -> str | None:
    # What a container really got is read back before its command starts.
    missing = [name for name in ("conmon",) if shutil.which(name, path=_HELPERS) is None]
    return f"{', '.join(missing)} is missing" if missing else None


_HELPERS: Final = f"{os.defpath}:/usr/libexec/podman:/usr/lib/podman:/usr/local/bin"


def _docker_lacks(runtime: Runtime, policy: Policy) -> str | None:
    if policy.network != "none":
        return "its networks reach this machine's own addresses, which a sandbox must not"
    try:
        info = json.loads(runtime.call(["info", "--format", "{{json .}}"]))
    except (RuntimeFailedError, ValueError) as error:
        return str(error)
    return docker_lacks(info, policy)


def docker_lacks(info: Mapping[str, Any], policy: Policy) -> str | None:
    """Return what docker, which says *info* of itself, cannot enforce; None if it can."""
    if info.get("ServerErrors") or not info.get("ServerVersion"):
        return "its service does not run"
    if any("rootless" in option for option in info.get("SecurityOptions") or ()):
        return "its service is rootless and does not see the snapshot"
    wanted = {
        "MemoryLimit": policy.memory is not None,
        "SwapLimit": policy.memory is not None and (info.get("SwapTotal") or 0) > 0,
        "CpuCfsQuota": policy.cpus is not None,
        "PidsLimit": policy.pids is not None,
    }
    missing = [name for name, is_wanted in wanted.items() if is_wanted and not info.get(name)]
    return f"cannot be enforced: {', '.join(missing)}" if missing else None

"""What a sandbox allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from kaifs.base.errors import ArgumentValueError
from kaifs.base.limits import CPUS_MIN, MEMORY_MIN, PIDS_MIN, AllowedPath

Network = Literal["none", "bridge"]

_SCRATCH_MIN: Final = 4096
_TIMEOUT_MIN: Final = 0.001


def _default_environment() -> Mapping[str, str]:
    return MappingProxyType({"NODE_ENV": "sandbox", "KAI_ISOLATION_MODE": "true"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything that a sandbox allows. The defaults are the specification's."""

    memory: int | None = 512 << 20
    """Bytes of memory and swap, page cache included; None does not limit."""
    cpus: float | None = 0.5
    """Processors' worth of time."""
    pids: int | None = 512
    """Processes and threads."""
    scratch: int = 256 << 20
    """Bytes in each of /tmp and /dev/shm. They are memory, and count as such."""
    network: Network = "none"
    environment: Mapping[str, str] = field(default_factory=_default_environment)
    read_only: bool = False
    """Whether /agent is."""
    allowed_paths: tuple[AllowedPath, ...] = ()
    blocked_syscalls: tuple[str, ...] = ()
    """Refused beside those that always are, each with the calls that do the same."""
    timeout_s: float | None = None
    required: frozenset[str] = frozenset({"memory", "cpus", "pids"})
    """Limits without which nothing runs. The others are set if the machine can, and
    `Running.unenforced` tells which it could not."""
    forbidden: tuple[Path, ...] = ()
    """Folders of the host (stores, mountpoints) that no allowed path may hold or lie in."""

    def __post_init__(self) -> None:
        _check_least("memory", self.memory, MEMORY_MIN)
        _check_least("cpus", self.cpus, CPUS_MIN)
        _check_least("pids", self.pids, PIDS_MIN)
        _check_least("scratch", self.scratch, _SCRATCH_MIN)
        _check_least("timeout", self.timeout_s, _TIMEOUT_MIN)
        for name, value in self.environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise ArgumentValueError(f"env: {name!r} cannot be a variable with that value")


def parse_network(text: str) -> Network:
    """Return the network that *text* names."""
    if text not in ("none", "bridge"):
        raise ArgumentValueError(f"network: {text!r} is neither none nor bridge")
    return "none" if text == "none" else "bridge"


def _check_least(name: str, value: float | None, least: float) -> None:
    # Not a comparison the other way round: NaN is refused.
    if value is not None and not value >= least:
        raise ArgumentValueError(f"{name}: {value} is less than {least}")

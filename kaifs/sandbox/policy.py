"""What a sandbox allows, and how users spell it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from kaifs.base.errors import ArgumentValueError

Network = Literal["none", "bridge"]

AGENT: Final = Path("/agent")
"""Where the agent's files are in every sandbox."""
MEMORY_MIN: Final = 16 << 20
"""Bytes; with less, not even the launcher starts reliably."""
CPUS_MIN: Final = 0.01
"""The kernel takes no quota below 1 ms in 100 ms."""
PIDS_MIN: Final = 4
"""Two are bubblewrap's own."""

_UNITS: Final = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,18}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SYSTEM_CALL: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_SIZE_MAX: Final = 1 << 62
_MANAGED: Final = ("/proc", "/sys", "/dev", "/etc", "/usr", "/run", "/boot", "/agent", "/tmp")  # noqa: S108 - the sandbox's own


@dataclass(frozen=True, slots=True)
class AllowedPath:
    """A file or folder of the host that the sandbox shows, at the same path."""

    path: Path
    """Absolute, as the user named it; links in it are resolved when the sandbox starts."""
    writable: bool = False


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
        _check_least("scratch", self.scratch, 4096)
        _check_least("timeout", self.timeout_s, 0.001)
        for name, value in self.environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise ArgumentValueError(f"env: {name!r} cannot be a variable with that value")


def parse_memory(text: str) -> int:
    """Return the bytes that *text* (`512m`, `1g`, `1.5G`, `268435456`) means."""
    size = _parse_size("memory", text)
    if size < MEMORY_MIN:
        raise ArgumentValueError(f"memory: {text!r} is less than {MEMORY_MIN >> 20}m")
    return size


def parse_storage(text: str) -> int:
    """Return the bytes that *text* means; at least 1."""
    size = _parse_size("storage", text)
    if size < 1:
        raise ArgumentValueError(f"storage: {text!r} is nothing")
    return size


def parse_cpus(text: str) -> float:
    """Return the share of processors that *text* (`0.5`, `2`) means."""
    try:
        cpus = float(Decimal(text)) if text.isascii() else math.nan
    except InvalidOperation:
        cpus = math.nan
    if not CPUS_MIN <= cpus <= 4096:
        raise ArgumentValueError(f"cpus: {text!r} is no number from {CPUS_MIN} to 4096")
    return cpus


def parse_pids(text: str) -> int:
    """Return the number of processes that *text* means."""
    count = int(text) if _COUNT.fullmatch(text) else 0
    if not PIDS_MIN <= count <= 4_194_304:
        raise ArgumentValueError(f"pids: {text!r} is no number from {PIDS_MIN} to 4194304")
    return count


def parse_network(text: str) -> Network:
    """Return the network that *text* names."""
    if text not in ("none", "bridge"):
        raise ArgumentValueError(f"network: {text!r} is neither none nor bridge")
    return "none" if text == "none" else "bridge"


def parse_timeout(text: str) -> float:
    """Return the seconds that *text* (`30`, `1.5`, `2m`, `1h`) means."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    number = text[:-1] if factor else text
    seconds = float(number) * (factor or 1) if re.fullmatch(r"\d+(\.\d+)?", number, re.A) else 0.0
    if not 0 < seconds <= 1e9:
        raise ArgumentValueError(f"timeout: {text!r} is no time; write 30, 1.5s, 2m or 1h")
    return seconds


def parse_variable(text: str) -> tuple[str, str]:
    """Return name and value of *text*, `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
        raise ArgumentValueError(f"env: {text!r} is not NAME=VALUE")
    return name, value


def parse_allowed_path(text: str) -> AllowedPath:
    """Return the path that *text* (`/data`, `/data:ro`, `/data:rw`) allows.

    What the sandbox has of its own cannot be replaced: the root, /proc, /tmp …
    """
    path, writable = text, False
    if text.endswith((":ro", ":rw")):
        path, writable = text[:-3], text.endswith("w")
    parts = Path(path).parts
    if not path.startswith("/") or "\0" in path or ".." in parts:
        raise ArgumentValueError(f"allowed path: {text!r} is not absolute and plain")
    plain = Path("/", *parts[1:])
    if plain == AGENT:
        return AllowedPath(plain, writable)  # the specification's default; always there
    if (
        plain == Path("/")
        or str(plain) in _MANAGED
        or plain.parts[1] in ("proc", "sys", "dev", "agent")
    ):
        raise ArgumentValueError(f"allowed path: {text!r} is the sandbox's own")
    return AllowedPath(plain, writable)


def parse_system_call(text: str) -> str:
    """Return *text* if it is spelled like the name of a system call."""
    if not _SYSTEM_CALL.fullmatch(text):
        raise ArgumentValueError(f"blocked syscall: {text!r} is no name of a system call")
    return text


def _check_least(name: str, value: float | None, least: float) -> None:
    # Not a comparison the other way round: NaN is refused.
    if value is not None and not value >= least:
        raise ArgumentValueError(f"{name}: {value} is less than {least}")


def _parse_size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    size = int(Decimal(match[1]) * (1 << _UNITS[match[2].lower()])) if match else _SIZE_MAX
    if size >= _SIZE_MAX:
        raise ArgumentValueError(f"{name}: {text!r} is no size; write 512m, 1.5g or bytes")
    return size

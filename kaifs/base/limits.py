"""What commands in a snapshot may use and touch, as users spell it.

Read once when a snapshot is made and again when something is to run in it, by the
same rules: what could not be enforced is refused before it is kept. Whatever makes
no sense is an `ArgumentValueError` that names the limit.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from kaifs.base.errors import ArgumentValueError

AGENT: Final = Path("/agent")
"""Where the agent's files are in every sandbox. Source: specification, createIsolationConfig."""
MEMORY_MIN: Final = 16 << 20
"""Bytes; with less, not even the launcher starts reliably."""
CPUS_MIN: Final = 0.01
"""The kernel takes no quota below 1 ms in 100 ms."""
CPUS_MAX: Final = 4096
PIDS_MIN: Final = 4
"""Two are bubblewrap's own."""
PIDS_MAX: Final = 4_194_304
"""Source: PID_MAX_LIMIT of the kernel."""

_UNITS: Final = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE: Final = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{1,6})?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII
)
_SIZE_MAX: Final = 1 << 62
_CPUS: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?|\.[0-9]{1,3}")
_COUNT: Final = re.compile(r"[0-9]{1,18}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SYSTEM_CALL: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_MANAGED: Final = ("/proc", "/sys", "/dev", "/etc", "/usr", "/run", "/boot", "/agent", "/tmp")  # noqa: S108 - the sandbox's own


@dataclass(frozen=True, slots=True)
class AllowedPath:
    """A file or folder of the host that the sandbox shows, at the same path."""

    path: Path
    """Absolute, as the user named it; links in it are resolved when the sandbox starts."""
    writable: bool = False


def parse_memory(text: str) -> int:
    """Return the bytes that *text* (`512m`, `1g`, `1.5G`, `268435456`) means; units are of 1024."""
    size = _parse_size("memory", text)
    if size < MEMORY_MIN:
        raise ArgumentValueError(f"memory: {text!a} is less than {MEMORY_MIN >> 20}m")
    return size


def parse_storage(text: str) -> int:
    """Return the bytes that *text* means; at least 1."""
    size = _parse_size("storage", text)
    if size < 1:
        raise ArgumentValueError(f"storage: {text!a} is nothing")
    return size


def parse_cpus(text: str) -> float:
    """Return the share of processors that *text* (`0.5`, `2`) means."""
    cpus = float(text) if _CPUS.fullmatch(text) else 0.0
    if not CPUS_MIN <= cpus <= CPUS_MAX:
        raise ArgumentValueError(f"cpus: {text!a} is no number from {CPUS_MIN} to {CPUS_MAX}")
    return cpus


def parse_pids(text: str) -> int:
    """Return the number of processes and threads that *text* means."""
    count = int(text) if _COUNT.fullmatch(text) else 0
    if not PIDS_MIN <= count <= PIDS_MAX:
        raise ArgumentValueError(f"pids: {text!a} is no number from {PIDS_MIN} to {PIDS_MAX}")
    return count


def parse_variable(text: str) -> tuple[str, str]:
    """Return name and value of *text*, `NAME=VALUE`. A refusal tells the name alone."""
    name, equals, value = text.partition("=")
    if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
        raise ArgumentValueError(f"env: {name!a} is not NAME=VALUE")
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
        raise ArgumentValueError(f"allowed path: {text!a} is not absolute and plain")
    plain = Path("/", *parts[1:])
    if plain == AGENT:
        return AllowedPath(plain, writable)  # the specification's default; always there
    if (
        plain == Path("/")
        or str(plain) in _MANAGED
        or plain.parts[1] in ("proc", "sys", "dev", "agent")
    ):
        raise ArgumentValueError(f"allowed path: {text!a} is the sandbox's own")
    return AllowedPath(plain, writable)


def parse_system_call(text: str) -> str:
    """Return *text* if it is spelled like the name of a system call."""
    if not _SYSTEM_CALL.fullmatch(text):
        raise ArgumentValueError(f"blocked syscall: {text!a} is no name of a system call")
    return text


def _parse_size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    size = int(Decimal(match[1]) * (1 << _UNITS[match[2].lower()])) if match else _SIZE_MAX
    if size >= _SIZE_MAX:
        raise ArgumentValueError(f"{name}: {text!a} is no size; write 512m, 1.5g or bytes")
    return size

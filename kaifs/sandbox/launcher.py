"""What the launcher is told to do, in the form that it reads. See `launcher.pl`."""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.base.errors import SnapshotIsolationError
from kaifs.linux.landlock import OF_FILES, Access
from kaifs.linux.seccomp import system_call_number

PERL: Final = "/usr/bin/perl"
PROGRAM: Final = Path(__file__).with_name("launcher.pl").read_text(encoding="ascii")

PREPARED: Final = b"P"
"""Reported when nothing but the exec is left to be done."""
FAILED: Final = b"E"
"""Begins a report that something before it went wrong."""
NOT_EXECUTED: Final = b"X"
"""Begins a report of the errno with which the exec failed."""

_CALLS: Final = (
    "write",
    "setsid",
    "dup3",
    "ioctl",
    "close_range",
    "prlimit64",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
    "seccomp",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the launcher does, in its order."""

    report: int
    """Descriptor of a pipe to the warden, closed when the command has been started."""
    streams: tuple[int | None, int | None, int | None]
    """Descriptors that become 0, 1 and 2; None is the sandbox's /dev/null."""
    terminal: int | None
    """Which of the streams becomes the controlling terminal."""
    close_descriptors: bool
    folder: Path
    processes: int | None
    """RLIMIT_NPROC: the processes and threads of this user in the sandbox's user namespace."""
    data: int | None
    """RLIMIT_DATA of each process, in bytes."""
    ruleset: bytes
    """`struct landlock_ruleset_attr`; empty restricts nothing."""
    rules: Sequence[tuple[Path, Access]]
    command: Sequence[str]
    environment: Mapping[str, str]
    filter: bytes
    """Program for seccomp(2); empty for none."""

    def encode(self) -> bytes:
        """Return the job as the launcher reads it."""
        fields = _Fields()
        fields.add(self.report)
        fields.add_list(field for name in _CALLS for field in (name, _number(name)))
        for stream in self.streams:
            fields.add("null" if stream is None else stream)
        fields.add(-1 if self.terminal is None else self.terminal)
        fields.add(int(self.close_descriptors))
        fields.add(str(self.folder))
        fields.add(self.processes or 0)
        fields.add(self.data or 0)
        fields.add(self.ruleset)
        fields.add(int(OF_FILES))
        fields.add_list(field for path, access in self.rules for field in (str(path), int(access)))
        fields.add_list(self.command)
        fields.add_list(field for item in self.environment.items() for field in item)
        fields.add(self.filter)
        return fields.encoded()


class _Fields:
    """Fields, each after its length in four bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, value: str | int | bytes) -> None:
        data = value if isinstance(value, bytes) else os.fsencode(str(value))
        self._parts += [struct.pack(">I", len(data)), data]

    def add_list(self, values: Iterable[str | int]) -> None:
        items = list(values)
        self.add(len(items))
        for item in items:
            self.add(item)

    def encoded(self) -> bytes:
        return b"".join(self._parts)


def _number(name: str) -> int:
    number = system_call_number(name)
    if number is None or number < 0:
        raise SnapshotIsolationError(f"libseccomp does not know {name}")
    return number

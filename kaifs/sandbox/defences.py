"""The single defences of a sandbox, each by name.

Only so that the attack suite can run an attack with one of them missing and
see it succeed: a test that passes either way proves nothing.
"""

from enum import StrEnum, auto
from typing import Final


class Defence(StrEnum):
    """One thing that stands between what runs in a sandbox and the host."""

    SECCOMP = auto()
    LANDLOCK = auto()
    NETWORK_NAMESPACE = auto()
    PROHIBITED_ROUTES = auto()
    PID_NAMESPACE = auto()
    IPC_NAMESPACE = auto()
    USERNS_LIMIT = auto()
    MEMORY_LIMIT = auto()
    CPU_LIMIT = auto()
    PIDS_LIMIT = auto()
    CLOSED_DESCRIPTORS = auto()
    STREAM_RELAY = auto()
    CLEAN_ENVIRONMENT = auto()
    READ_ONLY_AGENT = auto()
    READ_ONLY_SYSTEM = auto()
    SIZED_SCRATCH = auto()
    MINIMAL_ROOT = auto()
    DROPPED_USER = auto()
    PLAIN_PATHS = auto()


ALL: Final = frozenset(Defence)

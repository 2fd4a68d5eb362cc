"""Landlock: what the kernel's version of it can restrict.

Rules are put in force by the process that they bind, so here are numbers only.
Source: landlock(7), Documentation/userspace-api/landlock.rst.
"""

import ctypes
import struct
from enum import IntFlag
from functools import cache
from typing import Final

_NR_CREATE_RULESET: Final = 444
_CREATE_RULESET_VERSION: Final = 1


class Access(IntFlag):
    """Rights on files, in the order in which versions of the interface brought them."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ: Final = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
CHANGE: Final = (
    Access.WRITE_FILE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SOCK
    | Access.MAKE_FIFO
    | Access.MAKE_SYM
    | Access.REFER
    | Access.TRUNCATE
)
OF_FILES: Final = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
"""What a rule about something that is no directory may grant; more is EINVAL."""

_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1
_SCOPE_SIGNAL: Final = 2


@cache
def abi_version() -> int:
    """Return the version of the interface; 0 if the kernel has none or has it switched off."""
    libc = ctypes.CDLL(None)
    return max(0, int(libc.syscall(_NR_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)))


def handled(abi: int) -> Access:
    """Return every right that version *abi* can take away."""
    newest = {1: Access.MAKE_SYM, 2: Access.REFER, 3: Access.TRUNCATE, 4: Access.TRUNCATE}
    return Access((newest.get(abi, Access.IOCTL_DEV) << 1) - 1)


def ruleset_attributes(abi: int) -> bytes:
    """Return `struct landlock_ruleset_attr` that takes away whatever version *abi* can.

    TCP is left alone: a network namespace does more, and tests serve on loopback.
    """
    if abi < 6:
        return struct.pack("=Q", handled(abi))
    return struct.pack("=QQQ", handled(abi), 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)

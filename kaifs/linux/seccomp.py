"""Filters of system calls, compiled by libseccomp.

Six functions of its C interface are called directly: the Python bindings that
exist look the library up with a compiler at import, which takes longer than
starting a whole sandbox. Source: seccomp_init(3), seccomp_rule_add(3).
"""

import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final

_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_ATTRIBUTE_BAD_ARCH: Final = 2
_ATTRIBUTE_NO_NEW_PRIVILEGES: Final = 3
_ATTRIBUTE_OPTIMIZE: Final = 8
_UNKNOWN: Final = -1

# Newer than libseccomp 2.5.4; the numbers are the same on every architecture.
_NEWER: Final = {
    "quotactl_fd": 443,
    "process_mrelease": 448,
    "set_mempolicy_home_node": 450,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}


class Compare(IntEnum):
    """How an argument is compared. Source: `enum scmp_compare`."""

    EQUAL = 4
    GREATER = 6
    MASKED_EQUAL = 7


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition on one argument of a call."""

    index: int
    compare: Compare
    value: int
    """For MASKED_EQUAL the mask."""
    masked: int = 0
    """What is left under the mask."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A system call that fails, always or under one condition."""

    name: str
    argument: Argument | None = None
    error: int = errno.EPERM


class _ArgumentCompare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class SeccompUnavailable(Exception):
    """libseccomp is missing or refuses something."""


def system_call_number(name: str) -> int | None:
    """Return the number of the call *name* on this machine, negative if it has none; None if unknown.

    A negative number is a call that other architectures have.
    """
    number = int(_library().seccomp_syscall_resolve_name(name.encode()))
    if number != _UNKNOWN:
        return number
    return _NEWER.get(name)


def compile_filter(rules: Iterable[Rule]) -> bytes:
    """Return a program for the kernel in which *rules* fail and every other call is let through.

    Entering the kernel as a program of another architecture would, with 32-bit
    numbers, get round every rule: such a process is killed.

    Raises:
        SeccompUnavailable: A rule names no call that any architecture has.
    """
    library = _library()
    context = library.seccomp_init(ctypes.c_uint32(_ALLOW))
    if not context:
        raise SeccompUnavailable("seccomp_init failed")
    try:
        for attribute, value in (
            (_ATTRIBUTE_BAD_ARCH, _KILL_PROCESS),
            (_ATTRIBUTE_NO_NEW_PRIVILEGES, 0),
            (_ATTRIBUTE_OPTIMIZE, 2),
        ):
            library.seccomp_attr_set(context, attribute, ctypes.c_uint32(value))
        for rule in rules:
            _add(library, context, rule)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: int, rule: Rule) -> None:
    number = system_call_number(rule.name)
    if number is None:
        raise SeccompUnavailable(f"no system call is named {rule.name}")
    if number < 0:
        return
    conditions = []
    if (argument := rule.argument) is not None:
        conditions.append(
            _ArgumentCompare(argument.index, argument.compare, argument.value, argument.masked)
        )
    array = (_ArgumentCompare * len(conditions))(*conditions)
    action = ctypes.c_uint32(_ERRNO | rule.error)
    status = library.seccomp_rule_add_array(context, action, number, len(conditions), array)
    if status < 0:
        raise SeccompUnavailable(f"{rule.name}: {os.strerror(-status)}")


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        status = library.seccomp_export_bpf(context, fd)
        if status < 0:
            raise SeccompUnavailable(os.strerror(-status))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise SeccompUnavailable(f"libseccomp 2 is missing: {error}") from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_ArgumentCompare),
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library

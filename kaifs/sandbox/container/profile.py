"""The filter of system calls that a container runtime is given.

Where the runtime's own profile is a file, it is narrowed: what a sandbox
refuses or the user blocks is taken out of it. Elsewhere the profile is what a
sandbox refuses, and everything else is let through. Source: seccomp.json(5) of
containers-common, and the runtime specification, `linux.seccomp`.
"""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Final

from kaifs.base.errors import SnapshotIsolationError
from kaifs.linux.seccomp import Argument, Compare, Rule
from kaifs.sandbox.syscalls import default_rules, user_rules

RUNTIME_PROFILES: Final = (
    Path("/etc/containers/seccomp.json"),
    Path("/usr/share/containers/seccomp.json"),
)
"""Where podman has its own; the first that is there counts."""

_ARCHITECTURES: Final = {
    "x86_64": "SCMP_ARCH_X86_64",
    "aarch64": "SCMP_ARCH_AARCH64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "riscv64": "SCMP_ARCH_RISCV64",
    "s390x": "SCMP_ARCH_S390X",
}
_ALL_BITS: Final = (1 << 64) - 1
_OPERATORS: Final = {
    Compare.EQUAL: "SCMP_CMP_EQ",
    Compare.GREATER: "SCMP_CMP_GT",
    Compare.MASKED_EQUAL: "SCMP_CMP_MASKED_EQ",
}


def runtime_profile() -> Mapping[str, Any] | None:
    """Return podman's own profile; None if it is in no file."""
    for path in RUNTIME_PROFILES:
        try:
            profile: Mapping[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise SnapshotIsolationError(f"syscall filter: {path}: {error}") from error
        return profile
    return None


def make_profile(blocked: Iterable[str], base: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the profile that refuses what every sandbox does, and the calls *blocked*.

    Args:
        blocked: Names; each goes with those that do the same.
        base: The runtime's own profile, of which nothing is allowed that it does not.

    Raises:
        SnapshotIsolationError: No system call has such a name, or the profile makes no sense.
    """
    rules = list(dict.fromkeys([*default_rules(), *user_rules(blocked)]))
    refused = {rule.name for rule in rules if rule.argument is None}
    # A call that is refused altogether needs no conditions, and libseccomp takes no second rule.
    rules = [
        rule
        for rule in rules
        if (rule.argument is None or rule.name not in refused)
        # clone3 is to look as if it did not exist, unless it is blocked.
        and (rule.error != errno.ENOSYS or Rule(rule.name) not in rules)
    ]
    if base is None:
        return {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": [_architecture()],
            "syscalls": [_entry(rule) for rule in rules],
        }
    if base.get("defaultAction") != "SCMP_ACT_ERRNO":
        raise SnapshotIsolationError("syscall filter: the runtime's profile allows by default")
    left_alone = _LEFT_ALONE - refused
    narrowed = {rule.name for rule in rules} - left_alone
    entries = []
    for entry in base["syscalls"]:
        names = [name for name in entry["names"] if name not in narrowed]
        if names:
            entries.append({**entry, "names": names})
    allowed = {name for entry in base["syscalls"] for name in entry["names"]}
    for name in sorted(narrowed & allowed - refused):
        entries += _rest(name, [rule for rule in rules if rule.name == name])
    entries += [_entry(rule) for rule in rules if rule.name in narrowed]
    others = {key: value for key, value in base.items() if key not in ("archMap", "architectures")}
    return {**others, "architectures": [_architecture()], "syscalls": entries}


# A terminal in a container is its own one, in which nobody else can be typed for; and the
# runtime's profile allows some personas only.
_LEFT_ALONE: Final = frozenset({"ioctl", "personality"})
_FAMILY_CALLS: Final = ("socket", "socketpair")


def _rest(name: str, rules: list[Rule]) -> list[dict[str, Any]]:
    """Return what lets the call *name* through where no one of *rules* refuses it."""
    arguments = [rule.argument for rule in rules if rule.argument is not None]
    if name in _FAMILY_CALLS:
        refused = {one.value for one in arguments if one.compare is Compare.EQUAL}
        greatest = max(one.value for one in arguments if one.compare is Compare.GREATER)
        allowed = (family for family in range(1, greatest + 1) if family not in refused)
        return [_allow(name, Argument(0, Compare.EQUAL, family)) for family in allowed]
    # Each of the others is refused when one bit is set, or when one is not.
    assert all(one.compare is Compare.MASKED_EQUAL for one in arguments), name
    mask = reduce(or_, (one.value for one in arguments))
    wanted = reduce(or_, (one.value for one in arguments if one.masked == 0), 0)
    return [_allow(name, Argument(arguments[0].index, Compare.MASKED_EQUAL, mask, wanted))]


def _allow(name: str, argument: Argument) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [_argument(argument)]}


def _entry(rule: Rule) -> dict[str, Any]:
    entry: dict[str, Any] = {"names": [rule.name], "action": "SCMP_ACT_ERRNO"}
    entry["errnoRet"] = rule.error
    if rule.argument is not None:
        entry["args"] = [_argument(rule.argument)]
    return entry


def _argument(argument: Argument) -> dict[str, Any]:
    encoded = {"index": argument.index, "value": int(argument.value) & _ALL_BITS}
    if argument.compare is Compare.MASKED_EQUAL:
        encoded["valueTwo"] = int(argument.masked)
    return {**encoded, "op": _OPERATORS[argument.compare]}


def _architecture() -> str:
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise SnapshotIsolationError(f"syscall filter: unknown architecture {machine}")
    return _ARCHITECTURES[machine]

"""Putting a policy's limits in force: control groups first, per-user limits where they will do."""

import contextlib
import os
from dataclasses import dataclass
from typing import Final

from kaifs.base.errors import SnapshotIsolationError
from kaifs.linux.cgroups import Group, GroupUnavailable, hierarchies
from kaifs.sandbox.defences import Defence
from kaifs.sandbox.policy import Policy

_CONTROLLERS: Final = {"memory": "memory", "cpus": "cpu", "pids": "pids"}
_DEFENCES: Final = {
    "memory": Defence.MEMORY_LIMIT,
    "cpus": Defence.CPU_LIMIT,
    "pids": Defence.PIDS_LIMIT,
}
_REMOVE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one sandbox, as this machine can have them."""

    group: Group
    """To be removed at the end."""
    processes: int | None
    """For RLIMIT_NPROC in the sandbox's user namespace, which counts that alone: as good as a
    control group."""
    data: int | None
    """For RLIMIT_DATA of each process: better than nothing, but not the limit."""
    unenforced: tuple[str, ...]
    """What could not be limited, with the reason, for people."""

    def close(self) -> None:
        """Kill what is left in the group and remove it."""
        self.group.remove(_REMOVE_S)


def make_limits(policy: Policy, name: str, defences: frozenset[Defence]) -> Limits:
    """Make the control groups *name* with the limits of *policy*.

    Raises:
        SnapshotIsolationError: A required limit cannot be enforced; nothing was made.
    """
    group = Group(name)
    reasons: dict[str, str] = {}
    try:
        among = hierarchies()
        for limit, controller in _CONTROLLERS.items():
            value = getattr(policy, limit)
            if value is None or _DEFENCES[limit] not in defences:
                continue
            try:
                group.extend(controller, among)
                getattr(group, f"limit_{limit}")(value)
            except GroupUnavailable as error:
                reasons[limit] = error.reason
        processes = policy.pids if reasons.pop("pids", None) else None
        _require(policy.required, reasons)
        # Only counts; a version 2 group counts without it.
        with contextlib.suppress(GroupUnavailable):
            group.extend("cpuacct", among)
    except BaseException:
        group.remove(_REMOVE_S)
        raise
    unenforced = tuple(f"{limit}: {reason}" for limit, reason in reasons.items())
    data = policy.memory if "memory" in reasons else None
    return Limits(group, processes, data, unenforced)


def _require(required: frozenset[str], reasons: dict[str, str]) -> None:
    if missing := sorted(required & reasons.keys()):
        details = "; ".join(f"{limit}: {reasons[limit]}" for limit in missing)
        raise SnapshotIsolationError(f"cannot be enforced: {details}", limits=missing)


def prefer_as_victim() -> None:
    """Let the kernel, should the whole machine run out of memory, take this process first."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"500")
    finally:
        os.close(fd)

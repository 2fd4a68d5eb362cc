"""Reading back which limits a container really has.

A rootless runtime, or one whose control groups are not its own, ignores limits
with a warning that nobody sees. So its groups are asked.
"""

import os
from pathlib import Path
from typing import Final

from kaifs.base.errors import SnapshotIsolationError
from kaifs.linux.cgroups import Hierarchy, hierarchies
from kaifs.sandbox.policy import Policy

_CPU_TOLERANCE: Final = 0.002
"""Processors; runtimes round a quota to whole microseconds."""


def check_limits(policy: Policy, pid: int) -> None:
    """See that the process *pid* is held to what *policy* limits.

    Raises:
        SnapshotIsolationError: It is not; with what is found instead.
    """
    folders = group_folders(pid)
    findings = {
        "memory": _memory_finding(policy, folders.get("memory")),
        "cpus": _cpu_finding(policy, folders.get("cpu")),
        "pids": _pids_finding(policy, folders.get("pids")),
    }
    wrong = {name: finding for name, finding in findings.items() if finding is not None}
    if wrong:
        details = "; ".join(f"{name}: {finding}" for name, finding in wrong.items())
        raise SnapshotIsolationError(f"cannot be enforced: {details}", limits=sorted(wrong))


def group_folders(pid: int) -> dict[str, Path]:
    """Return the control group of process *pid* by controller, version 2 before version 1."""
    found: dict[str, Path] = {}
    known = sorted(hierarchies(), key=lambda hierarchy: hierarchy.version)
    own, its = _groups(os.getpid()), _groups(pid)
    for hierarchy in known:
        key = next((key for key in its if _is_of(key, hierarchy)), None)
        if key is not None and key in own:
            # Relative to this process's group: a mount may show a part of the tree only.
            relative = os.path.relpath(its[key], own[key])
            folder = Path(os.path.normpath(hierarchy.own / relative))
            found |= dict.fromkeys(hierarchy.controllers, folder)
    return found


def oom_kills(folder: Path) -> int:
    """Return how many processes were killed because the memory of the group *folder* was used up."""
    for line in _read(folder, "memory.events", "memory.oom_control").splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return 0


def _is_of(controllers: frozenset[str], hierarchy: Hierarchy) -> bool:
    if hierarchy.version == 2:
        return not controllers
    return bool(controllers) and controllers <= hierarchy.controllers


def _groups(pid: int) -> dict[frozenset[str], str]:
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        found[frozenset(controllers.split(",")) - {""}] = path
    return found


def _memory_finding(policy: Policy, folder: Path | None) -> str | None:
    if policy.memory is None:
        return None
    if folder is None:
        return "no control group counts it"
    page = os.sysconf("SC_PAGE_SIZE")
    text = _read(folder, "memory.max", "memory.limit_in_bytes")
    if not (text.isdigit() and policy.memory - page < int(text) <= policy.memory):
        return f"the limit is {text or 'none'}, not {policy.memory}"
    # Where swap is not counted there is none of these files; then nothing limits it.
    memory = int(text)
    if (folder / "memory.swap.max").exists():
        swap = _read(folder, "memory.swap.max")
        return None if swap == "0" else f"{swap} bytes of swap come on top"
    both = _read(folder, "memory.memsw.limit_in_bytes")
    return None if both in ("", str(memory)) else f"with swap the limit is {both}"


def _cpu_finding(policy: Policy, folder: Path | None) -> str | None:
    if policy.cpus is None:
        return None
    if folder is None:
        return "no control group divides them"
    words = _read(folder, "cpu.max").split() or [
        _read(folder, "cpu.cfs_quota_us"),
        _read(folder, "cpu.cfs_period_us"),
    ]
    if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
        share = int(words[0]) / int(words[1])
        return None if share <= policy.cpus + _CPU_TOLERANCE else f"the share is {share}"
    return f"the quota is {' '.join(words).strip() or 'none'}"


def _pids_finding(policy: Policy, folder: Path | None) -> str | None:
    if policy.pids is None:
        return None
    text = "" if folder is None else _read(folder, "pids.max")
    return None if text == str(policy.pids) else f"the limit is {text or 'none'}"


def _read(folder: Path, *names: str) -> str:
    for name in names:
        try:
            return (folder / name).read_text().strip()
        except OSError:
            continue
    return ""

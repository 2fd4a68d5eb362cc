"""Control groups, version 2 where it has the controller, else version 1.

A group is one folder of the same name in every hierarchy that is needed, made
below a group that is ours to divide. What is set is read back, since a
hierarchy may round, ignore or refuse. Source: cgroups(7),
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.linux.mounts import mounts
from kaifs.linux.processes import identify, send_signal

PERIOD_US: Final = 100_000
"""Time over which a share of the processors is counted out."""

_REMOVE_POLL_S: Final = 0.002
_SUBTREE: Final = "cgroup.subtree_control"
_PROCESSES: Final = "cgroup.procs"


class GroupUnavailable(Exception):
    """A controller is missing, not ours, or does not take a value."""

    def __init__(self, controller: str, reason: str) -> None:
        super().__init__(f"{controller}: {reason}")
        self.controller = controller
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One tree of groups, and where this process is in it."""

    version: int
    """1 or 2."""
    controllers: frozenset[str]
    top: Path
    """Where it is mounted."""
    own: Path
    """Folder of this process's group."""


def hierarchies() -> list[Hierarchy]:
    """Return the hierarchies that are mounted."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups[frozenset(controllers.split(",")) - {""}] = path
    found = []
    for entry in mounts():
        if entry.fstype == "cgroup2":
            key: frozenset[str] = frozenset()
            names = _words(entry.mountpoint / "cgroup.controllers")
        elif entry.fstype == "cgroup":
            options = entry.super_options.split(",")
            match = [key for key in groups if key and key <= set(options)]
            if not match:
                continue
            key = names = match[0]
        else:
            continue
        if key in groups:
            # The mount may show a part of the tree only.
            relative = os.path.relpath(groups[key], entry.root)
            version = 2 if entry.fstype == "cgroup2" else 1
            own = Path(os.path.normpath(entry.mountpoint / relative))
            found.append(Hierarchy(version, names, entry.mountpoint, own))
    return found


class Group:
    """A group of processes that limits can be set on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._folders: dict[str, tuple[int, Path]] = {}
        """Of each controller: the hierarchy's version, and the folder."""

    @property
    def folders(self) -> list[Path]:
        """The folders of the group, each once."""
        return list(dict.fromkeys(folder for _, folder in self._folders.values()))

    @property
    def controllers(self) -> frozenset[str]:
        """What it can limit or count."""
        return frozenset(self._folders)

    def extend(self, controller: str, among: list[Hierarchy]) -> None:
        """Let the group have *controller*.

        Raises:
            GroupUnavailable: No hierarchy of *among* has it and lets us make groups.
        """
        reason = "no hierarchy has it"
        for hierarchy in sorted(among, key=lambda hierarchy: -hierarchy.version):
            if controller not in hierarchy.controllers:
                continue
            parent = hierarchy.own
            if hierarchy.version == 2:
                found = _delegated(hierarchy, controller)
                if found is None:
                    reason = "no group above this process is delegated to it"
                    continue
                parent = found
            folder = parent / self.name
            try:
                folder.mkdir(exist_ok=folder in self.folders)
            except OSError as error:
                reason = f"{folder}: {error.strerror}"
                continue
            self._folders[controller] = (hierarchy.version, folder)
            return
        raise GroupUnavailable(controller, reason)

    def limit_memory(self, size: int) -> None:
        """Limit memory and swap together to *size* bytes."""
        page = os.sysconf("SC_PAGE_SIZE")
        version, folder = self._folders["memory"]
        if version == 2:
            self._set("memory", folder / "memory.max", str(size), _within(size, page))
            if (folder / "memory.swap.max").exists():
                self._set("memory", folder / "memory.swap.max", "0", lambda text: text == "0")
            return
        self._set("memory", folder / "memory.limit_in_bytes", str(size), _within(size, page))
        swap = folder / "memory.memsw.limit_in_bytes"
        if swap.exists():
            self._set("memory", swap, str(size), _within(size, page))

    def limit_cpus(self, cpus: float) -> None:
        """Limit the time on processors to *cpus* of them."""
        quota = max(1000, round(cpus * PERIOD_US))
        version, folder = self._folders["cpu"]
        if version == 2:
            text = f"{quota} {PERIOD_US}"
            self._set("cpu", folder / "cpu.max", text, lambda found: found == text)
            return
        for name, value in (("period", PERIOD_US), ("quota", quota)):
            wanted = str(value)
            self._set("cpu", folder / f"cpu.cfs_{name}_us", wanted, wanted.__eq__)

    def limit_pids(self, count: int) -> None:
        """Limit the processes and threads to *count*."""
        _, folder = self._folders["pids"]
        self._set("pids", folder / "pids.max", str(count), str(count).__eq__)

    def add(self, pid: int) -> None:
        """Move process *pid* into the group, and see that it is there.

        Raises:
            GroupUnavailable: The kernel refuses, or it is not there.
        """
        for controller, (_, folder) in self._folders.items():
            try:
                (folder / _PROCESSES).write_text(str(pid))
                inside = str(pid) in _words(folder / _PROCESSES)
            except OSError as error:
                reason = f"{folder}: {error.strerror}"
                raise GroupUnavailable(controller, reason) from error
            if not inside:
                raise GroupUnavailable(controller, f"{folder}: process {pid} is not in it")

    def oom_kills(self) -> int:
        """Return how many processes were killed because the group's memory was used up."""
        if "memory" not in self._folders:
            return 0
        version, folder = self._folders["memory"]
        counters = folder / ("memory.events" if version == 2 else "memory.oom_control")
        return _counter(counters, "oom_kill")

    def memory_peak(self) -> int | None:
        """Return the most bytes that were in use at once; None if nobody counted."""
        if "memory" not in self._folders:
            return None
        version, folder = self._folders["memory"]
        name = "memory.peak" if version == 2 else "memory.max_usage_in_bytes"
        with suppress(OSError, ValueError):
            return int((folder / name).read_text())
        return None

    def cpu_seconds(self) -> float | None:
        """Return the processor time that was used; None if nobody counted."""
        if "cpuacct" in self._folders:
            _, folder = self._folders["cpuacct"]
            return int((folder / "cpuacct.usage").read_text()) / 1e9
        version, folder = self._folders.get("cpu", (0, Path()))
        return _counter(folder / "cpu.stat", "usage_usec") / 1e6 if version == 2 else None

    def remove(self, timeout_s: float) -> None:
        """Kill what is in the group and remove its folders.

        Raises:
            OSError: EBUSY if something is in it still after *timeout_s* seconds.
        """
        for folder in self.folders:
            remove_folder(folder, timeout_s)
        self._folders.clear()

    def _set(self, controller: str, file: Path, text: str, is_set: Callable[[str], bool]) -> None:
        try:
            file.write_text(text)
            found = file.read_text().strip()
        except OSError as error:
            raise GroupUnavailable(controller, f"{file.name}: {error.strerror}") from error
        if not is_set(found):
            raise GroupUnavailable(controller, f"{file.name} is {found}, not {text}")


def remove_folder(folder: Path, timeout_s: float) -> None:
    """Kill every process in the group *folder*, and in those below, and remove it.

    Raises:
        OSError: EBUSY if something is in it still after *timeout_s* seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        _kill(folder)
        try:
            for child in sorted(_folders_below(folder), reverse=True):
                child.rmdir()
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # A process that has been killed leaves its group a moment later.
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_REMOVE_POLL_S)
        else:
            return


def find_groups(is_ours: Callable[[str], bool]) -> list[Path]:
    """Return the folders of groups, in every hierarchy, whose name passes *is_ours*."""
    return [
        folder
        for hierarchy in hierarchies()
        for folder in _folders_below(hierarchy.top)
        if is_ours(folder.name)
    ]


def _kill(folder: Path) -> None:
    for group in [folder, *_folders_below(folder)]:
        with suppress(OSError):
            (group / "cgroup.kill").write_text("1")
            continue
        for pid in _words(group / _PROCESSES):
            process = identify(int(pid))
            # Looked at again: the pid may have gone to somebody else in between.
            if process is not None and pid in _words(group / _PROCESSES):
                send_signal(process, signal.SIGKILL)


def _folders_below(folder: Path) -> Iterator[Path]:
    for path, names, _ in os.walk(folder):
        for name in names:
            yield Path(path, name)


def _delegated(hierarchy: Hierarchy, controller: str) -> Path | None:
    """Return the nearest group at or above our own in which a child gets *controller*.

    A group that holds processes cannot hand controllers on, the topmost aside.
    """
    folder = hierarchy.own
    while folder == hierarchy.top or hierarchy.top in folder.parents:
        if controller in _words(folder / _SUBTREE) and os.access(folder, os.W_OK):
            return folder
        if folder == hierarchy.top and os.access(folder / _SUBTREE, os.W_OK):
            with suppress(OSError):
                (folder / _SUBTREE).write_text(f"+{controller}")
                return folder
        folder = folder.parent
    return None


def _within(value: int, slack: int) -> Callable[[str], bool]:
    # "max" would be no limit. Kernels round down to whole pages.
    return lambda text: text.isdigit() and value - slack < int(text) <= value


def _words(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text().split())
    except OSError:
        return frozenset()


def _counter(file: Path, name: str) -> int:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0

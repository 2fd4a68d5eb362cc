"""Finding and removing what a sandbox whose warden has died left behind.

Mostly there is nothing: mounts end with their namespace, the network with its
process, and processes with the thread that started them. What can be left are
control groups, containers, and the sandbox's first process if the warden died
just when bubblewrap had forked it: it waits for a word of bubblewrap's.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.linux.cgroups import find_groups, remove_folder
from kaifs.linux.processes import ProcessId, identify, is_running, send_signal, wait_end
from kaifs.sandbox.container.leftovers import (
    abandoned_stages,
    find_abandoned,
    remove_container,
    remove_stage,
)
from kaifs.sandbox.names import VARIABLE, SandboxName, parse_name

_END_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of a sandbox that nobody looks after any more."""

    name: str
    """The sandbox's."""
    what: str
    """For people: `process 17`, `control group /sys/fs/cgroup/…`."""
    is_removed: bool


def find_processes(label: str) -> list[tuple[SandboxName, ProcessId]]:
    """Return the processes around sandboxes of *label* whose warden has died.

    Only such processes have the name in their environment. Whoever puts it into
    his own asks to be ended, no other process.
    """
    found = []
    for entry in os.listdir("/proc"):
        process = identify(int(entry)) if entry.isdigit() else None
        if process is None:
            continue
        with suppress(OSError):
            for variable in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                key, _, value = variable.partition(b"=")
                name = parse_name(os.fsdecode(value)) if key == VARIABLE.encode() else None
                if name is not None and _is_left(name, label):
                    found.append((name, process))
    return found


def find_group_folders(label: str) -> list[tuple[SandboxName, Path]]:
    """Return the control groups of sandboxes of *label* whose warden has died.

    Only an exact name counts, as `parse_name` takes it, never a part of one.
    """
    folders = find_groups(lambda text: _is_left(parse_name(text), label))
    return [(name, folder) for folder in folders if (name := parse_name(folder.name)) is not None]


def clean(label: str, *, containers: bool = True) -> list[Leftover]:
    """Remove everything that sandboxes of *label* left behind; return what there was.

    Sandboxes whose warden lives are left alone, in this process as in any
    other of this pid namespace.

    Args:
        label: As `kaifs.sandbox.run.start` takes it.
        containers: Whether to ask the container runtimes too. That takes longer (0.1 s) than
            to start a sandbox.
    """
    found = _clean_containers(label) if containers else []
    processes = find_processes(label)
    for _, process in processes:
        with suppress(PermissionError):
            send_signal(process, signal.SIGKILL)
    for name, process in processes:
        gone = wait_end(process, _END_S)
        found.append(Leftover(str(name), f"process {process.pid}", gone))
    for name, folder in find_group_folders(label):
        try:
            remove_folder(folder, _END_S)
        except OSError:
            found.append(Leftover(str(name), f"control group {folder}", is_removed=False))
        else:
            found.append(Leftover(str(name), f"control group {folder}", is_removed=True))
    return found


def _clean_containers(label: str) -> list[Leftover]:
    found = []
    for runtime, name in find_abandoned(label):
        gone = remove_container(runtime, str(name))
        found.append(Leftover(str(name), f"container of {runtime.name}", gone))
    for name in abandoned_stages(label):
        remove_stage(str(name))
        found.append(Leftover(str(name), "stage of a container", is_removed=True))
    return found


def _is_left(name: SandboxName | None, label: str) -> bool:
    return name is not None and name.label == label and not is_running(name.warden)

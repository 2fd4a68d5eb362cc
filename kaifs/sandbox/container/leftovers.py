"""Finding and removing containers: by the store they are of, and by snapshot."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from kaifs.linux.mounts import mounts, unmount
from kaifs.linux.processes import is_running
from kaifs.sandbox.container.runtime import (
    SNAPSHOT_LABEL,
    STORE_LABEL,
    Runtime,
    RuntimeFailedError,
    find_runtimes,
)
from kaifs.sandbox.names import SandboxName, parse_name

SHARED_STAGE: Final = Path("/run/kaifs-containers")
"""Folders in which a service that is not in our mount namespace finds what a container shows."""


def find_containers(label: str, snapshot: str | None = None) -> Iterator[tuple[Runtime, str]]:
    """Yield the containers of the store *label*, of one of its snapshots if asked."""
    if os.geteuid() != 0:
        return
    filters = ["--filter", f"label={STORE_LABEL}={label}"]
    if snapshot is not None:
        filters += ["--filter", f"label={SNAPSHOT_LABEL}={snapshot}"]
    for runtime in find_runtimes():
        with suppress(RuntimeFailedError, OSError):
            listed = runtime.call(["ps", "--all", *filters, "--format", "{{.Names}}"])
            for text in listed.split():
                # Whoever puts our labels on a container of his own keeps it.
                if (name := parse_name(text)) is not None and name.label == label:
                    yield runtime, text


def stop_containers(label: str, snapshot: str) -> int:
    """End and remove the containers in which commands run in *snapshot*; return their number."""
    return sum(remove_container(*found) for found in list(find_containers(label, snapshot)))


def find_abandoned(label: str) -> list[tuple[Runtime, SandboxName]]:
    """Return the containers of *label* whose warden has died."""
    named = ((runtime, parse_name(text)) for runtime, text in find_containers(label))
    return [
        (runtime, name)
        for runtime, name in named
        if name is not None and not is_running(name.warden)
    ]


def remove_container(runtime: Runtime, name: str) -> bool:
    """End and remove a container; return whether it is gone."""
    with suppress(RuntimeFailedError, OSError):
        runtime.call(runtime.removal(name))
        return True
    return False


def remove_stage(name: str) -> None:
    """Unmount and remove what was staged for a service that is not in our mount namespace."""
    folder = SHARED_STAGE / name
    below = [
        mount.mountpoint
        for mount in mounts()
        if folder in (mount.mountpoint, *mount.mountpoint.parents)
    ]
    for mountpoint in reversed(below):
        unmount(mountpoint, lazy=True)
    with suppress(OSError):
        folder.rmdir()
        SHARED_STAGE.rmdir()


def abandoned_stages(label: str) -> list[SandboxName]:
    """Return the sandboxes of *label* that staged something, and whose warden has died."""
    with suppress(OSError):
        names = map(parse_name, os.listdir(SHARED_STAGE))
        return [
            name
            for name in names
            if name is not None and name.label == label and not is_running(name.warden)
        ]
    return []

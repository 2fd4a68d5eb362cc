"""Sandboxes on plain folders, and what they leave behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kaifs.linux.cgroups import find_groups, remove_folder
from kaifs.linux.namespaces import MountFlag, attach
from kaifs.linux.processes import identify, send_signal, wait_end
from kaifs.sandbox.names import VARIABLE
from kaifs.sandbox.run import Outcome, Owner

LABEL = "tests"
ROOT = Path(__file__).parents[2]
ANY_UID = 48_213
"""An ordinary user: no account is needed to have a uid."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root")


class FolderMount:
    """Shows a plain folder as the agent's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, staging: Path, owner: Owner) -> None:
        if os.geteuid() == 0:
            os.chown(self.folder, owner.uid, owner.gid)
        attach(str(self.folder), staging, "", MountFlag.BIND)


@dataclass(frozen=True)
class Attempt:
    """What came of running something."""

    output: str
    outcome: Outcome
    error: str | None

    @property
    def status(self) -> int:
        return self.outcome.exit_status


Attack = Callable[..., Attempt]


AsUser = Callable[..., subprocess.CompletedProcess[str]]


def leftovers() -> list[str]:
    """End and return what sandboxes of these tests left behind."""
    found = []
    for entry in os.listdir("/proc"):
        process = identify(int(entry)) if entry.isdigit() else None
        try:
            environment = Path("/proc", entry, "environ").read_bytes() if process else b""
        except OSError:
            continue
        if process and f"{VARIABLE}=kaifs-{LABEL}-{os.getpid()}-".encode() in environment:
            found.append(f"process {entry}")
            send_signal(process, signal.SIGKILL)
            wait_end(process, 5)
    for folder in find_groups(lambda name: name.startswith(f"kaifs-{LABEL}-{os.getpid()}-")):
        found.append(str(folder))
        remove_folder(folder, 5)
    return found


def python_child(program: str, package: Path) -> subprocess.Popen[str]:
    """Start a Python program of this user, with kaifs to import."""
    return subprocess.Popen(
        [sys.executable, "-B", "-c", program],
        env={**os.environ, "PYTHONPATH": str(package)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

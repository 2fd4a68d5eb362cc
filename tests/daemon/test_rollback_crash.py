"""SIGKILL at any moment of a rollback or a seal: the next start has the whole step or none.

As in `tests/daemon/test_crash.py` it says nothing about a loss of power, which is
what `tests/power` is for.
"""

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kaifs.api.versions import AgentVersionManager
from kaifs.base.errors import KaifsError
from kaifs.control.client import call
from kaifs.control.failures import RemoteBugError
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.seal import Params as SealParams
from kaifs.store.store import Store
from kaifs.tree.fsck import check
from tests.daemon.site import Site, kill

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_CRASH_ROUNDS", "3"))
"""`KAIFS_CRASH_ROUNDS=100` is the long form: so many for each verb, with and without a mount."""
FILES = 60

EMBEDDED = """
import sys
from kaifs.api.versions import AgentVersionManager
manager = AgentVersionManager("agent", sys.argv[1])
manager.list_versions()
print(flush=True)
manager.rollback("1.0.0") if sys.argv[2] == "rollback" else manager.seal("2.0.0")
print("done", flush=True)
"""


@dataclass(frozen=True, slots=True)
class State:
    """What a user sees of the agent."""

    labels: tuple[str, ...]
    current: str
    """Label that current is based on."""
    files: frozenset[str]
    """What all files of current say."""


def _state(store: Path, folder: Path) -> State:
    """Return the state, current as an export into the new *folder* has it."""
    manager = AgentVersionManager("agent", store)
    infos = manager.list_versions()
    manager.export_version(None, folder)
    current = manager.get_current_version(has_files=False)
    assert current is not None
    texts = frozenset(path.read_text() for path in folder.iterdir())
    return State(tuple(info.version for info in infos), current.version, texts)


def _check_sound(store: Path) -> None:
    opened = Store.open(store, wait_s=20)
    try:
        assert check(opened) == []
    finally:
        opened.close(commit=False)


def _write(folder: Path, text: str) -> None:
    for number in range(FILES):
        (folder / f"f{number}").write_text(text)


def _check(store: Path, verb: str, number: int, folder: Path) -> None:
    """Check that *verb* was done as a whole or not at all, and begin anew."""
    dirty, clean = f"uncommitted {number}", "sealed"
    found = _state(store, folder / "current")
    manager = AgentVersionManager("agent", store)
    backups = [label for label in found.labels if "rollback" in label]
    if verb == "seal":
        assert found.files == {dirty}
        assert (found.current, found.labels[0]) in {("2.0.0", "2.0.0"), ("1.0.0", "1.0.0")}
        if found.current == "2.0.0":
            assert manager.diff("2.0.0") == ()
            manager.rollback("1.0.0")
            manager.remove_version("2.0.0")
    elif found.files == {dirty}:
        assert (found.current, backups) == ("1.0.0", [])
        manager.rollback("1.0.0")
    else:
        assert (found.current, len(backups)) == ("1.0.0", 1)
        assert found.files == {clean}
        manager.export_version(backups[0], folder / "backup")
        assert {path.read_text() for path in (folder / "backup").iterdir()} == {dirty}
    for info in manager.list_versions():
        if info.version != "1.0.0":
            manager.remove_version(info.version, force=True)


@pytest.mark.parametrize("verb", ["rollback", "seal"])
@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_a_daemon_that_dies_has_done_all_of_it_or_nothing(
    site: Site, tmp_path: Path, transport: str, verb: str
) -> None:
    rng = random.Random(f"{transport} {verb}")
    options = (f"transport={transport}", "commit=1")
    site.mount(*options)
    (site.mountpoint / "agent").mkdir()
    _write(site.current, "sealed")
    call(site.store, "seal", SealParams(agent="agent", label="1.0.0"))
    longest_s = 0.05
    for number in range(ROUNDS):
        _write(site.current, f"uncommitted {number}")
        # What nobody has fsynced would die with the daemon.
        os.sync()
        begun = time.monotonic()
        worker = threading.Thread(target=_ask, args=(site.store, verb))
        worker.start()
        worker.join(rng.uniform(0, longest_s))
        if not worker.is_alive():
            longest_s = max(time.monotonic() - begun, 0.01)
        else:
            longest_s *= 1.1
        info = site.infos[-1]
        kill(info)
        worker.join(20)
        assert not worker.is_alive()

        _check_sound(site.store)
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        site.mount(*options)
        _check(site.store, verb, number, folder)
    site.umount()
    _check_sound(site.store)


def _ask(store: Path, verb: str) -> None:
    params = RollbackParams(agent="agent", version="1.0.0")
    sealing = SealParams(agent="agent", label="2.0.0")
    with contextlib.suppress(KaifsError, RemoteBugError):
        call(store, verb, params if verb == "rollback" else sealing)


@pytest.mark.parametrize("verb", ["rollback", "seal"])
def test_a_command_that_dies_has_done_all_of_it_or_nothing(
    site: Site, tmp_path: Path, verb: str
) -> None:
    """Without a daemon: the command itself has the store."""
    rng = random.Random(verb)
    manager = AgentVersionManager("agent", site.store)
    source = tmp_path / "source"
    source.mkdir()
    _write(source, "sealed")
    manager.import_version(source, "1.0.0")
    longest_s = 0.1
    for number in range(ROUNDS):
        site.mount("agent=agent", "view=current")
        _write(site.mountpoint, f"uncommitted {number}")
        site.umount()
        with subprocess.Popen(
            [sys.executable, "-c", EMBEDDED, str(site.store), verb],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
            begun = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, longest_s))
                longest_s = max(time.monotonic() - begun, 0.02)
            process.kill()

        _check_sound(site.store)
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        _check(site.store, verb, number, folder)
    _check_sound(site.store)

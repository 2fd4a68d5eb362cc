"""SIGKILL of the daemon under load: what was fsynced is there, and nothing needs repair.

It proves that the death of the process costs nothing; the page cache survives
it, so it says nothing about a loss of power.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kaifs.linux.processes import ProcessId, send_signal, wait_end
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from tests.daemon.site import Site

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_CRASH_ROUNDS", "6"))
"""`KAIFS_CRASH_ROUNDS=200` is the long form."""

WRITER = """
import os, random, sys

folder, seed = sys.argv[1:]
rng = random.Random(int(seed))
os.makedirs(folder)
for number in range(100000):
    name = f"f{rng.randrange(40)}"
    path = f"{folder}/{name}"
    content = f"{seed} {number} ".encode() * rng.choice([1, 50, 3000])
    way = rng.randrange(3)
    # "begin": the old content is no more promised. "done": the new one is.
    if way == 0:
        with open(path + ".new", "wb", 0) as file:
            file.write(content)
            os.fsync(file.fileno())
        print("begin", name, flush=True)
        os.rename(path + ".new", path)
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    else:
        print("begin", name, flush=True)
        with open(path, "wb", 0) as file:
            file.write(content)
            os.fsync(file.fileno())
    if way == 2:
        os.link(path, f"{folder}/link{number}")
        os.unlink(f"{folder}/link{number}")
    print("done", name, content.hex(), flush=True)
"""


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_what_was_fsynced_survives_sigkill_at_any_moment(site: Site, transport: str) -> None:
    rng = random.Random(transport)
    promised: dict[Path, bytes] = {}
    site.mount(f"transport={transport}", "commit=1")
    (site.mountpoint / "agent").mkdir()
    for number in range(ROUNDS):
        info = site.infos[-1]
        folder = site.current / f"round{number}"
        recorded = _run_until_killed(folder, number, rng.randrange(5, 60), info.process)
        assert recorded, "a round that recorded nothing proves nothing"
        promised |= {folder / name: content for name, content in recorded.items()}

        _check_store(site)
        site.mount(f"transport={transport}", "commit=1")

        for path, content in promised.items():
            assert path.read_bytes() == content
    site.umount()


def _run_until_killed(folder: Path, seed: int, lines: int, daemon: ProcessId) -> dict[str, bytes]:
    """Kill the daemon after so many records; return what is promised to be there, by name."""
    promised: dict[str, bytes] = {}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        for count, line in enumerate(writer.stdout):
            match line.split():
                case ["begin", name]:
                    promised.pop(name, None)
                case ["done", name, content]:
                    promised[name] = bytes.fromhex(content)
            if count == lines:
                send_signal(daemon, signal.SIGKILL)
        writer.kill()
    assert wait_end(daemon, 20)
    return promised


def _check_store(site: Site) -> None:
    store = Store.open(site.store, wait_s=20)
    try:
        assert check(store) == []
        Forest(store).recover()
        assert check(store) == []
    finally:
        store.close(commit=False)

"""Many processes at work in several views at once, while verbs change what is beside them.

Each process checks its own files against what it did itself. `KAIFS_STORM_S=60`
is the long form.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from kaifs.control.client import call
from kaifs.service.discard import Params as DiscardParams
from kaifs.service.gc import Params as GcParams
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.seal import Params as SealParams
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.service.status import Params as StatusParams
from tests.daemon.site import Site, check_store

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

SECONDS = float(os.environ.get("KAIFS_STORM_S", "3"))
WORKERS = 2
"""In each of the views."""
STATUS_MAX_S = 10.0
"""On a busy machine; a control socket that starves takes as long as the load lasts."""

WORKER = """
import json, os, random, sys

folder, seed = sys.argv[1:]
rng = random.Random(seed)
os.makedirs(folder)
os.chdir(folder)
model, troubles, steps = {}, [], 0
os.set_blocking(0, False)

def stopped():
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False

def read(name):
    with open(name, "rb") as file:
        return file.read()

while not stopped() and not troubles:
    steps += 1
    name, other = (f"f{rng.randrange(30)}" for _ in range(2))
    content = f"{seed} {steps} ".encode() * rng.choice([0, 1, 40, 4000])
    match rng.randrange(8):
        case 0 | 1:
            with open(name, "wb") as file:
                file.write(content)
            model[name] = content
        case 2:
            with open(name, "ab") as file:
                file.write(content)
                if rng.randrange(4) == 0:
                    os.fsync(file.fileno())
            model[name] = model.get(name, b"") + content
        case 3 if name in model:
            os.rename(name, other)
            model[other] = model.pop(name)
        case 4 if name in model:
            os.unlink(name)
            del model[name]
        case 5 if name in model:
            size = rng.randrange(9000)
            os.truncate(name, size)
            model[name] = model[name][:size].ljust(size, bytes(1))
        case 6 if name in model and other not in model:
            os.link(name, other)
            # From now on one file: give the other name a file of its own again.
            os.unlink(name)
            model[other] = model.pop(name)
        case _ if name in model and read(name) != model[name]:
            troubles.append(f"{name} is wrong after {steps} steps")
if sorted(os.listdir(".")) != sorted(model):
    troubles.append(f"names: {sorted(os.listdir('.'))}, not {sorted(model)}")
troubles += [f"{name} is wrong" for name, content in model.items() if read(name) != content]
print(json.dumps([steps, troubles]))
"""


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_views_do_not_disturb_one_another_and_the_daemon_answers_meanwhile(
    site: Site, transport: str
) -> None:
    """What is in before a snapshot is in it; a rollback elsewhere changes nothing here."""
    site.mount(f"transport={transport}", "commit=1")
    (site.mountpoint / "agent").mkdir()
    (site.mountpoint / "other").mkdir()
    call(site.store, "seal", SealParams(agent="other", label="1.0.0"))
    views = [site.current]
    for name in ("left", "right"):
        call(site.store, "snapshot", SnapshotParams(reference="agent", name=name))
        views.append(site.mountpoint / "agent/@snapshots" / name)
    slowest_s = 0.0
    with ExitStack() as running:
        workers = [
            _start(running, view / f"worker{number}") for view in views for number in range(WORKERS)
        ]

        rounds = 0
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or rounds < 2:
            _check_barrier(site, rounds)
            (site.mountpoint / "other/current/late").write_text(str(rounds))
            call(site.store, "rollback", RollbackParams(agent="other", version="1.0.0"))
            assert not (site.mountpoint / "other/current/late").exists()
            call(site.store, "gc", GcParams())
            begin = time.monotonic()
            call(site.store, "status", StatusParams(measure="never"))
            slowest_s = max(slowest_s, time.monotonic() - begin)
            rounds += 1
        results = [json.loads(worker.communicate()[0]) for worker in workers]

    assert [troubles for _, troubles in results] == [[]] * len(workers)
    assert all(steps for steps, _ in results)
    assert slowest_s < STATUS_MAX_S
    site.umount()
    check_store(site.store)


def _check_barrier(site: Site, number: int) -> None:
    name = f"round{number}"
    (site.current / "marker").write_text(name)
    names = set(os.listdir(site.current))
    call(site.store, "snapshot", SnapshotParams(reference="agent", name=name))
    snapshot = site.mountpoint / "agent/@snapshots" / name
    assert (snapshot / "marker").read_text() == name
    assert names <= set(os.listdir(snapshot))
    call(site.store, "discard", DiscardParams(reference=name))


def _start(running: ExitStack, folder: Path) -> "subprocess.Popen[str]":
    process = running.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), folder.parent.name + folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    running.callback(process.kill)
    return process

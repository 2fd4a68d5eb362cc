"""Power loss at every write and sync of what a store is used for.

A scenario runs once on a disk that records. Then for each call that reached the disk
the power fails there: what was not synced is kept, lost, torn, or kept in part and out
of order. Each time the store must open, break no invariant, and show the state before or
after the step that was under way, and never less than was promised.

A failure names its case, such as `rollback:k=17:mixed:3`; `KAIFS_POWER_CASE` runs that one
alone. Each event has `KAIFS_POWER_SEEDS` mixtures (4) of what was not synced.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kaifs.base.clock import ManualClock
from kaifs.service.context import Context
from kaifs.service.switching import finish_due_backups
from kaifs.store.store import SEGMENT_FOLDER, SEGMENT_SIZE, Store, StoreOptions
from kaifs.store.superblock import SUPERBLOCK_NAME
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from kaifs.tree.tree import Tree
from tests.power.disk import INDEX_FILE, Disk, Loss, RecordingDevice, Tape, cases, record_index
from tests.service.desk import OWNER, Desk
from tests.service.lab import Lab, suite

SEEDS = int(os.environ.get("KAIFS_POWER_SEEDS", "4"))
OPTIONS = StoreOptions(segment_size=SEGMENT_SIZE // 512, map_size=1 << 22)
"""Small segments, so that scenarios cross from one to the next."""

State = dict[str, Any]


class Bench(Desk):
    """A store on a disk that records, with the states that it was in."""

    def __init__(self, path: Path, tape: Tape, options: StoreOptions = OPTIONS) -> None:
        self.tape = tape
        self.options = options
        self.states: list[State] = []
        super().__init__(path)

    def _open(self) -> None:
        self.device = RecordingDevice(self.path / SEGMENT_FOLDER, self.tape)
        self.store = Store.open(
            self.path, clock=self.clock, options=self.options, device=self.device
        )
        record_index(self.store, self.tape)
        self.forest = Forest(self.store)
        self.forest.recover()
        self.context = Context(self.store, self.forest, OWNER)
        self.states.append(state_of(self.store, self.forest))

    @contextmanager
    def step(self, interim: State | None = None) -> Iterator[None]:
        """Do something that is durable when it is over: what follows is promised.

        *interim* may be found as well while it lasts.
        """
        if interim is not None:
            self.states.append(interim)
        self.tape.begun = len(self.states)
        yield
        self.store.commit()
        self.states.append(state_of(self.store, self.forest))
        self.tape.durable = self.tape.begun

    @contextmanager
    def change(self) -> Iterator[None]:
        """Do something that a daemon acknowledges: the journal has it, the disk may not yet."""
        self.tape.begun = len(self.states)
        yield
        self.store.flush_journal()
        self.states.append(state_of(self.store, self.forest))

    def sync(self) -> None:
        """Make durable what was acknowledged, as fsync does."""
        sync = self.store.prepare_sync()
        self.store.write_sync(sync)
        self.store.end_sync(sync, is_durable=True)
        self.tape.durable = len(self.states) - 1

    def die(self) -> None:
        """Let the process be killed, and another one go on."""
        self.store.close(commit=False)
        self._open()
        # What it has seen is what was acknowledged last, and not more durable than it was.
        assert self.states.pop() == self.states[-1]

    def epoch(self) -> None:
        """Let an epoch come by, as it does every few seconds."""
        self.store.commit()
        self.tape.durable = len(self.states) - 1


def state_of(store: Store, forest: Forest) -> State:
    """Return everything that a user sees in a store."""
    seen: State = {}
    for agent in store.agents():
        seen[agent.name] = (agent.version, files(forest.tree(agent.head)))
        for version in store.versions(agent.agent_id):
            shown = files(forest.tree(version.root))
            seen[f"{agent.name}@{version.label}"] = (version.hash, version.record, shown)
        for snapshot in store.snapshots(agent.agent_id):
            shown = files(forest.tree(snapshot.root))
            seen[f"{agent.name}/{snapshot.name}"] = (snapshot.status, shown)
    return seen


def files(tree: Tree) -> State:
    """Return every path of *tree* with what is to survive of it."""
    return {
        os.fsdecode(found.path): (
            found.inode.mode,
            found.inode.mtime_ns,
            tree.read(found.ino, 0, found.inode.size)
            if found.inode.mode & 0o170000 == 0o100000
            else b"",
        )
        for found in tree.walk()
    }


# --- scenarios ------------------------------------------------------------------------------


def write(bench: Bench, folder: Path) -> None:
    noise = random.Random(1)
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    for size in (10, 5_000, 200_000):
        with bench.step():
            bench.write("bot", b"new", noise.randbytes(size))
            bench.write("bot", b"lib/x.py", b"x = 2\n")


def rename_over(bench: Bench, folder: Path) -> None:
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    for number in range(4):
        with bench.step():
            bench.write("bot", b"a.tmp", b"%d" % number * 3000)
            tree = bench.current("bot")
            gone = tree.rename(1, b"a.tmp", 1, b"a.txt", bench.clock.now_ns())  # type: ignore[arg-type]  # the top
            if gone is not None:
                tree.reap(gone)


def snapshots(bench: Bench, folder: Path) -> None:
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    with bench.step():
        bench.run("snapshot", reference="bot@1.0.0", name="one")
    with bench.step():
        bench.write("bot", b"only-in-current", b"c" * 9000)
        bench.run("snapshot", reference="bot", name="two")
    with bench.step():
        bench.run("discard", reference="bot/@snapshots/one")


def seal(bench: Bench, folder: Path) -> None:
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    for number in range(3):
        with bench.step():
            bench.write("bot", b"lib/new", b"%d" % number * 70_000)
            bench.run("seal", agent="bot")
    with bench.step():
        bench.run("remove", reference="bot@1.0.1", force=True)


def rollback(bench: Bench, folder: Path) -> None:
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    with bench.step():
        bench.write("bot", b"a.txt", b"second")
        bench.run("seal", agent="bot")
    with bench.step():
        bench.run("rollback", agent="bot", version="1.0.0")
    with bench.step():
        bench.write("bot", b"a.txt", b"not sealed")
    with bench.step():
        bench.run("rollback", agent="bot", version="1.0.1")


def commit(bench: Bench, folder: Path) -> None:
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    with bench.step():
        bench.run("snapshot", reference="bot", name="snap")
    lab = Lab(bench, folder.parent)
    with bench.step():
        tree = lab.snapshot("bot", "snap")
        tree.make(1, b"made", 0o100644, 0, 0, 7)  # type: ignore[arg-type]  # the top
    # Tests that the power has ended have no result.
    before = bench.states[-1]
    with bench.step({**before, "bot/snap": ("test_error", before["bot/snap"][1])}):
        assert lab.test("snap", suite=suite("true"), source="suite.toml").success
    with bench.step():
        bench.run("commit", reference="bot/@snapshots/snap")


def gc(bench: Bench, folder: Path) -> None:
    noise = random.Random(2)
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    for _ in range(4):
        with bench.step():
            for number in range(6):
                bench.write("bot", b"f%d" % number, noise.randbytes(30_000))
    with bench.step():
        bench.run("gc")
    with bench.step():
        bench.write("bot", b"last", noise.randbytes(30_000))


def imports(bench: Bench, folder: Path) -> None:
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    (folder / "more").write_bytes(os.urandom(50_000))
    with bench.step():
        bench.take("bot", "1.1.0", folder)
    with bench.step():
        bench.take("other", "0.1.0", folder)


def journal(bench: Bench, folder: Path) -> None:
    """Changes one by one, a sync now and then, an epoch in between, and a verb."""
    noise = random.Random(3)
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    for number in range(12):
        with bench.change():
            bench.write("bot", b"f%d" % (number % 5), noise.randbytes(noise.choice([9, 20_000])))
        if number % 3 == 1:
            bench.sync()
        if number == 6:
            bench.epoch()
    with bench.change():
        bench.run("snapshot", reference="bot", name="snap")
    bench.sync()
    with bench.change():
        bench.write("bot", b"after", noise.randbytes(50_000))
    with bench.change():
        bench.run("discard", reference="bot/@snapshots/snap")
    bench.sync()


def successors(bench: Bench, folder: Path) -> None:
    """A process is killed, and the next one goes on with its journal, without an epoch first."""
    noise = random.Random(4)
    with bench.step():
        bench.take("bot", "1.0.0", folder)
    for life in range(4):
        for number in range(3):
            with bench.change():
                name = b"f%d" % (life + number)
                bench.write("bot", name, noise.randbytes(noise.choice([9, 20_000])))
            if number == life:
                bench.sync()
        bench.die()
        if life == 2:
            bench.epoch()
    with bench.change():
        bench.write("bot", b"after", noise.randbytes(50_000))
    bench.sync()


JOURNALED = (journal, successors)
SCENARIOS: dict[str, Callable[[Bench, Path], None]] = {
    scenario.__name__: scenario
    for scenario in (write, rename_over, snapshots, seal, rollback, commit, gc, imports, *JOURNALED)
}


# --- the enumeration -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One moment of one scenario, and what becomes of what was not synced."""

    scenario: str
    number: int
    loss: Loss
    seed: int

    def __str__(self) -> str:
        return f"{self.scenario}:k={self.number}:{self.loss}:{self.seed}"


def chosen(name: str, tape: Tape) -> list[Case]:
    """Return the cases to run."""
    every = [Case(name, *case) for case in cases(tape, SEEDS)]
    wanted = os.environ.get("KAIFS_POWER_CASE", "")
    return [case for case in every if str(case) == wanted] if wanted else every


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_power_loss_leaves_the_state_before_or_after(
    tmp_path: Path, folder: Path, name: str
) -> None:
    """At each write and sync, whatever becomes of what was not synced."""
    tape = Tape()
    bench = Bench(tmp_path / "store", tape, replace(OPTIONS, journal=SCENARIOS[name] in JOURNALED))
    first = _segments(bench.path)
    index = (bench.path / "index" / INDEX_FILE).read_bytes()
    superblock = (bench.path / SUPERBLOCK_NAME).read_bytes()
    tape.events.clear()
    SCENARIOS[name](bench, folder)
    bench.store.close(commit=False)
    assert len(tape.events) > 5, "the scenario has reached the disk"
    disk, position = Disk(first, index), 0
    failures = []

    for case in chosen(name, tape):
        while position < case.number:
            disk.apply(tape.events[position])
            position += 1
        during = tape.at(case.number)
        # A text as a seed gives the same noise in every process.
        image = disk.fail(case.loss, during, random.Random(str(case)))
        where = tmp_path / "after"
        image.put(superblock, where)
        verdict = _verdict(where, bench.states[during.durable : during.begun + 1])
        if verdict:
            failures.append(f"{case} ({during.kind}): {verdict}")
        shutil.rmtree(where)

    assert not failures, "\n".join(failures)


def _segments(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / SEGMENT_FOLDER).iterdir()}


def _verdict(path: Path, allowed: list[State]) -> str:
    """Open the store in *path* as the next process would. Return what is wrong, or nothing.

    *allowed* are the states that may be found, the one that was promised first.
    """
    store = Store.open(path, clock=ManualClock(), options=OPTIONS)
    try:
        forest = Forest(store)
        forest.recover()
        finish_due_backups(Context(store, forest, OWNER))
        findings = check(store)
        if findings:
            return str(findings)
        found = state_of(store, forest)
        if found not in allowed:
            return _difference(found, allowed[0])
        store.commit()
        return str(check(store) or "")
    finally:
        store.close(commit=False)


def _difference(found: State, state: State) -> str:
    changed = {name for name in found.keys() | state.keys() if found.get(name) != state.get(name)}
    return f"neither the state before nor the one after: {sorted(changed)}"

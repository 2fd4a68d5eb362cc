"""Measuring in turns: every system does the same work, one after the other, again and again.

What else the machine does so slows all of them. A figure is the median over the turns.
Beside the time it has what the system's server used: CPU time and wake-ups, and from one
turn more, which is traced and not timed, the messages that the kernel sent it.
"""

from __future__ import annotations

import gc
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.bench.systems import System, UnavailableError, command, detach

TRACING = Path("/sys/kernel/tracing")
BUFFER_KIB = 16384
"""Of the trace, for each core."""
SETTLE_S = 0.05
"""Between two systems' turns: what the first left under way is no cost of the second."""
SYNC_S = 10.0
COUNTING = -1
"""The turn in which messages are counted."""
_SENT = re.compile(r"connection (\d+) req \d+ opcode \d+ \(FUSE_(\w+)\)")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    is_quick: bool
    micro_turns: int
    cold_turns: int
    bulk_turns: int
    work_turns: int
    files: int
    """Small files in a turn of the calls."""
    bulk_mib: int
    tree_files: int
    """Files that are unpacked, copied, cloned, read and removed."""
    repository_files: int
    modules: int


WHOLE = Scale(False, 11, 5, 3, 3, 200, 256, 1400, 5000, 200)
QUICK = Scale(True, 3, 1, 1, 1, 100, 32, 300, 1000, 200)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, for each operation."""

    value: float
    """µs, if its figures do not say something else."""
    cpu_us: float
    """CPU time of the server."""
    wakeups: float


@dataclass
class Figures:
    """All measurements of one row on one system."""

    unit: str = "µs"
    samples: list[Sample] = field(default_factory=list)
    messages: dict[str, float] | None = None
    """For each operation, by opcode."""

    def median(self, of: Callable[[Sample], float]) -> float:
        """Return the median of one of the values."""
        return statistics.median(map(of, self.samples))

    def spread(self) -> tuple[float, float]:
        """Return the quartiles of the values."""
        values = [sample.value for sample in self.samples]
        if len(values) < 3:
            return min(values), max(values)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, high


Rows = dict[str, dict[str, Figures]]
"""Rows of a section by name; in each the systems."""


class Trace:
    """The kernel's own record of what it sends to FUSE servers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def on(self) -> Iterator[None]:
        """Record: not while time is taken, for that costs some."""
        enable = self._folder / "events/fuse/fuse_request_send/enable"
        enable.write_text("1")
        try:
            yield
        finally:
            enable.write_text("0")

    def start(self) -> None:
        """Forget what was recorded so far."""
        (self._folder / "trace").write_text("")

    def sent(self, minor: int) -> Counter[str]:
        """Return the messages to one connection since the start, by opcode."""
        with (self._folder / "trace").open() as lines:
            found = (_SENT.search(line) for line in lines)
            return Counter(
                match[2] for match in found if match is not None and int(match[1]) == minor
            )


@contextmanager
def traced() -> Iterator[Trace | None]:
    """Yield a record of messages, or None where the kernel keeps none (before Linux 6.11)."""
    mounted = not (TRACING / "events").is_dir()
    instance = TRACING / "instances" / f"kaifs-bench-{os.getpid()}"
    try:
        if mounted:
            command("mount", "-t", "tracefs", "tracefs", TRACING)
        instance.mkdir()
    except (OSError, UnavailableError) as error:
        print(f"bench: no messages are counted: {error}", file=sys.stderr)
        yield None
        return
    try:
        (instance / "buffer_size_kb").write_text(str(BUFFER_KIB))
        yield Trace(instance) if (instance / "events/fuse/fuse_request_send").exists() else None
    finally:
        with suppress(OSError):
            instance.rmdir()
        if mounted:
            detach(TRACING)


class Stopwatch:
    """Takes the time of one system's turn, row by row."""

    def __init__(self, system: System, turn: int, trace: Trace | None = None) -> None:
        """With a *trace* messages are counted, and times are not worth anything."""
        self.system = system
        self.turn = turn
        self._trace = trace
        self.samples: dict[str, list[Sample]] = defaultdict(list)
        self.messages: dict[str, dict[str, float]] = {}

    @property
    def is_traced(self) -> bool:
        """Whether messages are counted in this turn, instead of time."""
        return self._trace is not None

    @contextmanager
    def __call__(self, row: str, count: int = 1) -> Iterator[None]:
        """Time what is done inside, which is *count* operations."""
        if self._trace is not None:
            self._trace.start()
        before = self.system.usage()
        began = time.perf_counter_ns()
        yield
        took = time.perf_counter_ns() - began
        used = self.system.usage() - before
        if self._trace is not None:
            sent = self._trace.sent(self.system.minor)
            self.messages[row] = {name: number / count for name, number in sent.most_common()}
        sample = Sample(took / 1e3 / count, used.cpu_ns / 1e3 / count, used.wakeups / count)
        self.samples[row].append(sample)


Section = Callable[[Stopwatch, Scale], None]
"""One turn of one system."""


def interleave(
    section: Section,
    systems: Mapping[str, System],
    turns: int,
    scale: Scale,
    *,
    budget_s: float = math.inf,
    trace: Trace | None = None,
    counted: Collection[str] = (),
) -> tuple[Rows, dict[str, str]]:
    """Let all *systems* take turns; return the figures, and why a system did not finish.

    After *budget_s* seconds no further turn begins. With a *trace* one turn more counts
    the messages of those *systems* that are *counted*.
    """
    rows: Rows = {}
    failed: dict[str, str] = {}
    names = list(systems)
    began = time.monotonic()
    for turn in [*range(turns), COUNTING]:
        is_last = turn == COUNTING
        spent = time.monotonic() - began
        if is_last and trace is None:
            break
        # As long as those before it.
        if turn > 0 and spent + spent / turn > budget_s:
            continue
        for name in names:
            system = systems[name]
            if name in failed or (is_last and name not in counted):
                continue
            watch = Stopwatch(system, turn, trace if is_last else None)
            settle()
            gc.disable()
            try:
                with trace.on() if is_last and trace is not None else nullcontext():
                    section(watch, scale)
            except Exception as error:  # noqa: BLE001 - a row says that it failed, and why
                failed[name] = f"{type(error).__name__}: {error}"
                print(f"bench: {name}: {failed[name]}", file=sys.stderr)
                continue
            finally:
                gc.enable()
            for row, samples in watch.samples.items():
                figures = rows.setdefault(row, {}).setdefault(name, Figures())
                if is_last:
                    figures.messages = watch.messages[row]
                else:
                    figures.samples += samples
        # Whoever goes first meets another state of the machine each time.
        names.append(names.pop(0))
    return rows, failed


def settle() -> None:
    """Let the disk finish, so that nobody pays for the one before."""
    write_back()
    time.sleep(SETTLE_S)


def write_back() -> None:
    """Have what is dirty written, of everything; give up where others write all the time."""
    # It cannot be killed while it waits for the disk: it ends when it can.
    process = subprocess.Popen(["sync"])
    with suppress(subprocess.TimeoutExpired):
        process.wait(SYNC_S)


def drop_caches() -> None:
    """Make what is cached of every file system cold, and what is not under test warm again."""
    write_back()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    # FORGETs of what has gone are under way to the servers.
    time.sleep(4 * SETTLE_S)

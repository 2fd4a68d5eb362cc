"""Measures kaifs and its peers on this machine, and writes what comes out.

Usage: python -m tools.bench [--quick] [--only SECTION,…] [--systems NAME,…] [--turns N]
       [--folder DIR] [--keep] [--render]

Sections: micro cold bulk work read product awake. Needs root, /dev/fuse and a folder on
ext4; `scripts/bench` installs the peers, and passes its arguments on. Without --quick,
--only and --systems the results are kept and docs/BENCHMARKS.md is written.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import kaifs
from kaifs.linux.latency import AwakeCores
from kaifs.linux.mounts import mounts
from tools.bench import micro, product, report, results
from tools.bench.materials import Materials
from tools.bench.run import QUICK, WHOLE, Rows, Scale, Section, Trace, interleave, traced
from tools.bench.systems import (
    MAIN,
    OVERLAY,
    PASSTHROUGH,
    PYFUSE3,
    TREE,
    UNPOLLED,
    System,
    all_systems,
    set_up,
)
from tools.bench.work import Work

ROOT = Path(__file__).parents[2]
AWAKE_TURNS = 5
COUNTED = (MAIN, TREE, PYFUSE3, OVERLAY, PASSTHROUGH)
_VERSIONS = {
    "fuse-overlayfs": ("fuse-overlayfs", "--version"),
    "btrfs-progs": ("btrfs", "--version"),
    "git": ("git", "--version"),
    "npm": ("npm", "--version"),
    "gcc": ("gcc", "-dumpfullversion"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A section, and how much of it there is."""

    section: Section
    turns: int
    budget_s: float
    without: tuple[str, ...] = ()
    """Systems that do not take part: what they would show, others show."""
    counted: tuple[str, ...] = COUNTED


def parts(scale: Scale, work: Work) -> dict[str, Part]:
    """Return all sections but the product's."""
    few = (MAIN,) if scale.is_quick else (MAIN, PYFUSE3, OVERLAY)
    limit = 0.15 if scale.is_quick else 1.0
    return {
        "micro": Part(micro.calls, scale.micro_turns, 110 * limit),
        "cold": Part(micro.cold, scale.cold_turns, 60 * limit, (UNPOLLED,)),
        "bulk": Part(micro.bulk, scale.bulk_turns, 150 * limit, (UNPOLLED, TREE)),
        "work": Part(work.changes, scale.work_turns, 300 * limit, (UNPOLLED,), few),
        "read": Part(work.reads, scale.work_turns, 120 * limit, (UNPOLLED, TREE), few),
    }


def awake_parts(scale: Scale, work: Work) -> dict[str, Part]:
    """Return what is done once more with the cores kept awake."""
    limit = 0.15 if scale.is_quick else 1.0
    turns = min(AWAKE_TURNS, scale.micro_turns)
    calls = {"micro": Part(micro.calls, turns, 60 * limit, (), ())}
    if scale.is_quick:
        return calls
    return calls | {
        "work": Part(work.changes, 1, 100 * limit, (UNPOLLED, TREE, PYFUSE3), ()),
        "read": Part(work.reads, 1, 40 * limit, (UNPOLLED, TREE), ()),
    }


class Run:
    """One run, and what it has found so far."""

    def __init__(self, scale: Scale, systems: Mapping[str, System]) -> None:
        self._scale = scale
        self._systems = systems
        self.failed: dict[str, str] = {}

    def measure(self, parts: Mapping[str, Part], trace: Trace | None) -> dict[str, Rows]:
        """Measure sections."""
        found = {}
        for name, part in parts.items():
            took = time.monotonic()
            taking_part = {
                system: self._systems[system]
                for system in self._systems
                if system not in part.without
            }
            found[name], failed = interleave(
                part.section,
                taking_part,
                part.turns,
                self._scale,
                budget_s=part.budget_s,
                trace=trace if part.counted else None,
                counted=part.counted,
            )
            self.failed |= {f"{system}, {name}": why for system, why in failed.items()}
            say(f"{name}: {time.monotonic() - took:.0f} s")
        return found


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"bench: {what}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def workplace(folder: str | None) -> Iterator[Path]:
    """Yield a folder of this run; it goes at the end, but never through a mount."""
    base = Path(tempfile.mkdtemp(prefix="kaifs-bench-", dir=folder)).resolve()
    try:
        yield base
    finally:
        left = [entry.mountpoint for entry in mounts() if base in Path(entry.mountpoint).parents]
        if left:
            say(f"still mounted, so {base} stays: {left}")
        else:
            shutil.rmtree(base, ignore_errors=True)


def machine() -> dict[str, str]:
    """Return what the figures are of."""
    cpu = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    said = {
        "machine": f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB of memory",
        "kernel": platform.release(),
        "kaifs": f"{kaifs.__version__}, commit {first_line('git', '-C', str(ROOT), 'describe', '--always', '--dirty')}",
        "Python": f"{platform.python_version()}, pyfuse3 {importlib.metadata.version('pyfuse3')}",
    }
    return said | {name: first_line(*words) for name, words in _VERSIONS.items()}


def first_line(*words: str) -> str:
    """Return what a program says first."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return "not installed"
    lines = done.stdout.strip().splitlines() or ["?"]
    # fuse-overlayfs speaks of fusermount3 first.
    return next((line for line in lines if line.startswith(words[0])), lines[0])


def stop(signal_number: int, frame: object) -> None:
    """End as after Ctrl-C: everything is taken down."""
    raise KeyboardInterrupt


def cache_folder() -> Path:
    """Return where what was built or fetched once is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "kaifs-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def arguments() -> argparse.Namespace:
    """Return what is asked for."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the same in small")
    parser.add_argument("--only", default="", help="these sections, by commas")
    parser.add_argument("--systems", default="", help="these systems, by commas")
    parser.add_argument("--turns", type=int, help="of each section")
    parser.add_argument("--folder", help="where to work, on ext4")
    parser.add_argument("--keep", action="store_true", help="write results and docs in any case")
    parser.add_argument("--render", action="store_true", help="only write the docs anew")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> results.Results:
    """Do what is asked for."""
    began = time.monotonic()
    scale = QUICK if args.quick else WHOLE
    if args.turns:
        turns = ("micro_turns", "cold_turns", "bulk_turns", "work_turns")
        scale = dataclasses.replace(scale, **dict.fromkeys(turns, args.turns))
    program = cache_folder() / PASSTHROUGH
    wanted = all_systems(program if program.exists() else None)
    if args.systems:
        wanted = {name: wanted[name] for name in args.systems.split(",")}
    only = args.only.split(",") if args.only else None

    def chosen(parts: Mapping[str, Part]) -> dict[str, Part]:
        return {name: part for name, part in parts.items() if only is None or name in only}

    found: dict[str, Rows] = {}
    awake: dict[str, Rows] = {}
    with workplace(args.folder) as base, contextlib.ExitStack() as stack:
        trace = stack.enter_context(traced())
        materials = Materials(base / "materials", cache_folder(), scale)
        work = Work(materials)
        usual = chosen(parts(scale, work))
        kept_awake = {} if only and "awake" not in only else awake_parts(scale, work)
        systems, unavailable = set_up(base, wanted if usual or kept_awake else {}, stack)
        unavailable |= materials.missing
        for name, why in unavailable.items():
            say(f"{name}: not available: {why}")
        run = Run(scale, systems)
        if "read" in usual or "read" in kept_awake:
            lay_out = Part(work.lay_out, 1, 0, (UNPOLLED, TREE), ())
            run.measure({"laying out what is read": lay_out}, None)
        found = run.measure(usual, trace)
        if kept_awake:
            cores = AwakeCores()
            cores.hold()
            try:
                awake = run.measure(kept_awake, None)
            finally:
                cores.release()
        if only is None or "product" in only:
            measured = product.Product(
                base, product.QUICK if args.quick else product.WHOLE, materials
            )
            measured.measure()
            found["product"] = measured.rows
            run.failed |= measured.failed
    return results.Results(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        is_quick=args.quick,
        took_s=round(time.monotonic() - began, 1),
        machine=machine(),
        unavailable=unavailable,
        failed=run.failed,
        sections=results.table(found),
        awake=results.table(awake),
    )


def show(found: results.Results) -> None:
    """Print the figures, with what servers used."""
    for section, rows in [
        *found.sections.items(),
        *((f"{n}, awake", r) for n, r in found.awake.items()),
    ]:
        print(f"\n== {section}")
        for row, cells in rows.items():
            print(row)
            base = next(iter(cells.values())).median if cells else 0
            for name in report.columns({row: cells}):
                cell = cells[name]
                ratio = f"{cell.median / base:8.2f}x" if base else ""
                used = f"{cell.cpu_us:9.1f} µs CPU {cell.wakeups:7.2f} wake-ups"
                messages = " ".join(f"{n}:{c:.2f}" for n, c in (cell.messages or {}).items())
                print(
                    f"    {name:16}{report.amount(cell.median, cell.unit):>12}{ratio} {used} {messages}"
                )


def main() -> None:
    """Measure and write."""
    args = arguments()
    signal.signal(signal.SIGTERM, stop)
    if args.render:
        for path in report.write(results.load(results.newest())):
            say(f"wrote {path.relative_to(ROOT)}")
        return
    if os.geteuid() != 0:
        sys.exit("bench: it mounts file systems and drops caches: run it as root")
    try:
        found = measure(args)
    except KeyboardInterrupt:
        say("interrupted; nothing is left mounted")
        sys.exit(130)
    show(found)
    say(f"took {found.took_s / 60:.1f} minutes")
    if (args.quick or args.only or args.systems) and not args.keep:
        return
    path = results.FOLDER / f"{found.date[:10]}.json"
    results.save(found, path)
    for written in [path, *report.write(found)]:
        say(f"wrote {written.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""Measures kaifs and its peers on this machine, and writes what comes out.

Usage: python -m tools.bench [--quick] [--only SECTION,…] [--systems NAME,…] [--turns N]
       [--folder DIR] [--no-docs]

Needs root, /dev/fuse and a folder on ext4; `scripts/bench` installs the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kaifs.linux.latency import AwakeCores
from kaifs.linux.mounts import mounts
from tools.bench import micro
from tools.bench.run import QUICK, WHOLE, interleave, traced
from tools.bench.systems import all_systems, set_up


def stop(signal_number: int, frame: object) -> None:
    """End as after Ctrl-C: everything is taken down."""
    raise KeyboardInterrupt


@contextmanager
def workplace(folder: str | None) -> Iterator[Path]:
    """Yield a folder of this run; it goes at the end, but never through a mount."""
    base = Path(tempfile.mkdtemp(prefix="kaifs-bench-", dir=folder)).resolve()
    try:
        yield base
    finally:
        left = [entry.mountpoint for entry in mounts() if base in Path(entry.mountpoint).parents]
        if left:
            print(f"bench: still mounted: {left}", file=sys.stderr)
        else:
            shutil.rmtree(base, ignore_errors=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--systems", default="")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--folder")
    parser.add_argument("--awake", action="store_true")
    parser.add_argument("--no-docs", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    scale = QUICK if args.quick else WHOLE
    if args.turns:
        scale = dataclasses.replace(
            scale, micro_turns=args.turns, cold_turns=args.turns, bulk_turns=args.turns
        )
    wanted = all_systems(None)
    if args.systems:
        wanted = {name: wanted[name] for name in args.systems.split(",")}
    sections = {
        "micro": (micro.calls, scale.micro_turns),
        "cold": (micro.cold, scale.cold_turns),
        "bulk": (micro.bulk, scale.bulk_turns),
    }
    only = args.only.split(",") if args.only else list(sections)
    cores = AwakeCores()
    if args.awake:
        cores.hold()
    with workplace(args.folder) as base, ExitStack() as stack:
        trace = stack.enter_context(traced())
        systems, unavailable = set_up(base, wanted, stack)
        for name, why in unavailable.items():
            print(f"bench: {name}: {why}", file=sys.stderr)
        for name in only:
            began = time.perf_counter()
            section, turns = sections[name]
            rows, _ = interleave(section, systems, turns, scale, trace)
            print(f"{name}: {time.perf_counter() - began:.1f} s")
            for row, figures in rows.items():
                base_us = next(iter(figures.values())).median(lambda s: s.us)
                print(row)
                for system, one in figures.items():
                    us = one.median(lambda s: s.us)
                    print(
                        f"    {system:16}{us:12.1f} µs {us / base_us:7.2f}x  server "
                        f"{one.median(lambda s: s.cpu_us):8.1f} µs CPU "
                        f"{one.median(lambda s: s.wakeups):6.2f} wake-ups "
                        + " ".join(f"{n}:{c:.2f}" for n, c in one.messages.items() if c >= 0.01)
                    )


if __name__ == "__main__":
    main()

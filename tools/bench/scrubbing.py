"""How fast everything is read and checked, beside dd of the same segments: cold, in turns.

One store of a few large files, and one of small ones, of noise. The page cache is emptied
before each measurement, so it needs root.
Usage: python -m tools.bench.scrubbing [MIB]
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.bench.run import drop_caches

TURNS = 3
KAIFS = (sys.executable, "-m", "kaifs")
SHAPES = {"large files": 128 << 20, "small files": 16 << 10}
"""Bytes of each file."""
FOLDER_FILES = 200


def fill(folder: Path, total: int, size: int) -> None:
    """Write *total* bytes of noise in files of *size*."""
    noise = random.Random(size)  # noqa: S311 - content of files
    for number in range(total // size):
        path = folder / f"d{number // FOLDER_FILES}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise.randbytes(size))


def ways(store: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what reads everything, and how it is called."""
    segments = sorted(str(path) for path in (store / "segments").rglob("*") if path.is_file())
    yield "dd", ("sh", "-c", 'cat "$@" | dd of=/dev/null bs=1M status=none', "sh", *segments)
    yield "scrub", (*KAIFS, "scrub", "--store", str(store))
    yield "verify --full", (*KAIFS, "verify", "agent", "--full", "--store", str(store))


def measure(total: int, size: int) -> dict[str, list[float]]:
    """Return how long each way took each time, seconds."""
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        source, store = Path(name) / "source", Path(name) / "store"
        source.mkdir()
        fill(source, total, size)
        run((*KAIFS, "init", str(store)))
        run((*KAIFS, "import", "agent", str(source), "--as", "1.0.0", "--store", str(store)))
        for _ in range(TURNS):
            for way, command in ways(store):
                drop_caches()
                begun = time.perf_counter()
                run(command)
                taken.setdefault(way, []).append(time.perf_counter() - begun)
    return taken


def run(command: Sequence[str]) -> None:
    """Run *command*, which must succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure and print."""
    total = (int(sys.argv[1]) if len(sys.argv) > 1 else 2048) << 20
    for shape, size in SHAPES.items():
        taken = measure(total, size)
        base = statistics.median(taken["dd"])
        for way, seconds in taken.items():
            median = statistics.median(seconds)
            print(
                f"{shape:<12} {way:<14} {total / 1e6 / median:7.0f} MB/s  {median / base:5.2f}x dd"
            )


if __name__ == "__main__":
    main()

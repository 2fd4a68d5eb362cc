"""Many snapshots of an agent with many files: how long each takes, and what it stores.

Made one by one on a mounted store: by the verb, each of them durable before the
next begins, and by mkdir, durable with the next commit. Then one file is written
in each.
Usage: python -m tools.bench.snapshots [SNAPSHOTS [FILES]]
"""

import os
import stat
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kaifs.control.client import call
from kaifs.daemon import lifecycle
from kaifs.service.embedded import run_embedded
from kaifs.service.import_ import Params as ImportParams
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.service.steps import Data, End, Entry, Item
from kaifs.store.store import Store

FOLDER_SIZE = 100


def tree(files: int) -> Iterator[Item]:
    """Yield an agent of so many small files, a hundred in each folder."""
    yield Entry(b"", stat.S_IFDIR | 0o755, 0, 0, 0, 0, 1, 1)
    for folder in range(-(-files // FOLDER_SIZE)):
        name = b"d%06d" % folder
        yield Entry(name, stat.S_IFDIR | 0o755, 0, 0, 0, 0, 1, 1)
        for number in range(min(FOLDER_SIZE, files - folder * FOLDER_SIZE)):
            payload = b"file %d of folder %d\n" % (number, folder)
            path = b"%s/f%02d" % (name, number)
            yield Entry(path, stat.S_IFREG | 0o644, 0, 0, len(payload), 0, 1, 1)
            yield Data(0, payload)
    yield End()


def stored(store: Path) -> tuple[int, int]:
    """Return the bytes of the segments, and those on disk of the index."""
    segments = sum(path.stat().st_size for path in (store / "segments").glob("*.seg"))
    index = sum(path.stat().st_blocks * 512 for path in (store / "index").iterdir())
    return segments, index


def show(what: str, times_s: list[float], before: tuple[int, int], after: tuple[int, int]) -> None:
    """Print one line of results."""
    count = len(times_s)
    ms = sorted(one * 1000 for one in times_s)
    segments, index = (new - old for old, new in zip(before, after, strict=True))
    print(
        f"{count} {what}: {sum(times_s):.2f} s; each median {statistics.median(ms):.2f} ms, "
        f"max {ms[-1]:.2f} ms; segments +{segments / count:.0f} B each, "
        f"index +{index / count:.0f} B each"
    )


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        store, mountpoint = Path(folder, "store"), Path(folder, "mnt")
        mountpoint.mkdir()
        Store.create(store).close()
        began = time.perf_counter()
        run_embedded(store, "import", ImportParams(agent="bot", label="1.0.0"), source=tree(files))
        print(f"import of {files} files: {time.perf_counter() - began:.1f} s")
        lifecycle.mount(store, mountpoint, [])
        try:
            measure(store, mountpoint / "bot" / "@snapshots", count)
        finally:
            lifecycle.umount(mountpoint)


def measure(store: Path, snapshots: Path, count: int) -> None:
    """Make snapshots, and write to each."""
    before = stored(store)
    times = []
    for number in range(count):
        began = time.perf_counter()
        call(store, "snapshot", SnapshotParams(reference="bot@1.0.0", name=f"n{number}"))
        times.append(time.perf_counter() - began)
    after = stored(store)
    show("snapshots", times, before, after)
    times = []
    for number in range(count):
        began = time.perf_counter()
        (snapshots / f"m{number}").mkdir()
        times.append(time.perf_counter() - began)
    os.sync()
    before, after = after, stored(store)
    show("snapshots by mkdir", times, before, after)
    times = []
    for number in range(count):
        began = time.perf_counter()
        (snapshots / f"n{number}" / "d000000" / "f00").write_text(f"changed in {number}\n")
        times.append(time.perf_counter() - began)
    os.sync()
    show("first writes", times, after, stored(store))


if __name__ == "__main__":
    main()

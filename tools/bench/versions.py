"""Many versions, many files and large files: what each verb takes, in time and memory.

Three stores. One holds an agent with so many versions; in one a version has so
many files; in one a version has so many random bytes in four files. Each figure is of a process of its own, as a user starts it: wall
time, processor time and its largest resident set. With --mount the verbs of the first store are
also measured through a daemon.
Usage: python -m tools.bench.versions [--versions N] [--files N] [--size MIB] [--mount]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kaifs.base.types import Ino
from kaifs.service import embedded
from kaifs.service.context import Caller, Context
from kaifs.service.record import Description
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store
from kaifs.tree.forest import Forest

VERSIONS = 10_000
FILES = 300_000
SIZE_MIB = 4096
FOLDER_SIZE = 1000
LARGE_FILES = 4
EPOCH = 500
"""Versions made between two commits."""
_PIECE = 1 << 20


class Bench:
    """Runs commands on one store and tells what they took."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def __call__(self, *arguments: str, fails: bool = False) -> None:
        """Run `kaifs` with *arguments* and print one line; *fails*: its exit status is 1."""
        command = [sys.executable, "-m", "kaifs", "--store", str(self.store), *arguments]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
        )
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        what = " ".join(arguments).replace(str(self.store.parent) + "/", "")
        busy = usage.ru_utime + usage.ru_stime
        peak = usage.ru_maxrss / 1024
        print(f"  {what:<40} {took:8.2f} s {busy:8.2f} s {peak:7.0f} MiB", flush=True)
        assert process.returncode == (1 if fails else 0), command


@contextmanager
def opened(path: Path) -> Iterator[Context]:
    """Lend an open store to run verbs on."""
    store = Store.open(path)
    try:
        yield Context(store, Forest(store), Caller(os.getuid(), os.getgid()))
        store.commit()
    finally:
        store.close(commit=False)


def in_child(work: Callable[[], None]) -> None:
    """Do *work* in another process: what is started later inherits this one's memory peak."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            sys.stdout.flush()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(process, 0)[1] == 0


def write(context: Context, ino: Ino, payload: bytes) -> None:
    """Put *payload* into a file of current."""
    tree = context.forest.tree(context.store.get_agent("bot").head)
    tree.truncate(ino, 0, context.store.clock.now_ns())
    tree.write(ino, 0, payload, context.store.clock.now_ns())


def make_versions(path: Path, folder: Path, count: int) -> None:
    """Make *count* versions of a small agent, each with one file changed."""
    folder.mkdir()
    for number in range(100):
        (folder / f"f{number:03}.py").write_text(f"x = {number}\n" * 50)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "kaifs",
            "--store",
            path,
            "-q",
            "import",
            "bot",
            folder,
            "--as",
            "0.0.1",
        ],
        check=True,
    )
    began = time.perf_counter()
    with opened(path) as context:
        tree = context.forest.tree(context.store.get_agent("bot").head)
        inos = [entry.ino for entry in tree.walk() if entry.path]
        seal = VERBS["seal"]
        for number in range(1, count):
            write(context, inos[number % 100], f"version {number}\n".encode() * 60)
            description = Description(
                notes=f"change {number}", tags=("stable",) if number % 100 == 0 else ()
            )
            label = f"{number // 1000}.{number // 10 % 100}.{number % 10 + 10}"
            params = seal.params(agent="bot", label=label, description=description)
            embedded.run(context, seal, params)
            if number % EPOCH == 0:
                context.store.commit()
    took = time.perf_counter() - began
    print(f"  {count} seals in one process: {took:.1f} s, each {took / count * 1000:.2f} ms")


def many_versions(place: Path, count: int, *, mounted: bool) -> None:
    """Measure verbs that look at all versions."""
    place.mkdir()
    bench = Bench(place / "store")
    bench("init")
    in_child(lambda: make_versions(bench.store, place / "folder", count))
    look_at_versions(bench)
    if mounted:
        mountpoint = place / "mnt"
        mountpoint.mkdir()
        bench("mount", str(bench.store), str(mountpoint))
        try:
            print(" through a daemon:")
            look_at_versions(bench)
        finally:
            bench("umount", str(mountpoint))
    bench("gc")


def look_at_versions(bench: Bench) -> None:
    """Measure what reads the list of versions."""
    bench("list")
    bench("list", "bot")
    bench("list", "bot", "--json")
    bench("list", "bot", "--tag", "stable")
    bench("log", "bot")
    bench("log", "bot", "-n", "10")
    bench("log", "bot", "f007.py")
    bench("status", "--json")
    bench("snapshots")
    bench("show", "bot")
    bench("diff", "bot@0.0.1", "bot", fails=True)
    bench("prune", "bot", "--keep-last", "100", "--keep-tagged", "--dry-run")
    bench("rollback", "bot", "0.0.1")
    bench("rollback", "bot", "0.0.19")
    bench("seal", "bot")


def many_files(place: Path, count: int) -> None:
    """Measure a version of *count* small files."""
    place.mkdir()
    folder = place / "folder"
    in_child(lambda: make_files(folder, count))
    bench = Bench(place / "store")
    bench("init")
    bench("import", "bot", str(folder), "--as", "1.0.0")
    changed = folder / "000" / "00000"
    in_child(lambda: change_files(changed))
    bench("import", "bot", str(folder), "--as", "1.1.0")
    look_at_tree(bench, "000")


def make_files(folder: Path, count: int) -> None:
    """Make *count* small files."""
    for first in range(0, count, FOLDER_SIZE):
        below = folder / f"{first // FOLDER_SIZE // 100:03}" / f"{first // FOLDER_SIZE:05}"
        below.mkdir(parents=True)
        for number in range(first, min(first + FOLDER_SIZE, count)):
            (below / f"f{number:07}").write_bytes(b"content of %d\n" % number * (number % 64))


def change_files(changed: Path) -> None:
    """Change a hundred of the files in a folder."""
    for name in sorted(os.listdir(changed))[:100]:
        (changed / name).write_bytes(b"changed\n")


def large_files(place: Path, size_mib: int) -> None:
    """Measure a version of few large files of random bytes."""
    place.mkdir()
    folder = place / "folder"
    folder.mkdir()
    each = size_mib // LARGE_FILES
    for number in range(LARGE_FILES):
        with (folder / f"large{number}").open("wb") as file:
            for _ in range(each):
                file.write(os.urandom(_PIECE))
    bench = Bench(place / "store")
    bench("init")
    bench("import", "bot", str(folder), "--as", "1.0.0")
    with (folder / "large0").open("r+b") as file:
        file.seek(each * _PIECE // 2)
        file.write(b"changed")
    bench("import", "bot", str(folder), "--as", "1.1.0")
    look_at_tree(bench, "large0")


def look_at_tree(bench: Bench, path: str) -> None:
    """Measure what reads a version of which one has changed a little."""
    bench("list", "bot")
    bench("diff", "bot@1.0.0", "bot@1.1.0", fails=True)
    bench("diff", "--stat", "bot@1.0.0", "bot@1.1.0", fails=True)
    bench("diff", "-p", "bot@1.0.0", "bot@1.1.0", fails=True)
    bench("log", "bot", path)
    bench("seal", "bot")
    bench("rollback", "bot", "1.1.0")
    bench("status", "--json", "--space")
    if "verify" in VERBS:
        bench("verify", "bot@1.0.0")
    bench("manifest", "bot@1.0.0")
    bench("fsck")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Versions in numbers.")
    parser.add_argument("--versions", type=int, default=VERSIONS)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--size", type=int, default=SIZE_MIB, metavar="MIB")
    parser.add_argument("--mount", action="store_true", help="also through a daemon")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        if args.versions:
            print(f"{args.versions} versions:")
            many_versions(top / "versions", args.versions, mounted=args.mount)
        if args.files:
            print(f"{args.files} files:")
            many_files(top / "files", args.files)
        if args.size:
            print(f"{args.size} MiB in {LARGE_FILES} files:")
            large_files(top / "large", args.size)


if __name__ == "__main__":
    main()

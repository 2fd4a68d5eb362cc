"""SQLite on a mount, its writer or the daemon killed: committed rows are there, the file is sound.

SQLite is the strictest of common programs: it depends on fsync, on byte-range
locks, on the order of writes, and in WAL mode on memory that processes share.
"""

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from kaifs.control.info import DaemonInfo
from tests.daemon.site import Site, kill

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_DATABASE_ROUNDS", "1"))
"""Kills for each of the cases; `KAIFS_DATABASE_ROUNDS=50` is the long form, with all modes."""
MODES = ["wal", "delete"] if ROUNDS == 1 else ["wal", "delete", "truncate", "persist"]
WRITERS = 2

WRITER = r"""
import os, random, sqlite3, sys

path, mode, seed = sys.argv[1:]
rng = random.Random(seed)
database = sqlite3.connect(path, isolation_level=None, timeout=60)
database.execute("PRAGMA journal_mode=" + mode)
database.execute("PRAGMA synchronous=FULL")
database.execute("PRAGMA wal_autocheckpoint=20")
database.execute("PRAGMA cache_size=5")
while True:
    database.execute("BEGIN IMMEDIATE")
    (number,) = database.execute("SELECT coalesce(max(number), 0) + 1 FROM rows").fetchone()
    database.execute("INSERT INTO rows VALUES (?, ?)", (number, rng.randbytes(rng.choice([9, 9000]))))
    database.execute("UPDATE sums SET count = count + 1, sum = sum + ?", (number,))
    database.execute("COMMIT")
    os.write(1, b"%d\n" % number)
"""


@pytest.mark.parametrize("victim", ["writer", "daemon"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_committed_rows_survive_a_kill(site: Site, transport: str, mode: str, victim: str) -> None:
    """Whoever is killed: no committed row is missing, none is half there, the file is sound."""
    rng = random.Random(f"{transport} {mode} {victim}")
    options = (f"transport={transport}", "commit=1")
    site.mount(*options)
    (site.mountpoint / "agent").mkdir()
    path = site.current / "rows.db"
    _make(path)
    for number in range(ROUNDS):
        daemon = site.infos[-1] if victim == "daemon" else None
        committed = _write_until_killed(path, mode, number, rng.randrange(3, 30), daemon)
        assert committed, "a round that committed nothing proves nothing"
        if victim == "daemon":
            site.mount(*options)

        _check(path, committed)
    site.umount()


def _make(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, filling BLOB)")
        database.execute("CREATE TABLE sums (count INTEGER, sum INTEGER)")
        database.execute("INSERT INTO sums VALUES (0, 0)")
    database.close()


def _write_until_killed(
    path: Path, mode: str, seed: int, rows: int, daemon: DaemonInfo | None
) -> set[int]:
    """Kill the writers after so many rows, or the daemon; return the rows known as committed."""
    read_end, write_end = os.pipe()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), mode, f"{seed} {writer}"],
            stdout=write_end,
            stderr=subprocess.DEVNULL,
        )
        for writer in range(WRITERS)
    ]
    os.close(write_end)
    committed = set()
    with os.fdopen(read_end) as lines:
        for count, line in enumerate(lines):
            # A line of a writer that died in the middle of it has no end.
            if line.endswith("\n"):
                committed.add(int(line))
            if count == rows:
                if daemon is not None:
                    kill(daemon)
                for writer in writers:
                    writer.kill()
    for writer in writers:
        writer.wait()
    return committed


def _check(path: Path, committed: set[int]) -> None:
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        numbers = {number for (number,) in database.execute("SELECT number FROM rows")}
        assert committed <= numbers
        assert database.execute("SELECT * FROM sums").fetchall() == [(len(numbers), sum(numbers))]
    finally:
        database.close()

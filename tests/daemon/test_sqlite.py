"""SQLite on a mount, its writer or the daemon killed: committed rows are there, the file is sound.

SQLite is the strictest of common programs: it depends on fsync, on byte-range
locks, on the order of writes, and in WAL mode on memory that processes share.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from kaifs.control.client import find_daemon
from kaifs.linux.processes import send_signal
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
        with _written(path, mode, number) as writing:
            writing.read_rows(rng.randrange(3, 30))
            if victim == "daemon":
                kill(site.infos[-1])
        if victim == "daemon":
            site.mount(*options)

        _check(path, writing.committed)
    site.umount()


@pytest.mark.parametrize("mode", MODES)
def test_writers_do_not_notice_that_the_server_is_replaced(site: Site, mode: str) -> None:
    """Only the process that serves dies; its supervisor keeps the mount alive. Kernel transport."""
    rng = random.Random(mode)
    site.mount("transport=kernel", "commit=1")
    (site.mountpoint / "agent").mkdir()
    path = site.current / "rows.db"
    _make(path)
    for number in range(ROUNDS):
        with _written(path, mode, number) as writing:
            writing.read_rows(rng.randrange(3, 30))
            server = find_daemon(site.store)
            assert server is not None
            send_signal(server.process, signal.SIGKILL)
            writing.read_rows(20)

            assert writing.all_run

        _check(path, writing.committed)
    site.umount()


class Writing:
    """Processes that write rows, and what they have told of it."""

    def __init__(self, writers: list["subprocess.Popen[bytes]"], lines: TextIO) -> None:
        self.committed: set[int] = set()
        self._writers = writers
        self._lines = lines

    @property
    def all_run(self) -> bool:
        """Whether no writer has failed."""
        return all(writer.poll() is None for writer in self._writers)

    def read_rows(self, count: int) -> None:
        """Wait for *count* more rows."""
        for _ in range(count):
            line = self._lines.readline()
            assert line, "all writers have ended"
            self.committed.add(int(line))

    def end(self) -> None:
        """Kill the writers, and read what they have still told."""
        for writer in self._writers:
            writer.kill()
            writer.wait()
        # A writer tells each row by one write(2), so that no line is cut or mixed.
        self.committed.update(map(int, self._lines))


@contextmanager
def _written(path: Path, mode: str, seed: int) -> Iterator[Writing]:
    """Have rows written as long as this lasts."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as lines:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), mode, f"{seed} {writer}"],
                stdout=write_end,
                stderr=subprocess.DEVNULL,
            )
            for writer in range(WRITERS)
        ]
        os.close(write_end)
        writing = Writing(writers, lines)
        try:
            yield writing
        finally:
            writing.end()


def _make(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, filling BLOB)")
        database.execute("CREATE TABLE sums (count INTEGER, sum INTEGER)")
        database.execute("INSERT INTO sums VALUES (0, 0)")
    database.close()


def _check(path: Path, committed: set[int]) -> None:
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        numbers = {number for (number,) in database.execute("SELECT number FROM rows")}
        assert committed <= numbers
        assert database.execute("SELECT * FROM sums").fetchall() == [(len(numbers), sum(numbers))]
    finally:
        database.close()

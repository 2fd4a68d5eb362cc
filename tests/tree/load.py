"""A write load that another process can run and be killed in; each step follows from a seed.

Run as a program it works on the store at the first argument until it is killed,
and writes the number of each commit to its standard output once that is on disk.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import sys
from pathlib import Path

from kaifs.store import gc
from kaifs.store.store import StoreOptions
from tests.tree.grove import Grove

OPTIONS = StoreOptions(segment_size=100_000)
COUNTER = b"number of commits"


class Load:
    """Changes of one tree, and what its files hold after each commit."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.files: dict[bytes, bytes] = {}
        self.commits = 0

    def go_on(self, grove: Grove | None) -> None:
        """Do what comes before the next commit: to the files alone if there is no *grove*."""
        noise = self._random
        for _ in range(noise.randrange(1, 12)):
            name = b"d%d/f%d" % (noise.randrange(4), noise.randrange(9))
            if noise.random() < 0.25 and name in self.files:
                del self.files[name]
                if grove is not None:
                    tree = grove.current
                    above, _, last = name.partition(b"/")
                    tree.reap(tree.unlink(tree.resolve(above), last, grove.now_ns))
            else:
                self._write(grove, name, noise.randbytes(noise.choice([10, 700, 30_000])))
        self.commits += 1
        self._write(grove, COUNTER, b"%d" % self.commits)
        kind = noise.random()
        if grove is not None and kind < 0.3:
            grove.seal(f"{self.commits}.0.0")
        if grove is not None and kind > 0.8:
            gc.collect_now(grove.store)

    def _write(self, grove: Grove | None, name: bytes, payload: bytes) -> None:
        self.files[name] = payload
        if grove is not None:
            grove.put(name, payload)


def files_of(grove: Grove) -> dict[bytes, bytes]:
    """Return what the files of current hold."""
    tree = grove.current
    return {
        entry.path: tree.read(entry.ino, 0, entry.inode.size)
        for entry in tree.walk()
        if stat.S_ISREG(entry.inode.mode)
    }


def work_until_killed(path: Path, seed: int) -> None:
    """Change and commit for ever."""
    grove, load = Grove.opened(path, OPTIONS), Load(seed)
    while True:
        load.go_on(grove)
        grove.store.commit()
        os.write(1, b"%d\n" % load.commits)


def collect_until_killed(path: Path, step: int) -> None:
    """Run gc in its smallest steps, be killed at the one numbered *step*, or tell how many."""
    gc.STEP = 1
    grove = Grove.opened(path, OPTIONS)
    count = 0
    for count, found in enumerate(gc.collect(grove.store), 1):
        if count - 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(found, gc.CommitWanted):
            grove.store.commit()
    os.write(1, b"%d\n" % count)
    grove.store.close()


if __name__ == "__main__":
    what = {"work": work_until_killed, "collect": collect_until_killed}[sys.argv[1]]
    what(Path(sys.argv[2]), int(sys.argv[3]))

"""How long a program waits when a server is killed, and when it is restarted.

A program asks the mount for something that no cache can answer, again and again, and
tells the longest wait around each death. Beside it: how long a server takes that is
started from nothing, which is what a kill costs at least.
Usage: python -m tools.bench.takeover [ROUNDS [FILES]]
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kaifs.control.info import read_info
from kaifs.daemon import lifecycle
from kaifs.linux.processes import is_running, send_signal
from kaifs.store.store import Store

ROUNDS = 20
FILES = 1000
REST_S = 0.5
"""Between two deaths."""

ASKER = """
import os, sys, time
longest, before = 0.0, time.perf_counter()
os.set_blocking(0, False)
while True:
    os.statvfs(sys.argv[1])
    now = time.perf_counter()
    longest, before = max(longest, now - before), now
    try:
        if os.read(0, 1):
            print(longest, flush=True)
            longest = 0.0
        else:
            break
    except BlockingIOError:
        pass
"""


class Bench:
    """A mount, and a program that asks it all the time."""

    def __init__(self, folder: Path, files: int) -> None:
        self.store, self.mountpoint = folder / "store", folder / "mnt"
        self.mountpoint.mkdir()
        Store.create(self.store).close()
        lifecycle.mount(self.store, self.mountpoint, ["transport=kernel"])
        current = self.mountpoint / "agent" / "current"
        current.parent.mkdir()
        for number in range(files):
            if number % 500 == 0:
                (current / f"d{number // 500}").mkdir()
            (current / f"d{number // 500}" / f"f{number}").write_bytes(b"x" * 3000)
        self.asker = subprocess.Popen(
            [sys.executable, "-c", ASKER, str(self.mountpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def longest_ms(self) -> float:
        """Return the longest wait since the last call."""
        assert self.asker.stdin is not None
        assert self.asker.stdout is not None
        self.asker.stdin.write(b"?")
        self.asker.stdin.flush()
        return float(self.asker.stdout.readline()) * 1000

    def kill(self) -> None:
        """Kill the server, and return when another one has taken over."""
        before = read_info(self.store)
        assert before is not None
        send_signal(before.process, signal.SIGKILL)
        while (info := read_info(self.store)) is None or not (
            info.pid != before.pid and is_running(info.process)
        ):
            time.sleep(0.01)

    def restart(self) -> None:
        """Let another server take over."""
        lifecycle.restart(self.mountpoint)

    def close(self) -> None:
        """Unmount."""
        assert self.asker.stdin is not None
        self.asker.stdin.close()
        assert self.asker.wait() == 0, "the asker has seen an error"
        assert self.asker.stdout is not None
        self.asker.stdout.close()
        lifecycle.umount(self.mountpoint)


def _waits_ms(bench: Bench, end: Callable[[], None], rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        time.sleep(REST_S)
        bench.longest_ms()
        end()
        time.sleep(REST_S)
        found.append(bench.longest_ms())
    return found


def _import_ms(rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import kaifs.daemon.app"], check=True)
        found.append((time.perf_counter() - begun) * 1000)
    return found


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    files = int(sys.argv[2]) if len(sys.argv) > 2 else FILES
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), files)
        try:
            results = {
                "idle": _waits_ms(bench, lambda: None, rounds),
                "killed": _waits_ms(bench, bench.kill, rounds),
                "restarted": _waits_ms(bench, bench.restart, rounds),
                "Python loads the server's code": _import_ms(rounds),
            }
            print(f"{'ms':32}{'median':>10}{'least':>10}{'most':>10}")
            for label, found in results.items():
                middle = statistics.median(found)
                print(f"{label:32}{middle:10.1f}{min(found):10.1f}{max(found):10.1f}")
            print(json.dumps({"files": files, "cores": os.cpu_count(), "ms": results}), flush=True)
        finally:
            bench.close()


if __name__ == "__main__":
    main()

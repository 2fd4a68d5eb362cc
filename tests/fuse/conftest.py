"""A store that is really mounted, by a server process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.views.conftest import site as site  # the same store, for tests without a mount

ROOT = Path(__file__).parents[2]


class MountedStore:
    """A mounted store with the agent `bot`, and a line to its server."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.store = folder / "store"
        self.mountpoint = folder / "mnt"
        self.log = folder / "server.log"
        self.mountpoint.mkdir(exist_ok=True)
        self.store.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    ROOT / "tests/fuse/server.py",
                    self.store,
                    self.mountpoint,
                    json.dumps({"agents": ["bot"]} | options),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        self._answer()

    @property
    def is_running(self) -> bool:
        """Whether the server has not ended."""
        return self._process.poll() is None

    @property
    def current(self) -> Path:
        """The writable view of the agent."""
        return self.mountpoint / "bot/current"

    def ask(self, command: str, *arguments: str) -> Any:
        """Order the server about; return its answer when the kernel knows of it too."""
        self.send(command, *arguments)
        return self.answered()

    def send(self, command: str, *arguments: str) -> None:
        """Order the server about without waiting; `answered` does."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        self._process.stdin.flush()

    def answered(self) -> Any:
        """Return the answer to what was sent."""
        answer = self._answer()
        assert not isinstance(answer, dict), answer
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal."""
        self._process.send_signal(number)

    def ask_until(self, expected: object, command: str, *arguments: str) -> None:
        """Ask again until the answer is *expected*: FORGETs come when the kernel likes.

        Raises:
            AssertionError: it never is.
        """
        until = time.monotonic() + 5
        while (answer := self.ask(command, *arguments)) != expected:
            assert time.monotonic() < until, f"{command}: {answer}, not {expected}"

    def counts(self) -> Counter[str]:
        """Return how many requests of each opcode came so far. Kernel transport only."""
        return Counter(dict(self.ask("counts")))

    def seal(self, label: str) -> Path:
        """Seal what is written, and return the version's folder."""
        self.flush()
        self.ask("seal", "bot", label)
        return self.mountpoint / "bot/@versions" / label

    def flush(self) -> None:
        """Send dirty pages: a poor man's barrier, good for a handful of pages."""
        subprocess.run(["sync", "--file-system", self.mountpoint], check=True)

    def end(self) -> None:
        """Unmount, and wait for the server to end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            subprocess.run(["umount", "--lazy", "--force", self.mountpoint], check=False)
            self._process.kill()
            status = self._process.wait()
        self._process.stdout.close()
        assert status == 0, self.log.read_text()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)


@pytest.fixture(scope="module", params=["pyfuse3", "kernel", "kernel-7.31"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both transports pass the same tests, also where the kernel speaks the oldest protocol."""
    name: str = request.param
    return name


@pytest.fixture
def mount_store(tmp_path: Path, transport: str) -> Iterator[Callable[..., MountedStore]]:
    """Mount the test's store, with options; mounted again, it is the same store."""
    mounted: list[MountedStore] = []

    def mount(**options: Any) -> MountedStore:
        mounted.append(MountedStore(tmp_path, {"transport": transport} | options))
        return mounted[-1]

    yield mount
    for one in mounted:
        if one.is_running:
            one.end()


@pytest.fixture
def mounted(mount_store: Callable[..., MountedStore]) -> MountedStore:
    """The test's store, mounted."""
    return mount_store()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[MountedStore]:
    """One mount for all tests of a module that only need a place to work in."""
    one = MountedStore(tmp_path_factory.mktemp("shared"), {"transport": transport})
    yield one
    one.end()


@pytest.fixture
def folder(shared: MountedStore, request: pytest.FixtureRequest) -> Path:
    """A new folder in the shared mount's `current`."""
    place: Path = shared.current / request.node.name[:200].replace("/", "_")
    place.mkdir()
    return place

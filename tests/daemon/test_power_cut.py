"""The power fails under a mounted store: what was fsynced is there, nothing needs repair.

The store is on an ext4 of its own, in an image file on another ext4. Freezing the outer one
(FIFREEZE) holds every write to the image back, so that a copy of it is what the disk has at
one moment: what only the page cache had is not in it. The copy is mounted, ext4 recovers
it, and the store must open, be clean, and hold what the load was promised.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kaifs.linux.mounts import find_mount
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from tests.daemon.site import Site
from tests.daemon.test_crash import WRITER

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_CRASH_ROUNDS", "3"))
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""Source: linux/fs.h."""
MIB = 1 << 20


@contextmanager
def disk(image: Path, mountpoint: Path, size: int | None = None) -> Iterator[Path]:
    """Mount the ext4 in *image*, made anew with *size* bytes if that is given."""
    if size is not None:
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mountpoint.mkdir()
    subprocess.run(["mount", "-o", "loop", image, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "--lazy", mountpoint], check=True)
        mountpoint.rmdir()


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Hold back every write to the file system of *folder*."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)


class Load:
    """A program that writes, fsyncs, and tells what it was promised."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.promised: dict[str, bytes] = {}
        arguments = [sys.executable, "-c", WRITER, str(folder), str(seed)]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._rest = b""

    def go_on(self, lines: int) -> None:
        """Return when it has told so much more."""
        while lines > 0:
            lines -= self._take(os.read(self._output.fileno(), 1 << 16))

    def _take(self, payload: bytes) -> int:
        assert payload, "the load has ended"
        *whole, self._rest = (self._rest + payload).split(b"\n")
        for line in whole:
            match line.decode().split():
                case ["begin", name]:
                    self.promised.pop(name, None)
                case ["done", name, content]:
                    self.promised[name] = bytes.fromhex(content)
        return len(whole)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold it, with everything told that it has done."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        while select.select([self._output], [], [], 0)[0]:
            self._take(os.read(self._output.fileno(), 1 << 16))
        yield
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._output.close()


@pytest.mark.parametrize(("transport", "commit"), [("pyfuse3", 1), ("kernel", 300)])
def test_what_was_fsynced_survives_a_loss_of_power(
    tmp_path: Path, transport: str, commit: int
) -> None:
    """Whether an epoch has it by then or the journal alone."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with (
        disk(tmp_path / "outer.img", tmp_path / "outer", 400 * MIB) as outer,
        disk(outer / "inner.img", tmp_path / "inner", 160 * MIB) as inner,
    ):
        site = Site(inner / "store", mountpoint)
        Store.create(site.store).close()
        site.mount(f"transport={transport}", f"commit={commit}")
        try:
            (mountpoint / "agent").mkdir()
            for number in range(ROUNDS):
                folder = site.current / f"round{number}"
                load = Load(folder, number)
                try:
                    load.go_on(30 + 7 * number)
                    with load.stopped(), frozen(outer):
                        copy = tmp_path / "copy.img"
                        subprocess.run(
                            ["cp", "--sparse=always", outer / "inner.img", copy], check=True
                        )
                finally:
                    load.end()
                assert load.promised, "a round that was promised nothing proves nothing"

                with disk(copy, tmp_path / "after") as after:
                    found = _files(after / "store", folder.name)

                assert {name: found.get(name) for name in load.promised} == load.promised
                copy.unlink()
        finally:
            site.clear()
    assert find_mount(mountpoint) is None


def _files(store_path: Path, folder: str) -> dict[str, bytes]:
    """Check the store and return what the files in a folder of current hold."""
    store = Store.open(store_path)
    try:
        assert check(store) == []
        forest = Forest(store)
        forest.recover()
        assert check(store) == []
        tree = forest.tree(store.get_agent("agent").head)
        files = {}
        for entry in tree.entries(tree.resolve(folder.encode())):
            size = tree.inode(entry.ino).size
            files[os.fsdecode(entry.name)] = tree.read(entry.ino, 0, size)
        return files
    finally:
        store.close(commit=False)

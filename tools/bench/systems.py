"""The file systems that are measured: each is a folder to work in, set up and taken down.

All of them keep their bytes on the same ext4: layers, images and stores are folders or
files beside each other. What cannot be set up here is told with the reason, and left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kaifs.base.errors import KaifsError
from kaifs.control.info import read_info
from kaifs.daemon import lifecycle
from kaifs.linux.mounts import mounts
from kaifs.store.store import Store
from kaifs.tree.forest import Forest

AGENT = "bench"
IMAGE_SIZE = 8 << 30
"""Bytes of the sparse image that btrfs is made in."""
START_S = 10.0
VIEW = f"agent={AGENT},view=current"

BASE = "ext4"
MAIN = "kaifs"
"""The column that the bars are about: the kernel transport, a mount of one writable view."""
TREE = "kaifs-tree"
UNPOLLED = "kaifs-unpolled"
PYFUSE3 = "kaifs-pyfuse3"
OVERLAY = "fuse-overlayfs"
PASSTHROUGH = "passthrough_hp"


class UnavailableError(Exception):
    """A system cannot be set up on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the servers of a file system have used so far."""

    cpu_ns: int = 0
    wakeups: int = 0
    """Times that a thread of theirs went to sleep, to be woken again."""

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu_ns - other.cpu_ns, self.wakeups - other.wakeups)


@dataclass
class System:
    """A file system that is there."""

    name: str
    top: Path
    """An empty folder in it, to work in."""
    pids: Callable[[], Sequence[int]] = field(default=lambda: ())
    """Of the processes that serve it; none for what is in the kernel."""
    store: Path | None = None

    @property
    def is_fuse(self) -> bool:
        """Whether a process serves it."""
        return bool(self.pids())

    @property
    def minor(self) -> int:
        """Of its device number: names its connection to the kernel."""
        return os.minor(self.top.stat().st_dev)

    def usage(self) -> Usage:
        """Return what its servers have used, by all their threads that live."""
        cpu_ns = wakeups = 0
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                try:
                    cpu_ns += int((task / "schedstat").read_text().split()[0])
                    status = (task / "status").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                wakeups += int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
        return Usage(cpu_ns, wakeups)


Setup = Callable[[Path], AbstractContextManager[System]]


def require(*programs: str) -> None:
    """Find the programs.

    Raises:
        UnavailableError: one is not there.
    """
    for program in programs:
        if shutil.which(program) is None:
            raise UnavailableError(f"{program} is not installed")


def command(*words: str | Path) -> None:
    """Run a command.

    Raises:
        UnavailableError: it fails.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(f"{words[0]}: {said[-1] if said else done.returncode}")


def detach(mountpoint: Path) -> None:
    """Unmount, and if that is refused, let the kernel do it when it can."""
    if subprocess.run(["umount", mountpoint], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "--lazy", mountpoint], check=False)


@contextmanager
def ext4(place: Path) -> Iterator[System]:
    """A plain folder."""
    entry = max(
        (entry for entry in mounts() if place.is_relative_to(entry.mountpoint)),
        key=lambda entry: len(str(entry.mountpoint)),
    )
    if entry.fstype != "ext4":
        raise UnavailableError(f"{place} is on {entry.fstype}; give --folder one on ext4")
    yield System(BASE, place)


def layers(place: Path) -> str:
    """Make the folders of an overlay, empty, and return them as mount options."""
    for name in ("lower", "upper", "work", "mnt"):
        (place / name).mkdir()
    return f"lowerdir={place / 'lower'},upperdir={place / 'upper'},workdir={place / 'work'}"


@contextmanager
def overlayfs(place: Path) -> Iterator[System]:
    """The kernel's overlay, with nothing below."""
    command("mount", "-t", "overlay", "overlay", "-o", layers(place), place / "mnt")
    try:
        yield System("overlayfs", place / "mnt")
    finally:
        detach(place / "mnt")


@contextmanager
def server(words: Sequence[str | Path], mountpoint: Path) -> Iterator[int]:
    """Run a FUSE server in the foreground while its mount is there; yield its process id."""
    device = mountpoint.stat().st_dev
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C is for the benchmark, which unmounts.
        process_group=0,
    )
    try:
        wait_until(lambda: mountpoint.stat().st_dev != device, process, str(words[0]))
        yield process.pid
    finally:
        detach(mountpoint)
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(is_there: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    """Wait for a mount.

    Raises:
        UnavailableError: the process ends, or it takes too long.
    """
    left = START_S
    while not is_there():
        try:
            status = process.wait(0.02)
        except subprocess.TimeoutExpired:
            left -= 0.02
            if left < 0:
                raise UnavailableError(f"{what} does not mount") from None
        else:
            raise UnavailableError(f"{what} ended with status {status}")


@contextmanager
def fuse_overlayfs(place: Path) -> Iterator[System]:
    """The overlay of rootless containers, with nothing below."""
    require("fuse-overlayfs")
    options = layers(place)
    with server(["fuse-overlayfs", "-f", "-o", options, place / "mnt"], place / "mnt") as pid:
        yield System(OVERLAY, place / "mnt", lambda: (pid,))


@contextmanager
def btrfs(place: Path) -> Iterator[System]:
    """A btrfs in a file, on a loop device."""
    require("mkfs.btrfs", "losetup")
    image, mountpoint = place / "image", place / "mnt"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    command("mkfs.btrfs", "--quiet", image)
    command("mount", "-t", "btrfs", "-o", "loop", image, mountpoint)
    try:
        yield System("btrfs", mountpoint)
    finally:
        detach(mountpoint)


def passthrough_hp(program: Path | None) -> Setup:
    """The example in C of libfuse: every request becomes the same on the folder below."""

    @contextmanager
    def run(place: Path) -> Iterator[System]:
        if program is None:
            raise UnavailableError("not built: scripts/bench needs g++ and Debian's fuse3 source")
        source, mountpoint = place / "source", place / "mnt"
        source.mkdir()
        mountpoint.mkdir()
        with server([program, "--foreground", source, mountpoint], mountpoint) as pid:
            yield System(PASSTHROUGH, mountpoint, lambda: (pid,))

    return run


def kaifs(name: str, options: str) -> Setup:
    """A new store with one agent, mounted with *options*."""

    @contextmanager
    def run(place: Path) -> Iterator[System]:
        store, mountpoint = place / "store", place / "mnt"
        mountpoint.mkdir()
        make_store(store)
        with mounted(store, mountpoint, options):
            current = mountpoint if "view=" in options else mountpoint / AGENT / "current"
            yield System(name, current, lambda: server_of(store), store)

    return run


def make_store(store: Path) -> None:
    """Make a store with an agent whose current is empty."""
    opened = Store.create(store)
    opened.add_agent(AGENT, os.geteuid(), os.getegid(), Forest(opened).new_tree(0o755, 0, 0).root)
    opened.close()


@contextmanager
def mounted(store: Path, mountpoint: Path, options: str) -> Iterator[None]:
    """Have a store mounted."""
    lifecycle.mount(store, mountpoint, [options])
    try:
        yield
    finally:
        try:
            lifecycle.umount(mountpoint)
        except KaifsError:
            lifecycle.umount(mountpoint, lazy=True)
            raise


def server_of(store: Path) -> tuple[int, ...]:
    """Return the process that serves a store's mount."""
    info = read_info(store)
    return () if info is None else (info.pid,)


def all_systems(passthrough: Path | None) -> dict[str, Setup]:
    """Return how each system is set up, in the order of the tables."""
    return {
        BASE: ext4,
        "overlayfs": overlayfs,
        "btrfs": btrfs,
        OVERLAY: fuse_overlayfs,
        PASSTHROUGH: passthrough_hp(passthrough),
        MAIN: kaifs(MAIN, f"transport=kernel,{VIEW}"),
        UNPOLLED: kaifs(UNPOLLED, f"transport=kernel,{VIEW},busypoll=0,latency=off"),
        TREE: kaifs(TREE, "transport=kernel"),
        PYFUSE3: kaifs(PYFUSE3, f"transport=pyfuse3,{VIEW}"),
    }


TITLES = {
    BASE: "ext4, a plain folder",
    "overlayfs": "overlayfs, empty lower layer",
    "btrfs": "btrfs on a loop device",
    OVERLAY: "fuse-overlayfs, empty lower layer",
    PASSTHROUGH: "passthrough_hp of libfuse",
    MAIN: "kaifs, kernel transport, a mount of one writable view",
    UNPOLLED: "the same with busypoll=0,latency=off",
    TREE: "kaifs, kernel transport, the whole tree",
    PYFUSE3: "kaifs, pyfuse3 transport, one writable view",
}


def set_up(
    base: Path, wanted: dict[str, Setup], stack: ExitStack
) -> tuple[dict[str, System], dict[str, str]]:
    """Set systems up below *base*; return those that are there, and why the others are not."""
    systems, unavailable = {}, {}
    for name, setup in wanted.items():
        place = base / name
        place.mkdir()
        try:
            systems[name] = stack.enter_context(setup(place))
        except (UnavailableError, KaifsError, OSError) as error:
            unavailable[name] = str(error) or type(error).__name__
    return systems, unavailable

"""Single system calls, on small files and on a large one.

To measure kaifs beside two peers only, as one does while making a path shorter:
`python -m tools.bench --only micro --systems ext4,fuse-overlayfs,kaifs`,
where `--turns N` sets how many turns each has, and `--only micro,cold,bulk` adds the rest.
It prints µs, the ratio to the first system, the server's CPU µs and wake-ups, and
the messages of each row.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tools.bench.run import Scale, Stopwatch, drop_caches

SIZE = 4096
MIB = 1 << 20
WRITES = 16
"""4 KiB writes to one open file."""
ROUNDS = 5
"""Times that what is warm is asked again; each is a measurement."""
SYNCS = 10
ONE_MESSAGE = "statvfs: one message"
"""Nothing caches the answer, and there is hardly anything to do for it."""
RANDOM = 2000
"""Reads and writes at random places, warm; a quarter of it cold."""


def payloads(count: int) -> list[bytes]:
    """Return different bytes for each file, never seen before: kaifs stores same bytes once."""
    pool = os.urandom(count * SIZE)
    return [pool[start : start + SIZE] for start in range(0, len(pool), SIZE)]


def calls(watch: Stopwatch, scale: Scale) -> None:
    """Everything that is done with a few hundred small files in one folder."""
    folder = watch.system.top / "calls"
    # What a turn that failed has left.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    count = scale.files
    paths = [f"{folder}/f{number}" for number in range(count)]
    absent = [f"{folder}/absent{number}" for number in range(count)]

    new = payloads(count)
    with watch("create + 4 KiB + close", count):
        for path, payload in zip(paths, new, strict=True):
            create(path, payload)
    each(watch, "stat, first after a write", paths, os.stat)
    again(watch, "stat, warm", paths, os.stat)
    each(watch, "negative lookup, first", absent, os.path.lexists)
    again(watch, "negative lookup, warm", absent, os.path.lexists)
    each(watch, ONE_MESSAGE, [str(folder)] * count, os.statvfs)
    scan(folder)
    for _ in range(ROUNDS):
        with watch("scandir + stat, warm", count):
            scan(folder)
    touch(paths[0])
    again(watch, "open + close, warm", paths, touch)
    each(watch, "open + read 4 KiB + close, first", paths, read)
    again(watch, "open + read 4 KiB + close, warm", paths, read)
    writes(watch, paths[: max(1, count // WRITES)])
    each(watch, "rename", paths, lambda path: os.rename(path, path + "-"))
    each(watch, "mkdir", paths, os.mkdir)
    each(watch, "rmdir", paths, os.rmdir)
    paths = [path + "-" for path in paths]
    syncs(watch, paths[:SYNCS])
    each(watch, "unlink", paths, os.unlink)
    folder.rmdir()


def cold(watch: Stopwatch, scale: Scale) -> None:
    """What is asked first after the kernel's caches were dropped."""
    folder = watch.system.top / "cold"
    paths = [f"{folder}/f{number}" for number in range(scale.files)]
    if not folder.exists():
        folder.mkdir()
        for path, payload in zip(paths, payloads(len(paths)), strict=True):
            create(path, payload)
    drop_caches()
    half = len(paths) // 2
    each(watch, "stat, cold", paths[:half], os.stat)
    each(watch, "open + read 4 KiB + close, cold", paths[half:], read)


_noise: tuple[int, bytes] = (-1, b"")


def noise(turn: int, size: int) -> memoryview:
    """Return bytes that are new in each turn and the same for all systems."""
    global _noise
    if _noise[0] != turn or len(_noise[1]) != size:
        _noise = turn, os.urandom(size)
    return memoryview(_noise[1])


def bulk(watch: Stopwatch, scale: Scale) -> None:
    """One large file, from end to end and at random places."""
    path = watch.system.top / "large"
    size = scale.bulk_mib * MIB
    content = noise(watch.turn, size)
    # As many places in each turn, and the same for all.
    chance = random.Random(watch.turn)  # noqa: S311 - no secret
    places = [chance.randrange(size // SIZE) * SIZE for _ in range(RANDOM)]
    name = f"{scale.bulk_mib} MiB"

    with watch(f"sequential write, {name}, then fsync"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        for start in range(0, size, MIB):
            os.write(fd, content[start : start + MIB])
        os.fsync(fd)
    os.close(fd)
    drain(path)
    for _ in range(ROUNDS):
        with watch(f"sequential read, {name}, warm"):
            drain(path)
    fd = os.open(path, os.O_RDWR)
    with watch("random read 4 KiB, warm", RANDOM):
        for place in places:
            os.pread(fd, SIZE, place)
    with watch("random write 4 KiB, then fsync", RANDOM):
        for number, place in enumerate(places):
            os.pwrite(fd, content[number * 512 : number * 512 + SIZE], place)
        os.fsync(fd)
    os.close(fd)
    drop_caches()
    with watch(f"sequential read, {name}, cold"):
        drain(path)
    drop_caches()
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    with watch("random read 4 KiB, cold", RANDOM // 4):
        for place in places[: RANDOM // 4]:
            os.pread(fd, SIZE, place)
    os.close(fd)
    path.unlink()


def each(watch: Stopwatch, row: str, paths: list[str], action: Callable[[str], object]) -> None:
    """Do *action* with each path."""
    with watch(row, len(paths)):
        for path in paths:
            action(path)


def again(watch: Stopwatch, row: str, paths: list[str], action: Callable[[str], object]) -> None:
    """Do *action* with each path often, after it was done once."""
    for path in paths:
        action(path)
    for _ in range(ROUNDS):
        each(watch, row, paths, action)


def create(path: str, payload: bytes) -> None:
    """Make a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, payload)
    os.close(fd)


def read(path: str) -> None:
    """Read the first 4 KiB of a file."""
    fd = os.open(path, os.O_RDONLY)
    os.pread(fd, SIZE, 0)
    os.close(fd)


def touch(path: str) -> None:
    """Open and close."""
    os.close(os.open(path, os.O_RDONLY))


def scan(folder: Path) -> None:
    """List a folder and ask for each file's attributes."""
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat()


def writes(watch: Stopwatch, paths: list[str]) -> None:
    """Write into the kernel's cache, without open and close."""
    fds = [os.open(path, os.O_WRONLY) for path in paths]
    new = payloads(WRITES)
    # The first write to a file asks for its capabilities.
    for fd in fds:
        os.pwrite(fd, new[0], 0)
    with watch("4 KiB write(2), buffered", len(fds) * WRITES):
        for fd in fds:
            for number, payload in enumerate(new):
                os.pwrite(fd, payload, number * SIZE)
    for fd in fds:
        os.close(fd)


def syncs(watch: Stopwatch, paths: list[str]) -> None:
    """Write, and wait for the disk."""
    fds = [os.open(path, os.O_WRONLY) for path in paths]
    new = payloads(len(fds))
    with watch("4 KiB write + fsync", len(fds)):
        for fd, payload in zip(fds, new, strict=True):
            os.pwrite(fd, payload, 0)
            os.fsync(fd)
    for fd in fds:
        os.close(fd)


def drain(path: Path) -> None:
    """Read a file from end to end."""
    fd = os.open(path, os.O_RDONLY)
    buffer = bytearray(MIB)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)

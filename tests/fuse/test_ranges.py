"""Ranges of files: holes, allocation, copies that share blocks, files without names."""

import errno
import fcntl
import mmap
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.abilities import can
from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_INSERT_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    FICLONE,
    RENAME_WHITEOUT,
    as_stranger,
    birth_ns,
    fallocate,
    give_name,
    renameat2,
)

pytestmark = pytest.mark.fuse

MIB = 1 << 20


def segments(fd: int) -> list[tuple[int, int]]:
    """Return the runs of data of a file, as lseek(2) tells them."""
    found = []
    size = os.fstat(fd).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, position))
    return found


# --- holes -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["open", "mapped", "closed", "synced"])
def test_holes_are_told_also_of_what_the_kernel_has_not_sent(
    transport: str, folder: Path, state: str
) -> None:
    """The kernel asks for holes without writing back: data would be lost by who trusts that."""
    path = folder / "sparse"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    if state == "mapped":
        os.ftruncate(fd, 4 * MIB)
        with mmap.mmap(fd, 4 * MIB) as mapping:
            mapping[MIB : MIB + 5] = b"data!"
            mapping[3 * MIB] = 1
            found = segments(fd)
    else:
        os.pwrite(fd, b"data!", MIB)
        os.pwrite(fd, b"x", 4 * MIB - 1)
        if state == "synced":
            os.fsync(fd)
        if state == "closed":
            os.close(fd)
            fd = os.open(path, os.O_RDONLY)
        found = segments(fd)

    size = os.fstat(fd).st_size
    assert size == 4 * MIB
    if can(transport, "holes are told"):
        assert len(found) == 2
        assert found[0][0] <= MIB < MIB + 5 <= found[0][1] <= 2 * MIB
    else:
        assert found == [(0, size)]
    assert os.pread(fd, 5, MIB) == b"data!"
    os.close(fd)


@pytest.fixture
def unasked(tmp_path: Path) -> Iterator[MountedStore]:
    """A mount on which files are opened without a message: any may have been written."""
    mounted = MountedStore(tmp_path, {"transport": "kernel", "agent": "bot", "view": "current"})
    yield mounted
    mounted.end()


def test_who_asks_for_holes_keeps_the_pages(unasked: MountedStore) -> None:
    path = unasked.mountpoint / "file"
    path.write_bytes(b"x" * 100_001)
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 200_000)
    before = unasked.counts()

    assert os.lseek(fd, 5, os.SEEK_DATA) == 5
    assert os.lseek(fd, 5, os.SEEK_HOLE) == 100_001
    os.pread(fd, 200_000, 0)

    spent = unasked.counts() - before
    assert spent["LSEEK"] == 2
    assert spent["READ"] == 0
    os.close(fd)


def test_what_the_kernel_has_behind_the_end_is_no_hole(unasked: MountedStore) -> None:
    path = unasked.mountpoint / "file"
    path.write_bytes(b"x" * 5000)
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 0, os.SEEK_END)
    for _ in range(3):
        os.write(fd, b"y" * 3000)
        size = os.fstat(fd).st_size
        assert os.lseek(fd, 0, os.SEEK_HOLE) == size

        os.lseek(fd, 0, os.SEEK_END)
    # Behind a gap, of which the kernel has nothing.
    os.pwrite(fd, b"z", 4 * MIB)
    assert 14_000 <= os.lseek(fd, 0, os.SEEK_HOLE) <= 16_384
    assert os.lseek(fd, MIB, os.SEEK_DATA) == 4 * MIB
    os.close(fd)


@pytest.mark.parametrize("seed", range(10))
def test_no_byte_lies_in_a_hole(unasked: MountedStore, seed: int) -> None:
    """Whatever of it the kernel has sent, keeps, or has mapped."""
    chance = random.Random(seed)
    path, limit, model = unasked.mountpoint / "file", MIB // 2, bytearray()
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(60):
        start = chance.randrange(limit)
        stop = min(start + chance.choice((1, 100, 5000, 70_000)), limit)
        length = stop - start
        match chance.choice(("write", "write", "map", "punch", "cut", "read", "reopen", "sync")):
            case "write":
                model.extend(bytes(max(0, stop - len(model))))
                model[start:stop] = b"w" * length
                os.pwrite(fd, b"w" * length, start)
            case "map" if stop <= len(model):
                model[start:stop] = b"m" * length
                with mmap.mmap(fd, len(model)) as mapping:
                    mapping[start:stop] = b"m" * length
            case "punch" if stop <= len(model):
                model[start:stop] = bytes(length)
                fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, length)
            case "cut":
                del model[start:]
                model.extend(bytes(start - len(model)))
                os.ftruncate(fd, start)
            case "read":
                assert os.pread(fd, length, start) == model[start:stop]
            case "reopen":
                os.close(fd)
                fd = os.open(path, os.O_RDWR)
            case "sync":
                os.fsync(fd)
        if model:
            # First of all: what is asked for afterwards may have the rest sent.
            hole = os.lseek(fd, chance.randrange(len(model)), os.SEEK_HOLE)
            assert hole == len(model) or not model[hole]
        left = bytearray(model)
        for begin, end in segments(fd):
            left[begin:end] = bytes(end - begin)
        assert not any(left), f"data in a hole at {next(i for i, byte in enumerate(left) if byte)}"
        assert os.fstat(fd).st_size == len(model)
    os.close(fd)
    assert path.read_bytes() == model


def test_seeking_past_the_end_is_refused(folder: Path) -> None:
    (folder / "file").write_bytes(b"12345")
    with (folder / "file").open("rb") as file:
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(OSError, match="No such device") as caught:
                os.lseek(file.fileno(), 5, whence)
            assert caught.value.errno == errno.ENXIO
        assert os.lseek(file.fileno(), 4, os.SEEK_HOLE) == 5
        assert os.lseek(file.fileno(), -2, os.SEEK_END) == 3


def test_holes_of_sealed_files_and_records_are_told(
    transport: str, shared: MountedStore, folder: Path
) -> None:
    with (folder / "sparse").open("wb") as file:
        file.seek(MIB)
        file.write(b"end")
    version = shared.seal(f"3.{os.getpid()}.0")

    for path in (version / folder.name / "sparse", version.parent.parent / "@meta"):
        if path.is_dir():
            path = next(path.iterdir())
        with path.open("rb") as sealed:
            found = segments(sealed.fileno())
            size = os.fstat(sealed.fileno()).st_size
            has_hole = path.name == "sparse" and can(transport, "holes are told")
            assert found == [(MIB if has_hole else 0, size)]


def test_a_sparse_copy_keeps_every_byte(folder: Path) -> None:
    """The program cp looks for holes where st_blocks says that there may be some."""
    payload = b"a" * 5000 + bytes(3 * MIB) + b"b" * 5000
    with (folder / "source").open("wb") as file:
        file.write(payload[:5000])
        file.seek(len(payload) - 5000)
        file.write(payload[-5000:])

        file.flush()
        subprocess.run(["cp", folder / "source", folder / "target"], check=True)

    assert (folder / "target").read_bytes() == payload


# --- allocation ----------------------------------------------------------------------------


def contents_after(path: Path, mode: int, offset: int, length: int) -> tuple[int, bytes, bytes]:
    """Return errno, what a reader sees and what a mapping sees after fallocate(2)."""
    path.write_bytes(b"x" * 10_000)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"dirty", 5000)
    error = 0
    try:
        fallocate(fd, mode, offset, length)
    except OSError as failure:
        error = failure.errno or -1
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping:
        mapped = mapping[:]
    os.close(fd)
    return error, path.read_bytes(), mapped


@pytest.mark.parametrize(
    "mode",
    [
        0,
        FALLOC_KEEP_SIZE,
        FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE,
        FALLOC_ZERO_RANGE,
        FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
    ],
)
@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (4000, 3000), (8000, 9000), (20_000, 1)])
def test_allocation_is_as_on_ext4(
    transport: str, folder: Path, tmp_path: Path, mode: int, offset: int, length: int
) -> None:
    here = contents_after(folder / "file", mode, offset, length)

    if can(transport, "fallocate"):
        assert here == contents_after(tmp_path / "file", mode, offset, length)
    else:
        assert here[0] == errno.EOPNOTSUPP


@pytest.mark.parametrize("mode", [FALLOC_COLLAPSE_RANGE, FALLOC_INSERT_RANGE])
def test_the_kernel_passes_neither_collapse_nor_insert(folder: Path, mode: int) -> None:
    assert contents_after(folder / "file", mode, 0, 4096)[0] == errno.EOPNOTSUPP


def test_a_punched_file_gives_its_blocks_back_and_moves_its_times(
    transport: str, folder: Path
) -> None:
    path = folder / "file"
    path.write_bytes(b"x" * MIB)
    os.utime(path, ns=(1, 1))
    before = path.stat()
    if can(transport, "fallocate"):
        with path.open("r+b") as file:
            fallocate(file.fileno(), FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, MIB // 2)
            after = os.fstat(file.fileno())
            assert segments(file.fileno()) == [(MIB // 2, MIB)]

        assert after.st_blocks == before.st_blocks // 2
        assert after.st_mtime_ns > before.st_mtime_ns
        assert path.stat().st_mtime_ns == after.st_mtime_ns


@pytest.mark.root
def test_allocation_and_copies_by_strangers_take_set_id_bits_away(
    transport: str, folder: Path
) -> None:
    (folder / "source").write_bytes(b"y" * 5000)
    for name in ("allocated", "copied"):
        (folder / name).write_bytes(b"x" * 5000)
        (folder / name).chmod(0o6777)

    def change() -> None:
        with Path("source").open("rb") as source, Path("copied").open("r+b") as target:
            os.copy_file_range(source.fileno(), target.fileno(), 5000)
        if can(transport, "fallocate"):
            with Path("allocated").open("r+b") as file:
                fallocate(file.fileno(), FALLOC_ZERO_RANGE, 0, 100)

    assert as_stranger(folder, change) == 0
    assert stat.S_IMODE((folder / "copied").stat().st_mode) == 0o777
    if can(transport, "fallocate"):
        assert stat.S_IMODE((folder / "allocated").stat().st_mode) == 0o777


# --- copies ----------------------------------------------------------------------------------


def copy(source: Path, target: Path, start: int, offset: int, length: int) -> int:
    with source.open("rb") as reader, target.open("r+b") as writer:
        return os.copy_file_range(reader.fileno(), writer.fileno(), length, start, offset)


@pytest.mark.parametrize(
    ("start", "offset", "length"),
    [
        (0, 0, 100_000),
        (777, 50_001, 40_000),
        (99_000, 10, 5000),
        (100_000, 0, 10),
        (4096, 90_000, 50_000),
    ],
)
def test_a_copied_range_is_as_on_ext4(
    folder: Path, tmp_path: Path, start: int, offset: int, length: int
) -> None:
    """What neither file has sent yet is copied too, and what was cached is not seen again."""
    payload = os.urandom(100_000)
    results = []
    for place in (folder, tmp_path):
        source, target = place / "source", place / "target"
        target.write_bytes(b"-" * 60_000)
        assert target.read_bytes() == b"-" * 60_000
        with source.open("wb", buffering=0) as writer, target.open("r+b", buffering=0) as other:
            writer.write(payload)
            os.pwrite(other.fileno(), b"new", 59_000)
            copied = copy(source, target, start, offset, length)
        results.append((copied, target.read_bytes(), target.stat().st_size))

    assert results[0] == results[1]


def test_a_copy_shares_blocks_also_across_views(
    transport: str, shared: MountedStore, folder: Path
) -> None:
    payload = os.urandom(8 * MIB)
    (folder / "big").write_bytes(payload)
    version = shared.seal(f"2.{os.getpid()}.0")
    before = stored(shared)
    (folder / "copy").touch()

    assert copy(version / folder.name / "big", folder / "copy", 0, 0, len(payload)) == len(payload)

    assert (folder / "copy").read_bytes() == payload
    assert (folder / "copy").stat().st_blocks * 512 >= len(payload)
    if can(transport, "copy by sharing"):
        assert stored(shared) == before


def stored(shared: MountedStore) -> int:
    return sum(file.stat().st_size for file in (shared.store / "segments").iterdir())


def test_a_copy_into_a_sealed_version_is_refused(shared: MountedStore, folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    version = shared.seal(f"4.{os.getpid()}.0")

    with pytest.raises(OSError, match="Read-only"):
        copy(folder / "file", version / folder.name / "file", 0, 0, 1)


def test_a_copied_file_moves_its_times(folder: Path) -> None:
    (folder / "source").write_bytes(b"x" * 5000)
    (folder / "target").touch()
    os.utime(folder / "target", ns=(1, 1))

    copy(folder / "source", folder / "target", 0, 0, 5000)

    after = (folder / "target").stat()
    assert after.st_mtime_ns > 1
    assert after.st_size == 5000


def test_records_are_copied_by_bytes(shared: MountedStore, folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    label = f"5.{os.getpid()}.0"
    record = shared.seal(label).parent.parent / f"@meta/{label}.json"
    (folder / "record").touch()

    copied = copy(record, folder / "record", 0, 0, 1 << 20)

    assert copied == record.stat().st_size
    assert (folder / "record").read_bytes() == record.read_bytes()


def test_cp_reflink_auto_works_and_always_cannot(folder: Path) -> None:
    """FICLONE never reaches a FUSE server: the kernel answers EOPNOTSUPP itself."""
    (folder / "source").write_bytes(b"x" * 100_000)

    subprocess.run(["cp", "--reflink=auto", folder / "source", folder / "target"], check=True)

    assert (folder / "target").read_bytes() == b"x" * 100_000
    with (folder / "source").open("rb") as source, (folder / "clone").open("wb") as target:
        with pytest.raises(OSError, match="not supported") as caught:
            fcntl.ioctl(target, FICLONE, source.fileno())
        assert caught.value.errno == errno.EOPNOTSUPP


# --- names and times ---------------------------------------------------------------------------


def test_a_file_without_a_name_gets_one(transport: str, shared: MountedStore, folder: Path) -> None:
    inodes = shared.ask("inodes", "bot")
    if not can(transport, "nameless files"):
        with pytest.raises(OSError, match="not supported"):
            os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
        return
    before = os.umask(0o027)
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    finally:
        os.umask(before)
    os.write(fd, b"content")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(folder) == []

    give_name(fd, folder / "file")
    os.close(fd)

    status = (folder / "file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o640, 1)
    assert (folder / "file").read_bytes() == b"content"
    assert shared.ask("inodes", "bot") == inodes + 1


def test_a_file_that_never_gets_a_name_goes(
    transport: str, shared: MountedStore, folder: Path
) -> None:
    if not can(transport, "nameless files"):
        return
    inodes = shared.ask("inodes", "bot")
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"x" * 100_000)
    assert os.pread(fd, 3, 5000) == b"xxx"
    excluded = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)

    with pytest.raises(FileNotFoundError):
        give_name(excluded, folder / "file")

    os.close(fd)
    os.close(excluded)
    shared.ask_until(inodes, "inodes", "bot")


def test_birth_times_stay(transport: str, folder: Path) -> None:
    path = folder / "file"
    path.touch()
    born = birth_ns(path)

    os.utime(path, ns=(1, 1))
    path.write_bytes(b"x")
    path.rename(folder / "moved")

    if can(transport, "birth times"):
        assert born is not None
        assert birth_ns(folder / "moved") == born > folder.stat().st_ctime_ns - 10**10
        assert birth_ns(folder.parent.parent) is not None
    else:
        assert born is None


def test_a_rename_can_leave_a_whiteout(folder: Path) -> None:
    (folder / "a").write_bytes(b"x")
    (folder / "b").write_bytes(b"y")

    renameat2(folder / "a", folder / "b", RENAME_WHITEOUT)

    left = (folder / "a").stat()
    assert stat.S_ISCHR(left.st_mode)
    assert left.st_rdev == 0
    assert (folder / "b").read_bytes() == b"x"
    with pytest.raises(FileExistsError):
        renameat2(folder / "b", folder / "a", RENAME_WHITEOUT | 1)

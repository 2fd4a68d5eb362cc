"""The disk under a mounted store is full: errors come where they belong, and there is a way out."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kaifs.base.errors import BarrierError, NoSpaceError
from kaifs.control.client import call
from kaifs.linux.mounts import find_mount
from kaifs.service.discard import Params as DiscardParams
from kaifs.service.gc import Params as GcParams
from kaifs.service.seal import Params as SealParams
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from tests.daemon.site import Site
from tests.store.disks import small_disk

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Site]:
    """A store on a disk of 24 MiB."""
    with small_disk(tmp_path / "disk", "24m") as folder:
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        Store.create(folder / "store").close()
        site = Site(folder / "store", mountpoint)
        yield site
        site.clear()


def fill(folder: Path) -> list[Path]:
    """Write files and fsync each until it is refused; return those that were not."""
    made = []
    for size in (1 << 20, 20_000, 0):
        for number in range(100_000):
            path = folder / f"f{size}-{number}"
            if refusal(path, os.urandom(size)) is not None:
                path.unlink(missing_ok=True)
                break
            made.append(path)
    return made


def refusal(path: Path, content: bytes) -> int | None:
    """Return why a new file cannot be written and fsynced, None if it can."""
    try:
        with path.open("xb", 0) as file:
            file.write(content)
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_on_a_full_disk_one_can_delete_gc_and_unmount(full: Site, transport: str) -> None:
    full.mount(f"transport={transport}", "commit=0.2")
    (full.mountpoint / "agent").mkdir()
    made = fill(full.current)
    assert len(made) > 8
    content = {path: path.read_bytes() for path in made}
    assert refusal(full.current / "more", b"") == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        (full.mountpoint / "second").mkdir()
    with pytest.raises(NoSpaceError):
        call(full.store, "seal", SealParams(agent="agent", label="1.0.0"))
    kept, gone = made[:3], made[3:]
    for path in gone:
        path.unlink()
    call(full.store, "gc", GcParams())

    (full.current / "again").write_bytes(os.urandom(6 << 20))
    with suppress(BarrierError):
        # Once the kernel tells of the writes that were refused, as it told those who wrote.
        call(full.store, "seal", SealParams(agent="agent", label="0.1.0"))
    call(full.store, "seal", SealParams(agent="agent", label="1.0.0"))

    assert {path: path.read_bytes() for path in kept} == {path: content[path] for path in kept}
    full.umount()
    store = Store.open(full.store)
    assert check(store) == []
    head = Forest(store).tree(store.get_agent("agent").head)
    assert head.inode(head.resolve(b"again")).size == 6 << 20
    store.close()


def test_what_is_done_and_cannot_be_written_is_told_as_that(full: Site) -> None:
    """It cannot be undone, for others have seen it: it gets on the disk when there is room."""
    full.mount("commit=3600")
    (full.mountpoint / "agent").mkdir()
    snapshots = full.mountpoint / "agent" / "@snapshots"
    names = [f"s{number}" for number in range(200)]
    for name in names:
        (snapshots / name).mkdir()
    fill(full.current)
    # Also what kaifs keeps for such a day, by somebody else.
    (full.store / "run" / "spare").unlink(missing_ok=True)
    filler = full.store.parent / "filler"
    with filler.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))

    discarded = []
    failure = None
    for name in names:
        discarded.append(name)
        try:
            call(full.store, "discard", DiscardParams(reference=f"agent/@snapshots/{name}"))
        except NoSpaceError as error:
            failure = error
            break

    assert failure is not None
    assert "it is done, and not on the disk yet" in str(failure)
    filler.unlink()
    assert discarded[-1] not in os.listdir(snapshots)
    with suppress(BarrierError):
        # As above.
        full.umount()
    if find_mount(full.mountpoint) is not None:
        full.umount()
    store = Store.open(full.store)
    assert check(store) == []
    left = {one.name for one in store.snapshots(store.get_agent("agent").agent_id)}
    assert left == set(names) - set(discarded)
    store.close()

"""How many messages each system call costs, by opcode, so that one more is noticed.

Only the kernel transport counts. RELEASE and FORGET have nobody who waits for
them, and come when the kernel likes: they are not counted here.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import MountedStore

pytestmark = pytest.mark.fuse

UNWAITED = ("RELEASE", "FORGET", "BATCH_FORGET")


@pytest.fixture(scope="module", params=["one view", "whole tree"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[MountedStore, Path]]:
    """A mount of one writable view, which need not tell of opens, and one of everything."""
    options: dict[str, object] = {"transport": "kernel"}
    if request.param == "one view":
        options |= {"agent": "bot", "view": "current"}
    mounted = MountedStore(tmp_path_factory.mktemp("messages"), options)
    yield mounted, mounted.mountpoint if "view" in options else mounted.current
    mounted.end()


def spent(mounted: MountedStore, action: Callable[[], object]) -> Counter[str]:
    """Return the messages that *action* costs."""
    before = mounted.counts()
    action()
    after = mounted.counts()
    return Counter({name: after[name] - before[name] for name in after if name not in UNWAITED})


def write(path: Path, size: int = 4096) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(bytes(size))


def read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.pread(fd, 4096, 0)
    os.close(fd)


def look(path: Path) -> None:
    read(path)
    os.stat(path)


def test_a_system_call_costs_the_messages_that_the_kernel_needs(
    place: tuple[MountedStore, Path],
) -> None:
    """After a change in a directory the kernel asks for its attributes to walk through it again.

    A first write asks for security.capability. What it gathers of times, under the
    writeback cache, it sends when a file is closed, unlinked or renamed: SETATTR. A write in the
    same tick of the clock in which the file was made changes no time.
    """
    mounted, top = place
    opens = {} if top == mounted.mountpoint else {"OPEN": 1}
    creates = {"MKNOD": 1} if top == mounted.mountpoint else {"CREATE": 1}
    folder = top / "folder"
    folder.mkdir()
    # FLUSH, and in one view OPEN and CREATE, are asked once.
    write(folder / "first")
    read(folder / "first")
    a, b = folder / "a", folder / "b"
    created = {"LOOKUP": 1, **creates, "GETXATTR": 1, "WRITE": 1}

    def spent_on_new(path: Path) -> Counter[str]:
        """Return the cost of create, write 4 KiB, close, whether or not it was within one tick."""
        cost = spent(mounted, lambda: write(path))
        assert cost["SETATTR"] <= 1
        del cost["SETATTR"]
        return cost

    # The read above has asked for the directory's attributes, and not what follows.
    assert spent_on_new(a) == Counter(created)
    assert spent_on_new(folder / "another") == Counter({"GETATTR": 1, **created})
    table: list[tuple[str, Callable[[], object], dict[str, int]]] = [
        ("first stat", lambda: a.stat(), {"GETATTR": 2}),
        ("later stat", lambda: a.stat(), {}),
        ("open, close", lambda: os.close(os.open(a, os.O_RDONLY)), opens),
        ("open, read, close", lambda: read(a), opens),
        ("open, read, close again", lambda: read(a), opens),
        ("utime", lambda: os.utime(a, ns=(1, 1)), {"SETATTR": 1}),
        ("50 writes", lambda: write_often(a), {**opens, "GETXATTR": 1, "WRITE": 1, "SETATTR": 1}),
        ("stat of a name that is not there", lambda: b.exists(), {"LOOKUP": 1}),
        ("the same again", lambda: b.exists(), {}),
        ("rename", lambda: a.rename(b), {"LOOKUP": 1, "RENAME": 1, "SETATTR": 1}),
        ("stat of the new name", lambda: b.stat(), {"GETATTR": 2}),
        ("chmod", lambda: b.chmod(0o600), {"SETATTR": 1}),
        ("truncate", lambda: os.truncate(b, 10), {"SETATTR": 1, "GETXATTR": 1}),
        ("symlink", lambda: a.symlink_to("b"), {"LOOKUP": 1, "SYMLINK": 1}),
        ("readlink", lambda: a.readlink(), {"GETATTR": 1, "READLINK": 1}),
        ("readlink again", lambda: a.readlink(), {}),
        ("mkdir", lambda: (folder / "d").mkdir(), {"LOOKUP": 1, "MKDIR": 1}),
        ("rmdir", lambda: (folder / "d").rmdir(), {"GETATTR": 1, "RMDIR": 1}),
        ("unlink", lambda: b.unlink(), {"GETATTR": 1, "UNLINK": 1, "SETATTR": 1}),
    ]

    for what, action, expected in table:
        assert spent(mounted, action) == Counter(expected), what


def write_often(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    for number in range(50):
        os.pwrite(fd, b"y" * 4096, number * 4096)
    os.close(fd)


def test_a_listing_costs_nothing_once_it_is_known(place: tuple[MountedStore, Path]) -> None:
    mounted, top = place
    folder = top / "listed"
    folder.mkdir()
    # OPENDIR is asked once.
    os.listdir(top)
    for number in range(20):
        write(folder / str(number))

    def scan() -> None:
        assert sum(entry.stat().st_size for entry in os.scandir(folder)) == 20 * 4096

    # The entries, as many as go into the page that older kernels read at a time, and that there are
    # no more. Each brings the attributes that the kernel has dropped.
    assert spent(mounted, scan) == Counter({"GETATTR": 1, "READDIRPLUS": 2})
    # READDIR moves the directory's atime, in the kernel's view.
    assert spent(mounted, scan) == Counter({"GETATTR": 1})
    assert spent(mounted, scan).total() == 0
    assert spent(mounted, lambda: os.listdir(folder)).total() == 0


def test_a_long_listing_asks_for_each_list_once_and_for_labels_hardly(
    place: tuple[MountedStore, Path],
) -> None:
    """What `ls -l` asks of each file: security.selinux, and system.posix_acl_access.

    It asks for the first until it hears that there are none. The second the kernel
    remembers, also that there is none.
    """
    mounted, top = place
    folder = top / "long"
    folder.mkdir()
    for number in range(30):
        write(folder / str(number))
    subprocess.run(["ls", folder], check=True, capture_output=True)
    long = ["ls", "-l", str(folder)]

    first = spent(mounted, lambda: subprocess.run(long, check=True, capture_output=True))
    again = spent(mounted, lambda: subprocess.run(long, check=True, capture_output=True))

    # At most: what `ls` asks of the folder itself, and whether of lists at all, depends on its version.
    assert first["GETXATTR"] <= 30 + 3
    assert again <= Counter({"GETXATTR": 3})


def test_a_read_only_mount_of_everything_needs_no_open(tmp_path: Path) -> None:
    mounted = MountedStore(tmp_path, {"transport": "kernel"})
    write(mounted.current / "file")
    version = mounted.seal("1.0.0").relative_to(mounted.mountpoint)
    mounted.end()
    mounted = MountedStore(tmp_path, {"transport": "kernel", "ro": True})
    try:
        path = mounted.mountpoint / version / "file"
        read(path)
        read(path)

        assert spent(mounted, lambda: read(path)).total() == 0
        # As whoever looks for text or imports modules does: with the writeback cache the kernel
        # would ask after each close.
        look(path)
        assert spent(mounted, lambda: look(path)).total() == 0
        with pytest.raises(OSError, match="Read-only"):
            path.open("r+b")
    finally:
        mounted.end()

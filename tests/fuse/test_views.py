"""Agents, versions and snapshots in the mount."""

import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuse.abilities import can
from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import STRANGER, as_stranger

pytestmark = pytest.mark.fuse

Mount = Callable[..., MountedStore]


def write_tree(folder: Path) -> None:
    (folder / "lib").mkdir()
    (folder / "lib/x.py").write_bytes(b"x = 1\n")
    (folder / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "run").chmod(0o4755)
    (folder / "link").symlink_to("run")
    os.setxattr(folder / "run", "user.note", b"n")


@pytest.fixture
def sealed(mounted: MountedStore) -> Path:
    """A sealed version with a few files."""
    write_tree(mounted.current)
    return mounted.seal("1.0.0")


def test_an_agents_folder(mounted: MountedStore) -> None:
    agent = mounted.mountpoint / "bot"

    assert sorted(os.listdir(agent)) == ["@meta", "@snapshots", "@versions", "current"]
    assert agent.stat().st_nlink == 1
    assert mounted.mountpoint.stat().st_nlink == 1


def test_a_sealed_version_refuses_every_change_even_to_root(sealed: Path) -> None:
    """Open for writing too: a write would land in the page cache, and every reader see it."""
    file = sealed / "lib/x.py"
    changes: list[Callable[[], object]] = [
        lambda: os.open(file, os.O_WRONLY),
        lambda: os.open(file, os.O_RDWR),
        lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        lambda: os.open(sealed / "new", os.O_WRONLY | os.O_CREAT),
        lambda: os.truncate(file, 0),
        lambda: os.unlink(file),
        lambda: os.mkdir(sealed / "dir"),
        lambda: os.rmdir(sealed / "lib"),
        lambda: os.mknod(sealed / "node"),
        lambda: os.symlink("x", sealed / "symlink"),
        lambda: os.link(file, sealed / "hard"),
        lambda: os.rename(file, sealed / "lib/y.py"),
        lambda: os.chmod(file, 0o777),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file),
        lambda: os.utime(sealed, ns=(1, 1)),
        lambda: os.setxattr(file, "user.new", b"x"),
        lambda: os.removexattr(sealed / "run", "user.note"),
    ]

    for change in changes:
        with pytest.raises(OSError, match="Read-only") as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert file.read_bytes() == b"x = 1\n"


def test_a_sealed_file_can_be_mapped_for_reading_only(sealed: Path) -> None:
    fd = os.open(sealed / "lib/x.py", os.O_RDONLY)

    with pytest.raises(PermissionError):
        mmap.mmap(fd, 6, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with mmap.mmap(fd, 6, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        mapping[0:1] = b"y"

    os.close(fd)
    assert (sealed / "lib/x.py").read_bytes() == b"x = 1\n"


@pytest.mark.root
def test_the_owner_of_a_sealed_file_gets_erofs_and_strangers_eacces(mounted: MountedStore) -> None:
    (mounted.current / "own").write_bytes(b"x")
    (mounted.current / "foreign").write_bytes(b"x")
    os.chown(mounted.current / "own", STRANGER, STRANGER)
    version = mounted.seal("1.0.0")

    assert as_stranger(version, lambda: os.open("own", os.O_WRONLY)) == errno.EROFS
    assert as_stranger(version, lambda: os.open("foreign", os.O_WRONLY)) == errno.EACCES
    assert as_stranger(version, lambda: os.unlink("own")) == errno.EACCES


def test_a_version_stays_while_current_goes_on(mounted: MountedStore, sealed: Path) -> None:
    (mounted.current / "lib/x.py").write_bytes(b"x = 2, and longer\n")
    (mounted.current / "lib/new.py").touch()
    (mounted.current / "run").unlink()

    assert (sealed / "lib/x.py").read_bytes() == b"x = 1\n"
    assert os.listdir(sealed / "lib") == ["x.py"]
    assert (sealed / "run").stat().st_mode & 0o7777 == 0o4755


def test_the_folders_of_versions_are_read_only(mounted: MountedStore, sealed: Path) -> None:
    for path in (sealed.parent / "2.0.0", mounted.mountpoint / "bot/@meta/x"):
        with pytest.raises(OSError, match="Read-only"):
            path.touch()
        with pytest.raises(OSError, match="Read-only"):
            path.mkdir()
    with pytest.raises(OSError, match="Read-only"):
        sealed.rmdir()
    with pytest.raises(OSError, match="Read-only"):
        sealed.rename(sealed.parent / "1.1.0")


def test_kaifs_own_folders_cannot_be_changed(mounted: MountedStore) -> None:
    agent = mounted.mountpoint / "bot"
    for change in (
        lambda: (agent / "file").touch(),
        lambda: (agent / "dir").mkdir(),
        lambda: (agent / "current").rmdir(),
        lambda: (agent / "current").rename(agent / "other"),
        lambda: (mounted.mountpoint / "file").touch(),
        lambda: (agent / "@snapshots/file").touch(),
        lambda: agent.chmod(0o777),
        lambda: agent.rename(mounted.mountpoint / "other"),
        lambda: os.setxattr(agent, "user.x", b"x"),
    ):
        with pytest.raises(PermissionError) as caught:
            change()
        assert caught.value.errno == errno.EPERM


def test_records_and_manifests_are_beside_the_versions(mounted: MountedStore, sealed: Path) -> None:
    meta = mounted.mountpoint / "bot/@meta"

    assert sorted(os.listdir(meta)) == ["1.0.0.json", "1.0.0.mtree"]
    assert (meta / "1.0.0.json").read_text() == '{"version":"1.0.0","parent":null}'
    manifest = (meta / "1.0.0.mtree").read_bytes()
    assert len(manifest) == (meta / "1.0.0.mtree").stat().st_size
    digest = subprocess.run(["sha256sum"], input=manifest, capture_output=True, check=True)
    assert os.getxattr(sealed, "user.kaifs.hash") == digest.stdout.split()[0]
    with pytest.raises(OSError, match="Read-only"):
        (meta / "1.0.0.json").write_bytes(b"")


def marks(path: Path) -> dict[str, bytes]:
    found = {}
    for name in ("agent", "version", "parent", "status"):
        with suppress(OSError):
            found[name] = os.getxattr(path, f"user.kaifs.{name}")
    return found


def test_marks_are_answered_but_never_listed_or_set(mounted: MountedStore, sealed: Path) -> None:
    (mounted.mountpoint / "bot/@snapshots/try").mkdir()
    mounted.seal("1.1.0")
    second = sealed.parent / "1.1.0"

    assert marks(sealed) == {"agent": b"bot", "version": b"1.0.0", "status": b"sealed"}
    assert marks(second)["parent"] == b"1.0.0"
    assert marks(mounted.current)["version"] == b"1.1.0"
    snapshot = mounted.mountpoint / "bot/@snapshots/try"
    assert marks(snapshot) == {
        "agent": b"bot",
        "version": b"1.0.0",
        "parent": b"1.0.0",
        "status": b"ready",
    }
    assert os.getxattr(sealed, "user.kaifs.created").endswith(b"Z")
    assert marks(sealed / "lib") == {}
    for path in (sealed, mounted.current, snapshot):
        assert os.listxattr(path) == []
        with pytest.raises(PermissionError):
            os.setxattr(path, "user.kaifs.x", b"x")
        with pytest.raises(PermissionError):
            os.removexattr(path, "user.kaifs.agent")


def test_nothing_moves_or_links_between_views(mounted: MountedStore, sealed: Path) -> None:
    snapshot = mounted.mountpoint / "bot/@snapshots/s"
    snapshot.mkdir()
    (mounted.current / "file").touch()

    for action in (os.rename, os.link):
        with pytest.raises(OSError, match="cross-device") as caught:
            action(mounted.current / "file", snapshot / "file")
        assert caught.value.errno == errno.EXDEV
    with pytest.raises(OSError, match="cross-device"):
        os.rename(snapshot, mounted.current / "s")
    subprocess.run(["mv", mounted.current / "file", snapshot / "file"], check=True)
    assert (snapshot / "file").exists()


def test_inode_numbers_differ_between_views(mounted: MountedStore, sealed: Path) -> None:
    """Else cp says that they are the same file, and du counts only one."""
    snapshot = mounted.mountpoint / "bot/@snapshots/s"
    snapshot.mkdir()
    payload = os.urandom(1 << 20)
    (mounted.current / "big").write_bytes(payload)
    second = mounted.seal("1.1.0")

    numbers = {view.joinpath("run").stat().st_ino for view in (mounted.current, sealed, snapshot)}
    subprocess.run(["cp", second / "big", mounted.current / "big"], check=True)
    usage = subprocess.run(
        ["du", "--summarize", "--apparent-size", "--bytes", mounted.current, second],
        capture_output=True,
        check=True,
        text=True,
    )

    assert len(numbers) == 3
    assert [int(line.split()[0]) > 1 << 20 for line in usage.stdout.splitlines()] == [True, True]


def test_everything_is_the_same_after_a_remount(mount_store: Mount) -> None:
    first = mount_store()
    write_tree(first.current)
    first.seal("1.0.0")
    (first.mountpoint / "bot/@snapshots/s").mkdir()

    def listing() -> list[tuple[str, os.stat_result]]:
        found = []
        for folder, folders, files in os.walk(first.mountpoint):
            folders.sort()
            for name in sorted(folders + files):
                path = os.path.join(folder, name)
                found.append((path, os.lstat(path)))
        return found

    before = [(path, s.st_ino, s.st_mode, s.st_nlink, s.st_mtime_ns) for path, s in listing()]
    first.end()
    mount_store()

    after = [(path, s.st_ino, s.st_mode, s.st_nlink, s.st_mtime_ns) for path, s in listing()]
    assert after == before
    assert len(before) > 20


def test_mkdir_makes_a_snapshot_and_rmdir_discards_it(mounted: MountedStore) -> None:
    write_tree(mounted.current)
    snapshots = mounted.mountpoint / "bot/@snapshots"

    mounted.flush()
    (snapshots / "try").mkdir()

    assert mounted.ask("barriers") == 1
    assert (snapshots / "try/lib/x.py").read_bytes() == b"x = 1\n"
    (snapshots / "try/lib/x.py").write_bytes(b"in the snapshot")
    (mounted.current / "run").write_bytes(b"in current")
    assert (mounted.current / "lib/x.py").read_bytes() == b"x = 1\n"
    assert (snapshots / "try/run").read_bytes() == b"#!/bin/sh\n"
    (snapshots / "try").rmdir()
    assert os.listdir(snapshots) == []
    assert not (snapshots / "try").exists()
    (snapshots / "try").mkdir()
    assert (snapshots / "try/run").read_bytes() == b"in current"


def test_mv_renames_a_snapshot(mounted: MountedStore) -> None:
    snapshots = mounted.mountpoint / "bot/@snapshots"
    (snapshots / "a").mkdir()
    (snapshots / "taken").mkdir()
    (snapshots / "a/file").write_bytes(b"x")

    subprocess.run(["mv", "--no-target-directory", snapshots / "a", snapshots / "b"], check=True)

    assert sorted(os.listdir(snapshots)) == ["b", "taken"]
    assert (snapshots / "b/file").read_bytes() == b"x"
    with pytest.raises(FileExistsError):
        os.rename(snapshots / "b", snapshots / "taken")
    with pytest.raises(OSError, match="Invalid"):
        os.rename(snapshots / "b", snapshots / "no good")


def test_a_snapshot_made_by_a_verb_is_there_at_once(mounted: MountedStore) -> None:
    snapshots = mounted.mountpoint / "bot/@snapshots"
    assert not (snapshots / "late").exists()

    mounted.ask("snapshot", "bot", "late")
    assert (snapshots / "late").is_dir()
    assert os.listdir(snapshots) == ["late"]

    mounted.ask("discard", "bot", "late")
    assert not (snapshots / "late").exists()
    assert os.listdir(snapshots) == []


def test_agents_by_mkdir_and_rmdir(mounted: MountedStore, sealed: Path) -> None:
    agent = mounted.mountpoint / "new-agent"

    agent.mkdir()

    assert agent.joinpath("current").is_dir()
    assert os.listdir(agent / "current") == []
    assert "new-agent" in os.listdir(mounted.mountpoint)
    agent.rmdir()
    assert not agent.exists()
    with pytest.raises(OSError, match="not empty"):
        (mounted.mountpoint / "bot").rmdir()
    for bad in ("s-agent", "-x", "with space", "ü", "x" * 65):
        with pytest.raises(OSError, match="Invalid"):
            (mounted.mountpoint / bad).mkdir()


def test_rollback_switches_current_and_leaves_open_files_on_the_old_view(
    mounted: MountedStore, sealed: Path
) -> None:
    file = mounted.current / "lib/x.py"
    number = file.stat().st_ino
    file.write_bytes(b"x = 2, and longer than before\n")
    (mounted.current / "new").touch()
    old_head = mounted.ask("head", "bot")
    mounted.flush()
    with file.open("rb") as opened:
        mounted.ask("rollback", "bot", "1.0.0")

        assert file.read_bytes() == b"x = 1\n"
        assert file.stat().st_ino == number
        assert not (mounted.current / "new").exists()
        assert opened.read() == b"x = 2, and longer than before\n"
        assert old_head not in mounted.ask("forgotten")
    file.write_bytes(b"writable again")
    (mounted.current / "new").touch()
    assert file.read_bytes() == b"writable again"
    subprocess.run(["sh", "-c", "echo 2 > /proc/sys/vm/drop_caches"], check=True)
    mounted.ask_until(True, "is-forgotten", str(old_head))


def test_a_superseded_view_refuses_to_be_opened_for_writing(
    mounted: MountedStore, sealed: Path
) -> None:
    folder = os.open(mounted.current / "lib", os.O_RDONLY | os.O_DIRECTORY)

    mounted.ask("rollback", "bot", "1.0.0")

    with pytest.raises(OSError, match="Read-only"):
        os.open("x.py", os.O_WRONLY, dir_fd=folder)
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir("new", dir_fd=folder)
    assert os.listdir(folder) == ["x.py"]
    os.close(folder)


def test_a_removed_version_vanishes(mounted: MountedStore, sealed: Path) -> None:
    meta = mounted.mountpoint / "bot/@meta"
    assert (meta / "1.0.0.json").exists()

    mounted.ask("remove", "bot", "1.0.0")

    assert not sealed.exists()
    assert not (meta / "1.0.0.json").exists()
    assert os.listdir(sealed.parent) == []


def test_diff_and_rsync_find_no_difference(mounted: MountedStore, sealed: Path) -> None:
    assert subprocess.run(["diff", "-r", sealed, mounted.current], check=False).returncode == 0
    copy = mounted.store.parent / "copy"
    subprocess.run(["cp", "-a", sealed, copy], check=True)
    listing = "%P %y %m %U %G %T@ %l\n"
    found = [
        subprocess.run(
            ["find", place, "-printf", listing], capture_output=True, check=True, text=True
        ).stdout
        for place in (sealed, copy)
    ]
    assert sorted(found[0].splitlines()) == sorted(found[1].splitlines())
    assert os.getxattr(copy / "run", "user.note") == b"n"


def test_a_read_only_mount_refuses_writes(mount_store: Mount) -> None:
    one = mount_store(ro=True)

    with pytest.raises(OSError, match="Read-only"):
        (one.current / "x").touch()
    with pytest.raises(OSError, match="Read-only"):
        (one.mountpoint / "bot/@snapshots/x").mkdir()


def test_a_mount_of_one_agent_has_its_folder_as_root(mount_store: Mount) -> None:
    one = mount_store(agent="bot")

    assert sorted(os.listdir(one.mountpoint)) == ["@meta", "@snapshots", "@versions", "current"]
    (one.mountpoint / "current/file").write_bytes(b"x")
    one.flush()
    one.ask("seal", "bot", "1.0.0")
    (one.mountpoint / "current/file").write_bytes(b"y")
    one.flush()
    one.ask("rollback", "bot", "1.0.0")
    assert (one.mountpoint / "current/file").read_bytes() == b"x"
    assert os.stat(one.mountpoint / "current/..").st_ino == one.mountpoint.stat().st_ino


def test_a_mount_of_current_alone_shows_plain_inode_numbers(mount_store: Mount) -> None:
    one = mount_store(agent="bot", view="current")
    (one.mountpoint / "file").write_bytes(b"first")

    assert one.mountpoint.stat().st_ino == 1
    assert (one.mountpoint / "file").stat().st_ino == 2
    one.flush()
    one.ask("seal", "bot", "1.0.0")
    (one.mountpoint / "file").write_bytes(b"second")
    (one.mountpoint / "new").touch()
    one.flush()
    one.ask("rollback", "bot", "1.0.0")
    assert (one.mountpoint / "file").read_bytes() == b"first"
    assert os.listdir(one.mountpoint) == ["file"]
    assert not (one.mountpoint / "new").exists()
    (one.mountpoint / "file").write_bytes(b"third")
    assert (one.mountpoint / "file").read_bytes() == b"third"


def test_a_mount_of_a_version_alone_is_sealed(mount_store: Mount) -> None:
    first = mount_store()
    write_tree(first.current)
    first.seal("1.0.0")
    first.end()

    one = mount_store(agent="bot", view="@versions/1.0.0")

    assert (one.mountpoint / "lib/x.py").read_bytes() == b"x = 1\n"
    with pytest.raises(OSError, match="Read-only"):
        (one.mountpoint / "new").touch()
    assert os.getxattr(one.mountpoint, "user.kaifs.version") == b"1.0.0"


def test_a_bug_in_a_handler_is_an_io_error_and_not_the_end(mounted: MountedStore) -> None:
    """Trap 9."""
    (mounted.current / "file").touch()
    mounted.ask("break", "readlink")
    (mounted.current / "link").symlink_to("x")

    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            os.readlink(mounted.current / "link")

    assert (mounted.current / "file").exists()
    assert "ZeroDivisionError: a bug" in mounted.log.read_text()


def test_git_works_in_current(mounted: MountedStore) -> None:
    write_tree(mounted.current)
    git = ["git", "-C", str(mounted.current), "-c", "user.name=n", "-c", "user.email=e"]
    git += ["-c", "safe.directory=*"]

    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], check=True)
    subprocess.run([*git, "fsck", "--strict"], check=True, capture_output=True)

    status = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True)
    assert status.stdout == b""


# --- the switch -------------------------------------------------------------------------------


@pytest.fixture
def versions(mounted: MountedStore) -> MountedStore:
    """Two versions, of which current shows the second: file and folder/file say which."""
    (mounted.current / "folder").mkdir()
    for text, label in (("old", "1.0.0"), ("new", "1.1.0")):
        for name in ("file", "folder/file"):
            (mounted.current / name).write_text(text)
        (mounted.current / text).touch()
        mounted.seal(label)
    return mounted


SEEN = """
import os, sys
for _ in sys.stdin:
    try:
        print(open("file").read(), *sorted(os.listdir(".")), os.getcwd(), flush=True)
    except OSError as error:
        print(error, flush=True)
"""


@pytest.mark.root
@pytest.mark.parametrize("how", ["cwd", "bind mount", "directory"])
def test_a_place_in_the_top_of_current_follows_a_switch(
    transport: str, versions: MountedStore, tmp_path: Path, how: str
) -> None:
    """With one node for ever; else the place stays on the old view, whole."""
    place = versions.current
    if how == "bind mount":
        place = tmp_path / "bound"
        place.mkdir()
        subprocess.run(["mount", "--bind", versions.current, place], check=True)
    try:
        if how == "directory":
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            versions.ask("rollback", "bot", "1.0.0")
            with open(os.open("file", os.O_RDONLY, dir_fd=fd)) as file:
                seen = [file.read(), *sorted(os.listdir(fd))]
            os.close(fd)
        else:
            with subprocess.Popen(
                [sys.executable, "-c", SEEN],
                cwd=place,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                print(file=process.stdin, flush=True)
                assert process.stdout.readline().split()[0] == "new"
                versions.ask("rollback", "bot", "1.0.0")
                print(file=process.stdin, flush=True)
                *seen, cwd = process.stdout.readline().split()
                assert cwd == str(place) or not can(transport, "switch by epoch")
    finally:
        if how == "bind mount":
            subprocess.run(["umount", place], check=True)

    if can(transport, "switch by epoch"):
        assert seen == ["old", "file", "folder", "old"]
    else:
        assert seen[0] in ("new", "[Errno")
    assert (versions.current / "folder/file").read_text() == "old"


def test_open_files_and_folders_below_stay_on_the_old_view(versions: MountedStore) -> None:
    folder = os.open(versions.current / "folder", os.O_RDONLY | os.O_DIRECTORY)
    with (versions.current / "file").open() as file:
        versions.ask("rollback", "bot", "1.0.0")

        assert file.read() == "new"
        with open(os.open("file", os.O_RDONLY, dir_fd=folder)) as below:
            assert below.read() == "new"
    os.close(folder)
    assert (versions.current / "file").read_text() == "old"


def test_current_keeps_its_number_and_shows_new_attributes(versions: MountedStore) -> None:
    versions.current.chmod(0o700)
    before = versions.current.stat()

    versions.ask("rollback", "bot", "1.0.0")

    after = versions.current.stat()
    assert after.st_ino == before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o755
    assert os.getxattr(versions.current, "user.kaifs.version") == b"1.0.0"
    (versions.current / "made").write_text("after")
    assert (versions.current / "../current/made").read_text() == "after"


def test_many_switches_leave_nothing_behind(versions: MountedStore) -> None:
    heads = set()
    for number in range(20):
        label, text = (("1.0.0", "old"), ("1.1.0", "new"))[number % 2]
        heads.add(versions.ask("head", "bot"))
        versions.ask("rollback", "bot", label)
        assert (versions.current / "folder/file").read_text() == text
        assert text in os.listdir(versions.current)

    assert len(heads) == 20
    subprocess.run(["sync"], check=True)
    assert (versions.current / "file").read_text() == "new"

"""Import and export: what goes in comes out."""

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.base.errors import (
    ArgumentValueError,
    BadLabelError,
    BadNameError,
    ChecksumMismatchError,
    SourceError,
    TargetError,
    VersionExistsError,
)
from kaifs.service import embedded
from kaifs.service.embedded import run_embedded
from kaifs.service.host_source import HostSource
from kaifs.service.host_target import FolderTarget, TarTarget, feeder
from kaifs.service.import_ import Params
from kaifs.service.steps import Data, End, Entry, Item, Progress
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store
from kaifs.tree.fsck import check
from tests.service.desk import Desk, facts

FILE = 0o100644
DIRECTORY = 0o40755


def entry(path: bytes, mode: int = FILE, size: int = 0) -> Entry:
    return Entry(path, mode, 0, 0, size, 0, 0, 0)


# --- there and back ----------------------------------------------------------------------


def test_an_export_equals_what_was_imported(desk: Desk, folder: Path, tmp_path: Path) -> None:
    """Types, modes, owners, ns times, links, holes, attributes, names of any bytes."""
    before = facts(folder)
    desk.take("bot", "1.0.0", folder)

    target = desk.export("bot@1.0.0", tmp_path / "out")

    assert facts(tmp_path / "out") == before
    assert target.skipped == []
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < 1 << 20


def test_a_tar_stream_holds_what_was_imported(desk: Desk, folder: Path, tmp_path: Path) -> None:
    """Read by somebody else's tar; sockets, which tar does not know, are told as skipped."""
    before = facts(folder)
    desk.take("bot", "1.0.0", folder)
    stream = io.BytesIO()
    target = TarTarget(stream.write)
    params = VERBS["export"].params(reference="bot@1.0.0")
    embedded.run(desk.context, VERBS["export"], params, on_output=feeder(target))
    (tmp_path / "out").mkdir()

    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-xpf", "-", "-C", tmp_path / "out"],
        input=stream.getvalue(),
        stderr=subprocess.DEVNULL,
        check=True,
    )

    assert target.skipped == ["socket: tar has no sockets"]
    found = facts(tmp_path / "out")
    del before[b"socket"]
    assert {path: fact for path, fact in found.items() if path != b"."} == {
        path: fact for path, fact in before.items() if path != b"."
    }
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        assert tar.getmember("./a.txt").pax_headers["SCHILY.xattr.user.colour"] == "\0blue"


def test_sixteen_levels_of_longest_names_come_through(desk: Desk, tmp_path: Path) -> None:
    """255 bytes x 16 levels is longer than PATH_MAX."""
    source = tmp_path / "deep"
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    for _ in range(16):
        os.mkdir("n" * 255, dir_fd=fd)
        below = os.open("n" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)

    desk.take("bot", "1.0.0", source)
    desk.export("bot@1.0.0", tmp_path / "out")

    walked = [names for _, _, names, _ in os.fwalk(tmp_path / "out")]
    assert walked[-1] == ["leaf"]
    shutil.rmtree(tmp_path / "out")


# --- versions of an agent ------------------------------------------------------------------


def test_the_first_version_becomes_current_and_later_ones_do_not(desk: Desk, folder: Path) -> None:
    first = desk.take("bot", "1.0.0", folder)
    second = desk.take("bot", "2.0.0", folder)

    assert first.is_current
    assert not second.is_current
    assert desk.store.get_agent("bot").version == "1.0.0"
    assert desk.read(desk.current("bot"), b"a.txt") == b"first\n"
    assert second.parent == "1.0.0"


def test_the_same_folder_has_the_same_hash_in_any_store(
    desk: Desk, folder: Path, tmp_path: Path
) -> None:
    first = desk.take("bot", "1.0.0", folder)
    desk.take("other", "0.1.0", folder)

    again = Desk(tmp_path / "again")
    try:
        assert again.take("another", "3.2.1", folder).hash == first.hash
    finally:
        again.store.close()


def test_what_is_equal_keeps_its_inode_and_shares_its_blocks(desk: Desk, folder: Path) -> None:
    desk.take("bot", "1.0.0", folder)
    desk.store.commit()
    stored = desk.store.space().live
    (folder / "a.txt").write_text("second\n")

    desk.take("bot", "1.1.0", folder)

    versions = desk.store.versions(desk.store.get_agent("bot").agent_id)
    old, new = (desk.forest.tree(version.root) for version in versions)
    for path in (b"big", b"lib/x.py", b"sparse"):
        assert old.resolve(path) == new.resolve(path)
        assert old.inode(old.resolve(path)) == new.inode(new.resolve(path))
    assert desk.store.space().live - stored < 4096
    assert desk.read(old, b"a.txt") == b"first\n"
    assert desk.read(new, b"lib/again.txt") == b"second\n"


def test_a_second_version_is_what_the_folder_is_now(
    desk: Desk, folder: Path, tmp_path: Path
) -> None:
    """Every kind of change over the tree of the version before."""
    desk.take("bot", "1.0.0", folder)
    (folder / "lib" / "again.txt").unlink()
    (folder / "lib" / "again.txt").write_text("no link any more\n")
    (folder / "lib" / "empty").rmdir()
    (folder / "lib" / "empty").write_text("a file now")
    (folder / "pipe").unlink()
    (folder / "pipe").mkdir()
    (folder / "pipe" / "below").touch()
    (folder / "lib" / "dangling").unlink()
    os.symlink("elsewhere", folder / "lib" / "dangling")
    os.link(folder / "big", folder / "big2")
    with (folder / "big").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"in the middle")
    with (folder / "sparse").open("r+b") as file:
        file.truncate(4 << 20)
    os.removexattr(folder / "a.txt", "user.colour")
    (folder / "lib" / "x.py").chmod(0o600)
    (folder / "socket").unlink()
    before = facts(folder)

    desk.take("bot", "1.1.0", folder)
    desk.export("bot@1.1.0", tmp_path / "out")

    assert facts(tmp_path / "out") == before


def test_a_directory_that_became_a_file_takes_all_below_with_it(desk: Desk, folder: Path) -> None:
    desk.take("bot", "1.0.0", folder)
    shutil.rmtree(folder / "lib")
    (folder / "lib").write_text("a file")

    desk.take("bot", "1.1.0", folder)

    changed = desk.run("diff", old="bot@1.0.0", new="bot@1.1.0").changes
    assert {change.path for change in changed} >= {"lib", "lib/x.py", "lib/empty"}


def test_an_empty_agent_is_filled_by_its_first_import(desk: Desk, folder: Path) -> None:
    """`mkdir MNT/NAME` has made it."""
    tree = desk.forest.new_tree(0o755, 0, 0)
    desk.store.add_agent("bot", 0, 0, tree.root)

    assert desk.take("bot", "1.0.0", folder).is_current
    assert desk.read(desk.current("bot"), b"a.txt") == b"first\n"


def test_progress_ends_at_the_total(desk: Desk, folder: Path) -> None:
    told: list[Progress] = []
    source = iter(HostSource(folder, desk.path, count=True))

    desk.run("import", items=source, on_progress=told.append, agent="bot", label="1.0.0")

    last = [progress for progress in told if progress.what == "importing"][-1]
    assert last.done == last.total > 0


# --- what is refused leaves nothing -----------------------------------------------------------


@pytest.mark.parametrize("label", ["v1.0.0", "1.0", "01.0.0", "1.0.0-", "", "1.0.0 ", "9" * 241])
def test_a_bad_label_is_refused_before_the_source_is_read(
    desk: Desk, tmp_path: Path, label: str
) -> None:
    with pytest.raises(BadLabelError):
        desk.take("bot", label, tmp_path / "missing")

    assert desk.store.agents() == []


@pytest.mark.parametrize("name", ["", "s-bot", ".bot", "a/b", "b" * 65, "ü", "bot\n"])
def test_a_bad_name_is_refused(desk: Desk, folder: Path, name: str) -> None:
    with pytest.raises(BadNameError):
        desk.take(name, "1.0.0", folder)


@pytest.mark.parametrize("label", ["1.0.0", "1.0.0+other", "1.0.0+build"])
def test_a_label_that_is_taken_is_refused(desk: Desk, folder: Path, label: str) -> None:
    """Also one that differs in build metadata only."""
    desk.take("bot", "1.0.0+build", folder)
    before = desk.state()

    with pytest.raises(VersionExistsError):
        desk.take("bot", label, folder / "missing")

    assert desk.state() == before


def test_notes_that_are_no_unicode_are_refused(desk: Desk, folder: Path) -> None:
    with pytest.raises(ArgumentValueError):
        desk.take("bot", "1.0.0", folder, notes="\udcff")


@pytest.mark.parametrize(
    "broken",
    [
        [entry(b"", DIRECTORY)],
        [entry(b"", DIRECTORY), entry(b"a", size=9), Data(0, b"abc")],
        [entry(b"a"), End()],
        [entry(b"", DIRECTORY), entry(b"a/b"), End()],
        [entry(b"", DIRECTORY), entry(b"..", DIRECTORY), End()],
        [entry(b"", DIRECTORY), entry(b"a", size=2), Data(0, b"abc"), End()],
        [entry(b"", DIRECTORY), Data(0, b"abc"), End()],
        [entry(b"", FILE), End()],
        [End()],
        [entry(b"", DIRECTORY), entry(b"a", 0o170000), End()],
        [entry(b"", DIRECTORY), entry(b"a"), entry(b"a"), End()],
    ],
)
def test_items_that_make_no_tree_leave_nothing(desk: Desk, broken: list[Item]) -> None:
    """A client of the daemon may send anything, or hang up."""
    before = desk.state()

    with pytest.raises((SourceError, OSError)):
        desk.run("import", items=iter(broken), agent="bot", label="1.0.0")

    assert desk.state() == before


def test_an_interrupted_import_leaves_the_store_as_it_was(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C at any moment."""
    path = tmp_path / "store"
    Store.create(path).close()

    def interrupted() -> Iterator[Item]:
        for number, item in enumerate(HostSource(folder, path)):
            if number == 12:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        run_embedded(path, "import", Params(agent="bot", label="1.0.0"), source=interrupted())

    store = Store.open(path)
    assert store.agents() == []
    assert store.root_ids() == []
    assert check(store) == []
    store.close()


# --- export's side ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "file", "missing/out", "nul\0"])
def test_a_target_that_is_no_new_or_empty_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()

    with pytest.raises(TargetError):
        FolderTarget(tmp_path / name)


def test_an_export_that_fails_takes_away_what_it_made(desk: Desk, tmp_path: Path) -> None:
    for name in ("new", "empty"):
        out = tmp_path / name
        if name == "empty":
            out.mkdir()
        target = FolderTarget(out)
        target.take(entry(b"", DIRECTORY))
        target.take(entry(b"d", 0o40500))
        target.take(entry(b"d/f", size=3))
        target.take(Data(0, b"ab"))

        target.abandon()

        assert out.exists() == (name == "empty")
        assert name == "new" or list(out.iterdir()) == []


def test_an_export_does_not_write_through_a_link(tmp_path: Path) -> None:
    """Somebody else may write to the folder that an export goes to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = FolderTarget(tmp_path / "out")
    target.take(entry(b"", DIRECTORY))
    os.symlink(outside / "made", tmp_path / "out" / "f")
    os.symlink(outside, tmp_path / "out" / "d")

    for bad in (entry(b"f"), entry(b"d", DIRECTORY)):
        with pytest.raises(TargetError):
            target.take(bad)

    target.abandon()
    assert list(outside.iterdir()) == []


def test_an_export_of_damaged_bytes_fails_and_leaves_nothing(
    desk: Desk, folder: Path, tmp_path: Path
) -> None:
    desk.take("bot", "1.0.0", folder)
    desk.reopen()
    segment = next((desk.path / "segments").iterdir())
    raw = bytearray(segment.read_bytes())
    sound = bytes(raw)
    raw[len(raw) // 2] ^= 1
    segment.write_bytes(raw)

    with pytest.raises(ChecksumMismatchError):
        desk.export("bot@1.0.0", tmp_path / "out")

    assert not (tmp_path / "out").exists()
    segment.write_bytes(sound)

"""Mountinfo, fusectl and who uses a mount."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.linux.mounts import (
    Answer,
    FuseConnection,
    find_mount,
    is_answering,
    mounts_below,
    parse_mountinfo,
    probe,
    resolve_mountpoint,
    unmount,
    users_of,
)

LINE = rb"36 35 98:3 /r\040oot /mnt\011two\134three rw,noatime shared:1 master:2 - fuse.x /dev\040x rw,errors=y"


def test_a_line_is_parsed_with_optional_fields_and_octal_escapes() -> None:
    (entry,) = parse_mountinfo(LINE)

    assert (entry.mount_id, entry.parent_id) == (36, 35)
    assert entry.device == os.makedev(98, 3)
    assert entry.root == "/r oot"
    assert entry.mountpoint == Path("/mnt\ttwo\\three")
    assert (entry.fstype, entry.source) == ("fuse.x", "/dev x")
    assert (entry.options, entry.super_options) == ("rw,noatime", "rw,errors=y")


@given(st.lists(st.binary(max_size=80)))
def test_lines_that_make_no_sense_are_left_out(lines: list[bytes]) -> None:
    found = parse_mountinfo(b"\n".join([*lines, LINE]))

    assert found[-1].mount_id == 36


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a b"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "test", str(folder)], check=True)
    yield folder
    if find_mount(folder) is not None:
        unmount(folder, lazy=True)


@pytest.mark.root
def test_a_mount_is_found_by_its_mountpoint_and_from_above(tmpfs: Path) -> None:
    entry = find_mount(tmpfs)

    assert entry is not None
    assert entry.fstype == "tmpfs"
    assert mounts_below(tmpfs.parent) == [entry]
    assert mounts_below(tmpfs) == []
    assert is_answering(tmpfs, 10)


@pytest.mark.root
def test_unmount_refuses_a_mount_in_use_and_detaches_it_if_lazy(tmpfs: Path) -> None:
    with open(tmpfs / "file", "w"):
        with pytest.raises(OSError, match="busy") as caught:
            unmount(tmpfs)
        assert caught.value.errno == errno.EBUSY
        unmount(tmpfs, lazy=True)

    assert find_mount(tmpfs) is None


@pytest.mark.root
@pytest.mark.parametrize("use", ["cwd", "file", "map"])
def test_users_are_found_by_what_they_hold(tmpfs: Path, use: str) -> None:
    (tmpfs / "file").write_bytes(b"x" * 4096)
    program = {
        "cwd": "import os; os.chdir(sys.argv[1])",
        "file": "f = open(sys.argv[1] + '/file')",
        "map": "import mmap; f = open(sys.argv[1] + '/file', 'rb');"
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); f.close()",
    }[use]
    program = f"import sys; {program}; print('there', flush=True); sys.stdin.read()"
    entry = find_mount(tmpfs)
    assert entry is not None
    before = users_of(entry)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmpfs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"there\n"

        users = users_of(entry)

        user.communicate()
    assert before == []
    assert [found.pid for found in users] == [user.pid]
    assert users_of(entry) == []


def test_resolve_follows_links_and_keeps_a_missing_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    assert resolve_mountpoint(tmp_path / "link") == (tmp_path / "real").resolve()
    assert resolve_mountpoint(tmp_path / "link" / "new").name == "new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic"):
        resolve_mountpoint(tmp_path / "loop")


def test_a_folder_answers_and_a_missing_one_is_not_dead(tmp_path: Path) -> None:
    assert probe(tmp_path, 10) is Answer.YES
    assert probe(tmp_path / "missing", 10) is Answer.YES


def test_a_connection_that_is_not_there_is_not_available() -> None:
    assert not FuseConnection(1 << 19).is_available

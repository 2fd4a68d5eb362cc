"""Disks in trouble.

One that does not answer holds up who reads from it, and nobody else; one on which nothing can be
written leaves everything to be read.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.conftest import MountedStore


@pytest.mark.fuse
def test_other_requests_are_answered_while_the_disk_stands_still(
    mount_store: Callable[..., MountedStore],
) -> None:
    content = os.urandom(300_000)
    mounted = mount_store()
    (mounted.current / "cold").write_bytes(content)
    mounted.end()
    mounted = mount_store(disk="stalled")
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"print(open({str(mounted.current / 'cold')!r}, 'rb').read().hex())",
        ],
        stdout=subprocess.PIPE,
    )
    mounted.ask_until(True, "is-asked")

    other = mounted.current / "other"
    with other.open("wb", buffering=0) as file:
        file.write(b"written meanwhile")
        os.fsync(file.fileno())
    assert os.listdir(mounted.current) == ["cold", "other"]
    assert reader.poll() is None

    mounted.ask("wake")
    output, _ = reader.communicate(timeout=20)
    assert bytes.fromhex(output.decode()) == content


@pytest.mark.fuse
@pytest.mark.logs_errors
def test_what_is_there_can_be_read_while_nothing_can_be_written(
    mount_store: Callable[..., MountedStore],
) -> None:
    """What was refused is seen nevertheless, and goes with what can be written next."""
    mounted = mount_store(disk="refusing")
    top = mounted.current
    (top / "file").write_bytes(b"content")
    (top / "folder").mkdir()
    (top / "link").symlink_to("file")
    mounted.flush()
    mounted.ask("refuse")

    with pytest.raises(OSError, match="No space left"):
        (top / "refused").mkdir()

    assert (top / "file").read_bytes() == b"content"
    assert os.readlink(top / "link") == "file"
    assert os.lstat(top / "folder").st_nlink == 2
    assert sorted(os.listdir(top)) == ["file", "folder", "link", "refused"]
    assert os.listxattr(top / "folder") == []
    assert os.statvfs(top).f_namemax == 255
    with pytest.raises(FileNotFoundError):
        os.stat(top / "absent")
    with pytest.raises(OSError, match="No space left"):
        os.truncate(top / "file", 3)
    mounted.ask("accept")
    (top / "again").mkdir()
    mounted.end()
    mounted = mount_store()
    assert sorted(os.listdir(top)) == ["again", "file", "folder", "link", "refused"]
    assert (top / "file").read_bytes() == b"con"


@pytest.mark.fuse
@pytest.mark.logs_errors
def test_a_rename_that_was_refused_is_seen_the_same_by_name_and_in_listings(
    tmp_path: Path,
) -> None:
    mounted = MountedStore(tmp_path, {"transport": "kernel", "disk": "refusing"})
    top = mounted.current
    (top / "old").write_bytes(b"content")
    assert os.listdir(top) == ["old"]
    mounted.flush()
    mounted.ask("refuse")

    with pytest.raises(OSError, match="No space left"):
        os.rename(top / "old", top / "new")

    mounted.ask("known")
    assert os.listdir(top) == ["new"]
    assert (top / "new").read_bytes() == b"content"
    assert not (top / "old").exists()
    mounted.end()

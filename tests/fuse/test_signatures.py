"""A version's signature in `@meta/`: there when it is made, another file when it is replaced."""

import errno
import os
from pathlib import Path

import pytest

from tests.fuse.conftest import MountedStore

pytestmark = pytest.mark.fuse


@pytest.fixture
def meta(mounted: MountedStore) -> Path:
    """`@meta/` of an agent with one version, which is not signed."""
    mounted.seal("1.0.0")
    return mounted.mountpoint / "bot/@meta"


def test_a_version_without_a_signature_has_no_file_for_it(meta: Path) -> None:
    assert sorted(os.listdir(meta)) == ["1.0.0.json", "1.0.0.mtree"]
    assert not (meta / "1.0.0.json.sig").exists()


def test_a_signature_that_is_added_later_is_seen_at_once(mounted: MountedStore, meta: Path) -> None:
    """The kernel remembers for ever that the name was not there, and the listing without it."""
    assert not (meta / "1.0.0.json.sig").exists()
    record, listed = (meta / "1.0.0.json").read_bytes(), os.listdir(meta)

    mounted.ask("sign", "bot", "1.0.0", "a signature\n")

    assert (meta / "1.0.0.json.sig").read_bytes() == b"a signature\n"
    assert set(os.listdir(meta)) - set(listed) == {"1.0.0.json.sig"}
    assert (meta / "1.0.0.json").read_bytes() == record


def test_a_signature_that_is_replaced_is_read_whole(mounted: MountedStore, meta: Path) -> None:
    """The kernel keeps the size and pages of a file that it knows: so it must be another file."""
    path = meta / "1.0.0.json.sig"
    mounted.ask("sign", "bot", "1.0.0", "short")
    assert path.read_bytes() == b"short"

    # Numbers come again after 32 signatures; who has the first one open has it open for 31.
    with path.open("rb"):
        inos = {path.stat().st_ino} | {replace(mounted, path, turn) for turn in range(31)}
    again = [replace(mounted, path, turn) for turn in range(3)]

    assert len(inos) == 32
    assert set(again) < inos
    assert path.stat().st_mtime_ns > (meta / "1.0.0.json").stat().st_mtime_ns


def replace(mounted: MountedStore, path: Path, turn: int) -> int:
    """Sign with another length, check what is read, and return the file's inode number."""
    content = "a longer signature\n" * (1 + turn % 3)
    mounted.ask("sign", "bot", "1.0.0", content)
    assert path.read_bytes() == content.encode()
    assert path.stat().st_size == len(content)
    return path.stat().st_ino


def test_a_signature_cannot_be_changed_through_the_mount(mounted: MountedStore, meta: Path) -> None:
    mounted.ask("sign", "bot", "1.0.0", "a signature\n")
    path = meta / "1.0.0.json.sig"

    for change in (lambda: os.open(path, os.O_WRONLY), path.unlink, lambda: path.chmod(0o666)):
        with pytest.raises(OSError, match="Read-only") as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert path.read_bytes() == b"a signature\n"


def test_a_removed_version_takes_its_signature_along(mounted: MountedStore, meta: Path) -> None:
    mounted.ask("sign", "bot", "1.0.0", "a signature\n")
    mounted.seal("1.0.1")
    assert (meta / "1.0.0.json.sig").exists()

    mounted.ask("remove", "bot", "1.0.0")

    assert not (meta / "1.0.0.json.sig").exists()
    assert sorted(os.listdir(meta)) == ["1.0.1.json", "1.0.1.mtree"]

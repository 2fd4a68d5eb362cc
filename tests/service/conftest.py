"""A store for verbs, checked after each test, and a folder with one of everything."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.tree.fsck import check
from tests.service.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """An open store; every invariant holds when the test ends."""
    desk = Desk(tmp_path / "store")
    yield desk
    desk.store.commit()
    assert check(desk.store) == []
    desk.store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every kind of thing that an unprivileged user can make."""
    top = tmp_path / "source"
    (top / "lib" / "empty").mkdir(parents=True)
    (top / "a.txt").write_text("first\n")
    (top / "lib" / "x.py").write_text("x = 1\n")
    (top / "lib" / "agent.toml").write_text("name = 'bot'\n")
    (top / "big").write_bytes(os.urandom(1 << 16) * 33)
    os.link(top / "a.txt", top / "lib" / "again.txt")
    os.symlink("../nowhere", top / "lib" / "dangling")
    os.mkfifo(top / "pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.open(top, os.O_PATH)
        try:
            unix.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)
    with (top / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"middle")
        file.truncate(6 << 20)
    os.setxattr(top / "a.txt", "user.colour", b"\x00blue")
    (top / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"\xff\x00")
    os.chmod(top / "lib" / "x.py", 0o755)
    os.chmod(top / "lib" / "empty", 0o2711)
    for path in (top / "a.txt", top / "lib" / "empty", top / "lib"):
        os.utime(path, ns=(1_500_000_000_123_456_789, 1_500_000_000_987_654_321))
    return top

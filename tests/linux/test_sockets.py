"""Local sockets."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pytest

from kaifs.linux.sockets import connect_to, listen_at, peer_of


def test_paths_longer_than_an_address_work_both_ways(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()

    with listen_at(folder / "s", 0o600) as listener, connect_to(folder / "s", 5) as ours:
        theirs, _ = listener.accept()
        with theirs:
            peer = peer_of(theirs)
            ours.sendall(b"hello")
            assert theirs.recv(5) == b"hello"

    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())


def test_a_stale_socket_is_recognised_and_replaced(tmp_path: Path) -> None:
    listen_at(tmp_path / "s", 0o600).close()
    with pytest.raises(ConnectionRefusedError):
        connect_to(tmp_path / "s", 5)

    with listen_at(tmp_path / "s", 0o660), connect_to(tmp_path / "s", 5) as connection:
        assert connection.family is socket.AF_UNIX

    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: setgroups needs root")
@pytest.mark.parametrize("count", [0, 3, 1000])
def test_supplementary_groups_of_the_other_end_are_known(tmp_path: Path, count: int) -> None:
    """However many there are: Python's own getsockopt would take 256."""
    before = os.getgroups()
    groups = list(range(70000, 70000 + count))
    with listen_at(tmp_path / "s", 0o600) as listener:
        os.setgroups(groups)
        try:
            connection = connect_to(tmp_path / "s", 5)
        finally:
            os.setgroups(before)
        with connection:
            theirs, _ = listener.accept()
            with theirs:
                assert peer_of(theirs).groups == frozenset(groups)


def test_where_the_queue_is_full_one_waits(tmp_path: Path) -> None:
    with listen_at(tmp_path / "s", 0o600) as listener, ExitStack() as stack:
        listener.listen(1)
        for _ in range(2):
            stack.enter_context(connect_to(tmp_path / "s"))
        with pytest.raises(BlockingIOError):
            connect_to(tmp_path / "s", 0.01)
        waiting: list[socket.socket] = []
        thread = Thread(target=lambda: waiting.append(connect_to(tmp_path / "s", 60)))
        thread.start()
        while not waiting:
            listener.accept()[0].close()
            thread.join(0.01)
        waiting[0].close()
        thread.join()

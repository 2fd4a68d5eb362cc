"""Messages to the system's log, as real sockets get them."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kaifs.linux.syslog import ALERT, send_to_journal, send_to_syslog

Listen = Callable[[str], socket.socket]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    opened = []

    def bind(name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(tmp_path / name))
        opened.append(listener)
        return listener

    yield bind
    for listener in opened:
        listener.close()


def test_journald_gets_fields_and_priority_in_its_own_protocol(
    listen: Listen, tmp_path: Path
) -> None:
    journal = listen("journal")

    assert send_to_journal("bot is hurt", {"KAIFS_ERRORS": "one\ntwo"}, ALERT, tmp_path / "journal")

    datagram = journal.recv(65536)
    assert datagram.startswith(b"MESSAGE=bot is hurt\nPRIORITY=1\nSYSLOG_IDENTIFIER=kaifs\n")
    assert datagram.endswith(b"KAIFS_ERRORS\n\x07\0\0\0\0\0\0\0one\ntwo\n")


def test_a_field_cannot_smuggle_in_another(listen: Listen, tmp_path: Path) -> None:
    journal = listen("journal")

    send_to_journal("a\nPRIORITY=7", {}, ALERT, tmp_path / "journal")

    assert journal.recv(65536).startswith(b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=7\nPRIORITY=1\n")


def test_syslog_gets_one_line_of_daemon_alert(listen: Listen, tmp_path: Path) -> None:
    syslog = listen("log")

    assert send_to_syslog("bot is\n<0>hurt", ALERT, tmp_path / "log")

    assert syslog.recv(65536) == b"<25>kaifs[%d]: bot is <0>hurt" % os.getpid()


def test_nobody_there_or_nobody_reading_is_told_and_not_waited_for(
    listen: Listen, tmp_path: Path
) -> None:
    assert not send_to_syslog("x", ALERT, tmp_path / "nobody")
    listen("full")

    sent = [send_to_syslog("x" * 2000, ALERT, tmp_path / "full") for _ in range(5000)]

    assert sent[0]
    assert not sent[-1]

"""Telling the system's log: journald by its native protocol, or whoever listens at /dev/log.

A message is one datagram that is sent or not, at once: nobody is waited for.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
"""Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""
SYSLOG_SOCKET: Final = Path("/dev/log")

ALERT: Final = 1
"""Priority of what must be acted upon at once. Source: syslog(3), LOG_ALERT."""
_DAEMON: Final = 3
"""Facility of daemons. Source: syslog(3), LOG_DAEMON."""
_LINE_MAX: Final = 2048
"""Bytes of a line for syslog. Source: RFC 5424, section 6.1."""
_length = struct.Struct("<Q")


def send_to_journal(
    message: str, fields: Mapping[str, str], priority: int, path: Path = JOURNAL_SOCKET
) -> bool:
    """Send *message* with *fields* (upper-case names) to journald. Return whether it was taken."""
    told = {
        "MESSAGE": message,
        "PRIORITY": str(priority),
        "SYSLOG_IDENTIFIER": "kaifs",
        "SYSLOG_PID": str(os.getpid()),
        **fields,
    }
    return _send(b"".join(_field(name, value) for name, value in told.items()), path)


def _field(name: str, value: str) -> bytes:
    payload = value.encode(errors="backslashreplace")
    # A value with a line's end is told with its length before it.
    if b"\n" in payload:
        return name.encode() + b"\n" + _length.pack(len(payload)) + payload + b"\n"
    return name.encode() + b"=" + payload + b"\n"


def send_to_syslog(message: str, priority: int, path: Path = SYSLOG_SOCKET) -> bool:
    """Send *message*, one line, to the local syslog. Return whether it was taken."""
    line = " ".join(message.split()).encode(errors="backslashreplace")[:_LINE_MAX]
    return _send(b"<%d>kaifs[%d]: " % (_DAEMON << 3 | priority, os.getpid()) + line, path)


def _send(datagram: bytes, path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(str(path))
            return sender.send(datagram) == len(datagram)
    except OSError:
        return False

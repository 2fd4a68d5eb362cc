"""The daemon's log: one line for each event, its name and its fields.

::

    2026-11-22T20:15:03.000000Z info kaifs.daemon.app mounted mountpoint=/mnt pid=812

An event's name is constant; what varies is in fields (`extra=`). A traceback
follows its line, indented.
"""

import json
import logging
import os
from pathlib import Path
from typing import Final

from kaifs.base.clock import format_time

_OWN_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class EventFormatter(logging.Formatter):
    """Formats a record as one line of an event and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        time_text = format_time(int(record.created * 1e9))
        line = f"{time_text} {record.levelname.lower()} {record.name} {_event(record)}"
        if record.exc_info:
            line += "\n  " + self.formatException(record.exc_info).replace("\n", "\n  ")
        return line


class ScreenFormatter(logging.Formatter):
    """Formats a record for a user who waits for a command."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return f"kaifs: {record.levelname.lower()}: {_event(record)}"


def _event(record: logging.LogRecord) -> str:
    fields = {k: v for k, v in vars(record).items() if k not in _OWN_ATTRIBUTES}
    words = [f"{name}={_value(value)}" for name, value in fields.items()]
    return " ".join([_value(record.getMessage()), *words])


def _value(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text.isascii() and text and not set(' "=\\') & set(text)
    return text if plain else json.dumps(text)


def warn_on_screen() -> None:
    """Show warnings on stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(ScreenFormatter())
    logging.getLogger().handlers[:] = [handler]


def log_to_file(path: Path) -> None:
    """Append everything that kaifs logs from now on to *path*, and nothing anywhere else."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    stream = os.fdopen(os.open(path, flags, 0o600), "a", buffering=1, errors="backslashreplace")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)

"""Where the traceback of a bug goes: a log, not the screen."""

import contextlib
import os
import sys
import traceback
from pathlib import Path

from kaifs.api.access import store_path
from kaifs.base.clock import SystemClock, format_time


def log_bug(store: str | None, error: Exception) -> Path | None:
    """Append *error* with its traceback to a log; return the log, None if none can be written."""
    text = "".join(traceback.format_exception(error))
    stamp = format_time(SystemClock().now_ns())
    entry = f"{stamp} {' '.join(sys.argv)!a}\n{text}\n"
    for log in _candidates(store):
        with contextlib.suppress(OSError):
            fd = os.open(
                log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(entry)
            return log
    return None


def _candidates(store: str | None) -> list[Path]:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = state / "kaifs"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return [store_path(store) / "run" / "kaifs.log", folder / "kaifs.log"]

"""Where the files of a store's daemon are.

Loads nothing: a supervisor stays as small as it starts, and a command as quick.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

RUN_FOLDER: Final = "run"
SOCKET_NAME: Final = "control.sock"
INFO_NAME: Final = "daemon.json"
LOG_NAME: Final = "daemon.log"


def run_folder(store: Path) -> Path:
    """Return the folder with the socket, the info file and the log of *store*'s daemon."""
    return store / RUN_FOLDER


def socket_path(store: Path) -> Path:
    """Return where the daemon of *store* listens."""
    return store / RUN_FOLDER / SOCKET_NAME


def log_path(store: Path) -> Path:
    """Return the log of *store*'s daemon."""
    return store / RUN_FOLDER / LOG_NAME

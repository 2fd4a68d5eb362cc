"""Starts the process that touches the daemon's own mount (`kaifs.daemon.barrier_helper`).

It needs as long to start as the daemon's code to load, so it is started before that is.
"""

import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from kaifs.daemon.barrier_helper import main; main(int(sys.argv[1]))"
)


@dataclass(frozen=True, slots=True)
class HelperProcess:
    """A helper that was started."""

    process: "subprocess.Popen[bytes]"
    channel: socket.socket
    """Our end of the conversation."""


def start_helper() -> HelperProcess:
    """Start one. It has nothing open but its end of the conversation."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-I", "-S", "-c", _START]
        process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(_PACKAGE_ROOT)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            pass_fds=[theirs.fileno()],
            cwd="/",
            # Ctrl-C in a terminal is for the daemon, which still needs its helper then.
            process_group=0,
        )
    return HelperProcess(process, ours)

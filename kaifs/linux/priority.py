"""Being the last whom processor and disk serve: for work that can wait for everything else.

Sources: sched(7), SCHED_IDLE; ioprio_set(2), IOPRIO_CLASS_IDLE.
"""

import ctypes
import os
import platform
from contextlib import suppress
from typing import Final

_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS: Final = 1
_CLASS_IDLE: Final = 3 << 13


def yield_to_others() -> None:
    """Let the calling process run, and read, only when nobody else wants to, as far as that goes."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)

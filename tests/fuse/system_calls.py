"""System calls that Python has no name for, and doing things as another user."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
STRANGER = 65534

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


def renameat2(old: Path, new: Path, flags: int) -> None:
    """Rename with *flags*.

    Raises:
        OSError: as renameat2(2).
    """
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(old))


def as_stranger(folder: Path, action: Callable[[], object]) -> int:
    """Do *action* in *folder* as a user without rights; return its errno, 0 if it worked.

    A child process does it. Paths must be relative: the folder is usually below
    one that only root may enter.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 255
    try:
        os.chdir(folder)
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)
        action()
        status = 0
    except OSError as error:
        status = error.errno or 255
    finally:
        os._exit(status)

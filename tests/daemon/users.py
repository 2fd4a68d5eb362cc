"""Acting as somebody else: what a system call or a verb says to a user without rights."""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import kaifs
from kaifs.base.errors import KaifsError

DONE = "done"
_PR_SET_DUMPABLE = 4


@dataclass(frozen=True, slots=True)
class User:
    """Somebody, by number; the system need not know them."""

    uid: int
    groups: tuple[int, ...] = ()


ROOT = User(0)
STORE_OWNER = User(61001)
AGENT_OWNER = User(61002)
MEMBER = User(61003, (62000,))
"""In the group that the agent `closed` is open to, by a supplementary group."""
STRANGER = User(61004)
EVERYBODY = (STRANGER, MEMBER, AGENT_OWNER, STORE_OWNER, ROOT)


def outcome_for(user: User, act: Callable[[], object]) -> str:
    """Do *act* in a process of *user*'s; return `done`, the error's code, or the errno's name.

    The code may be where the user cannot read it, below /root: all of it is imported before.
    """
    _import_everything()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        said = DONE
        try:
            _become(user)
            act()
        except KaifsError as error:
            said = str(error.code)
        except OSError as error:
            said = errno.errorcode[error.errno or 0]
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = repr(error)
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@cache
def _import_everything() -> None:
    for module in walk_packages(kaifs.__path__, "kaifs."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    # What kaifs itself imports only when it is needed.
    for name in ("serialization", "asymmetric.ed25519"):
        import_module(f"cryptography.hazmat.primitives.{name}")


def _become(user: User) -> None:
    os.setgroups(user.groups)
    os.setresgid(user.uid, user.uid, user.uid)
    os.setresuid(user.uid, user.uid, user.uid)
    # As after an execve(2): else /proc/self belongs to root.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


@contextmanager
def public_folder(name: str) -> Iterator[Path]:
    """Lend a folder that everybody gets to, unlike pytest's."""
    folder = Path("/tmp") / f"kaifs-{name}-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)

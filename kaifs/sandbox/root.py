"""The file system that a sandbox sees, and the bubblewrap arguments that make it.

Whatever comes from outside is first gathered in a small private tmpfs, the
stage, in a mount namespace that only the set-up is in. bubblewrap then binds
from there by path, and nobody can put anything else at those paths.
"""

import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.base.errors import SnapshotIsolationError
from kaifs.base.limits import AGENT
from kaifs.linux.landlock import CHANGE, READ, Access, abi_version, handled
from kaifs.linux.mounts import find_mount
from kaifs.linux.namespaces import (
    MountFlag,
    attach,
    attach_mount,
    clone_mount,
    open_plainly,
    show_as_owned,
)
from kaifs.sandbox.defences import Defence
from kaifs.sandbox.network import NAME_SERVER
from kaifs.sandbox.policy import Policy

STAGE: Final = Path("/sys")
"""Covered by the stage, in the set-up's namespace alone: it is on every machine, no agent gets
to see it, and so no folder has to be made that a crash could leave behind."""
STAGED_AGENT: Final = STAGE / "agent"

INNER_ID: Final = 1000
"""The uid and gid that the command sees as its own."""
HOME: Final = "/tmp"  # noqa: S108 - the sandbox's own
_SCRATCH: Final = (HOME, "/dev/shm")  # noqa: S108 - the sandbox's own
_STAGE_SIZE: Final = 4 << 20
_FILE_MAX: Final = 1 << 20

_SYSTEM: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Beside /usr; mostly links into it."""
_ETC_FILES: Final = ("ld.so.cache", "localtime", "mime.types", "protocols", "services", "shells")
_ETC_FOLDERS: Final = ("alternatives", "ssl/certs", "ca-certificates", "pki/tls", "crypto-policies")
_HIDDEN: Final = ("kcore", "keys", "key-users", "sched_debug", "sysrq-trigger", "timer_list")
"""Files of /proc that tell about the machine or act on it, whoever looks."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A file or folder of the host that is shown at `target`."""

    source: Path
    """Without symbolic links when it was looked at."""
    target: Path
    writable: bool
    of_user: bool
    """Named by the user: checked, and what its owner has there belongs to the command."""
    stage: Path


class Root:
    """The root file system of one sandbox."""

    def __init__(self, policy: Policy, defences: frozenset[Defence]) -> None:
        """Plan it.

        Raises:
            SnapshotIsolationError: An allowed path does not exist.
        """
        self._policy = policy
        self._defences = defences
        self._shown = [
            Shown(source, source, writable=False, of_user=False, stage=STAGE / f"python{number}")
            for number, source in enumerate(_python_folders())
        ]
        self._shown += allowed_paths(policy, STAGE)

    @property
    def search_path(self) -> str:
        """The command's PATH."""
        own = [str(shown.target / "bin") for shown in self._shown if not shown.of_user]
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ":".join([system, *own])

    def stage(self, mount_agent: Callable[[Path], None], shown_as: tuple[int, int] | None) -> None:
        """Gather everything. Runs in the set-up's own mount namespace.

        Args:
            mount_agent: Makes a folder show the agent's files.
            shown_as: The uid and gid of the command, if they are not the caller's.
        """
        flags = MountFlag.NOSUID | MountFlag.NODEV
        opened = [(shown, open_shown(shown, self._policy, self._defences)) for shown in self._shown]
        attach("kaifs-stage", STAGE, "tmpfs", flags, f"mode=0755,size={_STAGE_SIZE}")
        # After the stage covers /sys, nothing else is looked up on the host but below /etc.
        self._stage_etc(STAGE / "etc")
        for shown, fd in opened:
            stage_shown(shown, fd, shown_as)
        STAGED_AGENT.mkdir()
        mount_agent(STAGED_AGENT)

    def arguments(self) -> list[str]:
        """Return the bubblewrap arguments that build the root from the stage."""
        defences = self._defences
        arguments = ["--ro-bind", "/usr", "/usr"]
        for name in _SYSTEM:
            if os.path.islink(name):
                arguments += ["--symlink", os.readlink(name), name]
            elif os.path.isdir(name):
                arguments += ["--ro-bind", name, name]
        read_only = "--ro-bind" if Defence.READ_ONLY_SYSTEM in defences else "--bind"
        arguments += [read_only, str(STAGE / "etc"), "/etc", "--proc", "/proc"]
        if Defence.READ_ONLY_SYSTEM in defences:
            arguments += ["--ro-bind", "/proc/sys", "/proc/sys"]
            for name in _HIDDEN:
                if os.path.exists(f"/proc/{name}"):
                    arguments += ["--ro-bind", "/dev/null", f"/proc/{name}"]
        arguments += ["--dev", "/dev"]
        for folder in reversed(_SCRATCH):
            if Defence.SIZED_SCRATCH in defences:
                arguments += ["--size", str(self._policy.scratch)]
            arguments += ["--perms", "1777", "--tmpfs", folder]
        arguments += ["--dir", "/var", "--symlink", "../tmp", "/var/tmp"]  # noqa: S108 - the sandbox's own
        if Defence.MINIMAL_ROOT not in defences:
            arguments += ["--bind", "/", "/host"]
        for shown in self._shown:
            bind = "--bind" if shown.writable else "--ro-bind"
            arguments += [bind, str(shown.stage), str(shown.target)]
        arguments += ["--ro-bind" if self._is_agent_read_only else "--bind"]
        arguments += [str(STAGED_AGENT), str(AGENT)]
        if Defence.READ_ONLY_SYSTEM in defences:
            arguments += ["--remount-ro", "/dev", "--remount-ro", "/"]
        return arguments

    def landlock_rules(self) -> list[tuple[Path, Access]]:
        """Return what Landlock lets the command do where: the same again, by other means."""
        change = READ | CHANGE
        device = Access.READ_FILE | Access.READ_DIR | Access.WRITE_FILE | Access.TRUNCATE
        rules = [
            (Path("/"), Access.READ_DIR),
            (Path("/etc"), Access.READ_FILE | Access.READ_DIR),
            (Path("/proc"), device),
            (Path("/dev"), device | Access.IOCTL_DEV),
            (AGENT, READ if self._is_agent_read_only else change),
            *((Path(name), READ) for name in ("/usr", *_SYSTEM)),
            *((Path(name), change) for name in _SCRATCH),
            *((shown.target, change if shown.writable else READ) for shown in self._shown),
        ]
        known = handled(abi_version())
        return [(path, access & known) for path, access in rules]

    @property
    def _is_agent_read_only(self) -> bool:
        return self._policy.read_only and Defence.READ_ONLY_AGENT in self._defences

    def _stage_etc(self, etc: Path) -> None:
        etc.mkdir()
        for name, text in _etc_texts(self._policy).items():
            (etc / name).write_text(text)
        for name in _ETC_FILES:
            source = Path("/etc", name)
            if source.is_file() and source.stat().st_size <= _FILE_MAX:
                shutil.copyfile(source, etc / name)
        for name in _ETC_FOLDERS:
            source = Path("/etc", name)
            if source.is_dir():
                (etc / name).mkdir(parents=True)
                flags = MountFlag.BIND | MountFlag.RECURSIVE
                attach(str(source), etc / name, "", flags)


def allowed_paths(policy: Policy, stage: Path) -> list[Shown]:
    """Return what the user lets be seen, each with a place of its own below *stage*.

    Raises:
        SnapshotIsolationError: One does not exist.
    """
    found = []
    for number, allowed in enumerate(policy.allowed_paths):
        if allowed.path == AGENT:
            continue  # the specification's default: it is always there
        try:
            source = allowed.path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise SnapshotIsolationError(f"allowed path {allowed.path}: {error}") from error
        place = stage / f"path{number}"
        found.append(Shown(source, allowed.path, allowed.writable, True, place))
    return found


def open_shown(shown: Shown, policy: Policy, defences: frozenset[Defence]) -> int:
    """Return a descriptor (O_PATH) of what is to be shown.

    Raises:
        SnapshotIsolationError: The user names something that must not be seen.
    """
    # Looked at by descriptor, so that what is checked is what is shown.
    fd = (
        open_plainly(shown.source)
        if Defence.PLAIN_PATHS in defences
        else os.open(shown.source, os.O_PATH | os.O_CLOEXEC)
    )
    if shown.of_user:
        _check(shown, fd, policy)
    return fd


def _check(shown: Shown, fd: int, policy: Policy) -> None:
    status = os.fstat(fd)
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise SnapshotIsolationError(f"allowed path {shown.target}: no file or folder")
    place = Path(os.readlink(f"/proc/self/fd/{fd}"))
    for folder in policy.forbidden:
        forbidden = Path(os.path.abspath(folder))
        names_meet = forbidden in (place, *place.parents) or place in forbidden.parents
        if names_meet or _meet(place, forbidden):
            raise SnapshotIsolationError(
                f"allowed path {shown.target}: {forbidden} must not be seen in a sandbox"
            )


def stage_shown(shown: Shown, fd: int, shown_as: tuple[int, int] | None) -> None:
    """Show what *fd* stands for at its place on the stage, and close it.

    Args:
        shown: What it is.
        fd: As `open_shown` gave it.
        shown_as: As for `Root.stage`.
    """
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        shown.stage.mkdir()
    else:
        shown.stage.touch()
    try:
        tree = clone_mount(fd)
    except OSError as error:
        # A user may not lift one mount off another: what is below could be seen.
        raise SnapshotIsolationError(
            f"allowed path {shown.target}: {error.strerror}; is something mounted inside it?"
        ) from error
    if shown.of_user and shown_as is not None:
        try:
            show_as_owned(tree, (status.st_uid, status.st_gid), shown_as)
        except OSError:
            # Not every file system can; then the command has the rights of others there.
            os.close(tree)
            tree = clone_mount(fd)
    attach_mount(tree, shown.stage)
    os.close(tree)
    os.close(fd)


def _meet(place: Path, forbidden: Path) -> bool:
    """Return whether one is the other or holds it, whatever bind mounts call them."""
    if find_mount(forbidden) is not None:
        return False  # a stat of a mount could hang, and its name has been compared
    return _identity(forbidden) in map(_identity, (place, *place.parents)) or _identity(
        place
    ) in map(_identity, forbidden.parents)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _python_folders() -> list[Path]:
    """Return where this Python is installed, if that is outside /usr."""
    folder = Path(sys.base_prefix).resolve()
    return [] if folder == Path("/") or folder.is_relative_to("/usr") else [folder]


def _etc_texts(policy: Policy) -> dict[str, str]:
    texts = {
        "passwd": f"agent:x:{INNER_ID}:{INNER_ID}:agent:{HOME}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "group": f"agent:x:{INNER_ID}:\nnogroup:x:65534:\n",
        "hostname": "sandbox\n",
        "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    if policy.network == "bridge":
        texts["resolv.conf"] = f"nameserver {NAME_SERVER}\n"
    return texts

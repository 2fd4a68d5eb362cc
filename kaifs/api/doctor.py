"""What this machine has and lacks for kaifs, and the command that mends it.

Looks, and changes nothing. What is needed for mounts and sandboxes counts as needed;
without the rest some feature is missing, which is said.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

import msgspec

from kaifs.base.errors import KaifsError
from kaifs.linux.cgroups import hierarchies
from kaifs.linux.landlock import abi_version
from kaifs.linux.mounts import mounts
from kaifs.meta.database import MAP_SIZE
from kaifs.sandbox.support import find_lacks
from kaifs.store.superblock import read_superblock

PYTHON_MIN: Final = (3, 11)
PACKAGES: Final = (
    "bcrypt",
    "cryptography",
    "lmdb",
    "msgspec",
    "nodesemver",
    "packaging",
    "pyfastcdc",
    "pyfuse3",
    "rich",
    "semver",
    "trio",
    "xxhash",
    "yaml",
    "zstandard",
)
DESCRIPTORS_MIN: Final = 1024
"""Open files: segments, sockets, and one for each sandbox."""
FREE_MIN: Final = 1 << 30
"""Bytes free below the store; with less a gc has no room to work in."""
NETWORK_FILE_SYSTEMS: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "virtiofs")
)
"""Where a lock or a memory map of one machine says nothing to another. LMDB: "do not use it on
remote file systems"."""
MEMORY_FILE_SYSTEMS: Final = frozenset(("tmpfs", "ramfs"))
KERNEL_FEATURES: Final = (
    ((5, 4), "mounts", True),
    ((5, 13), "sandboxes with Landlock", False),
    ((6, 9), "a server that died is replaced without an error (FUSE resend)", False),
    ((6, 16), "working directories follow a rollback (FUSE epochs)", False),
)
"""From which kernel on, what works, and whether it is needed."""
_PROBE_TIMEOUT_S: Final = 10.0


class Check(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One thing that was looked at."""

    group: str
    """What it is for."""
    ok: bool
    is_needed: bool
    """Whether kaifs' main features need it."""
    found: str
    """What is there, or what is missing."""
    remedy: str = ""
    """The command that mends it; empty if it is fine, or if nothing does."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All that was looked at."""

    is_complete: bool
    """Whether nothing that is needed is missing."""
    checks: tuple[Check, ...]


def examine(store: Path) -> Diagnosis:
    """Return what this machine has and lacks; *store* is the store that is meant."""
    checks = (
        *_check_python(),
        *_check_kernel(),
        *_check_mounts(),
        *_check_sandboxes(),
        *_check_tools(),
        *_check_limits(),
        *_check_store(store),
    )
    is_complete = all(check.ok or not check.is_needed for check in checks)
    return Diagnosis(is_complete=is_complete, checks=checks)


def _fine(group: str, found: str, *, is_needed: bool = True) -> Check:
    return Check(group=group, ok=True, is_needed=is_needed, found=found)


def _lack(group: str, found: str, remedy: str, *, is_needed: bool = True) -> Check:
    return Check(group=group, ok=False, is_needed=is_needed, found=found, remedy=remedy)


# --- Python and the kernel ---------------------------------------------------------------------


def _check_python() -> Iterator[Check]:
    version = f"Python {platform.python_version()}"
    if sys.version_info[:2] >= PYTHON_MIN:
        yield _fine("python", version)
    else:
        yield _lack("python", f"{version}, 3.11 is needed", "apt-get install python3.11")
    for package in PACKAGES:
        try:
            import_module(package)
        except (ImportError, OSError) as error:
            yield _lack("python", f"{package}: {error}", "pip install -r requirements.lock")
        else:
            yield _fine("python", package)


def _check_kernel() -> Iterator[Check]:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    for since, what, is_needed in KERNEL_FEATURES:
        if version >= since:
            yield _fine("kernel", f"Linux {release}: {what}", is_needed=is_needed)
        else:
            text = f"Linux {release} is older than {since[0]}.{since[1]}: {what}"
            yield _lack("kernel", text, "boot a newer kernel", is_needed=is_needed)


# --- mounts --------------------------------------------------------------------------------------


def _check_mounts() -> Iterator[Check]:
    is_root = os.geteuid() == 0
    device = Path("/dev/fuse")
    if os.access(device, os.R_OK | os.W_OK):
        yield _fine("mount", f"{device} can be used")
    elif device.exists():
        yield _lack("mount", f"{device} is closed to this user", f"chmod 666 {device}")
    else:
        yield _lack(
            "mount", f"{device} is missing", "modprobe fuse, or start the container with it"
        )
    helper = shutil.which("fusermount3")
    if helper is None:
        yield _lack(
            "mount", "fusermount3 is missing", "apt-get install fuse3", is_needed=not is_root
        )
    elif not is_root and not os.stat(helper).st_mode & 0o4000:
        yield _lack("mount", f"{helper} is not set-uid root", f"chmod u+s {helper}")
    else:
        yield _fine("mount", f"fusermount3: {helper}")
    if not is_root:
        yield _check_allow_other()
    if any(mount.fstype == "fusectl" for mount in mounts()):
        yield _fine("mount", "fusectl is mounted", is_needed=False)
    else:
        yield _lack(
            "mount",
            "fusectl is not mounted: a mount that hangs cannot be aborted",
            "mount -t fusectl fusectl /sys/fs/fuse/connections",
            is_needed=False,
        )


def _check_allow_other() -> Check:
    try:
        lines = Path("/etc/fuse.conf").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" in (line.strip() for line in lines):
        return _fine("mount", "user_allow_other in /etc/fuse.conf", is_needed=False)
    return _lack(
        "mount",
        "no user_allow_other in /etc/fuse.conf: a user's mount is for that user alone",
        "echo user_allow_other >>/etc/fuse.conf",
        is_needed=False,
    )


# --- sandboxes -----------------------------------------------------------------------------------


def _check_sandboxes() -> Iterator[Check]:
    lacks = find_lacks()
    for lack in lacks:
        yield _lack("sandbox", lack.what, lack.remedy, is_needed=lack.is_fatal)
    missing = " ".join(lack.what for lack in lacks)
    for program in ("bwrap", "perl", "slirp4netns"):
        path = shutil.which(program)
        if path is not None:
            yield _fine("sandbox", f"{program}: {path}", is_needed=program != "slirp4netns")
    if "user namespaces" not in missing:
        yield _check_namespaces()
    if "seccomp" not in missing:
        yield _fine("sandbox", "filters of system calls (libseccomp)")
    if abi_version():
        yield _fine("sandbox", f"Landlock, version {abi_version()}", is_needed=False)
    yield _describe_groups()


def _check_namespaces() -> Check:
    command = ["unshare", "--user", "--map-root-user", "true"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_PROBE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _lack("sandbox", f"user namespaces: {error}", "apt-get install util-linux")
    if done.returncode == 0:
        return _fine("sandbox", "user namespaces")
    return _lack(
        "sandbox",
        f"user namespaces: {done.stderr.decode(errors='replace').strip()}",
        "sysctl user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1",
    )


def _describe_groups() -> Check:
    """Which control groups there are; which limits they lack `find_lacks` knows."""
    try:
        among = hierarchies()
    except (OSError, ValueError) as error:
        return _lack("sandbox", f"control groups: {error}", "mount -t cgroup2 none /sys/fs/cgroup")
    if (Path("/sys/fs/cgroup") / "cgroup.controllers").exists():
        controllers = _first_line(Path("/sys/fs/cgroup/cgroup.controllers"))
        return _fine("sandbox", f"control groups, version 2: {controllers}", is_needed=False)
    return _fine("sandbox", f"control groups, version 1: {len(among)} hierarchies", is_needed=False)


# --- tools ---------------------------------------------------------------------------------------


def _check_tools() -> Iterator[Check]:
    for program, package, what in (
        ("podman", "podman", "snapshots with --container"),
        ("ssh-keygen", "openssh-client", "checking signatures with a tool that is not kaifs"),
    ):
        path = shutil.which(program)
        if path is None:
            yield _lack(
                "tools",
                f"{program} is missing: {what}",
                f"apt-get install {package}",
                is_needed=False,
            )
        else:
            yield _fine("tools", f"{program}: {path}", is_needed=False)
    if any(Path(path).exists() for path in ("/run/systemd/journal/socket", "/dev/log")):
        yield _fine("tools", "a journal or syslog takes alerts", is_needed=False)
    else:
        yield _lack(
            "tools", "no journal and no syslog: alerts are only in the store's log",
            "apt-get install rsyslog", is_needed=False,
        )  # fmt: skip


def _check_limits() -> Iterator[Check]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files >= DESCRIPTORS_MIN:
        yield _fine("limits", f"{_limit_text(files)} open files")
    else:
        may = most == resource.RLIM_INFINITY or most >= DESCRIPTORS_MIN
        remedy = (
            f"ulimit -n {DESCRIPTORS_MIN}" if may else "raise nofile in /etc/security/limits.conf"
        )
        yield _lack("limits", f"only {files} open files", remedy)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space == resource.RLIM_INFINITY or space > 2 * MAP_SIZE:
        yield _fine("limits", f"{_limit_text(space)} address space for the index's map")
    else:
        yield _lack(
            "limits",
            f"address space of {space >> 20} MiB: the index maps {MAP_SIZE >> 30} GiB",
            "ulimit -v unlimited",
        )


def _limit_text(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


# --- the store -----------------------------------------------------------------------------------


def _check_store(store: Path) -> Iterator[Check]:
    here = store
    while not here.exists() and here != here.parent:
        here = here.parent
    if here != store:
        yield _fine("store", f"{store}: none yet", is_needed=False)
    else:
        yield from _check_folder(store)
    fstype = _file_system(here)
    if fstype in NETWORK_FILE_SYSTEMS or fstype.startswith("fuse"):
        yield _lack(
            "store",
            f"{here} is on {fstype}: locks and memory maps are not safe there",
            "keep the store on a local disk: kaifs --store /var/lib/kaifs init",
        )
    elif fstype in MEMORY_FILE_SYSTEMS:
        yield _lack(
            "store",
            f"{here} is on {fstype}: it is gone when the machine stops",
            "keep the store on a disk: kaifs --store /var/lib/kaifs init",
            is_needed=False,
        )
    else:
        yield _fine("store", f"{here} is on {fstype}")
    yield _check_space(here)


def _check_folder(store: Path) -> Iterator[Check]:
    try:
        read_superblock(store)
    except KaifsError as error:
        yield _lack("store", str(error), "kaifs init", is_needed=False)
    except OSError as error:
        yield _lack("store", f"{store}: {error.strerror}", f"chown -R $USER {store}")
    else:
        yield _fine("store", f"{store} is a store")
    status = store.stat()
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        remedy = "run kaifs as its owner, or have the owner mount it"
        yield _lack("store", f"{store} belongs to user {status.st_uid}", remedy, is_needed=False)
    elif status.st_mode & 0o022:
        text = f"{store} can be changed by others (mode {status.st_mode & 0o7777:04o})"
        yield _lack("store", text, f"chmod 700 {store}")
    else:
        yield _fine("store", f"{store} has mode {status.st_mode & 0o7777:04o}")


def _check_space(folder: Path) -> Check:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    text = f"{free / (1 << 30):.1f} GiB free below {folder}"
    if free >= FREE_MIN:
        return _fine("store", text)
    return _lack("store", text, "free disk space, or run 'kaifs gc'")


def _file_system(folder: Path) -> str:
    """Return the type of the file system that *folder* is on."""
    resolved = folder.resolve()
    above = [
        mount
        for mount in mounts()
        if resolved == mount.mountpoint or mount.mountpoint in resolved.parents
    ]
    # Of those mounted on one place the last is on top.
    above.sort(key=lambda mount: len(mount.mountpoint.parts))
    return above[-1].fstype if above else "an unknown file system"


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

"""Getting a FUSE file system mounted: mount(2) with privileges, fusermount3 without."""

import ctypes
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kaifs.base.errors import MountFailedError

FSNAME: Final = "kaifs"
SUBTYPE: Final = "kaifs"
"""Makes the type in mount tables `fuse.kaifs`."""
DEVICE: Final = "/dev/fuse"

_MOUNT_FLAGS: Final = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
}
"""MS_* of mount(2)."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What the kernel is told of a mount."""

    read_only: bool = False
    allow_other: bool | None = None
    """Whether other users than the one who mounts get in; None: if root mounts."""
    source: str = FSNAME
    """What mount tables show as the device: ASCII, no comma."""
    flags: tuple[str, ...] = ()
    """Options of mount(8) for the kernel, such as `dev`, `suid`, `noatime`."""

    @property
    def lets_others_in(self) -> bool:
        """Whether other users than the one who mounts get in."""
        return os.geteuid() == 0 if self.allow_other is None else self.allow_other

    def for_libfuse(self) -> set[str]:
        """Return the options as libfuse and fusermount3 spell them."""
        options = {
            "default_permissions",
            f"fsname={self.source}",
            f"subtype={SUBTYPE}",
            *self.flags,
        }
        if self.lets_others_in:
            options.add("allow_other")
        options.add("ro" if self.read_only else "rw")
        return options

    def flag_bits(self) -> int:
        """Return the options that are flags of mount(2)."""
        wanted = {*self.flags, *(["ro"] if self.read_only else [])}
        return sum(bit for name, bit in _MOUNT_FLAGS.items() if name in wanted)


@dataclass(frozen=True, slots=True)
class MountedDevice:
    """What a mount is served by."""

    fd: int
    mounted_by: str
    """`mount(2)` or `fusermount3`."""


def mount_fuse(mountpoint: Path, options: MountOptions) -> int:
    """Mount on *mountpoint* and return the descriptor to serve it by, as `mount_device`."""
    return mount_device(mountpoint, options).fd


def mount_device(mountpoint: Path, options: MountOptions) -> MountedDevice:
    """Mount on *mountpoint* and return what to serve it by.

    Requests wait until it is served. With privileges, or inside a user and mount
    namespace of one's own, by mount(2); else by fusermount3.

    Raises:
        MountFailedError: the system refuses.
    """
    try:
        return MountedDevice(_mount_directly(mountpoint, options), "mount(2)")
    except PermissionError as error:
        if os.geteuid() == 0:
            raise MountFailedError(f"{mountpoint}: {error.strerror}") from error
    except OSError as error:
        raise MountFailedError(f"{mountpoint}: {error.strerror}") from error
    return MountedDevice(_mount_by_helper(mountpoint, options), "fusermount3")


def _mount_directly(mountpoint: Path, options: MountOptions) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    settings = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    settings += ",default_permissions" + (",allow_other" if options.lets_others_in else "")
    status = ctypes.CDLL(None, use_errno=True).mount(
        options.source.encode(),
        os.fsencode(mountpoint),
        f"fuse.{SUBTYPE}".encode(),
        ctypes.c_ulong(options.flag_bits()),
        settings.encode(),
    )
    if status != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code), str(mountpoint))
    return fd


def _mount_by_helper(mountpoint: Path, options: MountOptions) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = [
            "fusermount3",
            "-o",
            ",".join(sorted(options.for_libfuse())),
            "--",
            str(mountpoint),
        ]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise MountFailedError("fusermount3 is missing: install fuse3") from error
        if done.returncode != 0:
            reason = os.fsdecode(done.stderr).strip()
            raise MountFailedError(f"{mountpoint}: {reason}")
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise MountFailedError(f"{mountpoint}: fusermount3 passed no descriptor")
    os.set_inheritable(fds[0], False)
    return fds[0]

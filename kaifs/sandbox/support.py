"""What this machine lacks for sandboxes, in words for people."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kaifs.base.errors import SnapshotIsolationError
from kaifs.linux.landlock import abi_version
from kaifs.sandbox.defences import ALL
from kaifs.sandbox.launcher import PERL
from kaifs.sandbox.limits import make_limits
from kaifs.sandbox.names import new_name
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.syscalls import default_filter


@dataclass(frozen=True, slots=True)
class Lack:
    """Something missing."""

    what: str
    remedy: str
    is_fatal: bool
    """Whether no sandbox starts without it."""


def find_lacks() -> list[Lack]:
    """Return what is missing on this machine for the user that runs this."""
    found = [
        Lack(f"{name} is missing", f"apt-get install {package}", is_fatal)
        for name, package, is_fatal in (
            ("bwrap", "bubblewrap", True),
            (PERL, "perl-base", True),
            ("slirp4netns", "slirp4netns", False),
        )
        if shutil.which(name) is None
    ]
    try:
        default_filter()
    except SnapshotIsolationError as error:
        found.append(Lack(error.subject, "apt-get install libseccomp2", is_fatal=True))
    clone = _number("/proc/sys/kernel/unprivileged_userns_clone", 1)
    if not _number("/proc/sys/user/max_user_namespaces", 1) or not clone:
        remedy = "sysctl user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1"
        found.append(Lack("user namespaces are switched off", remedy, is_fatal=True))
    if os.geteuid() != 0 and _number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 0):
        remedy = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile for bwrap"
        found.append(Lack("AppArmor restricts user namespaces", remedy, is_fatal=True))
    if abi_version() == 0:
        remedy = "boot with lsm=landlock,... if the kernel has it"
        found.append(Lack("Landlock is switched off: one layer less", remedy, is_fatal=False))
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        remedy = "modprobe tun; chmod 666 /dev/net/tun"
        found.append(Lack("no network in sandboxes: /dev/net/tun", remedy, is_fatal=False))
    policy = Policy(required=frozenset())
    limits = make_limits(policy, str(new_name("probe", os.getpid())), ALL)
    limits.close()
    remedy = "systemd-run --user --scope -p Delegate=yes kaifs …, or run as root"
    found += [Lack(f"no limit of {reason}", remedy, is_fatal=False) for reason in limits.unenforced]
    return found


def _number(path: str, otherwise: int) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return otherwise

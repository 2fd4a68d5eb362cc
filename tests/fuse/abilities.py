"""What only one transport can do. Tests ask this table, and check what the other one does."""

from typing import Final

KERNEL_ONLY: Final = {
    "birth times": 39,
    "copy by sharing": 28,
    "default lists replace the umask": 12,
    "fallocate": 19,
    "holes are told": 24,
    "lists take set-gid away": 33,
    "nameless files": 37,
    "zero-message open": 23,
    "switch by epoch": 44,
}
"""libfuse 3.14 or pyfuse3 3.5 does not pass these on; the kernel does since this minor version."""


def can(transport: str, ability: str) -> bool:
    """Return whether *transport*, `kernel-7.31` for one on an older kernel, has *ability*."""
    name, _, minor = transport.partition("-7.")
    return name == "kernel" and (not minor or int(minor) >= KERNEL_ONLY[ability])

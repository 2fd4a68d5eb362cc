"""What only one transport can do. Tests ask this table, and check what the other one does."""

KERNEL_ONLY = frozenset(
    {
        "birth times",
        "copy by sharing",
        "default lists replace the umask",
        "fallocate",
        "holes are told",
        "lists take set-gid away",
        "nameless files",
        "zero-message open",
        "switch by epoch",
    }
)
"""libfuse 3.14 or pyfuse3 3.5 does not pass these on."""


def can(transport: str, ability: str) -> bool:
    """Return whether *transport* has *ability*."""
    assert ability in KERNEL_ONLY
    return transport == "kernel"

"""Ids for snapshots that were given no name."""

import secrets
from typing import Final

from kaifs.base.types import SnapshotName

GENERATED_PREFIX: Final = "s-"
"""No agent's name begins like this, so that an id is never taken for an agent."""
_LETTERS: Final = 10
_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"


def generate_snapshot_name() -> SnapshotName:
    """Return a name that nobody chose: 50 random bits."""
    letters = "".join(secrets.choice(_BASE32) for _ in range(_LETTERS))
    return SnapshotName(GENERATED_PREFIX + letters)

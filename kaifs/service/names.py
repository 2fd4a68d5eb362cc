"""Names of agents and snapshots, and ids for snapshots that were given none."""

import re
import secrets
from typing import Final

from kaifs.base.errors import BadNameError
from kaifs.base.types import AgentName, SnapshotName

GENERATED_PREFIX: Final = "s-"
_GENERATED_LETTERS: Final = 10
_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_agent_name(text: str) -> AgentName:
    """Return *text* as an agent's name.

    Raises:
        BadNameError: it is none.
    """
    if not _NAME.fullmatch(text):
        raise BadNameError(_shown(text))
    if text.startswith(GENERATED_PREFIX):
        raise BadNameError(f"{text!r} begins with {GENERATED_PREFIX}")
    return AgentName(text)


def check_snapshot_name(text: str) -> SnapshotName:
    """Return *text* as a snapshot's name.

    Raises:
        BadNameError: it is none.
    """
    if not _NAME.fullmatch(text):
        raise BadNameError(_shown(text))
    return SnapshotName(text)


def generate_snapshot_name() -> SnapshotName:
    """Return a name that nobody chose: 50 random bits."""
    letters = "".join(secrets.choice(_BASE32) for _ in range(_GENERATED_LETTERS))
    return SnapshotName(GENERATED_PREFIX + letters)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")

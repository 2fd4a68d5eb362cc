"""Conversations that outlive the process that holds them. A supervisor has this too: nothing is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ongoing:
    """A conversation with which another process can go on."""

    name: str
    """Among all of a daemon."""
    fds: Sequence[int]
    """Descriptors: of the conversation, then of what it is about. Whoever has this owns them."""
    facts: Mapping[str, Any]
    """What else must be known: what JSON can tell, a few hundred bytes."""

"""What administrators are told of damage."""

from __future__ import annotations

from typing import Literal

import msgspec

Event = Literal["damaged", "quarantined", "fallback", "fallback_failed", "unserved"]


class Alert(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One thing that somebody should look at. Its JSON is what hooks and webhooks get."""

    event: Event
    """`damaged`: a read met damage, or what cannot be set aside is damaged. `quarantined`: a
    version was set aside. `unserved`: a mount was given up, as every server of it died. `fallback`: current was switched to the last good version."""
    agent: str
    """Empty if it concerns none."""
    version: str
    """Label; empty if it concerns none."""
    reason: str
    """In one line: what is wrong and where."""
    time: str
    store: str
    """The store's folder."""
    errors: tuple[str, ...] = ()
    """What verification found, a line each."""

    @property
    def subject(self) -> str:
        """What it is about, as a user names it."""
        return f"{self.agent}@{self.version}" if self.version else self.agent

"""What a version in quarantine says about itself: `quarantine.json`."""

from __future__ import annotations

from typing import Final

from kaifs.base.canonical import canonical_json
from kaifs.base.clock import format_time
from kaifs.meta.records import QuarantineRecord

QUARANTINE_FILE: Final = "quarantine.json"
"""Source: specification, quarantineCorruptedVersion."""


def quarantine_json(record: QuarantineRecord) -> bytes:
    """Return the text of `quarantine.json`: the specification's members, and what was found."""
    text = canonical_json(
        {
            "reason": record.reason,
            "quarantinedAt": format_time(record.quarantined_ns),
            "originalPath": record.path,
            "errors": record.found,
        }
    )
    return text + b"\n"

"""Sets a version aside by hand: the specification's quarantineCorruptedVersion."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.errors import ArgumentValueError, BadReferenceError, StoreDamagedError
from kaifs.base.label import parse_label
from kaifs.service.aside import fall_back, set_aside
from kaifs.service.context import Context
from kaifs.service.findings import Findings
from kaifs.service.quarantine_list import QuarantinedVersion, describe_quarantined
from kaifs.service.reference import get_agent
from kaifs.service.steps import Item, Step
from kaifs.service.text import printable_text

REASON_MAX = 4096
"""Bytes of a reason."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to set aside, and why."""

    reference: str
    reason: str


Result = QuarantinedVersion


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Put a version into quarantine.

    Raises:
        ArgumentValueError: the reason is empty or too long.
        InvalidVersionError: there is no such version, or it is in quarantine already.
        KaifsError: as `get_agent`; E105, E120, E122.
    """
    reason = printable_text(params.reason.strip())
    if not reason or len(reason.encode()) > REASON_MAX:
        raise ArgumentValueError(f"a reason has 1 to {REASON_MAX} bytes")
    name, at, label = params.reference.partition("@")
    if not at:
        raise BadReferenceError(f"{params.reference!r} is no version: write AGENT@LABEL")
    agent = get_agent(context.store, name)
    context.require_owner(agent)
    parse_label(label)
    try:
        if context.store.find_version(agent.agent_id, label) is None:
            context.store.get_version(agent, label)
    except StoreDamagedError:
        pass  # An unreadable record is what quarantine is for.
    record = yield from set_aside(context, agent, label, reason, Findings())
    if agent.version == label:
        text = f"{agent.name}@{label}, which current is based on, is in quarantine: {reason}"
        yield from fall_back(context, agent.name, text)
    return describe_quarantined(agent, record)

"""Whether a version's record is well-formed, and says what the store keeps beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Final

import msgspec

from kaifs.base.canonical import canonical_json
from kaifs.base.clock import format_time
from kaifs.base.errors import ArgumentValueError, KaifsError, StoreDamagedError
from kaifs.meta.records import VersionRecord
from kaifs.service.evidence import Evidence
from kaifs.service.findings import Finding, Findings
from kaifs.service.record import AgentVersion, decode_record
from kaifs.service.text import printable_text

_HASH: Final = re.compile(r"[0-9a-f]{64}")

_checksum: Final = partial(Finding, "checksum", is_damage=True)


def check_record(version: VersionRecord) -> Findings:
    """Check a version's record by itself, and against what the store keeps beside it."""
    try:
        record = decode_record(version.record)
        plain = json.loads(version.record)
        is_canonical = canonical_json(plain) == version.record
    except (StoreDamagedError, ArgumentValueError, ValueError, RecursionError) as error:
        text = error.subject if isinstance(error, KaifsError) else str(error)
        return Findings(errors=(_checksum(f"its record is unreadable: {printable_text(text)}"),))
    found = []
    if not is_canonical:
        found.append("its record is not canonical JSON")
    beside = (
        ("version", record.version, version.label),
        ("hash", record.hash, version.hash),
        ("created", record.metadata.created, format_time(version.created_ns)),
    )
    found += [
        f"its record says {name} {printable_text(said)!r}, the store {kept!r}"
        for name, said, kept in beside
        if said != kept
    ]
    found += [
        f"{name} in its record is no SHA-256"
        for name, value in _hashes(record)
        if not _HASH.fullmatch(value)
    ]
    if record.metadata.evidence is not msgspec.UNSET:
        found += [f"evidence in its record: {text}" for text in _evidence(record.metadata.evidence)]
    tags = record.metadata.tags
    warnings = ["tag is there twice"] if len(set(tags)) != len(tags) else []
    return Findings(
        errors=tuple(_checksum(text) for text in found),
        warnings=tuple(Finding("lineage", text) for text in warnings),
    )


def _hashes(record: AgentVersion) -> Iterator[tuple[str, str]]:
    yield "hash", record.hash
    yield "treeDigest", record.tree_digest
    if record.parent_hash is not msgspec.UNSET:
        yield "parentHash", record.parent_hash
    yield "agentStateChecksum", record.metadata.agent_state_checksum
    yield "configChecksum", record.metadata.config_checksum
    if record.metadata.evidence is not msgspec.UNSET:
        yield "suiteHash", record.metadata.evidence.suite_hash
        yield "outputHash", record.metadata.evidence.output_hash


def _evidence(evidence: Evidence) -> Iterator[str]:
    passed, total = evidence.passed_tests, evidence.total_tests
    if not 0 <= passed <= total:
        yield f"{passed} of {total} tests passed"
    if evidence.success != (passed == total):
        yield f"success is {evidence.success}, but {passed} of {total} tests passed"
    if len(evidence.command) != total:
        yield f"{len(evidence.command)} commands, but {total} tests"
    if len(evidence.failures) > max(total - passed, 0):
        yield f"{len(evidence.failures)} failures are told, but {total - passed} tests failed"
    if evidence.output_bytes < 0 or evidence.duration_s < 0:
        yield "a size or a time is negative"

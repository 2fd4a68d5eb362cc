"""The record of a version is canonical."""

import pytest

from kaifs.base.errors import ArgumentValueError, StoreDamagedError
from kaifs.service.record import (
    AgentVersion,
    Description,
    VersionMetadata,
    decode_record,
    encode_record,
)


def record(notes: str = "") -> AgentVersion:
    metadata = VersionMetadata(
        created="2026-11-22T20:15:03.000000Z",
        author="ann",
        commit_hash="",
        snapshot_type="manual",
        notes=notes,
        agent_state_checksum="s",
        config_checksum="c",
        tags=("b", "a"),
    )
    return AgentVersion(version="1.0.0", hash="h", tree_digest="t", metadata=metadata)


def test_members_are_sorted_and_absent_ones_left_out() -> None:
    """RFC 8785, section 3.2."""
    assert encode_record(record()) == (
        b'{"dependencies":[],"hash":"h","metadata":{"agentStateChecksum":"s","author":"ann",'
        b'"commitHash":"","configChecksum":"c","created":"2026-11-22T20:15:03.000000Z",'
        b'"notes":"","snapshotType":"manual","tags":["b","a"]},"treeDigest":"t","version":"1.0.0"}'
    )


def test_strings_are_escaped_as_rfc_8785_says() -> None:
    """Two-letter escapes where there are some, lower-case hex for other controls, else UTF-8."""
    text = 'é€"\\/\b\f\n\r\t\x0f\x7f😀'

    encoded = encode_record(record(text))

    assert '"notes":"é€\\"\\\\/\\b\\f\\n\\r\\t\\u000f\x7f😀"'.encode() in encoded
    assert decode_record(encoded).metadata.notes == text


def test_a_record_that_cannot_be_read_is_damage() -> None:
    with pytest.raises(StoreDamagedError):
        decode_record(b"{}")


def test_text_that_is_no_unicode_is_refused() -> None:
    """An argument of a command line may hold any bytes; a record may not."""
    with pytest.raises(ArgumentValueError):
        Description(notes="\udcff").check()

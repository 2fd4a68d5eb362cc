"""The record of a version is canonical."""

import hashlib

import pytest

from kaifs.base.errors import ArgumentValueError, StoreDamagedError
from kaifs.service.record import (
    AgentVersion,
    Description,
    VersionMetadata,
    decode_record,
    encode_record,
    state_checksums,
)

MANIFEST = b"""#mtree
. type=dir mode=0755
a.toml type=file mode=0644 size=1 sha256=aa
state type=dir mode=0755
b.db type=file mode=0644 size=1 sha256=bb
..
lib type=dir mode=0755
state type=dir mode=0755
c.db type=file mode=0644 size=1 sha256=cc
..
..
..
"""


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


def test_checksums_cover_configuration_and_state_only() -> None:
    """State is what is below a top-level folder of that name; configuration is told by suffix."""
    state, config = state_checksums(MANIFEST)

    state_line = b"./state/b.db type=file mode=0644 size=1 sha256=bb\n"
    config_line = b"./a.toml type=file mode=0644 size=1 sha256=aa\n"
    assert state == hashlib.sha256(state_line).hexdigest()
    assert config == hashlib.sha256(config_line).hexdigest()

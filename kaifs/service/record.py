"""The record of a version: the specification's AgentVersion, as canonical JSON.

Canonical means RFC 8785. These bytes are stored, hashed into the child's record
and signed; the file list is not in them, `show --json` renders it.

`configChecksum` and `agentStateChecksum` are SHA-256 over the manifest's lines of
the files that the agent's manifest names as configuration and as state, each
behind its folder's path (`./etc/app.toml type=…`). No such file: the SHA-256 of nothing.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from kaifs.base.canonical import canonical_json
from kaifs.base.digest import sha256
from kaifs.base.errors import ArgumentValueError, StoreDamagedError
from kaifs.service.evidence import Evidence

SnapshotType = Literal["auto", "manual", "rollback", "release"]

DEFAULT_AUTHOR: Final = "system"
"""Source: specification, createVersion."""
_TEXT_MAX: Final = 65536


class Description(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """What a user says about a version that is being made."""

    author: str = DEFAULT_AUTHOR
    commit_hash: str = ""
    snapshot_type: SnapshotType = "manual"
    notes: str = ""
    tags: tuple[str, ...] = ()

    def check(self) -> None:
        """Check that a record can hold it.

        Raises:
            ArgumentValueError: a text is no Unicode, or is too long.
        """
        for text in (self.author, self.commit_hash, self.notes, *self.tags):
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:
                raise ArgumentValueError(f"{text!a} is not UTF-8") from error
            if size > _TEXT_MAX:
                raise ArgumentValueError(f"text of {size} bytes; at most {_TEXT_MAX}")


class VersionMetadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's VersionMetadata."""

    created: str
    author: str
    commit_hash: str
    snapshot_type: str
    notes: str
    agent_state_checksum: str
    config_checksum: str
    tags: tuple[str, ...]
    evidence: Evidence | msgspec.UnsetType = msgspec.UNSET
    """Of the tests that the snapshot passed of which the version was made."""


class VersionDependency(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's VersionDependency."""

    name: str
    range: str
    kind: str


class VersionedFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's VersionedFile."""

    path: str
    hash: str
    """SHA-256 of the content."""
    size: int
    permissions: Annotated[str, msgspec.Meta(pattern="^[0-7]{4}$")]


class AgentVersion(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's AgentVersion without its files."""

    version: str
    hash: str
    """SHA-256 of the canonical manifest."""
    tree_digest: str
    """SHA-256 over all metadata of the tree, see `kaifs.tree.manifest`."""
    parent: str | msgspec.UnsetType = msgspec.UNSET
    """Label of the version that this one was made from."""
    parent_hash: str | msgspec.UnsetType = msgspec.UNSET
    """SHA-256 of the parent's record."""
    metadata: VersionMetadata
    dependencies: tuple[VersionDependency, ...] = ()


def encode_record(record: AgentVersion) -> bytes:
    """Return *record* as canonical JSON."""
    return canonical_json(msgspec.to_builtins(record))


def decode_record(record: bytes) -> AgentVersion:
    """Return the version that *record* describes.

    Raises:
        StoreDamagedError: *record* is none.
    """
    try:
        return msgspec.json.decode(record, type=AgentVersion)
    except msgspec.MsgspecError as error:
        raise StoreDamagedError(f"unreadable version record: {error}") from error


def record_hash(record: bytes) -> str:
    """Return the SHA-256 of a record's bytes, lower-case hex."""
    return sha256(record).hexdigest()

"""Shows a version's record, or a snapshot."""

import stat
from collections.abc import Generator

import msgspec

from kaifs.base.errors import AccessDeniedError, InvalidVersionError
from kaifs.meta.records import VersionRecord
from kaifs.service.context import Context
from kaifs.service.evidence import Evidence
from kaifs.service.isolation import IsolatedSnapshot, describe_snapshot
from kaifs.service.lifecycle import tested_of
from kaifs.service.record import AgentVersion, VersionedFile, decode_record
from kaifs.service.reference import Target, resolve
from kaifs.service.signing import SignatureInfo, shown_signature
from kaifs.service.steps import Item, Step
from kaifs.service.text import path_text


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to show."""

    reference: str
    """An agent stands for the version that its current is based on."""
    has_files: bool = False
    """Whether to add the file list."""
    has_signature: bool = False
    """Whether to tell who has signed a version, and check it: that loads the cryptography."""
    has_log: bool = False
    """Whether to add what the last tests in a snapshot wrote, if the caller may read all of it."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A version with its files, or a snapshot."""

    agent: str
    version: AgentVersion | None = None
    is_current: bool = False
    size: int = 0
    files: tuple[VersionedFile, ...] | None = None
    signature: SignatureInfo | None = None
    """None: it is not signed, or that was not asked for."""
    snapshot: IsolatedSnapshot | None = None
    evidence: Evidence | None = None
    """Of the last tests in the snapshot, whatever changed since; None if there is no result."""
    log: bytes | None = None


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Show what *params* name.

    Raises:
        KaifsError: as `resolve`; E101 for an agent without a version.
    """
    yield from ()
    target = resolve(context.store, params.reference)
    agent = target.agent
    context.require_reader(agent)
    if target.snapshot is not None:
        described = describe_snapshot(context, agent, target.snapshot)
        tested = tested_of(target.snapshot)
        log = None
        if params.has_log and _may_read(context, target):
            log = context.store.find_output(target.root)
        return Result(
            agent=agent.name,
            snapshot=described,
            evidence=None if tested is None else tested.evidence,
            log=log,
        )
    version = target.version
    if version is None:
        version = context.store.find_version(agent.agent_id, agent.version)
        if version is None:
            raise InvalidVersionError(f"{agent.name} has no version yet")
    files = None
    if params.has_files:
        context.require_content(agent, version.root)
        files = _files(context, version)
    return Result(
        agent=agent.name,
        version=decode_record(version.record),
        is_current=version.label == agent.version,
        size=version.size,
        files=files,
        signature=shown_signature(context, version) if params.has_signature else None,
    )


def _may_read(context: Context, target: Target) -> bool:
    try:
        context.require_content(target.agent, target.root)
    except AccessDeniedError:
        return False
    return True


def _files(context: Context, version: VersionRecord) -> tuple[VersionedFile, ...]:
    return tuple(
        VersionedFile(
            path=path_text(found.path),
            hash=found.inode.sha256.hex(),
            size=found.inode.size,
            permissions=f"{stat.S_IMODE(found.inode.mode):04o}",
        )
        for found in context.forest.tree(version.root).walk()
        if stat.S_ISREG(found.inode.mode)
    )

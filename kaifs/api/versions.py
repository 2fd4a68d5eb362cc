"""The versions of one agent, for programs.

The specification's AgentVersionManager. The whole way of a change::

    manager = AgentVersionManager("bot", "/srv/store")
    manager.import_version("/srv/bot", "1.0.0", {"author": "ci"})
    made = manager.create_version("1.0.0", "1.0.1", {"notes": "as 1.0.0"})
    result = manager.rollback_to_version(made.version)
    if not result.success:
        print(result.error, [step.step for step in result.steps])

Every method goes through the daemon if one serves the store, and opens the
store itself if none does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypedDict

import msgspec

from kaifs.api import exchange
from kaifs.api.access import call, store_path
from kaifs.base.clock import SystemClock, format_time
from kaifs.base.errors import ArgumentValueError, InvalidVersionError, KaifsError
from kaifs.service import list_, remove, rollback, seal, show
from kaifs.service.diff import Change
from kaifs.service.diff import Params as DiffParams
from kaifs.service.diff import Result as DiffResult
from kaifs.service.log import LogEntry
from kaifs.service.log import Params as LogParams
from kaifs.service.log import Result as LogResult
from kaifs.service.record import (
    Description,
    SnapshotType,
    VersionDependency,
    VersionedFile,
    VersionMetadata,
)
from kaifs.service.rollback import RollbackResult, failed_steps
from kaifs.service.sealing import MadeVersion
from kaifs.service.steps import OnProgress, Signer

if TYPE_CHECKING:
    from kaifs.base.label import Bump
    from kaifs.service.list_ import VersionInfo

_TOLD: Final = dict(
    zip(Description.__struct_fields__, Description.__struct_encode_fields__, strict=True)
)
"""What can be said of a version, with the specification's spelling."""


class PartialMetadata(TypedDict, total=False):
    """What may be said of a version that is made; the specification's `Partial<VersionMetadata>`.

    The rest of VersionMetadata is computed. The specification's spellings
    `commitHash` and `snapshotType` are taken too.
    """

    author: str
    commit_hash: str
    snapshot_type: SnapshotType
    notes: str
    tags: Sequence[str]


class AgentVersion(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's AgentVersion: a version's record, and its files."""

    version: str
    hash: str
    """SHA-256 of the canonical manifest, lower-case hex."""
    tree_digest: str
    """SHA-256 over all metadata of the tree, which the manifest has not all of."""
    parent: str | None
    """Label of the version that this one was made from."""
    parent_hash: str | None
    """SHA-256 of the parent's record."""
    metadata: VersionMetadata
    files: tuple[VersionedFile, ...]
    """Regular files by path; empty if they were not asked for."""
    dependencies: tuple[VersionDependency, ...]


class AgentVersionManager:
    """The specification's AgentVersionManager: the versions of one agent of one store.

    Versions are named by their labels. Every failure that can be expected is a
    `KaifsError`, with the store left as it was; `rollback_to_version` alone
    tells its failures in its result, as the specification's does.
    """

    def __init__(self, agent_name: str, base_path: str | os.PathLike[str] | None = None) -> None:
        """Use the agent *agent_name* of the store *base_path*.

        None is `$KAIFS_STORE`, or the user's default. Nothing is looked up before a method
        is called: the agent may come to be by `import_version`.
        """
        self.agent_name: Final = agent_name
        self.store: Final = store_path(base_path)

    # --- making versions --------------------------------------------------------------------

    def create_version(
        self,
        source_version: str | None,
        new_version: str | None = None,
        metadata: Mapping[str, object] | PartialMetadata | VersionMetadata | None = None,
        *,
        bump: Bump = "patch",
        on_progress: OnProgress | None = None,
    ) -> AgentVersion:
        """Make a version from another one, or from current.

        Args:
            source_version: The version that it is made from, its parent; current stays what
                it is. None is the agent's current with all that is uncommitted: current is
                then based on the new version.
            new_version: Its label; None grows the label that current is based on by *bump*.
            metadata: What its record says; the computed fields of a VersionMetadata are not
                taken.
            bump: See *new_version*.
            on_progress: Called on the way.

        Raises:
            AgentNotFoundError, InvalidVersionError: there is nothing to make it of.
            BadLabelError, VersionExistsError: the label cannot be had.
            ArgumentValueError: *metadata* makes no sense.
            AccessDeniedError: the agent is somebody else's.
        """
        params = seal.Params(
            agent=self.agent_name,
            label=new_version,
            bump=bump,
            source=None if source_version is None else self._reference(source_version),
            description=description_of(metadata),
            moves_current=False,
        )
        made: MadeVersion = call(self.store, "seal", params, on_progress=on_progress)
        return self.get_version(made.version)

    def seal(
        self,
        new_version: str | None = None,
        *,
        source: str | None = None,
        bump: Bump = "patch",
        description: Description | None = None,
        on_progress: OnProgress | None = None,
        signer: Signer | None = None,
    ) -> MadeVersion:
        """Make a version from current or from *source*, and let current move on to it.

        Args:
            new_version: Its label; None grows the label that current is based on by *bump*.
            source: A reference to any tree of the store; what current has uncommitted becomes
                a backup then.
            bump: See *new_version*.
            description: What its record says.
            on_progress: Called on the way.
            signer: Signs it, see `kaifs.api.signing`; None: the store's key, if it has one.

        Raises:
            KaifsError: as `create_version`.
        """
        params = seal.Params(
            agent=self.agent_name,
            label=new_version,
            bump=bump,
            source=source,
            description=description or Description(),
            caller_signs=signer is not None,
        )
        made: MadeVersion = call(self.store, "seal", params, on_progress=on_progress, signer=signer)
        return made

    def import_version(
        self,
        directory: str | os.PathLike[str],
        version: str,
        metadata: Mapping[str, object] | PartialMetadata | VersionMetadata | None = None,
        *,
        on_progress: OnProgress | None = None,
        signer: Signer | None = None,
    ) -> MadeVersion:
        """Make a version from a folder of this machine; the agent is made if there is none.

        An agent's first version also becomes current.

        Raises:
            KaifsError: as `kaifs.api.exchange.import_folder`.
        """
        return exchange.import_folder(
            self.store,
            self.agent_name,
            directory,
            version,
            description_of(metadata),
            on_progress,
            signer,
        )

    # --- rollback -----------------------------------------------------------------------------

    def rollback_to_version(self, target_version: str) -> RollbackResult:
        """Make current show a version; what it had uncommitted is sealed first.

        Never raises a `KaifsError`: of a failure, whatever it is, the result has `success`
        False, `error` and the steps that it came to, the last being `rollback_failed`;
        current is then what it was.
        """
        try:
            return self.rollback(target_version)
        except KaifsError as error:
            return failed_rollback(target_version, error)

    def rollback(self, target_version: str) -> RollbackResult:
        """Do what `rollback_to_version` does, for programs that prefer an exception.

        Raises:
            InvalidVersionError: there is no such version.
            RollbackValidationError: it is not what its record says.
            KaifsError: as `kaifs.service.rollback.run`.
        """
        params = rollback.Params(agent=self.agent_name, version=target_version)
        done: RollbackResult = call(self.store, "rollback", params)
        return done

    # --- looking ------------------------------------------------------------------------------

    def list_versions(self) -> tuple[VersionInfo, ...]:
        """Return all versions, newest first by semantic version.

        Raises:
            AgentNotFoundError: there is no such agent.
            AccessDeniedError: its folder is closed to the caller.
        """
        found: list_.Result = call(self.store, "list", list_.Params(agent=self.agent_name))
        return found.versions

    def log(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        follow: bool = False,
        limit: int | None = None,
    ) -> tuple[LogEntry, ...]:
        """Return the history, newest first: what came from what.

        Args:
            path: Only versions that changed what is there, or below it; from the agent's top.
            follow: Go on with the name that *path* had before it was renamed.
            limit: At most so many versions.

        Raises:
            AgentNotFoundError: there is no such agent.
            AccessDeniedError: its folder, or a file of a version that is compared, is closed to
                the caller.
        """
        params = LogParams(
            agent=self.agent_name,
            path=None if path is None else os.fsencode(path),
            follow=follow,
            limit=limit,
        )
        found: LogResult = call(self.store, "log", params)
        return found.entries

    def get_current_version(self, *, has_files: bool = True) -> AgentVersion | None:
        """Return the version that current is based on, None if there is none yet.

        What is uncommitted in current is not in it: `diff` tells that.

        Raises:
            KaifsError: as `get_version`.
        """
        try:
            return self._show(self.agent_name, has_files=has_files)
        except InvalidVersionError:
            return None

    def get_version(self, version: str, *, has_files: bool = True) -> AgentVersion:
        """Return a version.

        Args:
            version: Its label.
            has_files: Whether to list its files, of which there may be many.

        Raises:
            AgentNotFoundError, InvalidVersionError: there is none.
            AccessDeniedError: a file of it is closed to the caller.
        """
        return self._show(self._reference(version), has_files=has_files)

    def diff(self, old: str | None, new: str | None = None) -> tuple[Change, ...]:
        """Return what differs between two versions, by path, with counts of lines.

        None stands for what current is now.

        Raises:
            AgentNotFoundError, InvalidVersionError: one is missing.
            AccessDeniedError: a file is closed to the caller.
        """
        found: DiffResult = call(self.store, "diff", self._diff_params(old, new, "stat"))
        return found.changes

    def patch(self, old: str | None, new: str | None = None) -> bytes:
        """Return what differs between two versions as a unified patch in git's style.

        Raises:
            KaifsError: as `diff`.
        """
        patch = bytearray()
        call(self.store, "diff", self._diff_params(old, new, "patch"), on_output=patch.extend)
        return bytes(patch)

    def export_version(
        self,
        version: str | None,
        directory: str | os.PathLike[str],
        *,
        on_progress: OnProgress | None = None,
    ) -> exchange.Exported:
        """Write a version, None for what current is now, to a new or an empty folder.

        Raises:
            KaifsError: as `kaifs.api.exchange.export_folder`.
        """
        reference = self.agent_name if version is None else self._reference(version)
        return exchange.export_folder(self.store, reference, directory, on_progress)

    # --- the end ------------------------------------------------------------------------------

    def remove_version(self, version: str, *, force: bool = False) -> None:
        """Take a version away.

        Args:
            version: Its label.
            force: Also if other versions or snapshots were made from it.

        Raises:
            VersionInUseError: current is based on it, or something was made from it.
            KaifsError: as `get_version`.
        """
        params = remove.Params(reference=self._reference(version), force=force)
        call(self.store, "remove", params)

    def _reference(self, version: str) -> str:
        return f"{self.agent_name}@{version}"

    def _diff_params(
        self, old: str | None, new: str | None, style: Literal["stat", "patch"]
    ) -> DiffParams:
        references = [
            self.agent_name if label is None else self._reference(label) for label in (old, new)
        ]
        return DiffParams(old=references[0], new=references[1], style=style)

    def _show(self, reference: str, *, has_files: bool) -> AgentVersion:
        found: show.Result = call(
            self.store, "show", show.Params(reference=reference, has_files=has_files)
        )
        assert found.version is not None, "the reference names no snapshot"
        record = found.version
        return AgentVersion(
            version=record.version,
            hash=record.hash,
            tree_digest=record.tree_digest,
            parent=record.parent or None,
            parent_hash=record.parent_hash or None,
            metadata=record.metadata,
            files=found.files or (),
            dependencies=record.dependencies,
        )


def description_of(
    metadata: Mapping[str, object] | PartialMetadata | VersionMetadata | None,
) -> Description:
    """Return what *metadata* says of a version that is to be made.

    Raises:
        ArgumentValueError: it says what is not to be said, or not in the right type.
    """
    if isinstance(metadata, VersionMetadata):
        said: dict[str, object] = {told: getattr(metadata, name) for name, told in _TOLD.items()}
    else:
        said = {_TOLD.get(name, name): value for name, value in (metadata or {}).items()}
    try:
        return msgspec.convert(said, Description)
    except msgspec.ValidationError as error:
        raise ArgumentValueError(f"metadata: {error}") from error


def failed_rollback(target_version: str, error: KaifsError) -> RollbackResult:
    """Return the result of a rollback that *error* ended."""
    return RollbackResult(
        success=False,
        target_version=target_version,
        previous_version=None,
        error=str(error),
        steps=failed_steps(error),
        timestamp=format_time(SystemClock().now_ns()),
    )

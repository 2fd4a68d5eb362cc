"""Every way in which kaifs can refuse or fail, one class for each.

::

    KaifsError                      an expected failure: code, message, errno
    ├── specification's             E101 … E105, messages word for word
    ├── of the store                E110 … E119
    ├── of names and references     E120 … E129
    ├── of import, export, mounts   E130 … E149
    ├── of files (FileError)        E150 … E169: what a system call returns
    └── of versions                 E170 … E189: records, signatures, damage, history

Anything else that is raised is a bug. A class carries code, message, errno and
what to do; an instance carries the thing at fault. Nobody below `fuse` picks
an errno and nobody below `cli` an exit status.
"""

import errno
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias

Detail: TypeAlias = str | int | list[str] | list[dict[str, Any]]
"""What a program can read off a failure; a list of objects is plain JSON."""


class VersionErrorCode(StrEnum):
    """The specification's error codes."""

    INVALID_VERSION = "E101"
    CHECKSUM_MISMATCH = "E102"
    SNAPSHOT_ISOLATION_FAILED = "E103"
    ROLLBACK_VALIDATION_FAILED = "E104"
    PERMISSION_DENIED = "E105"


class KaifsError(Exception):
    """An expected failure. Base class; never raised itself."""

    code: ClassVar[str]
    message: ClassVar[str]
    errno: ClassVar[int]
    hint: ClassVar[str] = ""

    def __init__(self, subject: str = "", **details: Detail) -> None:
        """Fail because of *subject*: the one thing at fault, as a user knows it."""
        super().__init__(subject)
        self.subject = subject
        self.details: dict[str, Detail] = dict(details)

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}"
        if self.subject:
            text += f" ({self.subject})"
        if self.hint:
            text += f"; {self.hint}"
        return text


# --- the specification's ---------------------------------------------------------------


class InvalidVersionError(KaifsError):
    """The version does not exist or is corrupted. Source: specification, E101."""

    code = VersionErrorCode.INVALID_VERSION
    message = "Invalid rollback version - version does not exist or is corrupted"
    errno = errno.ENOENT


class ChecksumMismatchError(KaifsError):
    """Stored bytes do not match their checksum. Source: specification, E102."""

    code = VersionErrorCode.CHECKSUM_MISMATCH
    message = "Checksum mismatch detected - files may have been modified outside version control"
    errno = errno.EIO


class SnapshotIsolationError(KaifsError):
    """A snapshot or a limit that was asked for it cannot be had. Source: specification, E103."""

    code = VersionErrorCode.SNAPSHOT_ISOLATION_FAILED
    message = "Failed to create isolated snapshot - check sandbox directory permissions"
    errno = errno.EPERM


class RollbackValidationError(KaifsError):
    """A rollback's target did not pass validation. Source: specification, E104."""

    code = VersionErrorCode.ROLLBACK_VALIDATION_FAILED
    message = "Rollback validation failed - target version may be incompatible"
    errno = errno.EINVAL


class AccessDeniedError(KaifsError):
    """The caller may not do this. Source: specification, E105."""

    code = VersionErrorCode.PERMISSION_DENIED
    message = "Insufficient permissions for version operation"
    errno = errno.EACCES


# --- of the store ----------------------------------------------------------------------


class StoreNotFoundError(KaifsError):
    """There is no store at the path."""

    code = "E110"
    message = "No store here"
    errno = errno.ENOENT
    hint = "make one with 'kaifs init'"


class StoreNotEmptyError(KaifsError):
    """A store is to be made where something is already."""

    code = "E111"
    message = "Will not make a store in a folder that is not empty"
    errno = errno.ENOTEMPTY
    hint = "name a new or an empty folder"


class StoreBusyError(KaifsError):
    """Another process has the store open."""

    code = "E112"
    message = "Store is in use"
    errno = errno.EBUSY
    hint = "wait for it to end, or stop it"


class FormatError(KaifsError):
    """The store has a format or features that this kaifs does not know."""

    code = "E113"
    message = "Store has a format that this kaifs does not know"
    errno = errno.EPROTONOSUPPORT
    hint = "use a newer kaifs"


class StoreDamagedError(KaifsError):
    """A structure of the store is unreadable or breaks an invariant."""

    code = "E114"
    message = "Store is damaged"
    errno = errno.EIO
    hint = "run 'kaifs fsck'"


class NoSpaceError(KaifsError):
    """The disk under the store is full, or a number of the format is used up."""

    code = "E115"
    message = "No space left for the store"
    errno = errno.ENOSPC
    hint = "free disk space, or run 'kaifs gc'"


class DaemonError(KaifsError):
    """The daemon of a store does not answer as it should."""

    code = "E116"
    message = "Daemon does not answer"
    errno = errno.EIO
    hint = "see its log in the store, then mount again"


class StoreIOError(KaifsError):
    """The system refuses to read or write the store's files."""

    code = "E117"
    message = "Cannot read or write the store"
    errno = errno.EIO
    hint = "check permissions and the disk"


# --- of names and references -------------------------------------------------------------


class BadLabelError(KaifsError):
    """A label is no exact semantic version."""

    code = "E120"
    message = "Not a semantic version"
    errno = errno.EINVAL
    hint = "labels are exact SemVer 2.0.0, such as 1.4.0 or 2.0.0-rc.1"

    def __init__(self, label: str, reason: str) -> None:
        shown = label if len(label) <= 80 else label[:77] + "..."
        super().__init__(f"{shown!r}: {reason}", label=shown)


class BadNameError(KaifsError):
    """A name of an agent or a snapshot is not allowed."""

    code = "E121"
    message = "Not a valid name"
    errno = errno.EINVAL
    hint = "names match [A-Za-z0-9][A-Za-z0-9._-]{0,63}, and no agent's begins with s-"


class BadReferenceError(KaifsError):
    """A reference is malformed, or does not name what the verb needs."""

    code = "E122"
    message = "Not a reference that can be used here"
    errno = errno.EINVAL
    hint = "write AGENT, AGENT@LABEL or AGENT/@snapshots/ID"


class AgentNotFoundError(KaifsError):
    """No agent has the name."""

    code = "E123"
    message = "No such agent"
    errno = errno.ENOENT
    hint = "'kaifs list' shows the agents"


class SnapshotNotFoundError(KaifsError):
    """No snapshot has the name."""

    code = "E124"
    message = "No such snapshot"
    errno = errno.ENOENT
    hint = "'kaifs snapshots' shows them"


class AmbiguousReferenceError(KaifsError):
    """A bare snapshot id fits snapshots of several agents."""

    code = "E125"
    message = "Several snapshots have that name"
    errno = errno.EINVAL
    hint = "name one as AGENT/@snapshots/ID"


class VersionExistsError(KaifsError):
    """The label is taken, or differs from a taken one only in build metadata."""

    code = "E126"
    message = "Version exists already"
    errno = errno.EEXIST
    hint = "choose another label"


class SnapshotExistsError(KaifsError):
    """The snapshot's name is taken."""

    code = "E127"
    message = "Snapshot exists already"
    errno = errno.EEXIST
    hint = "choose another name"


class VersionInUseError(KaifsError):
    """A version cannot be taken away because something needs it."""

    code = "E128"
    message = "Version is needed"
    errno = errno.EBUSY
    hint = "roll back to another version, or use --force where only a child needs it"


class AgentExistsError(KaifsError):
    """The agent's name is taken."""

    code = "E129"
    message = "Agent exists already"
    errno = errno.EEXIST
    hint = "choose another name"


# --- of import, export and mounts ----------------------------------------------------------


class SourceError(KaifsError):
    """The folder to import is missing, no folder, or cannot be read."""

    code = "E130"
    message = "Cannot import this"
    errno = errno.ENOENT
    hint = "name a folder that you can read"


class SourceChangedError(KaifsError):
    """A file changed while it was imported."""

    code = "E131"
    message = "File changed while it was imported"
    errno = errno.EAGAIN
    hint = "import again when nothing writes to the folder"


class TargetError(KaifsError):
    """An export's target cannot be used."""

    code = "E132"
    message = "Cannot export there"
    errno = errno.ENOTEMPTY
    hint = "name a new or an empty folder, or - for a tar stream"


class MountpointError(KaifsError):
    """A mountpoint is missing, in use, not empty, or inside the store."""

    code = "E133"
    message = "Cannot mount there"
    errno = errno.EINVAL
    hint = "name an empty folder that nothing is mounted on"


class MountOptionError(KaifsError):
    """A mount option is unknown or has a value that it cannot have."""

    code = "E134"
    message = "Bad mount option"
    errno = errno.EINVAL
    hint = "'kaifs mount --help' lists the options"


class NotMountedError(KaifsError):
    """No kaifs is mounted on the path."""

    code = "E135"
    message = "No kaifs is mounted there"
    errno = errno.EINVAL
    hint = "'kaifs status' lists the mounts"


class MountBusyError(KaifsError):
    """Processes use the mount, so that it cannot be taken down."""

    code = "E136"
    message = "Mount is in use"
    errno = errno.EBUSY
    hint = "end them, or use --lazy"


class MountFailedError(KaifsError):
    """The system refuses the mount."""

    code = "E137"
    message = "Mount failed"
    errno = errno.EIO
    hint = "'kaifs doctor' tells what this machine lacks"


class ForeignMountError(KaifsError):
    """Something is mounted inside a mount of which a view is to be switched."""

    code = "E138"
    message = "Something else is mounted inside the mount"
    errno = errno.EBUSY
    hint = "unmount it first"


class BarrierError(KaifsError):
    """What programs have written could not be flushed out of the kernel."""

    code = "E139"
    message = "Could not flush written data"
    errno = errno.EIO
    hint = "nothing was changed; try again"


class ArgumentValueError(KaifsError):
    """A value given to a verb cannot be used."""

    code = "E140"
    message = "Cannot use that value"
    errno = errno.EINVAL


class SuiteError(KaifsError):
    """A test suite is missing, unreadable or not of the shape that it must have."""

    code = "E141"
    message = "Cannot use this test suite"
    errno = errno.EINVAL
    hint = "a suite is a list of tables 'test' with name and command"


class SnapshotStateError(KaifsError):
    """The snapshot is not in the state that the verb needs."""

    code = "E142"
    message = "Snapshot is not in the right state"
    errno = errno.EBUSY
    hint = "only a snapshot whose tests passed, and unchanged since, is committed"


class MergeConflictError(KaifsError):
    """What a snapshot changed and what current changed meanwhile exclude each other."""

    code = "E143"
    message = "Merge conflicts, nothing was changed"
    errno = errno.EBUSY
    hint = "mend them in the snapshot's files or in current, and commit again"


class SuiteRunError(KaifsError):
    """Who ran the tests went away, or told something that cannot be."""

    code = "E144"
    message = "Tests did not come to a result"
    errno = errno.ECANCELED
    hint = "run them again"


class RestartError(KaifsError):
    """The mount cannot go on in another process now; it goes on in this one."""

    code = "E145"
    message = "Restart not possible"
    errno = errno.EBUSY
    hint = "unmount, and mount again"


class ViewTakenError(KaifsError):
    """A view that can be written is on another mount already, or used by a sandbox."""

    code = "E146"
    message = "View is on another mount"
    errno = errno.EBUSY
    hint = "unmount it there first"


# --- of versions: signatures and keys ---------------------------------------------------------


class AgentManifestError(KaifsError):
    """The agent's manifest cannot be read, or says what cannot be."""

    code = "E170"
    message = "Cannot use the agent's manifest"
    errno = errno.EINVAL
    hint = "docs/VERSIONS.md says what it may hold"


class SigningKeyError(KaifsError):
    """A key is missing, unreadable, or of a kind that is not used."""

    code = "E175"
    message = "Cannot use this key"
    errno = errno.EINVAL
    hint = "Ed25519 keys of OpenSSH are sure to work"


class UnsignedError(KaifsError):
    """The agent's policy requires a signature, and there is none."""

    code = "E176"
    message = "A signature is required"
    errno = errno.EPERM
    hint = "sign with 'kaifs sign' or --sign-key, or give the store a key: 'kaifs key generate'"


class BadSignatureError(KaifsError):
    """What is given as a signature is none of what it should sign."""

    code = "E177"
    message = "Signature is not good"
    errno = errno.EBADMSG


class UntrustedKeyError(KaifsError):
    """A signature is by a key that is unknown, revoked, or was not valid at the time."""

    code = "E178"
    message = "Signed by a key that is not trusted"
    errno = errno.EKEYREJECTED
    hint = "'kaifs key list' shows the trusted keys"


class SignersFileError(KaifsError):
    """A line of the trusted signers or of the revoked keys makes no sense."""

    code = "E179"
    message = "Cannot read the trusted signers"
    errno = errno.EINVAL
    hint = "mend the line: nothing is trusted until then"


# --- of quarantine and alerts --------------------------------------------------------------


class NotInQuarantineError(KaifsError):
    """Nothing with that reference is in quarantine."""

    code = "E180"
    message = "No such version in quarantine"
    errno = errno.ENOENT
    hint = "'kaifs quarantine list' shows what is"


class StillDamagedError(KaifsError):
    """A version in quarantine does not verify, so it stays there."""

    code = "E181"
    message = "Version is still damaged and stays in quarantine"
    errno = errno.EIO
    hint = "'kaifs remove' takes it away for good"


class AlertSettingsError(KaifsError):
    """The file that says who is told of damage cannot be used."""

    code = "E182"
    message = "Cannot use the settings of alerts"
    errno = errno.EINVAL
    hint = "mend alerts.toml in the store; it must belong to the store's owner, and be theirs alone"


# --- of history and retention --------------------------------------------------------------


class NoRuleError(KaifsError):
    """Versions are to be pruned, and no rule says which are kept."""

    code = "E185"
    message = "No rule says which versions are kept"
    errno = errno.EINVAL
    hint = "give one, such as --keep-last 10, or set one with 'kaifs policy'"


# --- of files: what a system call returns ------------------------------------------------------


class FileError(KaifsError):
    """A file operation that the file system refuses. Base class; never raised itself."""


class NoEntryError(FileError):
    """The name, or the inode, does not exist."""

    code = "E150"
    message = "No such file or directory"
    errno = errno.ENOENT


class EntryExistsError(FileError):
    """The name is taken."""

    code = "E151"
    message = "File exists"
    errno = errno.EEXIST


class NotDirectoryError(FileError):
    """A directory is needed and this is none."""

    code = "E152"
    message = "Not a directory"
    errno = errno.ENOTDIR


class IsDirectoryError(FileError):
    """This is a directory and something else is needed."""

    code = "E153"
    message = "Is a directory"
    errno = errno.EISDIR


class DirectoryNotEmptyError(FileError):
    """A directory to be removed or replaced has entries."""

    code = "E154"
    message = "Directory not empty"
    errno = errno.ENOTEMPTY


class SealedError(FileError):
    """A change of something sealed."""

    code = "E155"
    message = "Read-only file system"
    errno = errno.EROFS


class CrossViewError(FileError):
    """A rename or link between two views."""

    code = "E156"
    message = "Invalid cross-device link"
    errno = errno.EXDEV


class NameTooLongError(FileError):
    """A name, link target or attribute name is too long."""

    code = "E157"
    message = "File name too long"
    errno = errno.ENAMETOOLONG


class NoAttributeError(FileError):
    """The extended attribute does not exist."""

    code = "E158"
    message = "No such extended attribute"
    errno = errno.ENODATA


class InvalidOperationError(FileError):
    """The operation makes no sense on this object or with these arguments."""

    code = "E159"
    message = "Invalid argument"
    errno = errno.EINVAL


class TooManyLinksError(FileError):
    """A file has as many names as it can have."""

    code = "E160"
    message = "Too many links"
    errno = errno.EMLINK


class FileTooLargeError(FileError):
    """A file would grow past its greatest size."""

    code = "E161"
    message = "File too large"
    errno = errno.EFBIG


class NotPermittedError(FileError):
    """What kaifs keeps for itself is to be changed."""

    code = "E162"
    message = "Operation not permitted"
    errno = errno.EPERM


class AttributeTooLargeError(FileError):
    """An extended attribute's value is too large."""

    code = "E163"
    message = "Argument list too long"
    errno = errno.E2BIG


class NotSupportedError(FileError):
    """The transport or the object cannot do this."""

    code = "E164"
    message = "Operation not supported"
    errno = errno.EOPNOTSUPP


class QuotaError(FileError):
    """A snapshot would take more storage than its commands may use."""

    code = "E165"
    message = "Disk quota exceeded"
    errno = errno.EDQUOT


class LentError(FileError):
    """A sandbox or a mount of its own has the view: it can only be read here meanwhile."""

    code = "E166"
    message = "In use by a sandbox or on a mount of its own"
    errno = errno.EBUSY


class PastEndError(FileError):
    """A position to seek data or a hole from is past the last one."""

    code = "E167"
    message = "No such device or address"
    errno = errno.ENXIO


class AccessError(FileError):
    """The object cannot have what is asked for, whoever asks."""

    code = "E168"
    message = "Permission denied"
    errno = errno.EACCES


def error_classes() -> list[type[KaifsError]]:
    """Return every class that has a code, sorted by code."""

    def below(cls: type[KaifsError]) -> list[type[KaifsError]]:
        found = [cls] if "code" in cls.__dict__ else []
        for child in cls.__subclasses__():
            found += below(child)
        return found

    return sorted(below(KaifsError), key=lambda cls: cls.code)


ERROR_MESSAGES: dict[VersionErrorCode, str] = {
    VersionErrorCode(cls.code): cls.message
    for cls in (
        InvalidVersionError,
        ChecksumMismatchError,
        SnapshotIsolationError,
        RollbackValidationError,
        AccessDeniedError,
    )
}
"""The specification's table."""

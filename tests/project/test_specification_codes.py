"""E101 to E105 are the same everywhere: in Python, on the screen, in JSON, on the socket, as errno."""

import argparse
import errno
import json

import pytest

from kaifs.base.errors import (
    ERROR_MESSAGES,
    AccessDeniedError,
    ChecksumMismatchError,
    InvalidVersionError,
    KaifsError,
    RollbackValidationError,
    SnapshotIsolationError,
    VersionErrorCode,
)
from kaifs.cli.output import tell_failure
from kaifs.control.messages import Failure, encode, failure_of
from kaifs.fuse.errno_map import errno_of

SUBJECT = "bot@1.2.0: lib/x.py"


@pytest.mark.parametrize(
    ("error", "code", "number", "message"),
    [
        (
            InvalidVersionError,
            "E101",
            errno.ENOENT,
            "Invalid rollback version - version does not exist or is corrupted",
        ),
        (
            ChecksumMismatchError,
            "E102",
            errno.EIO,
            "Checksum mismatch detected - files may have been modified outside version control",
        ),
        (
            SnapshotIsolationError,
            "E103",
            errno.EPERM,
            "Failed to create isolated snapshot - check sandbox directory permissions",
        ),
        (
            RollbackValidationError,
            "E104",
            errno.EINVAL,
            "Rollback validation failed - target version may be incompatible",
        ),
        (
            AccessDeniedError,
            "E105",
            errno.EACCES,
            "Insufficient permissions for version operation",
        ),
    ],
)
def test_a_code_has_one_message_and_one_errno_wherever_it_is_met(
    error: type[KaifsError],
    code: str,
    number: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Source: specification, ERROR_MESSAGES; contract, "Output and errors"."""
    refusal = error(SUBJECT)

    # In Python.
    assert (str(refusal.code), refusal.message, refusal.subject) == (code, message, SUBJECT)
    assert ERROR_MESSAGES[VersionErrorCode(code)] == message
    # On the command line, with and without --json.
    status = tell_failure(argparse.Namespace(json=True, quiet=False, trouble=1), refusal)
    told = capsys.readouterr()
    assert status == 1
    assert told.err == f"kaifs: {code}: {message} ({SUBJECT})\n"
    document = json.loads(told.out)["error"]
    assert (document["code"], document["message"]) == (code, message)
    assert document["details"]["subject"] == SUBJECT
    # On the socket of a daemon.
    sent = failure_of(refusal)
    assert isinstance(sent, Failure)
    assert code.encode() in encode(sent)
    # Through the mount.
    assert errno_of(refusal, "read") == number

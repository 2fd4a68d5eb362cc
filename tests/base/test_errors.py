"""Each way to fail has one class, one code, one errno, and says what it is about."""

import errno
import re

import pytest

from kaifs.base import errors
from kaifs.base.errors import (
    ERROR_MESSAGES,
    AgentNotFoundError,
    FileError,
    InvalidVersionError,
    KaifsError,
    StoreBusyError,
    VersionErrorCode,
    error_classes,
)

# The specification's text, as it stands there.
SPECIFICATION = """
enum VersionErrorCode {
  INVALID_VERSION = 'E101',
  CHECKSUM_MISMATCH = 'E102',
  SNAPSHOT_ISOLATION_FAILED = 'E103',
  ROLLBACK_VALIDATION_FAILED = 'E104',
  PERMISSION_DENIED = 'E105'
}

const ERROR_MESSAGES = {
  [VersionErrorCode.INVALID_VERSION]: 'Invalid rollback version - version does not exist or is corrupted',
  [VersionErrorCode.CHECKSUM_MISMATCH]: 'Checksum mismatch detected - files may have been modified outside version control',
  [VersionErrorCode.SNAPSHOT_ISOLATION_FAILED]: 'Failed to create isolated snapshot - check sandbox directory permissions',
  [VersionErrorCode.ROLLBACK_VALIDATION_FAILED]: 'Rollback validation failed - target version may be incompatible',
  [VersionErrorCode.PERMISSION_DENIED]: 'Insufficient permissions for version operation'
};
"""

CLASSES = error_classes()


def every_class(cls: type[KaifsError]) -> list[type[KaifsError]]:
    """Return *cls* and everything below it."""
    return [cls] + [found for child in cls.__subclasses__() for found in every_class(child)]


def test_codes_are_the_specification_s() -> None:
    table = dict(re.findall(r"^  (\w+) = '(E\d+)'", SPECIFICATION, re.MULTILINE))

    assert {code.name: code.value for code in VersionErrorCode} == table


def test_messages_are_the_specification_s_word_for_word() -> None:
    table = dict(re.findall(r"VersionErrorCode\.(\w+)\]: '(.*)'", SPECIFICATION))

    assert {code.name: message for code, message in ERROR_MESSAGES.items()} == table
    assert len(table) == 5


def test_codes_are_unique_and_sorted() -> None:
    codes = [str(cls.code) for cls in CLASSES]

    assert codes == sorted(set(codes))


def test_our_codes_continue_from_e110() -> None:
    ours = {str(cls.code) for cls in CLASSES} - {code.value for code in VersionErrorCode}

    assert min(ours) == "E110"
    assert all(re.fullmatch(r"E1[1-9]\d", code) for code in ours)


def test_file_errors_are_in_their_own_range() -> None:
    for cls in CLASSES:
        assert issubclass(cls, FileError) == ("E150" <= str(cls.code) < "E170"), cls


def test_every_class_but_the_two_bases_has_a_code_of_its_own() -> None:
    assert {cls.__name__ for cls in every_class(KaifsError) if cls not in CLASSES} == {
        "KaifsError",
        "FileError",
    }


def test_every_public_class_of_the_module_is_in_the_table() -> None:
    public = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, KaifsError)
    }

    assert public - {KaifsError, FileError} == set(CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_class_is_complete(cls: type[KaifsError]) -> None:
    """Errno is a real one; message and hint are one line without a closing full stop."""
    assert cls.errno in errno.errorcode
    assert cls.__name__.endswith("Error")
    assert cls.__doc__
    for text in (cls.message, cls.hint):
        assert text == text.strip()
        assert "\n" not in text
        assert not text.endswith(".")
    assert cls.message


def test_text_is_code_message_subject_and_hint() -> None:
    assert str(InvalidVersionError("a@1.0.0")) == (
        "E101: Invalid rollback version - version does not exist or is corrupted (a@1.0.0)"
    )
    assert str(AgentNotFoundError("a")) == "E123: No such agent (a); 'kaifs list' shows the agents"
    assert str(AgentNotFoundError()) == "E123: No such agent; 'kaifs list' shows the agents"


def test_the_thing_at_fault_is_on_the_instance() -> None:
    error = StoreBusyError("/s", pid=7, command="kaifs seal")

    assert error.subject == "/s"
    assert error.details == {"pid": 7, "command": "kaifs seal"}
    assert error.errno == errno.EBUSY

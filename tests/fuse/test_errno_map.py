"""Exceptions as errnos."""

import errno
import logging

import pytest

from kaifs.base.errors import NoEntryError, StoreDamagedError, error_classes
from kaifs.fuse.errno_map import errno_of, replies


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_every_expected_failure_has_its_errno(cls: type[Exception]) -> None:
    assert getattr(cls, "errno") in errno.errorcode  # noqa: B009


def test_a_refusal_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert errno_of(NoEntryError(), "lookup") == errno.ENOENT
    assert caplog.records == []


def test_a_damaged_store_is_logged_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    assert errno_of(StoreDamagedError("root 7"), "lookup") == errno.EIO
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.logs_errors
async def test_a_bug_is_an_io_error_with_its_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @replies(lambda number: OSError(number, "reply"))
    async def lookup() -> None:
        raise ZeroDivisionError

    with pytest.raises(OSError, match="reply") as caught:
        await lookup()

    assert caught.value.errno == errno.EIO
    assert caplog.records[0].exc_info is not None

"""Messages: errors keep their class; nonsense is refused."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.errors import BadLabelError, KaifsError, error_classes
from kaifs.control.failures import RemoteBugError
from kaifs.control.messages import (
    MessageError,
    decode_failure,
    decode_from_client,
    encode,
    error_of,
    failure_of,
)


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.code)
def test_every_error_arrives_as_it_was(cls: type[KaifsError]) -> None:
    error = cls.__new__(cls)
    KaifsError.__init__(error, "a subject", candidates=["a", "b"], count=3)

    arrived = error_of(decode_failure(encode(failure_of(error))))

    assert type(arrived) is cls
    assert str(arrived) == str(error)
    assert isinstance(arrived, KaifsError)
    assert arrived.details == {"candidates": ["a", "b"], "count": 3}


def test_an_error_that_builds_its_own_subject_does_not_build_it_twice() -> None:
    error = BadLabelError("x", "because")

    assert str(error_of(failure_of(error))) == str(error)


def test_a_bug_arrives_as_a_bug() -> None:
    arrived = error_of(failure_of(ZeroDivisionError("x")))

    assert isinstance(arrived, RemoteBugError)
    assert "ZeroDivisionError" in str(arrived)


@given(st.binary())
def test_nonsense_is_refused_and_nothing_else(body: bytes) -> None:
    with suppress(MessageError):
        decode_from_client(body)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(MessageError):
        decode_from_client(b"\x93\xa7request\xa1x" + b"\x91" * 1_000_000 + b"\x00")
    with pytest.raises(MessageError):
        decode_from_client(msgspec.msgpack.encode(["request"]))

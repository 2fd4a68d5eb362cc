"""The specification's VersionSecurityManager, as a program uses it."""

import inspect

import pytest

from kaifs import AgentVersionManager, ValidationResult, VersionErrorCode, VersionSecurityManager
from kaifs.base.errors import (
    AgentNotFoundError,
    ArgumentValueError,
    InvalidVersionError,
    KaifsError,
)


@pytest.fixture
def security(served_versions: AgentVersionManager) -> VersionSecurityManager:
    """Of the same store, with a daemon and without."""
    return VersionSecurityManager(served_versions.store)


def test_every_method_of_the_manager_is_documented_and_typed() -> None:
    for name, method in inspect.getmembers(VersionSecurityManager, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name
            assert "return" in method.__annotations__, name


def test_a_sound_version_is_valid(security: VersionSecurityManager) -> None:
    found = security.validate_version_integrity("bot", "1.0.0", reproduce=True)

    assert isinstance(found, ValidationResult)
    assert (found.valid, found.errors) == (True, ())
    assert [one.reference for one in security.verify(full=True).validations] == ["bot@1.0.0"]


@pytest.mark.logs_errors
def test_a_version_is_set_aside_and_given_back(
    served_versions: AgentVersionManager, security: VersionSecurityManager
) -> None:
    served_versions.create_version("1.0.0", "1.1.0")

    made = security.quarantine_corrupted_version("bot", "1.1.0", "looks odd")

    assert (made.agent, made.version, made.reason) == ("bot", "1.1.0", "looks odd")
    assert security.list_quarantine("bot") == security.list_quarantine() == (made,)
    with pytest.raises(InvalidVersionError):
        served_versions.get_version("1.1.0")
    refused = served_versions.rollback_to_version("1.1.0")
    assert not refused.success
    assert refused.error is not None
    assert refused.error.startswith(VersionErrorCode.INVALID_VERSION)

    security.release_version("bot", "1.1.0")

    assert security.list_quarantine() == ()
    assert served_versions.rollback_to_version("1.1.0").success


def test_failures_are_classes_with_codes(security: VersionSecurityManager) -> None:
    with pytest.raises(InvalidVersionError) as caught:
        security.validate_version_integrity("bot", "9.9.9")
    assert isinstance(caught.value, KaifsError)
    with pytest.raises(AgentNotFoundError):
        security.list_quarantine("nobody")
    with pytest.raises(InvalidVersionError):
        security.quarantine_corrupted_version("bot", "9.9.9", "why")
    with pytest.raises(ArgumentValueError):
        security.quarantine_corrupted_version("bot", "1.0.0", "")
    with pytest.raises(KaifsError):
        security.release_version("bot", "1.0.0")
    with pytest.raises(KaifsError):
        security.trust_key("no key", "me")
    assert security.list_keys().revoked == ()

"""The specification's AgentVersionManager, as a program uses it."""

import hashlib
import inspect
from pathlib import Path

import msgspec
import pytest

from kaifs import (
    AgentVersion,
    AgentVersionManager,
    KaifsError,
    RollbackResult,
    RollbackStep,
    VersionedFile,
    VersionErrorCode,
    VersionInfo,
    VersionMetadata,
)
from kaifs.base.errors import (
    AgentNotFoundError,
    ArgumentValueError,
    BadLabelError,
    InvalidVersionError,
    SourceError,
    StoreNotFoundError,
    TargetError,
    VersionExistsError,
    VersionInUseError,
)


def labels(manager: AgentVersionManager) -> list[str]:
    """Return the labels of all versions, newest first."""
    return [info.version for info in manager.list_versions()]


def test_every_method_of_the_manager_is_documented_and_typed() -> None:
    for name, method in inspect.getmembers(AgentVersionManager, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name
            assert "return" in method.__annotations__, name


def test_a_version_has_the_specification_s_fields(served_versions: AgentVersionManager) -> None:
    found = served_versions.get_version("1.0.0")

    assert isinstance(found, AgentVersion)
    assert isinstance(found.metadata, VersionMetadata)
    assert (found.version, found.parent, found.metadata.author) == ("1.0.0", None, "ci")
    assert found.metadata.tags == ("first",)
    assert found.files == (
        VersionedFile(
            path="a.txt",
            hash=hashlib.sha256(b"first\n").hexdigest(),
            size=6,
            permissions="0644",
        ),
        VersionedFile(
            path="lib/x.py",
            hash=hashlib.sha256(b"x = 1\n").hexdigest(),
            size=6,
            permissions="0644",
        ),
    )
    assert served_versions.get_current_version() == found
    assert served_versions.get_version("1.0.0", has_files=False).files == ()
    document = msgspec.json.decode(msgspec.json.encode(found))
    assert document.keys() >= {"version", "hash", "parent", "metadata", "files", "dependencies"}
    assert document["metadata"].keys() >= {"commitHash", "snapshotType", "agentStateChecksum"}


def test_a_version_is_made_from_another_one_and_current_stays(
    served_versions: AgentVersionManager,
) -> None:
    """Source: specification, createVersion: it leaves the symbolic link alone."""
    made = served_versions.create_version(
        "1.0.0", "1.1.0", {"notes": "as before", "commitHash": "c0ffee", "snapshot_type": "release"}
    )

    source = served_versions.get_version("1.0.0")
    assert (made.version, made.parent, made.hash) == ("1.1.0", "1.0.0", source.hash)
    assert made.files == source.files
    metadata = made.metadata
    assert (metadata.author, metadata.notes) == ("system", "as before")
    assert (metadata.commit_hash, metadata.snapshot_type) == ("c0ffee", "release")
    current = served_versions.get_current_version(has_files=False)
    assert current is not None
    assert current.version == "1.0.0"
    assert labels(served_versions) == ["1.1.0", "1.0.0"]


def test_a_version_is_made_from_current_and_current_moves_on(
    served_versions: AgentVersionManager,
) -> None:
    made = served_versions.create_version(None, metadata={"author": "me"})

    current = served_versions.get_current_version()
    assert current is not None
    assert (made.version, current.version, made.metadata.author) == ("1.0.1", "1.0.1", "me")
    assert served_versions.create_version(None, bump="major").version == "2.0.0"


def test_metadata_of_one_version_can_be_given_to_the_next(versions: AgentVersionManager) -> None:
    found = versions.get_version("1.0.0").metadata

    made = versions.create_version("1.0.0", "1.1.0", found)

    assert (made.metadata.author, made.metadata.tags) == (found.author, found.tags)
    assert made.metadata.created > found.created


@pytest.mark.parametrize(
    "metadata",
    [
        {"created": "2026-01-01T00:00:00.000000Z"},
        {"configChecksum": "0"},
        {"author": 1},
        {"tags": "one"},
        {"snapshot_type": "weekly"},
        {"notes": "\ud800"},
    ],
)
def test_metadata_that_cannot_be_given_is_refused(
    versions: AgentVersionManager, metadata: dict[str, object]
) -> None:
    with pytest.raises(ArgumentValueError):
        versions.create_version("1.0.0", "1.1.0", metadata)

    assert labels(versions) == ["1.0.0"]


def test_versions_are_listed_newest_first(served_versions: AgentVersionManager) -> None:
    for label in ("1.10.0", "1.2.0", "1.2.0-rc.1"):
        served_versions.create_version("1.0.0", label)

    found = served_versions.list_versions()

    assert [info.version for info in found] == ["1.10.0", "1.2.0", "1.2.0-rc.1", "1.0.0"]
    assert all(isinstance(info, VersionInfo) for info in found)
    assert [info.is_current for info in found] == [False, False, False, True]
    assert found[-1].size == 12


def test_a_rollback_tells_the_specification_s_steps(served_versions: AgentVersionManager) -> None:
    served_versions.create_version("1.0.0", "1.1.0")

    result = served_versions.rollback_to_version("1.1.0")

    assert isinstance(result, RollbackResult)
    assert (result.success, result.target_version, result.error) == (True, "1.1.0", None)
    assert result.previous_version == "1.0.0"
    assert all(isinstance(step, RollbackStep) for step in result.steps)
    assert all(step.success for step in result.steps)
    assert [step.step for step in result.steps] == [
        "backup_current",
        "update_symlink",
        "validate_rollback",
    ]
    current = served_versions.get_current_version()
    assert current is not None
    assert current.version == "1.1.0"


def test_a_rollback_that_fails_is_a_result(served_versions: AgentVersionManager) -> None:
    before = served_versions.get_current_version()

    result = served_versions.rollback_to_version("9.9.9")

    assert (result.success, result.target_version) == (False, "9.9.9")
    assert result.previous_version is None
    assert result.error is not None
    assert result.error.startswith("E101: Invalid rollback version - ")
    assert [(step.step, step.success) for step in result.steps] == [("rollback_failed", False)]
    assert result.steps[-1].error == result.error
    assert served_versions.get_current_version() == before
    with pytest.raises(InvalidVersionError) as caught:
        served_versions.rollback("9.9.9")
    assert caught.value.code == VersionErrorCode.INVALID_VERSION


def test_also_a_rollback_that_gets_nowhere_is_a_result(
    versions: AgentVersionManager, tmp_path: Path
) -> None:
    for manager in (
        AgentVersionManager("nobody", versions.store),
        AgentVersionManager("bot", tmp_path / "none"),
    ):
        result = manager.rollback_to_version("1.0.0")

        assert not result.success
        assert [step.step for step in result.steps] == ["rollback_failed"]


def test_differences_are_told(
    served_versions: AgentVersionManager, source: Path, tmp_path: Path
) -> None:
    (source / "a.txt").write_text("second\n")
    served_versions.import_version(source, "1.1.0")

    (change,) = served_versions.diff("1.0.0", "1.1.0")

    assert (change.status, change.path, change.added, change.removed) == ("M", "a.txt", 1, 1)
    assert b"-first\n+second\n" in served_versions.patch("1.0.0", "1.1.0")
    assert served_versions.diff("1.0.0") == ()


def test_a_version_comes_out_as_it_went_in(
    served_versions: AgentVersionManager, source: Path, tmp_path: Path
) -> None:
    done = served_versions.export_version("1.0.0", tmp_path / "out")

    assert (done.reference, done.files, done.skipped) == ("bot@1.0.0", 3, ())
    assert (tmp_path / "out" / "lib" / "x.py").read_text() == "x = 1\n"


def test_a_version_goes(served_versions: AgentVersionManager) -> None:
    served_versions.create_version("1.0.0", "1.1.0")
    served_versions.create_version("1.1.0", "1.2.0")

    with pytest.raises(VersionInUseError):
        served_versions.remove_version("1.1.0")
    served_versions.remove_version("1.1.0", force=True)

    assert labels(served_versions) == ["1.2.0", "1.0.0"]


def test_an_agent_without_a_version_has_no_current_one(versions: AgentVersionManager) -> None:
    with pytest.raises(AgentNotFoundError):
        AgentVersionManager("nobody", versions.store).get_current_version()


def test_failures_are_classes_with_codes(versions: AgentVersionManager, tmp_path: Path) -> None:
    with pytest.raises(InvalidVersionError) as caught:
        versions.create_version("9.9.9", "1.1.0")
    assert isinstance(caught.value, KaifsError)
    assert caught.value.code == VersionErrorCode.INVALID_VERSION
    with pytest.raises(VersionExistsError):
        versions.create_version("1.0.0", "1.0.0")
    with pytest.raises(BadLabelError):
        versions.create_version("1.0.0", "v2")
    with pytest.raises(BadLabelError):
        versions.get_version("1.0.0@1.0.0")
    with pytest.raises(InvalidVersionError):
        versions.diff("1.0.0", "2.0.0")
    with pytest.raises(SourceError):
        versions.import_version(tmp_path / "none", "2.0.0")
    with pytest.raises(TargetError):
        versions.export_version("1.0.0", tmp_path)
    with pytest.raises(StoreNotFoundError):
        AgentVersionManager("bot", tmp_path / "none").list_versions()
    assert labels(versions) == ["1.0.0"]


def test_the_history_tells_what_came_from_what(
    served_versions: AgentVersionManager, source: Path
) -> None:
    served_versions.create_version("1.0.0", "1.1.0")
    (source / "a.txt").write_text("second\n")
    served_versions.import_version(source, "1.2.0")

    entries = served_versions.log()

    assert [(entry.version, entry.parent) for entry in entries] == [
        ("1.2.0", "1.1.0"),
        ("1.1.0", "1.0.0"),
        ("1.0.0", None),
    ]
    assert [entry.version for entry in served_versions.log("a.txt")] == ["1.2.0", "1.0.0"]
    assert [entry.version for entry in served_versions.log(limit=1)] == ["1.2.0"]

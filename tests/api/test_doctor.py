"""What the doctor says of a machine, and of machines that lack something."""

import os
from pathlib import Path

import pytest

from kaifs.api import doctor
from kaifs.api.doctor import Check, examine
from kaifs.store.store import Store


def lacks(store: Path, group: str) -> list[Check]:
    return [check for check in examine(store).checks if check.group == group and not check.ok]


def test_each_line_is_ok_or_has_what_mends_it(tmp_path: Path) -> None:
    found = examine(tmp_path / "store")

    assert {check.group for check in found.checks} >= {"python", "kernel", "mount", "store"}
    assert all(check.found for check in found.checks)
    assert all(check.ok or check.remedy for check in found.checks)
    assert found.is_complete == all(check.ok or not check.is_needed for check in found.checks)


def test_a_machine_without_its_programs_lacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    found = examine(tmp_path)

    missing = {check.found.partition(" ")[0]: check for check in found.checks if not check.ok}
    assert missing.keys() >= {"fusermount3", "bwrap", "slirp4netns", "podman", "ssh-keygen"}
    assert missing["bwrap"].remedy == "apt-get install bubblewrap"
    assert missing["bwrap"].is_needed
    assert not missing["podman"].is_needed
    assert not found.is_complete


def test_an_old_kernel_is_told_with_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.10.0-28-amd64")

    found = lacks(tmp_path, "kernel")

    assert [check.is_needed for check in found] == [False] * 3
    assert "FUSE resend" in found[1].found


def test_a_store_that_others_can_change_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path).close()
    assert not [check for check in lacks(path, "store") if check.remedy.startswith("chmod")]

    path.chmod(0o777)

    (lack,) = [check for check in lacks(path, "store") if check.remedy.startswith("chmod")]
    assert lack.remedy == f"chmod 700 {path}"


@pytest.mark.parametrize(
    ("fstype", "is_needed"), [("nfs4", True), ("fuse.sshfs", True), ("tmpfs", False)]
)
def test_a_store_on_a_file_system_that_does_not_do_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str, *, is_needed: bool
) -> None:
    monkeypatch.setattr(doctor, "_file_system", lambda folder: fstype)

    (lack,) = [check for check in lacks(tmp_path, "store") if fstype in check.found]

    assert lack.is_needed == is_needed


def test_a_folder_that_is_no_store_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "superblock").write_bytes(b"nonsense")

    assert any("E11" in check.found for check in lacks(tmp_path, "store"))
    assert os.listdir(tmp_path) == ["superblock"]

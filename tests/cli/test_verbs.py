"""What each verb prints and how it exits."""

import hashlib
import json
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from kaifs.store.superblock import FORMAT_VERSION
from tests.cli.conftest import Shell


def test_versions_are_printed_as_the_specification_does(bot: Shell) -> None:
    """Source: specification, AgentVersionCLI.listVersions."""
    bot.fine("seal", "bot", "1.1.0", "--author", "ann", "-m", "better", "--tag", "x")
    day = json.loads(bot.fine("list", "bot", "--json"))[0]["metadata"]["created"][:10]

    assert bot.fine("list", "bot") == (
        "\nVersions for bot:\n\n"
        f"  1.1.0 (current)\n    Created: {day} by ann\n    Size: 12 B\n    Notes: better\n\n"
        f"  1.0.0\n    Created: {day} by system\n    Size: 12 B\n\n"
    )


def test_a_rollback_is_printed_as_the_specification_does(bot: Shell) -> None:
    """Source: specification, AgentVersionCLI.rollback."""
    bot.fine("seal", "bot", "1.1.0")

    assert bot.fine("rollback", "bot", "1.0.0") == (
        "Rolling back bot to version 1.0.0...\n"
        "✅ Successfully rolled back to 1.0.0\n"
        "Previous version: 1.1.0\n"
    )


def test_a_snapshot_is_printed_as_the_specification_does(bot: Shell) -> None:
    """Source: specification, AgentVersionCLI.createSnapshot."""
    assert bot.fine("snapshot", "bot@1.0.0", "--name", "snap") == (
        "Creating isolated snapshot for bot@1.0.0...\n"
        "✅ Snapshot created: snap\n"
        "Path: bot/@snapshots/snap\n"
    )
    assert "snap  bot@1.0.0  ready" in bot.fine("snapshots")
    assert bot.fine("discard", "snap") == "✅ Snapshot discarded: snap\n"


def test_a_rollback_as_json_has_the_specifications_steps(bot: Shell) -> None:
    done = bot("rollback", "bot", "1.0.0", "--json")

    document = done.document
    assert document.keys() >= {"success", "targetVersion", "previousVersion", "steps", "timestamp"}
    steps = [step["step"] for step in document["steps"]]
    assert steps == ["backup_current", "update_symlink", "validate_rollback"]
    assert done.err == ""


def test_a_rollback_that_fails_is_printed_as_the_specification_does(bot: Shell) -> None:
    done = bot("rollback", "bot", "9.9.9")

    error = "E101: Invalid rollback version - version does not exist or is corrupted (bot@9.9.9)"
    assert done.status == 1
    assert done.out == (
        "Rolling back bot to version 9.9.9...\n"
        f"❌ Rollback failed: {error}\n"
        "  ❌ rollback_failed\n"
        f"    Error: {error}\n"
    )
    assert done.err == f"kaifs: {error}\n"


def test_a_rollback_that_fails_as_json_has_error_and_steps(bot: Shell) -> None:
    done = bot("rollback", "bot", "9.9.9", "--json")

    document = done.document
    assert done.status == 1
    assert document["error"]["code"] == "E101"
    assert document["error"]["details"] == {"subject": "bot@9.9.9"}
    assert (document["success"], document["targetVersion"]) == (False, "9.9.9")
    (step,) = document["steps"]
    assert (step["step"], step["success"]) == ("rollback_failed", False)
    assert step["error"].startswith("E101: ")
    assert len(done.err.splitlines()) == 1


def test_show_as_json_is_the_record_with_its_files(bot: Shell) -> None:
    document = json.loads(bot.fine("show", "bot@1.0.0", "--json"))

    record = {"version", "hash", "treeDigest", "metadata", "dependencies"}
    assert document.keys() == record | {"files", "signature"}
    assert document["files"][0] == {
        "path": "a.txt",
        "hash": hashlib.sha256(b"first\n").hexdigest(),
        "size": 6,
        "permissions": "0644",
    }


def test_the_manifests_sha256_is_the_hash(bot: Shell) -> None:
    """`kaifs manifest A@V | sha256sum`."""
    manifest = bot("manifest", "bot@1.0.0").raw

    shown = json.loads(bot.fine("show", "bot@1.0.0", "--json"))
    assert hashlib.sha256(manifest).hexdigest() == shown["hash"]


def test_diff_exits_with_0_1_or_2(bot: Shell, folder: Path) -> None:
    (folder / "a.txt").write_text("second\n")
    bot.fine("import", "bot", folder, "--as", "2.0.0")

    assert bot("diff", "bot@1.0.0", "bot").status == 0
    different = bot("diff", "bot@1.0.0", "bot@2.0.0")
    assert (different.status, different.out) == (1, "M\ta.txt\n")
    stat = bot("diff", "--stat", "bot@1.0.0", "bot@2.0.0")
    assert stat.out == (" a.txt | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n")
    assert "-first\n+second\n" in bot("diff", "-p", "bot@1.0.0", "bot@2.0.0").out
    trouble = bot("diff", "bot@1.0.0", "bot@3.0.0")
    assert (trouble.status, trouble.out) == (2, "")


def test_export_writes_a_folder_or_a_stream(bot: Shell, folder: Path, tmp_path: Path) -> None:
    bot.fine("export", "bot", tmp_path / "out")
    subprocess.run(["diff", "-r", folder, tmp_path / "out"], check=True)

    stream = bot("export", "bot@1.0.0", "-")

    assert stream.err == ""
    with tarfile.open(fileobj=BytesIO(stream.raw)) as tar:
        assert tar.getnames() == [".", "./a.txt", "./lib", "./lib/x.py"]


def test_status_has_what_the_contract_lists(bot: Shell) -> None:
    document = json.loads(bot.fine("status", "--json"))

    assert document["store"]["path"] == str(bot.store)
    assert document["store"]["formatVersion"] == FORMAT_VERSION
    assert document["daemon"] is None
    assert document["mounts"] == []
    assert document["space"].keys() >= {"logical", "stored", "unique"}


def test_gc_and_fsck_report(bot: Shell) -> None:
    assert bot.fine("gc").startswith("✅ Freed ")
    assert bot.fine("fsck") == "✅ Clean\n"
    assert json.loads(bot.fine("fsck", "--json")) == {"isClean": True, "findings": []}


def test_quiet_prints_only_what_was_asked_for(bot: Shell, folder: Path) -> None:
    assert bot.fine("import", "-q", "bot", folder, "--as", "3.0.0") == ""
    assert bot.fine("snapshot", "-q", "bot", "--name", "snap") == "snap\n"
    assert bot.fine("remove", "-q", "bot@3.0.0") == ""

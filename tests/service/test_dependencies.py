"""What versions need: extracted when they are sealed, checked against what the store has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from kaifs.base.errors import AgentManifestError
from kaifs.service.context import Context
from kaifs.service.dependencies import check_dependencies
from kaifs.service.findings import Findings
from kaifs.service.record import AgentVersion, VersionMetadata, decode_record
from kaifs.tree.fsck import check
from tests.service.desk import OWNER, STRANGER, Desk


def needing(desk: Desk, folder: Path, agent: str, label: str, **needs: str) -> None:
    """Import *agent* as *label* with dependencies on other agents."""
    top = folder / f"{agent}-{label}"
    top.mkdir()
    (top / "agent.json").write_text(json.dumps({"dependencies": needs}))
    desk.take(agent, label, top)


def found(desk: Desk, agent: str, label: str, context: Context | None = None) -> Findings:
    record = desk.store.get_agent(agent)
    version = desk.store.get_version(record, label)
    return check_dependencies(context or desk.context, record, version)


def errors(desk: Desk, agent: str, label: str) -> list[str]:
    result = found(desk, agent, label)
    assert all(finding.check == "dependency" and not finding.is_damage for finding in result.errors)
    return [finding.text for finding in result.errors]


def record(desk: Desk, agent: str, label: str) -> AgentVersion:
    return decode_record(desk.store.get_version(desk.store.get_agent(agent), label).record)


# --- against the store -----------------------------------------------------------------------


def test_the_newest_version_in_the_range_serves(desk: Desk, tmp_path: Path) -> None:
    """And only what that one needs counts."""
    needing(desk, tmp_path, "tools", "1.0.0", missing="1")
    needing(desk, tmp_path, "tools", "1.4.0")
    needing(desk, tmp_path, "tools", "2.0.0", missing="1")
    needing(desk, tmp_path, "bot", "1.0.0", tools="^1.0")

    assert errors(desk, "bot", "1.0.0") == []


def test_what_is_missing_is_told_with_the_way_to_it(desk: Desk, tmp_path: Path) -> None:
    needing(desk, tmp_path, "tools", "1.4.0", library="2.x", other="*")
    needing(desk, tmp_path, "library", "1.0.0")
    needing(desk, tmp_path, "library", "1.1.0")
    needing(desk, tmp_path, "bot", "1.0.0", tools="^1.0", ghost="")

    assert errors(desk, "bot", "1.0.0") == [
        "needs ghost *: there is no such agent",
        "needs tools@1.4.0 → library 2.x: no version fits, of 1.1.0, 1.0.0",
        "needs tools@1.4.0 → other *: there is no such agent",
    ]


def test_an_agent_without_a_version_serves_nothing(desk: Desk, tmp_path: Path) -> None:
    tree = desk.forest.new_tree(0o755, OWNER.uid, OWNER.gid)
    desk.store.add_agent("empty", OWNER.uid, OWNER.gid, tree.root)
    needing(desk, tmp_path, "bot", "1.0.0", empty="*")

    assert errors(desk, "bot", "1.0.0") == ["needs empty *: no version fits"]


def test_a_cycle_is_an_error_wherever_it_is(desk: Desk, tmp_path: Path) -> None:
    needing(desk, tmp_path, "a", "1.0.0", b="1")
    needing(desk, tmp_path, "b", "1.0.0", c="1")
    needing(desk, tmp_path, "c", "1.0.0", b="1")
    needing(desk, tmp_path, "own", "2.0.0", own="1")

    assert errors(desk, "a", "1.0.0") == ["needs b@1.0.0 → c@1.0.0 → b again: a cycle"]
    assert errors(desk, "c", "1.0.0") == ["needs b@1.0.0 → c again: a cycle"]
    assert errors(desk, "own", "2.0.0") == ["needs own again: a cycle"]


def test_two_ways_to_one_version_are_no_cycle(desk: Desk, tmp_path: Path) -> None:
    needing(desk, tmp_path, "base", "1.0.0")
    needing(desk, tmp_path, "left", "1.0.0", base="1")
    needing(desk, tmp_path, "right", "1.0.0", base=">=1")
    needing(desk, tmp_path, "bot", "1.0.0", left="1", right="1", base="1")

    assert errors(desk, "bot", "1.0.0") == []


def test_a_long_chain_is_followed_without_recursion_and_told_short(
    desk: Desk, tmp_path: Path
) -> None:
    for number in range(30):
        needing(desk, tmp_path, f"a{number}", "1.0.0", **{f"a{number + 1}": "1"})

    (text,) = errors(desk, "a0", "1.0.0")

    assert text == (
        "needs a1@1.0.0 → a2@1.0.0 → a3@1.0.0 → a4@1.0.0 → … → a29@1.0.0"
        " → a30 1: there is no such agent"
    )


def test_what_the_caller_may_not_see_is_not_told(desk: Desk, tmp_path: Path) -> None:
    """Neither whether it fits, nor which versions there are."""
    needing(desk, tmp_path, "hidden", "1.0.0")
    needing(desk, tmp_path, "bot", "1.0.0", hidden="^7")
    desk.store.put_agent(replace(desk.store.get_agent("hidden"), mode=0o700))
    context = Context(desk.store, desk.forest, STRANGER)

    result = found(desk, "bot", "1.0.0", context)

    assert result.errors == ()
    (warning,) = result.warnings
    assert warning.text == "needs hidden ^7: not checked: no permission to look into it"


def test_packages_that_cannot_be_understood_are_warnings(desk: Desk, tmp_path: Path) -> None:
    top = tmp_path / "project"
    top.mkdir()
    (top / "package.json").write_text('{"dependencies": {"a": "!!"}}')
    (top / "requirements.txt").write_text("fine>=1\nno good at all\n")
    desk.take("bot", "1.0.0", top)

    result = found(desk, "bot", "1.0.0")

    assert result.errors == ()
    assert [warning.text.partition(":")[0] for warning in result.warnings] == [
        "package.json",
        "requirements.txt",
    ]
    assert [(one.kind, one.name) for one in record(desk, "bot", "1.0.0").dependencies] == [
        ("node", "a"),
        ("python", "fine"),
    ]


# --- in the record -----------------------------------------------------------------------------


def test_the_record_says_what_the_tree_says(desk: Desk, tmp_path: Path) -> None:
    top = tmp_path / "project"
    (top / "etc").mkdir(parents=True)
    (top / "data").mkdir()
    (top / "agent.toml").write_text(
        'config = ["etc/*.toml"]\nstate = ["data/**"]\n[dependencies]\nz = "1"\na = "^2 || 4"\n'
    )
    (top / "etc/app.toml").write_text("x")
    (top / "etc/app.json").write_text("no configuration here")
    (top / "data/one two").write_text("s")
    (top / "requirements.txt").write_text("flask>1\nflask>1\n")
    desk.take("bot", "1.0.0", top)

    said = record(desk, "bot", "1.0.0")

    assert [(one.kind, one.name, one.range) for one in said.dependencies] == [
        ("agent", "a", "^2 || 4"),
        ("agent", "z", "1"),
        ("python", "flask", ">1"),
    ]
    lines = {
        name: f"{path} type=file mode=0644 size=1 sha256={hashlib.sha256(text).hexdigest()}\n"
        for name, path, text in (
            ("config", "./etc/app.toml", b"x"),
            ("state", "./data/one\\040two", b"s"),
        )
    }
    checksums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in lines.items()}
    assert said.metadata.config_checksum == checksums["config"]
    assert said.metadata.agent_state_checksum == checksums["state"]
    manifest = bytearray()
    desk.run("manifest", reference="bot@1.0.0", output=manifest)
    assert all(text.rpartition("/")[2].encode() in manifest for text in lines.values())


def test_checksums_follow_what_changes_and_nothing_else(desk: Desk, tmp_path: Path) -> None:
    """What was kept of the version before must not hide a change, nor make one."""
    top = tmp_path / "project"
    (top / "state/deep").mkdir(parents=True)
    (top / "code.py").write_text("1")
    (top / "app.toml").write_text("1")
    (top / "state/deep/s").write_text("1")
    desk.take("bot", "1.0.0", top)
    before = record(desk, "bot", "1.0.0").metadata

    desk.write("bot", b"code.py", b"2")
    desk.run("seal", agent="bot", label="1.1.0")
    same = record(desk, "bot", "1.1.0").metadata
    desk.write("bot", b"state/deep/s", b"2")
    desk.run("seal", agent="bot", label="1.2.0")
    other_state = record(desk, "bot", "1.2.0").metadata
    desk.write("bot", b"agent.yaml", b"config: [code.py]\n")
    desk.run("seal", agent="bot", label="1.3.0")
    other_config = record(desk, "bot", "1.3.0").metadata

    def checksums(metadata: VersionMetadata) -> tuple[str, str]:
        return metadata.agent_state_checksum, metadata.config_checksum

    assert checksums(same) == checksums(before)
    assert checksums(other_state)[0] != checksums(before)[0]
    assert checksums(other_state)[1] == checksums(before)[1]
    assert checksums(other_config)[0] == checksums(other_state)[0]
    assert checksums(other_config)[1] != checksums(before)[1]


def test_the_commit_is_the_one_told_else_the_repository_s(desk: Desk, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    top = tmp_path / "project"
    (top / ".git").mkdir(parents=True)
    (top / ".git/HEAD").write_text(commit + "\n")
    desk.take("bot", "1.0.0", top)
    desk.take("bot", "1.1.0", top, commit_hash="told")

    assert record(desk, "bot", "1.0.0").metadata.commit_hash == commit
    assert record(desk, "bot", "1.1.0").metadata.commit_hash == "told"


# --- a manifest that cannot be used ------------------------------------------------------------


def test_a_broken_manifest_refuses_a_seal_and_changes_nothing(desk: Desk, folder: Path) -> None:
    desk.take("bot", "1.0.0", folder)
    desk.write("bot", b"agent.toml", b"broken")
    before = desk.state()

    with pytest.raises(AgentManifestError, match="E170"):
        desk.run("seal", agent="bot")

    assert desk.state() == before
    assert check(desk.store) == []


def test_a_broken_manifest_refuses_an_import_and_changes_nothing(desk: Desk, folder: Path) -> None:
    (folder / "agent.yaml").write_text("a: &x [1]\nb: *x\n")
    before = desk.state()

    with pytest.raises(AgentManifestError, match="anchors"):
        desk.take("bot", "1.0.0", folder)

    assert desk.state() == before
    assert desk.store.find_agent("bot") is None


def test_a_rollback_puts_aside_even_what_has_a_broken_manifest(desk: Desk, folder: Path) -> None:
    """To get rid of it is what a rollback is for, and what was there must not be lost."""
    desk.take("bot", "1.0.0", folder)
    desk.write("bot", b"agent.toml", b"broken")

    desk.run("rollback", agent="bot", version="1.0.0")

    (backup,) = [
        version.label
        for version in desk.store.versions(desk.store.get_agent("bot").agent_id)
        if version.label != "1.0.0"
    ]
    assert record(desk, "bot", backup).metadata.snapshot_type == "rollback"
    (warning,) = found(desk, "bot", backup).warnings
    assert warning.text.startswith("agent.toml: ")


def test_a_broken_package_file_refuses_nothing(desk: Desk, folder: Path) -> None:
    """Those files are not ours to demand."""
    (folder / "package.json").write_text("{")
    (folder / "pyproject.toml").write_bytes(b"\xff")

    desk.take("bot", "1.0.0", folder)

    assert record(desk, "bot", "1.0.0").dependencies == ()

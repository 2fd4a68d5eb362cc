"""The agent's manifest: what counts, and what is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kaifs.base.errors import AgentManifestError
from kaifs.service.agent_manifest import (
    CONFIG,
    NO_MANIFEST,
    STATE,
    parse_agent_manifest,
    read_agent_manifest,
)
from kaifs.service.documents import SIZE_MAX
from kaifs.service.patterns import NAMES_MAX, PATTERNS_MAX, Patterns
from kaifs.service.ranges import RANGE_MAX, parse_range
from tests.service.desk import Desk

# --- shape ---------------------------------------------------------------------------------

TOML = b"""
[agent]
name = "bot"
version = "2.1"
description = "answers"
config = ["etc/*.toml"]
state = []
unknown = 3

[dependencies]
other = "^1.2 || 3.x"
"""
YAML = b"""
name: bot
version: "2.1"
description: answers
config: [etc/*.toml]
state: []
dependencies: {other: ^1.2 || 3.x}
"""
JSON = b"""{"agent": {"name": "bot", "version": "2.1", "description": "answers",
"config": ["etc/*.toml"], "state": []}, "dependencies": {"other": "^1.2 || 3.x"}}"""


@pytest.mark.parametrize(
    ("payload", "name"), [(TOML, "agent.toml"), (YAML, "agent.yml"), (JSON, "agent.json")]
)
def test_a_manifest_says_the_same_in_each_notation(payload: bytes, name: str) -> None:
    """Members may stand at the top or in a table `agent`."""
    manifest = parse_agent_manifest(payload, name)

    assert (manifest.source, manifest.name, manifest.version) == (name, "bot", "2.1")
    assert (manifest.config, manifest.state) == (("etc/*.toml",), ())
    assert manifest.dependencies == {"other": "^1.2 || 3.x"}


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"", "agent.toml"),
        (b"", "agent.yaml"),
        (b"{}", "agent.json"),
        (b"1: {2: 3}\ntools: [x]\nmodel: 4.5\n", "agent.yaml"),
        (b"agent: bot\n", "agent.yaml"),
    ],
)
def test_what_is_not_said_has_its_default_and_other_members_do_not_matter(
    payload: bytes, name: str
) -> None:
    """Manifests for other programs have these names too."""
    manifest = parse_agent_manifest(payload, name)

    assert (manifest.config, manifest.state) == (CONFIG, STATE)
    assert manifest.dependencies == {}


@pytest.mark.parametrize(
    ("payload", "name", "told"),
    [
        (b"#" * (SIZE_MAX + 1), "agent.toml", "over 64 KiB"),
        (b"\xff", "agent.toml", "decode"),
        (b"broken", "agent.toml", "key"),
        (b"[]", "agent.json", "no table"),
        (b"a" + b".a" * 2000 + b" = 1", "agent.toml", "deep"),
        (b"[" * 9999, "agent.json", "deep"),
        (b"{a: " * 999 + b"}" * 999, "agent.yaml", "deep"),
        (b"a: &x [1]\nb: *x", "agent.yaml", "anchors"),
        (b"a: !!python/object/apply:os.system [x]", "agent.yaml", "tags"),
        (b"--- {}\n--- {}", "agent.yaml", "single document"),
        (b'{"name": NaN}', "agent.json", "JSON"),
        (b"name = nan", "agent.toml", "name"),
        (b"version: 1.10", "agent.yaml", "version"),
        (b"name: x\nagent: {name: y}", "agent.yaml", "outside"),
        (b'name: "\\ud800"', "agent.yaml", "Unicode"),
        (b'{"name": "\\ud800"}', "agent.json", "agent.json"),
        (b'config = "etc/*"', "agent.toml", "config"),
        (b'config = ["../etc/passwd"]', "agent.toml", "no path from the top"),
        (b'config = ["/etc/passwd"]', "agent.toml", "no path from the top"),
        (b'state = ["a//b"]', "agent.toml", "no path from the top"),
        (b'state = ["**/a/**"]', "agent.toml", "once"),
        (b'state = ["a**"]', "agent.toml", "stands alone"),
        (b'dependencies = ["other"]', "agent.toml", "dependencies"),
        (b"dependencies = {other = 1}", "agent.toml", "dependencies"),
        (b'dependencies = {"../x" = "1"}', "agent.toml", "no agent's name"),
        (b'dependencies = {other = "newest"}', "agent.toml", "no range"),
        (b"dependencies = {other = '" + b"1" * 300 + b"'}", "agent.toml", "no range"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_in_one_line(
    payload: bytes, name: str, told: str
) -> None:
    with pytest.raises(AgentManifestError, match="E170") as refused:
        parse_agent_manifest(payload, name)

    assert told in refused.value.subject
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_the_first_of_several_counts_and_a_link_is_none(desk: Desk, tmp_path: Path) -> None:
    """Nothing is followed, inside the tree or out of it."""
    folder = tmp_path / "source"
    (folder / "agent.yml").mkdir(parents=True)
    (tmp_path / "secret").write_text("name = 'secret'")
    (folder / "real").write_text("name = 'real'")
    (folder / "agent.json").write_text('{"name": "json"}')
    os.symlink(tmp_path / "secret", folder / "agent.toml")
    os.symlink("real", folder / "agent.yaml")
    desk.take("bot", "1.0.0", folder)

    assert read_agent_manifest(desk.current("bot")).name == "json"

    (folder / "agent.json").unlink()
    desk.take("bot", "2.0.0", folder)
    version = desk.store.get_version(desk.store.get_agent("bot"), "2.0.0")
    assert read_agent_manifest(desk.forest.tree(version.root)) == NO_MANIFEST


# --- patterns --------------------------------------------------------------------------------


def meant(patterns: tuple[str, ...], path: bytes) -> bool:
    choice = Patterns(patterns)
    state = choice.top()
    *folders, name = path.split(b"/")
    for folder in folders:
        state = choice.below(state, folder)
    return choice.takes(state, name)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a.toml", b"a.toml", True),
        ("a.toml", b"x/a.toml", False),
        ("*.toml", b"x.toml", True),
        ("*.toml", b"d/x.toml", False),
        ("**/*.toml", b"x.toml", True),
        ("**/*.toml", b"d/e/x.toml", True),
        ("etc/**", b"etc/a", True),
        ("etc/**", b"etc/d/e/a", True),
        ("etc/**", b"etc", False),
        ("etc/**", b"d/etc/a", False),
        ("etc/**/x", b"etc/x", True),
        ("etc/**/x", b"etc/a/b/x", True),
        ("etc/**/x", b"etc/a/b/y", False),
        ("**", b"any/thing", True),
        ("**/e/x", b"e/e/x", True),
        ("?.[a-c]", b"x.b", True),
        ("?.[a-c]", b"x.d", False),
        ("*", b".hidden", True),
        ("caf?", "café".encode(), True),
        ("*", b"\xff\xfe", True),
        ("[", b"[", True),
        ("a", b"A", False),
    ],
)
def test_a_pattern_fits_paths_from_the_top(pattern: str, path: bytes, expected: bool) -> None:
    assert meant((pattern,), path) is expected
    assert meant(("other", pattern), path) is expected
    assert meant((), path) is False


@pytest.mark.parametrize(
    "patterns",
    [
        *[("",), ("/a",), ("a/",), (".",), ("a/../b",), ("a\0",), ("a" * 2000,)],
        *[("/".join("a" * (NAMES_MAX + 1)),), ("a",) * (PATTERNS_MAX + 1)],
    ],
)
def test_what_is_no_pattern_is_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"path|long|over"):
        Patterns(patterns)


# --- ranges ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("1.2.3", "1.2.3", True),
        ("1.2.3", "1.2.3+build.7", True),
        ("^1.2.3", "1.9.0", True),
        ("^1.2.3", "2.0.0", False),
        ("^0.2.3", "0.3.0", False),
        ("^0.0.3", "0.0.4", False),
        ("~1.2.3", "1.2.9", True),
        ("~1.2.3", "1.3.0", False),
        (">= 1.0 < 3", "2.9.9", True),
        (">=1.0.0 <2.0.0 || 3.x", "3.4.5", True),
        ("1.2 - 2.0", "2.0.7", True),
        ("1.2 - 2.0", "2.1.0", False),
        ("1.x", "1.0.0", True),
        ("*", "0.0.1", True),
        ("", "7.0.0", True),
        ("^1.0.0", "1.5.0-rc.1", False),
        ("^1.2.3-beta.2", "1.2.3-beta.10", True),
        ("^1.2.3-beta.2", "1.2.4-beta.3", False),
    ],
)
def test_a_range_is_npm_s(text: str, label: str, expected: bool) -> None:
    """Source: node-semver's documentation, "Ranges"."""
    assert parse_range(text).has(label) is expected


@pytest.mark.parametrize(
    "text",
    ["latest", "1.2.3.4", "^^1", "01.2.3", "1.2.3 || x y", "é", "\n1", "1" * (RANGE_MAX + 1)],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="range"):
        parse_range(text)

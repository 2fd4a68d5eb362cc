"""What a mount serves of versions, judged by programs that are not ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.site import Site

pytestmark = pytest.mark.fuse

ROOT = Path(__file__).parents[2]


def kaifs(site: Site, *arguments: str) -> bytes:
    """Run the command, which goes through the daemon, and return what it printed."""
    environment = os.environ | {"KAIFS_STORE": str(site.store), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kaifs", *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True).stdout


@pytest.fixture
def versions(mounted: Site) -> Site:
    """An agent with a little of everything, sealed twice while it is mounted."""
    current = mounted.current
    (current / "lib/deep").mkdir(parents=True)
    (current / "empty").mkdir(mode=0o700)
    (current / "agent.toml").write_text('[dependencies]\nagent-two = "^1"\n')
    (current / "lib/two words*").write_bytes(b"x" * 200_000)
    (current / "lib/deep" / os.fsdecode(b"\xff")).write_bytes(b"")
    os.link(current / "agent.toml", current / "lib/again")
    os.symlink("../nowhere", current / "lib/link")
    os.mkfifo(current / "pipe", 0o600)
    kaifs(mounted, "seal", "agent", "1.0.0")
    (current / "lib/deep/new").write_text("new")
    os.chmod(current / "lib", 0o750)
    kaifs(mounted, "seal", "agent", "-m", "bumped")
    return mounted


def test_the_hash_is_that_of_the_manifest_that_everybody_gets(versions: Site) -> None:
    """`kaifs manifest A@V | sha256sum`, `@meta/LABEL.mtree` and the record agree."""
    meta = versions.mountpoint / "agent/@meta"
    for label in ("1.0.0", "1.0.1"):
        record = json.loads((meta / f"{label}.json").read_bytes())
        manifest = kaifs(versions, "manifest", f"agent@{label}")
        summed = subprocess.run(["sha256sum"], input=manifest, capture_output=True, check=True)
        assert summed.stdout.split()[0].decode() == record["hash"]
        assert (meta / f"{label}.mtree").read_bytes() == manifest


def test_the_bumped_record_leads_back_to_the_first(versions: Site) -> None:
    meta = versions.mountpoint / "agent/@meta"
    first = (meta / "1.0.0.json").read_bytes()

    record = json.loads((meta / "1.0.1.json").read_bytes())

    assert (record["version"], record["parent"]) == ("1.0.1", "1.0.0")
    assert record["parentHash"] == hashlib.sha256(first).hexdigest()
    assert record["dependencies"] == [{"kind": "agent", "name": "agent-two", "range": "^1"}]
    assert record["metadata"]["notes"] == "bumped"


def test_show_is_the_record_and_the_files(versions: Site) -> None:
    record = json.loads((versions.mountpoint / "agent/@meta/1.0.1.json").read_bytes())

    shown = json.loads(kaifs(versions, "show", "--json", "agent@1.0.1"))

    files = {file["path"]: file for file in shown.pop("files")}
    assert {name: shown[name] for name in record} == record
    assert files["lib/two words*"] == {
        "path": "lib/two words*",
        "hash": hashlib.sha256(b"x" * 200_000).hexdigest(),
        "size": 200_000,
        "permissions": "0644",
    }
    assert set(files) == {
        "agent.toml",
        "lib/again",
        "lib/two words*",
        "lib/deep/\\xff",
        "lib/deep/new",
    }


@pytest.mark.skipif(shutil.which("mtree") is None, reason="mtree is not installed")
@pytest.mark.parametrize("label", ["1.0.0", "1.0.1"])
def test_mtree_finds_the_mounted_version_right(versions: Site, tmp_path: Path, label: str) -> None:
    """Debian's mtree-netbsd reads the whole version through the mount."""
    manifest = tmp_path / "manifest"
    manifest.write_bytes(kaifs(versions, "manifest", f"agent@{label}"))
    folder = versions.mountpoint / "agent/@versions" / label

    found = subprocess.run(
        ["mtree", "-f", manifest, "-p", folder], capture_output=True, check=False
    )

    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    other = versions.mountpoint / "agent/@versions" / ("1.0.1" if label == "1.0.0" else "1.0.0")
    assert subprocess.run(
        ["mtree", "-f", manifest, "-p", other], capture_output=True, check=False
    ).stdout

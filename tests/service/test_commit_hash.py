"""The commit is what git has checked out, and never comes from outside of the tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kaifs.service.commit_hash import commit_hash
from tests.service.desk import Desk

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git(folder: Path, *arguments: str) -> str:
    """Run git without anybody's settings."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{
            f"GIT_{who}_{what}": "x"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def detach(folder: Path) -> Path:
    git(folder, "checkout", "-q", "--detach")
    return folder


def pack(folder: Path) -> Path:
    git(folder, "branch", "mai")
    git(folder, "tag", "main-not")
    git(folder, "pack-refs", "--all")
    assert not (folder / ".git/refs/heads/main").exists()
    return folder


def rename(folder: Path) -> Path:
    git(folder, "branch", "-m", "a/branch-of.mine")
    return folder


@pytest.mark.parametrize("prepare", [lambda folder: folder, detach, pack, rename])
def test_the_commit_is_what_git_says(
    desk: Desk, tmp_path: Path, prepare: Callable[[Path], Path]
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    prepare(folder)
    desk.take("bot", "1.0.0", folder)

    assert commit_hash(desk.current("bot")) == git(folder, "rev-parse", "HEAD")


def test_a_worktree_and_a_submodule_have_their_own_commit(desk: Desk, tmp_path: Path) -> None:
    """As long as the repository lies in the tree; git tells a worktree's way absolutely."""
    folder = tmp_path / "project"
    worktree = folder / ".git/worktrees/w"
    worktree.mkdir(parents=True)
    (folder / ".git" / "refs").mkdir()
    (folder / ".git" / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/side\n")
    (worktree / "commondir").write_text("../..\n")
    (worktree / "HEAD").write_text("ref: refs/heads/side\n")
    desk.take("bot", "1.0.0", folder)
    tree = desk.current("bot")
    tree.rename(tree.resolve(b""), b".git", tree.resolve(b""), b"repository", 0)

    desk.write("bot", b".git", b"gitdir: repository/worktrees/w\n")
    assert commit_hash(tree) == COMMIT

    desk.write("bot", b".git", b"gitdir: %s\n" % os.fsencode(worktree))
    assert commit_hash(tree) == ""


@pytest.mark.parametrize(
    ("files", "links"),
    [
        ({}, ()),
        ({".git": b"gitdir: ../outside"}, ()),
        ({".git": b"gitdir: /etc"}, ()),
        ({".git": b"nonsense"}, ()),
        ({".git": b"gitdir: " + b"x" * 5000}, ()),
        ({".git/HEAD": b"ref: refs/heads/main\n"}, ()),
        ({".git/HEAD": b"ref: ../../secret\n"}, ()),
        ({".git/HEAD": b"ref: refs/../../secret\n", "secret": COMMIT.encode()}, ()),
        ({".git/HEAD": b"ref: refs/heads/a\n", ".git/refs/heads/a": b"ref: refs/heads/a"}, ()),
        ({".git/HEAD": COMMIT.upper().encode()}, ()),
        ({".git/HEAD": COMMIT.encode() + b"0"}, ()),
        ({".git/HEAD": b"ref: refs/heads/.invalid\n"}, ()),
        ({".git/HEAD": b"\xff" * 100}, ()),
        ({".git/HEAD": b" " * 5000 + COMMIT.encode()}, ()),
        ({".git/x": b""}, (".git/HEAD",)),
        ({".git/HEAD": b"ref: refs/heads/main"}, (".git/refs",)),
        ({".git/HEAD": b"ref: refs/heads/main"}, (".git/packed-refs",)),
        ({}, (".git",)),
        ({".git/HEAD": b"ref: refs/heads/main", ".git/commondir": b"../../outside"}, ()),
        ({".git/HEAD/x": b""}, ()),
    ],
)
def test_what_is_odd_is_no_commit(
    desk: Desk, tmp_path: Path, files: dict[str, bytes], links: tuple[str, ...]
) -> None:
    """Never an error, and never what lies outside of the tree."""
    outside = tmp_path / "outside"
    (outside / "heads").mkdir(parents=True)
    for name in ("HEAD", "heads/main", "refs"):
        (outside / name).write_text(COMMIT)
    folder = tmp_path / "project"
    folder.mkdir()
    for name, payload in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(payload)
    for name in links:
        os.symlink(outside, folder / name)
    desk.take("bot", "1.0.0", folder)

    assert commit_hash(desk.current("bot")) == ""

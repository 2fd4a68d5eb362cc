"""Comparing trees, and the patch that says how they differ."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kaifs.tree.tree import AttributeChange
from tests.service.desk import Desk


@pytest.fixture
def bot(desk: Desk, folder: Path) -> Desk:
    """A store with `bot@1.0.0`."""
    desk.take("bot", "1.0.0", folder)
    return desk


def names(desk: Desk, old: str = "bot@1.0.0", new: str = "bot") -> str:
    output = bytearray()
    desk.run("diff", old=old, new=new, output=output)
    return output.decode("utf-8", "surrogateescape")


def patch(desk: Desk) -> str:
    output = bytearray()
    desk.run("diff", old="bot@1.0.0", new="bot", style="patch", output=output)
    return output.decode("utf-8", "surrogateescape")


def test_a_tree_does_not_differ_from_its_clone(bot: Desk) -> None:
    assert names(bot) == ""
    assert not bot.run("diff", old="bot@1.0.0", new="bot").is_different


def test_each_difference_is_a_letter_and_a_path(bot: Desk) -> None:
    tree = bot.current("bot")
    now_ns = bot.clock.now_ns()
    top = tree.resolve(b"")
    bot.write("bot", b"new", b"")
    bot.write("bot", b"big", b"smaller")
    tree.unlink(top, b"pipe", now_ns)
    tree.rename(top, b"lib", top, b"library", now_ns)

    assert names(bot) == "M\tbig\nR\tlib\tlibrary\nA\tnew\nD\tpipe\n"


def test_a_name_that_would_break_a_line_is_quoted(bot: Desk) -> None:
    bot.write("bot", b'a\n"\\\xff', b"")
    bot.write("bot", b"plain\xff", b"")

    assert names(bot) == 'A\t"a\\n\\"\\\\\udcff"\nA\tplain\udcff\n'


def test_a_patch_tells_lines_modes_owners_links_and_attributes(bot: Desk) -> None:
    tree = bot.current("bot")
    now_ns = bot.clock.now_ns()
    bot.write("bot", b"lib/x.py", b"x = 2\nno newline")
    script = tree.resolve(b"lib/x.py")
    tree.set_attributes(script, AttributeChange(mode=0o644, uid=7, gid=8), now_ns)
    tree.setxattr(tree.resolve(b"a.txt"), b"user.new", b"", now_ns)
    lib = tree.resolve(b"lib")
    tree.reap(tree.unlink(lib, b"dangling", now_ns))
    tree.symlink(lib, b"dangling", b"else", 0, 0, now_ns)
    bot.write("bot", b"big", b"\0binary")

    text = patch(bot)

    assert "xattr added user.new\n" in text
    assert "Binary files a/big and b/big differ\n" in text
    assert "-../nowhere\n\\ No newline at end of file\n+else\n" in text
    expected = (
        "diff --git a/lib/x.py b/lib/x.py\nold mode 100755\nnew mode 100644\n"
        f"old owner {os.getuid()}:{os.getgid()}\nnew owner 7:8\n"
        "--- a/lib/x.py\n+++ b/lib/x.py\n@@ -1 +1,2 @@\n-x = 1\n+x = 2\n+no newline\n"
        "\\ No newline at end of file\n"
    )
    assert expected in text


def test_the_patch_of_texts_can_be_applied(bot: Desk, folder: Path, tmp_path: Path) -> None:
    """By patch(1), which skips what it does not know."""
    bot.write("bot", b"lib/x.py", b"x = 2\ny = 3\n")
    bot.write("bot", b"lib/new.py", b"new\n")
    tree = bot.current("bot")
    tree.reap(tree.unlink(tree.resolve(b"lib"), b"agent.toml", bot.clock.now_ns()))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(folder / "lib", work / "lib", symlinks=True)

    subprocess.run(["patch", "-p1"], cwd=work, input=patch(bot), text=True, check=True)

    assert (work / "lib" / "x.py").read_text() == "x = 2\ny = 3\n"
    assert (work / "lib" / "new.py").read_text() == "new\n"
    assert not (work / "lib" / "agent.toml").exists()


def test_statistics_count_lines_and_tell_binaries(bot: Desk) -> None:
    bot.write("bot", b"lib/x.py", b"x = 1\ny = 2\nz = 3\n")
    bot.write("bot", b"big", b"\0")

    found = bot.run("diff", old="bot@1.0.0", new="bot", style="stat")

    by_path = {change.path: change for change in found.changes}
    assert (by_path["lib/x.py"].added, by_path["lib/x.py"].removed) == (2, 0)
    assert by_path["big"].is_binary
    assert by_path["big"].new_size == 1


def test_trees_of_different_agents_can_be_compared(bot: Desk, folder: Path) -> None:
    (folder / "lib" / "x.py").write_text("other\n")
    bot.take("other", "1.0.0", folder)

    assert names(bot, "bot@1.0.0", "other@1.0.0") == "M\tlib/x.py\n"


def test_a_comparison_leaves_nothing_behind(bot: Desk) -> None:
    before = bot.state()

    names(bot)

    assert bot.state() == before

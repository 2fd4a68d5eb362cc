"""Comparing trees, and the patch that says how they differ."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from kaifs.tree.tree import AttributeChange
from tests.service.desk import OWNER, Desk


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

    assert "# a.txt: xattr added user.new\n" in text
    assert "Binary files a/big and b/big differ\n" in text
    assert "-../nowhere\n\\ No newline at end of file\n+else\n" in text
    expected = (
        f"# lib/x.py: old owner {os.getuid()}:{os.getgid()}, new owner 7:8\n"
        "diff --git a/lib/x.py b/lib/x.py\nold mode 100755\nnew mode 100644\n"
        "index 7d4290a117..30e1eab2dd\n--- a/lib/x.py\n+++ b/lib/x.py\n@@ -1 +1,2 @@\n-x = 1\n+x = 2\n+no newline\n"
        "\\ No newline at end of file\n"
    )
    assert expected in text


def test_a_patch_tells_what_git_has_no_header_for(bot: Desk) -> None:
    tree = bot.current("bot")
    now_ns = bot.clock.now_ns()
    top = tree.resolve(b"")
    tree.make(top, b"a\nb", stat.S_IFDIR | 0o700, 0, 0, now_ns)
    tree.make(top, b"null", stat.S_IFCHR | 0o600, 0, 0, now_ns, rdev=os.makedev(1, 3))
    tree.make(top, b"disk", stat.S_IFBLK | 0o600, 0, 0, now_ns, rdev=os.makedev(8, 1))
    tree.unlink(top, b"pipe", now_ns)
    tree.set_attributes(tree.resolve(b"lib/empty"), AttributeChange(mode=0o755), now_ns)
    tree.rename(top, b"lib", top, b"library", now_ns)

    lines = patch(bot).splitlines()

    assert '# "a\\nb": new directory, mode 040700' in lines
    assert "# null: new character device, mode 020600, device 1:3" in lines
    assert "# disk: new block device, mode 060600, device 8:1" in lines
    assert "# pipe: removed fifo, mode 010640" in lines
    assert "# library/empty: directory, old mode 042711, new mode 040755" in lines
    assert "# library: directory renamed from lib" in lines
    assert "rename from lib/x.py" in lines
    assert "rename to library/x.py" in lines


def test_hard_links_that_were_made_or_parted_are_told(bot: Desk) -> None:
    """`a.txt` and `lib/again.txt` are one file before, and two of the same content after."""
    tree = bot.current("bot")
    now_ns = bot.clock.now_ns()
    lib = tree.resolve(b"lib")
    tree.reap(tree.unlink(lib, b"again.txt", now_ns))
    bot.write("bot", b"lib/again.txt", b"first\n")
    inode = tree.inode(tree.resolve(b"a.txt"))
    same = AttributeChange(mode=inode.mode & 0o7777, uid=inode.uid, gid=inode.gid)
    tree.set_attributes(tree.resolve(b"lib/again.txt"), same, now_ns)
    tree.setxattr(tree.resolve(b"lib/again.txt"), b"user.colour", b"\x00blue", now_ns)

    assert names(bot) == "M\ta.txt\nM\tlib/again.txt\n"
    found = bot.run("diff", old="bot@1.0.0", new="bot")
    assert [change.what for change in found.changes] == [("links",), ("links",)]
    assert patch(bot) == (
        "# a.txt: hard links changed: now none\n# lib/again.txt: hard links changed: now none\n"
    )

    bot.run("seal", agent="bot", label="1.1.0")
    tree.link(tree.resolve(b"lib/x.py"), tree.resolve(b""), b"y.py", now_ns)
    output = bytearray()
    bot.run("diff", old="bot@1.1.0", new="bot", style="patch", output=output)
    assert output.startswith(b"# y.py: hard link, as are: lib/x.py\ndiff --git a/y.py b/y.py\n")
    assert names(bot, "bot@1.1.0") == "A\ty.py\n"


def test_each_fact_that_differs_is_named(bot: Desk) -> None:
    tree = bot.current("bot")
    now_ns = bot.clock.now_ns()
    bot.write("bot", b"lib/x.py", b"other\n")
    tree.set_attributes(tree.resolve(b"lib/x.py"), AttributeChange(mode=0o600, uid=3), now_ns)
    tree.setxattr(tree.resolve(b"lib"), b"user.x", b"", now_ns)
    top = tree.resolve(b"")
    tree.unlink(top, b"pipe", now_ns)
    tree.symlink(top, b"pipe", b"x", 0, 0, now_ns)

    found = bot.run("diff", old="bot@1.0.0", new="bot")

    told = {change.path: change for change in found.changes}
    assert told["lib/x.py"].what == ("content", "mode", "owner")
    assert (told["lib/x.py"].old_mode, told["lib/x.py"].new_mode) == ("100755", "100600")
    assert told["lib"].what == ("xattrs",)
    assert told["pipe"].status == "T"
    assert told["pipe"].what[0] == "type"


NAMES = (
    b"plain",
    b"with blank",
    b"two\nlines",
    b'quote"back\\slash',
    "\u00fcml\u00e4ut".encode(),
    b"tab\there",
    b"-dash",
)


@pytest.mark.parametrize("tool", ["git", "patch"])
def test_a_patch_can_be_applied(bot: Desk, tmp_path: Path, tool: str) -> None:
    """Texts, modes, links, renames, and names that need quotes, with what only tells in between."""
    tree = bot.current("bot")
    top, now_ns = tree.resolve(b""), bot.clock.now_ns()
    folder = tree.make(top, b"d", stat.S_IFDIR | 0o755, OWNER.uid, OWNER.gid, now_ns)
    for name in NAMES:
        bot.write("bot", b"d/" + name, b"".join(b"%d\n" % line for line in range(40)))
        bot.write("bot", b"d/gone " + name, b"to go\n")
    bot.write("bot", b"d/no end", b"last line without end")
    bot.write("bot", b"d/moved", b"moves\n" * 20)
    tree.make(folder, b"sub", stat.S_IFDIR | 0o755, OWNER.uid, OWNER.gid, now_ns)
    bot.write("bot", b"d/sub/one", b"1\n")
    bot.write("bot", b"d/sub/two", b"2\n" * 30)
    tree.symlink(folder, b"link", b"plain", 0, 0, now_ns)
    tree.symlink(folder, b"becomes file", b"plain", 0, 0, now_ns)
    bot.write("bot", b"d/binary", b"\0\1\2")
    bot.run("seal", agent="bot", label="2.0.0")
    for name in NAMES:
        lines = [b"%d\n" % line for line in range(40)]
        lines[3:5] = [b"three\n"]
        lines[30:30] = [b"\x0cform feed\r\n", b"\n"]
        bot.write("bot", b"d/" + name, b"".join(lines))
        tree.reap(tree.unlink(folder, b"gone " + name, now_ns))
        bot.write("bot", b"d/new " + name, b"new\nfile")
    bot.write("bot", b"d/empty", b"")
    bot.write("bot", b"d/no end", b"now with one\n")
    tree.rename(folder, b"moved", top, b"moved away", now_ns)
    tree.rename(folder, b"sub", folder, b"sub2", now_ns)
    bot.write("bot", b"d/sub2/two", b"2\n" * 29 + b"3\n")
    tree.reap(tree.unlink(folder, b"link", now_ns))
    tree.symlink(folder, b"link", b"elsewhere", 0, 0, now_ns)
    tree.reap(tree.unlink(folder, b"becomes file", now_ns))
    bot.write("bot", b"d/becomes file", b"file\n")
    tree.set_attributes(tree.resolve(b"d/plain"), AttributeChange(mode=0o755), now_ns)
    tree.set_attributes(tree.resolve(b"d/binary"), AttributeChange(mode=0o755), now_ns)
    tree.setxattr(tree.resolve(b"d/plain"), b"user.x", b"y", now_ns)
    tree.set_attributes(tree.resolve(b"d/no end"), AttributeChange(uid=5), now_ns)
    tree.make(folder, b"empty folder", stat.S_IFDIR | 0o700, 0, 0, now_ns)
    bot.run("seal", agent="bot", label="3.0.0")
    text = bytearray()
    bot.run("diff", old="bot@2.0.0", new="bot@3.0.0", style="patch", output=text)
    bot.export("bot@2.0.0", tmp_path / "work")
    bot.export("bot@3.0.0", tmp_path / "wanted")
    (tmp_path / "wanted" / "d" / "empty folder").rmdir()

    command = ["git", "apply"] if tool == "git" else ["patch", "-p1", "--no-backup-if-mismatch"]
    done = subprocess.run(
        command,
        cwd=tmp_path / "work",
        input=bytes(text),
        capture_output=True,
        check=False,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path), "LC_ALL": "C"},
    )

    assert done.returncode == 0, (done.stdout, done.stderr)
    assert contents(tmp_path / "work") == contents(tmp_path / "wanted")


def contents(top: Path) -> dict[str, tuple[bytes, bool]]:
    """Return what is in each file or link below *top*, and whether it can be executed."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in files + [one for one in folders if Path(folder, one).is_symlink()]:
            path = Path(folder, name)
            shown = os.path.relpath(path, top)
            if path.is_symlink():
                found[shown] = os.fsencode(os.readlink(path)), False
            elif path.is_file():
                found[shown] = path.read_bytes(), bool(path.stat().st_mode & 0o100)
    return found


def test_a_file_that_is_too_large_for_a_patch_is_told(bot: Desk) -> None:
    """Nothing of it is held in memory as lines."""
    bot.write("bot", b"large", b"line\n" * (1 << 20))

    assert "Files /dev/null and b/large differ: too large for a patch\n" in patch(bot)
    found = bot.run("diff", old="bot@1.0.0", new="bot", style="stat")
    (change,) = found.changes
    assert change.is_binary
    assert (change.old_size, change.new_size) == (0, 5 << 20)


def test_changes_are_left_out_of_the_result_when_nobody_wants_them(bot: Desk) -> None:
    bot.write("bot", b"a.txt", b"")

    found = bot.run("diff", old="bot@1.0.0", new="bot", has_changes=False)

    assert (found.is_different, found.changes) == (True, ())


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

"""The manifest is what mtree verifies, and depends on the tree's content alone."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kaifs.base.errors import StoreDamagedError
from kaifs.base.types import TOP_INO
from kaifs.meta.records import InodeRecord
from kaifs.tree.manifest import HEADER, Manifests, line, manifest_hash, spell_name
from kaifs.tree.tree import AttributeChange
from tests.tree.grove import DIRECTORY, FILE, Grove, assert_known

NAMES = [
    b"plain.txt", b"two words", b" lead", b"#comment", b"a=b", b"back\\slash", b"new\nline",
    b"tab\tbed", b"caf\xc3\xa9", b"\xff\xfe", b"*?[glob]", b"~", b"-rf", b"...", b"x" * 255,
    b"\x01", b"quote\"'", b"$HOME", b"?", b"a?b", b"*", b"[a-z]", b"back\\slash*",
]  # fmt: skip


def inode(mode: int, *, sha256: bytes = b"", size: int = 0, rdev: int = 0) -> InodeRecord:
    return InodeRecord(mode, 0, 0, 1, size, rdev, 0, 0, 0, 0, 0, 1, sha256)


@given(
    st.binary(min_size=1, max_size=40) | st.text("a*?[]\\", min_size=1, max_size=9).map(str.encode)
)
def test_a_name_is_spelled_in_plain_characters_and_can_be_read_back(name: bytes) -> None:
    spelled = spell_name(name)

    assert all(0x21 <= code < 0x7F and code not in b"#=*?[]" for code in spelled)
    read = spelled.decode("unicode_escape")
    if any(code in read for code in "*?["):
        # mtree matches it as a pattern, which fits the name alone.
        assert fnmatch_quoted(read) == name.decode("latin-1")
    else:
        assert read == name.decode("latin-1")


def fnmatch_quoted(pattern: str) -> str:
    """Return the one name that a pattern without unquoted special characters fits."""
    assert not re.search(r"(?<!\\)(\\\\)*[*?[]", pattern)
    return re.sub(r"\\(.)", r"\1", pattern, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("mode", "rdev", "text"),
    [
        (stat.S_IFDIR | 0o1777, 0, b"n type=dir mode=1777\n"),
        (stat.S_IFIFO | 0o600, 0, b"n type=fifo mode=0600\n"),
        (stat.S_IFSOCK | 0o755, 0, b"n type=socket mode=0755\n"),
        (stat.S_IFCHR | 0o4, os.makedev(1, 3), b"n type=char mode=0004 device=native,1,3\n"),
        (
            stat.S_IFBLK | 0o660,
            os.makedev(4095, 0xFFFFF),
            b"n type=block mode=0660 device=native,4095,1048575\n",
        ),
        (stat.S_IFLNK | 0o777, 0, b"n type=link mode=0777 link=to\\040there\n"),
    ],
)
def test_a_line_says_what_lasts(mode: int, rdev: int, text: bytes) -> None:
    assert line(b"n", inode(mode, rdev=rdev), b"to there") == text


def test_a_line_of_a_file_has_size_and_digest() -> None:
    digest = hashlib.sha256(b"abc").digest()

    assert line(b"f", inode(FILE, sha256=digest, size=3)) == (
        b"f type=file mode=0644 size=3 sha256=" + digest.hex().encode() + b"\n"
    )
    with pytest.raises(StoreDamagedError, match="not sealed"):
        line(b"f", inode(FILE))


def test_the_text_is_that_of_the_format(grove: Grove) -> None:
    """Written out once by hand: a version's hash must not change with a refactoring."""
    grove.put(b"b/f", b"abc")
    grove.put(b"a")
    grove.current.make(TOP_INO, b"c", DIRECTORY, 0, 0, grove.now_ns)
    grove.current.symlink(TOP_INO, b"l", b"b/f", 0, 0, grove.now_ns)

    text = grove.seal_as_text("1.0.0")

    assert text == (
        b"#mtree\n"
        b". type=dir mode=0755\n"
        b"a type=file mode=0644 size=0 sha256="
        b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
        b"b type=dir mode=0755\n"
        b"f type=file mode=0644 size=3 sha256="
        b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"
        b"..\n"
        b"c type=dir mode=0755\n"
        b"..\n"
        b"l type=link mode=0777 link=b/f\n"
        b"..\n"
    )
    assert text.startswith(HEADER)
    assert manifest_hash(text) == hashlib.sha256(text).hexdigest()


# --- what mtree says -------------------------------------------------------------------------

needs_mtree = pytest.mark.skipif(
    shutil.which("mtree") is None, reason="needs mtree (Debian: mtree-netbsd)"
)


def fill(grove: Grove) -> None:
    """Make a tree with everything that a user can make without being root."""
    tree = grove.current
    for number, name in enumerate(NAMES):
        grove.put(b"names/" + name, name * number)
        grove.put(b"directories/" + name + b"/inside", b"x" * number)
        grove.current.symlink(
            tree.resolve(b"names"), b"l%d" % number, b"../" + name, 0, 0, grove.now_ns
        )
    for number, mode in enumerate([0o000, 0o4755, 0o2711, 0o1644, 0o777]):
        ino = grove.put(b"modes/%d" % number, b"x")
        tree.set_attributes(ino, AttributeChange(mode=mode), grove.now_ns)
    tree.make(TOP_INO, b"empty", stat.S_IFDIR | 0o1777, 0, 0, grove.now_ns)
    tree.make(TOP_INO, b"fifo", stat.S_IFIFO | 0o640, 0, 0, grove.now_ns)
    tree.make(TOP_INO, b"socket", stat.S_IFSOCK | 0o600, 0, 0, grove.now_ns)
    large = grove.put(b"sparse", b"begin")
    tree.write(large, 3_000_000, b"end", grove.now_ns)
    tree.link(large, tree.resolve(b"modes"), b"another name", grove.now_ns)


def materialise(grove: Grove, folder: Path) -> None:
    """Write current into *folder*, as anybody would."""
    top = os.fsencode(folder)
    os.mkdir(top)
    later = []
    for entry in grove.current.walk():
        path = top + b"/" + entry.path if entry.path else top
        mode = entry.inode.mode
        kind, bits = stat.S_IFMT(mode), stat.S_IMODE(mode)
        if kind == stat.S_IFDIR:
            if entry.path:
                os.mkdir(path)
        elif kind == stat.S_IFLNK:
            os.symlink(grove.current.readlink(entry.ino), path)
            continue
        elif kind == stat.S_IFREG:
            with open(path, "wb") as file:
                file.write(grove.current.read(entry.ino, 0, entry.inode.size))
        elif kind == stat.S_IFSOCK:
            server = socket.socket(socket.AF_UNIX)
            server.bind(path)
            server.close()
        else:
            os.mkfifo(path)
        later.append((path, bits))
    for path, bits in reversed(later):
        os.chmod(path, bits)


def run_mtree(manifest: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    text = folder.parent / "manifest"
    text.write_bytes(manifest)
    command: list[str | Path] = ["mtree", "-f", text, "-p", folder]
    return subprocess.run(command, capture_output=True, check=False, encoding="latin-1")


@needs_mtree
def test_mtree_finds_a_copy_of_the_tree_right(grove: Grove, tmp_path: Path) -> None:
    fill(grove)
    materialise(grove, tmp_path / "copy")

    result = run_mtree(grove.seal_as_text("1.0.0"), tmp_path / "copy")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def change_a_byte(folder: Path) -> None:
    with (folder / "sparse").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"x")


def rename_oddly(folder: Path) -> None:
    os.rename(os.fsencode(folder) + b"/names/\xff\xfe", os.fsencode(folder) + b"/names/\xff\xfd")


@needs_mtree
@pytest.mark.parametrize(
    "change",
    [
        change_a_byte,
        rename_oddly,
        lambda folder: (folder / "modes/1").chmod(0o755),
        lambda folder: (folder / "empty").chmod(0o777),
        lambda folder: (folder / "names/two words").unlink(),
        lambda folder: (folder / "names/new").touch(),
        lambda folder: ((folder / "names/l0").unlink(), (folder / "names/l0").symlink_to("x")),
        lambda folder: ((folder / "fifo").unlink(), (folder / "fifo").touch(0o640)),
    ],
    ids=["byte", "name", "set-id", "sticky", "gone", "new", "target", "type"],
)
def test_mtree_finds_each_difference(
    grove: Grove, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    fill(grove)
    materialise(grove, tmp_path / "copy")
    change(tmp_path / "copy")

    result = run_mtree(grove.seal_as_text("1.0.0"), tmp_path / "copy")

    assert result.stdout
    # mtree tells of names that are missing or extra, but ends with 0 if nothing else differs.
    told = {one.partition(":")[0] for one in result.stdout.splitlines()}
    assert result.returncode != 0 or told <= {"missing", "extra"}


@needs_mtree
@pytest.mark.root
def test_mtree_finds_devices_right(grove: Grove, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir(mode=0o755)
    for name, kind, device in (
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("large", stat.S_IFBLK, os.makedev(300, 70_000)),
    ):
        grove.current.make(TOP_INO, name.encode(), kind | 0o600, 0, 0, grove.now_ns, rdev=device)
        os.mknod(folder / name, kind | 0o600, device)

    result = run_mtree(grove.seal_as_text("1.0.0"), folder)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- what the hash depends on ----------------------------------------------------------------


def test_the_same_tree_has_the_same_hash_whatever_its_history(tmp_path: Path) -> None:
    """Order, owners, times, inode numbers, pieces of writing and other versions leave no trace."""
    noise = random.Random(1).randbytes(700_000)
    paths = [b"a", b"d/b", b"d/e/c", b"z", b"d/x y"]
    first = Grove(tmp_path / "first")
    for path in paths:
        first.put(path, noise)

    second = Grove(tmp_path / "second")
    second.put(b"other", b"to be gone")
    second.put(b"d/x y", b"short")
    second.seal("0.1.0")
    second.snapshot("s")
    for path in reversed(paths):
        ino = second.put(path)
        for start in range(0, len(noise), 9_999):
            second.current.write(ino, start, noise[start : start + 9_999], second.now_ns)
        change = AttributeChange(uid=7, gid=8, mtime_ns=5)
        second.current.set_attributes(ino, change, second.now_ns)
    second.current.reap(second.current.unlink(TOP_INO, b"other", second.now_ns))
    second.reopen()

    assert first.seal("1.0.0").hash == second.seal("1.0.0").hash
    for grove in (first, second):
        grove.check()
        grove.store.close()


def test_extended_attributes_are_not_in_the_manifest(grove: Grove) -> None:
    """Mtree knows none. They are kept and told by diff all the same."""
    grove.put(b"f")
    before = grove.seal("1.0.0").hash

    grove.current.setxattr(TOP_INO, b"user.a", b"", grove.now_ns)

    assert grove.seal("1.0.1").hash == before


# --- what is kept ----------------------------------------------------------------------------


def test_a_rendering_from_what_is_kept_is_a_fresh_one(grove: Grove) -> None:
    noise = random.Random(3)
    for number in range(60):
        grove.put(b"d%d/f%d" % (number % 5, number), b"x")
    for number in range(12):
        for _ in range(noise.randrange(6)):
            grove.put(b"d%d/f%d" % (noise.randrange(7), noise.randrange(60)), noise.randbytes(9))
        sealed = grove.seal(f"1.0.{number}")

        assert_known(grove, sealed)


def test_only_the_trees_rendered_last_are_kept(grove: Grove) -> None:
    grove.put(b"d/f", b"x")
    first = grove.seal("1.0.0").tree
    for number in range(Manifests.KEPT):
        grove.put(b"d/f", b"%d" % number)
        grove.seal(f"1.1.{number}")
    visits = grove.store.nodes.visits

    grove.manifests.render(first)

    assert grove.store.nodes.visits - visits > 3, "it had to be read anew"
    visits = grove.store.nodes.visits
    grove.manifests.render(first)
    assert grove.store.nodes.visits - visits <= 2


def test_what_is_forgotten_is_rendered_anew(grove: Grove) -> None:
    sealed = grove.seal("1.0.0")

    grove.manifests.forget(sealed.tree.root.root_id)
    grove.manifests.forget(sealed.tree.root.root_id)

    assert_known(grove, sealed)


def test_a_root_with_the_number_of_one_that_was_abandoned_is_another(grove: Grove) -> None:
    """`abandon` takes numbers back, so what is kept is not told by the number alone."""
    grove.store.commit()
    grove.put(b"f", b"abandoned")
    abandoned = grove.seal("1.0.0").tree.root.root_id
    grove.store.abandon()
    grove.put(b"f", b"kept")

    sealed = grove.seal("1.0.0")

    assert sealed.tree.root.root_id == abandoned
    assert_known(grove, sealed)


def test_a_tree_that_is_not_sealed_cannot_be_rendered(grove: Grove) -> None:
    ino = grove.put(b"f", b"x")
    assert not grove.current.inode(ino).sha256

    with pytest.raises(StoreDamagedError):
        Manifests().render(grove.current)

    grove.current.put_inode(ino, replace(grove.current.inode(ino), sha256=bytes(32)))
    assert b"sha256=" + b"0" * 64 in Manifests().render(grove.current)

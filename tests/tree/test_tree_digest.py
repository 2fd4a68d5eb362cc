"""The tree digest is over all metadata, and over nothing that history leaves."""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.types import TOP_INO, Ino
from kaifs.tree.manifest import Manifests, line, spell, spell_name, unspell_name
from kaifs.tree.tree import AttributeChange, Tree
from tests.tree.grove import DIRECTORY, FILE, Grove, assert_known

ACL = struct.pack("<I" + "HHI" * 3, 2, 1, 7, 2**32 - 1, 4, 5, 2**32 - 1, 32, 5, 2**32 - 1)
OTHER_ACL = struct.pack("<I" + "HHI" * 3, 2, 1, 7, 2**32 - 1, 4, 5, 2**32 - 1, 32, 0, 2**32 - 1)
"""acl(5) as the kernel has it: version, then tag, permissions and id of owner, group, others."""
NOW_NS = 1_500_000_000_987_654_321


def digest_of_walk(tree: Tree) -> str:
    """Return the tree digest as docs/FORMAT.md defines it, by a plain walk."""
    links: dict[Ino, list[bytes]] = {}

    def told(name: bytes, ino: Ino) -> bytes:
        inode = tree.inode(ino)
        target = tree.readlink(ino) if stat.S_ISLNK(inode.mode) else b""
        text = line(name, inode, target)[:-1]
        text += f" uid={inode.uid} gid={inode.gid} mtime={inode.mtime_ns}".encode()
        for key, value in sorted(tree.xattrs(ino).items()):
            text += b" xattr." + spell(key) + b"=" + hashlib.sha256(value).hexdigest().encode()
        return text + b"\n"

    def folders(ino: Ino, path: bytes) -> Iterable[bytes]:
        entries = sorted(tree.entries(ino), key=lambda entry: entry.name)
        listing = b"".join(told(entry.name, entry.ino) for entry in entries)
        yield hashlib.sha256(listing).hexdigest().encode() + b"\n"
        for entry in entries:
            below = path + b"/" + entry.name if path else entry.name
            if entry.type == stat.S_IFDIR:
                yield from folders(entry.ino, below)
            elif tree.inode(entry.ino).nlink > 1:
                links.setdefault(entry.ino, []).append(below)

    text = b"#kaifs-tree 1\n" + told(b".", TOP_INO) + b"".join(folders(TOP_INO, b""))
    for paths in sorted(sorted(paths) for paths in links.values()):
        text += b"links " + b" ".join(map(spell, paths)) + b"\n"
    return hashlib.sha256(text).hexdigest()


def fill(grove: Grove) -> None:
    tree = grove.current
    for path in (b"a", b"d/b", b"d/e/c", b"d/x y", b"linked"):
        grove.put(path, path)
    tree.make(tree.resolve(b"d"), b"fifo", stat.S_IFIFO | 0o600, 0, 0, NOW_NS)
    tree.make(TOP_INO, b"null", stat.S_IFCHR | 0o666, 0, 0, NOW_NS, rdev=0x103)
    tree.symlink(TOP_INO, b"l", b"d/b", 0, 0, NOW_NS)
    tree.link(tree.resolve(b"linked"), tree.resolve(b"d/e"), b"again", NOW_NS)
    tree.setxattr(tree.resolve(b"a"), b"user.colour", b"blue", NOW_NS)
    tree.setxattr(tree.resolve(b"d"), b"system.posix_acl_default", ACL, NOW_NS)


def test_the_digest_is_that_of_the_format(grove: Grove) -> None:
    """Written out once by hand: it must not change with a refactoring."""
    tree = grove.current
    ino = grove.put(b"d/f", b"abc")
    tree.link(ino, TOP_INO, b"g", NOW_NS)
    tree.setxattr(ino, b"user.a=b", b"v", NOW_NS)
    times = AttributeChange(mtime_ns=-1, uid=7, gid=8)
    for path in (b"d/f", b"d", b""):
        tree.set_attributes(tree.resolve(path), times, NOW_NS)

    sealed = grove.seal("1.0.0")

    abc = hashlib.sha256(b"abc").hexdigest()
    rest = f" type=file mode=0644 size=3 sha256={abc} uid=7 gid=8 mtime=-1 xattr.user.a\\075b="
    rest += hashlib.sha256(b"v").hexdigest() + "\n"
    top = hashlib.sha256(f"d type=dir mode=0755 uid=7 gid=8 mtime=-1\ng{rest}".encode())
    below = hashlib.sha256(f"f{rest}".encode())
    text = (
        "#kaifs-tree 1\n"
        ". type=dir mode=0755 uid=7 gid=8 mtime=-1\n"
        f"{top.hexdigest()}\n{below.hexdigest()}\n"
        "links d/f g\n"
    )
    assert sealed.tree_digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_can_be_computed_anew_from_the_tree(grove: Grove) -> None:
    fill(grove)

    sealed = grove.seal("1.0.0")

    assert sealed.tree_digest == digest_of_walk(sealed.tree)


def attributes(path: bytes, **change: int) -> Callable[[Tree], object]:
    return lambda tree: tree.set_attributes(tree.resolve(path), AttributeChange(**change), NOW_NS)


CHANGES: dict[str, Callable[[Tree], object]] = {
    "owner": attributes(b"d/e/c", uid=1),
    "group": attributes(b"d/e/c", gid=1),
    "mode": attributes(b"d/e/c", mode=0o600),
    "time": attributes(b"d/e/c", mtime_ns=NOW_NS + 1),
    "time of the top": attributes(b"", mtime_ns=NOW_NS + 1),
    "owner of the top": attributes(b"", uid=1),
    "time of a link": attributes(b"l", mtime_ns=NOW_NS + 1),
    "time of a directory": attributes(b"d/e", mtime_ns=NOW_NS + 1),
    "new attribute": lambda tree: tree.setxattr(tree.resolve(b"d/b"), b"user.x", b"", NOW_NS),
    "value": lambda tree: tree.setxattr(tree.resolve(b"a"), b"user.colour", b"red", NOW_NS),
    "no attribute": lambda tree: tree.removexattr(tree.resolve(b"a"), b"user.colour", NOW_NS),
    "attribute of the top": lambda tree: tree.setxattr(TOP_INO, b"user.x", b"", NOW_NS),
    "ACL": lambda tree: tree.setxattr(
        tree.resolve(b"d"), b"system.posix_acl_default", OTHER_ACL, NOW_NS
    ),
    "name": lambda tree: tree.rename(TOP_INO, b"a", TOP_INO, b"A", NOW_NS),
    "place": lambda tree: tree.rename(TOP_INO, b"d", TOP_INO, b"D", NOW_NS),
    "content": lambda tree: tree.write(tree.resolve(b"a"), 0, b"A", NOW_NS),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_seen_by_what_is_kept_too(grove: Grove, what: str) -> None:
    """The digest of what is kept and what changed is the one of a fresh walk, and another one."""
    fill(grove)
    before = grove.seal("1.0.0")

    CHANGES[what](grove.current)
    after = grove.seal("1.0.1")

    assert after.tree_digest != before.tree_digest
    assert after.tree_digest == digest_of_walk(after.tree)
    assert_known(grove, after)


def test_names_of_one_file_are_not_two_equal_files(grove: Grove) -> None:
    """Hard-link sets count, and nothing else of the two trees differs."""
    tree = grove.current
    first, second = grove.put(b"x/a", b"same"), grove.put(b"y/b", b"same")
    tree.link(first, TOP_INO, b"one", NOW_NS)
    tree.link(second, TOP_INO, b"two", NOW_NS)
    before = grove.seal("1.0.0")
    times = {path: tree.inode(tree.resolve(path)).mtime_ns for path in (b"", b"one", b"two")}

    for name, ino in ((b"one", second), (b"two", first)):
        tree.unlink(TOP_INO, name, NOW_NS)
        tree.link(ino, TOP_INO, name, NOW_NS)
    for path, mtime_ns in times.items():
        tree.set_attributes(tree.resolve(path), AttributeChange(mtime_ns=mtime_ns), NOW_NS)
    after = grove.seal("1.0.1")

    assert after.hash == before.hash
    assert after.tree_digest != before.tree_digest
    assert after.tree_digest == digest_of_walk(after.tree)


def test_access_and_status_times_are_not_in_it(grove: Grove) -> None:
    """Reading a file and copying a tree change them."""
    fill(grove)
    before = grove.seal("1.0.0")

    for path in (b"", b"a", b"d"):
        change = AttributeChange(atime_ns=1, ctime_ns=2)
        grove.current.set_attributes(grove.current.resolve(path), change, NOW_NS)

    assert grove.seal("1.0.1").tree_digest == before.tree_digest


@given(st.data())
def test_the_same_tree_has_the_same_digest_whatever_its_history(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Order, inode numbers, names and files that are gone, and other versions leave no trace."""
    names = data.draw(
        st.lists(st.sampled_from([b"a", b"b", b"d/a", b"d/e/f", b"z/q"]), min_size=1, unique=True)
    )
    order = data.draw(st.permutations(names))
    linked = data.draw(st.booleans())
    digests = []
    for paths, has_past in ((names, False), (order, True)):
        grove = Grove(tmp_path_factory.mktemp("grove") / "store")
        tree = grove.current
        if has_past:
            grove.put(b"past/x", b"gone")
            grove.seal("0.1.0")
            past = tree.resolve(b"past")
            tree.rename(past, b"x", TOP_INO, b"y", NOW_NS)
            tree.reap(tree.unlink(TOP_INO, b"y", NOW_NS))
            tree.reap(tree.rmdir(TOP_INO, b"past", NOW_NS))
        for path in paths:
            grove.put(path, b"content of " + path)
        if linked:
            tree.link(tree.resolve(names[0]), TOP_INO, b"link", NOW_NS)
        for entry in list(tree.walk()):
            tree.set_attributes(entry.ino, AttributeChange(mtime_ns=NOW_NS), NOW_NS)
        sealed = grove.seal("1.0.0")
        digests.append((sealed.hash, sealed.tree_digest))
        assert sealed.tree_digest == digest_of_walk(sealed.tree)
        grove.store.close()

    assert digests[0] == digests[1]


@given(
    st.binary(min_size=1, max_size=30) | st.text("a*?[]\\0", min_size=1, max_size=9).map(str.encode)
)
def test_a_spelled_name_is_read_back(name: bytes) -> None:
    assert unspell_name(spell_name(name)) == name


class Everything:
    """A choice of all files."""

    def top(self) -> str:
        return ""

    def below(self, state: str, name: bytes) -> str:
        return f"{state}/{name!r}"

    def takes(self, state: str, name: bytes) -> bool:
        return True


def test_chosen_lines_come_in_the_order_of_the_manifest_with_their_folders(grove: Grove) -> None:
    fill(grove)
    sealed = grove.seal("1.0.0")

    lines = [text for found in grove.manifests.chosen(sealed.tree, Everything()) for text in found]

    names = [text.partition(b" ")[0] for text in lines]
    assert names == [b"./a", b"./d/b", b"./d/e/again", b"./d/e/c", b"./d/x\\040y", b"./linked"]
    whole = grove.manifests.render(sealed.tree)
    assert all(text.rpartition(b"/")[2] in whole for text in lines)


def test_what_is_kept_is_bounded_by_its_size(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many large trees only the last is kept."""
    monkeypatch.setattr(Manifests, "KEPT_SIZE", 100)
    for number in range(300):
        grove.put(b"%d" % number)
    first = grove.seal("1.0.0")
    grove.put(b"f", b"x")
    grove.seal("1.0.1")
    visits = grove.store.nodes.visits

    grove.manifests.render(first.tree)

    assert grove.store.nodes.visits - visits > 4, "it had to be read anew"
    assert_known(grove, first)


def test_a_deep_tree_is_rendered_without_recursion(grove: Grove) -> None:
    tree, parent = grove.current, TOP_INO
    for _ in range(3000):
        parent = tree.make(parent, b"d", DIRECTORY, 0, 0, NOW_NS)
    tree.make(parent, b"f", FILE, 0, 0, NOW_NS)

    sealed = grove.seal("1.0.0")

    assert_known(grove, sealed)
    lines = [text for found in grove.manifests.chosen(sealed.tree, Everything()) for text in found]
    assert len(lines) == 1
    assert lines[0].startswith(b"./d/d/")

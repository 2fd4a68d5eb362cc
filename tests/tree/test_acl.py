"""Mode and access control list stay in step, as acl(5) asks."""

from __future__ import annotations

import stat
import struct

import pytest

from kaifs.base.errors import (
    AccessError,
    InvalidOperationError,
    NoAttributeError,
    NotSupportedError,
)
from kaifs.base.types import TOP_INO, Ino
from kaifs.tree.acl import ACCESS, DEFAULT, Acl, minimal
from kaifs.tree.tree import AttributeChange
from tests.tree.grove import DIRECTORY, FILE, Grove

OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF


def encoded(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """Return a list as the kernel spells it."""
    text = struct.pack("<I", 2)
    for tag, bits, *rest in entries:
        text += struct.pack("<HHI", tag, bits, rest[0] if rest else NO_ID)
    return text


LIST = encoded((OWNER, 7), (USER, 6, 1000), (GROUP, 5), (MASK, 6), (OTHER, 4))
PLAIN = encoded((OWNER, 6), (GROUP, 4), (OTHER, 0))


def mode(grove: Grove, ino: Ino) -> int:
    return stat.S_IMODE(grove.current.inode(ino).mode)


def test_a_list_that_is_set_changes_the_mode(grove: Grove) -> None:
    ino = grove.put(b"f")

    grove.current.setxattr(ino, ACCESS, LIST, grove.now_ns)

    assert mode(grove, ino) == 0o764
    assert grove.current.getxattr(ino, ACCESS) == LIST


def test_a_list_that_says_no_more_than_a_mode_is_not_kept(grove: Grove) -> None:
    ino = grove.put(b"f")
    grove.current.setxattr(ino, ACCESS, LIST, grove.now_ns)

    grove.current.setxattr(ino, ACCESS, PLAIN, grove.now_ns)

    assert mode(grove, ino) == 0o640
    with pytest.raises(NoAttributeError):
        grove.current.getxattr(ino, ACCESS)


def test_chmod_changes_the_mask_or_without_one_the_group(grove: Grove) -> None:
    ino = grove.put(b"f")
    grove.current.setxattr(ino, ACCESS, LIST, grove.now_ns)

    grove.current.set_attributes(ino, AttributeChange(mode=0o4510), grove.now_ns)

    assert mode(grove, ino) == 0o4510
    assert grove.current.getxattr(ino, ACCESS) == encoded(
        (OWNER, 5), (USER, 6, 1000), (GROUP, 5), (MASK, 1), (OTHER, 0)
    )
    assert minimal(0o640).with_mode(0o755) == minimal(0o755)


def test_a_list_keeps_set_id_bits_unless_the_kernel_says_otherwise(grove: Grove) -> None:
    ino = grove.put(b"f")
    for kill, kept in ((False, 0o6764), (True, 0o4764)):
        grove.current.set_attributes(ino, AttributeChange(mode=0o6700), grove.now_ns)

        grove.current.setxattr(ino, ACCESS, LIST, grove.now_ns, kill_set_gid=kill)

        assert mode(grove, ino) == kept


def test_a_default_list_replaces_the_umask(grove: Grove) -> None:
    tree = grove.current
    default = encoded((OWNER, 7), (USER, 7, 1000), (GROUP, 5), (MASK, 7), (OTHER, 4))
    folder = tree.make(TOP_INO, b"d", DIRECTORY, 0, 0, grove.now_ns)
    tree.setxattr(folder, DEFAULT, default, grove.now_ns)

    file = tree.make(folder, b"f", stat.S_IFREG | 0o666, 0, 0, grove.now_ns, umask=0o077)
    below = tree.make(folder, b"d", stat.S_IFDIR | 0o777, 0, 0, grove.now_ns, umask=0o077)
    nameless = tree.make_nameless(folder, 0o606, 0, 0, grove.now_ns, umask=0o077)
    foreign = tree.make(folder, b"i", FILE, 0, 0, grove.now_ns, inherit=False)

    assert mode(grove, file) == 0o664
    assert tree.getxattr(file, ACCESS) == encoded(
        (OWNER, 6), (USER, 7, 1000), (GROUP, 5), (MASK, 6), (OTHER, 4)
    )
    assert tree.listxattr(file) == [ACCESS]
    assert mode(grove, below) == 0o774
    assert tree.getxattr(below, DEFAULT) == default
    assert mode(grove, nameless) == 0o604
    assert (mode(grove, foreign), tree.listxattr(foreign)) == (0o644, [])
    tree.reap(nameless)


def test_a_default_list_that_names_nobody_leaves_only_a_mode(grove: Grove) -> None:
    tree = grove.current
    tree.setxattr(TOP_INO, DEFAULT, PLAIN, grove.now_ns)

    ino = tree.make(TOP_INO, b"f", stat.S_IFREG | 0o666, 0, 0, grove.now_ns, umask=0)

    assert (mode(grove, ino), tree.listxattr(ino)) == (0o640, [])


def test_without_a_default_list_the_umask_counts(grove: Grove) -> None:
    tree = grove.current

    ino = tree.make(TOP_INO, b"f", stat.S_IFREG | 0o666, 0, 0, grove.now_ns, umask=0o027)

    assert mode(grove, ino) == 0o640


def test_what_can_have_no_list_refuses_it(grove: Grove) -> None:
    tree = grove.current
    file, link = grove.put(b"f"), tree.symlink(TOP_INO, b"l", b"t", 0, 0, grove.now_ns)

    with pytest.raises(AccessError):
        tree.setxattr(file, DEFAULT, LIST, grove.now_ns)
    with pytest.raises(NotSupportedError):
        tree.setxattr(link, ACCESS, LIST, grove.now_ns)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        struct.pack("<I", 1) + PLAIN[4:],
        PLAIN + b"x",
        encoded((OWNER, 6), (GROUP, 4)),
        encoded((OWNER, 6), (OWNER, 6), (GROUP, 4), (OTHER, 0)),
        encoded((OWNER, 8), (GROUP, 4), (OTHER, 0)),
        encoded((OWNER, 6), (3, 1), (GROUP, 4), (OTHER, 0)),
        encoded((OWNER, 6), (USER, 6, 1), (GROUP, 4), (OTHER, 0)),
        encoded((OWNER, 6), (GROUP, 4), (MASK, 1), (MASK, 1), (OTHER, 0)),
    ],
)
def test_nonsense_is_no_list(value: bytes) -> None:
    with pytest.raises(InvalidOperationError):
        Acl.decode(value)


def test_a_nameless_file_gets_a_name_once_it_may(grove: Grove) -> None:
    """O_TMPFILE and linkat(2); it is an orphan until then, and has no other way back."""
    tree = grove.current
    ino = tree.make_nameless(TOP_INO, 0o600, 5, 6, grove.now_ns)
    assert tree.orphans() == [ino]
    assert tree.inode(ino).nlink == 0

    tree.link(ino, TOP_INO, b"f", grove.now_ns, nameless=True)

    assert tree.orphans() == []
    inode = tree.inode(tree.resolve(b"f"))
    assert (inode.nlink, inode.mode, inode.uid, inode.gid) == (1, stat.S_IFREG | 0o600, 5, 6)


def test_a_nameless_file_has_the_group_of_a_set_gid_directory(grove: Grove) -> None:
    tree = grove.current
    tree.set_attributes(TOP_INO, AttributeChange(mode=0o2755, gid=7), grove.now_ns)
    tree.set_attributes(TOP_INO, AttributeChange(mode=0o2755), grove.now_ns)

    ino = tree.make_nameless(TOP_INO, 0o600, 5, 6, grove.now_ns)

    assert tree.inode(ino).gid == 7
    tree.reap(ino)

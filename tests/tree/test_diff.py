"""A diff tells each path once: what came, went, changed, moved, or became something else."""

from __future__ import annotations

import os
import stat

import pytest

from kaifs.base.types import TOP_INO
from kaifs.tree.diff import Difference, diff, same_content
from kaifs.tree.seal import canonicalise
from kaifs.tree.tree import AttributeChange, RenameFlags, Tree
from tests.tree.grove import DIRECTORY, Grove, exhaust


@pytest.fixture
def old(grove: Grove) -> Tree:
    """Return a clone of what current was at first."""
    for path in (b"a", b"d/e/x", b"d/f", b"d/g", b"z"):
        grove.put(path, b"content of " + path)
    grove.current.symlink(TOP_INO, b"l", b"a", 0, 0, grove.now_ns)
    grove.snapshot("old")
    return grove.forest.tree(grove.store.get_snapshot(grove.agent, "old").root)


def told(old: Tree, new: Tree) -> list[str]:
    return [
        f"{one.status} {one.path.decode()}"
        + (f" from {one.old_path.decode()}" if one.old_path is not None else "")
        for one in diff(old, new)
    ]


def both_ways(old: Tree, new: Tree) -> tuple[list[str], list[str]]:
    return told(old, new), told(new, old)


def test_nothing_differs_from_itself(grove: Grove, old: Tree) -> None:
    assert told(old, grove.current) == []

    grove.current.set_attributes(TOP_INO, AttributeChange(mtime_ns=7), grove.now_ns)

    assert told(old, grove.current) == [], "times alone are no difference"


def test_new_gone_and_changed_files(grove: Grove, old: Tree) -> None:
    grove.put(b"d/new", b"x")
    grove.put(b"d/f", b"changed")
    grove.current.unlink(TOP_INO, b"z", grove.now_ns)

    assert both_ways(old, grove.current) == (
        ["M d/f", "A d/new", "D z"],
        ["M d/f", "D d/new", "A z"],
    )


def test_the_same_bytes_written_anew_are_no_difference(grove: Grove, old: Tree) -> None:
    grove.put(b"a", b"content of a")

    assert told(old, grove.current) == []


def test_attributes_make_a_difference(grove: Grove, old: Tree) -> None:
    tree = grove.current
    tree.set_attributes(tree.resolve(b"a"), AttributeChange(mode=0o600), grove.now_ns)
    tree.set_attributes(tree.resolve(b"d"), AttributeChange(uid=9), grove.now_ns)
    tree.setxattr(tree.resolve(b"z"), b"user.a", b"", grove.now_ns)

    assert told(old, tree) == ["M a", "M d", "M z"]


def test_a_moved_file_is_told_as_renamed_even_if_it_changed(grove: Grove, old: Tree) -> None:
    grove.current.rename(TOP_INO, b"a", grove.current.resolve(b"d"), b"moved", grove.now_ns)
    grove.put(b"d/moved", b"changed too")

    assert both_ways(old, grove.current) == (
        ["R d/moved from a"],
        ["R a from d/moved"],
    )


def test_a_moved_directory_is_told_once_for_all_below(grove: Grove, old: Tree) -> None:
    grove.current.rename(TOP_INO, b"d", TOP_INO, b"moved", grove.now_ns)
    grove.put(b"moved/f", b"changed")

    assert told(old, grove.current) == ["R moved from d", "M moved/f"]


def test_a_file_replaced_by_a_rename_is_changed(grove: Grove, old: Tree) -> None:
    """How editors save: what the path holds is another inode."""
    grove.put(b"a.tmp", b"saved")
    grove.current.rename(TOP_INO, b"a.tmp", TOP_INO, b"a", grove.now_ns)

    assert told(old, grove.current) == ["M a"]


def test_a_directory_that_moved_away_for_another_is_not_lost(grove: Grove, old: Tree) -> None:
    """`mv d d.old; mkdir d`: what was below d is below d.old now, and nowhere told but there."""
    grove.current.rename(TOP_INO, b"d", TOP_INO, b"d.old", grove.now_ns)
    grove.put(b"d/f", b"new")

    assert told(old, grove.current) == ["A d", "R d.old from d", "A d/f"]
    assert told(grove.current, old) == ["D d", "R d from d.old", "D d/f"]


def test_what_is_exchanged_is_renamed_both_ways(grove: Grove, old: Tree) -> None:
    grove.current.rename(TOP_INO, b"a", TOP_INO, b"d", grove.now_ns, RenameFlags.EXCHANGE)

    assert told(old, grove.current) == ["R a from d", "R d from a"]


def test_a_path_of_another_type_is_told_as_that(grove: Grove, old: Tree) -> None:
    grove.current.unlink(TOP_INO, b"a", grove.now_ns)
    grove.current.make(TOP_INO, b"a", DIRECTORY, 0, 0, grove.now_ns)
    grove.current.unlink(TOP_INO, b"l", grove.now_ns)
    grove.current.make(TOP_INO, b"l", stat.S_IFIFO | 0o600, 0, 0, grove.now_ns)

    assert told(old, grove.current) == ["T a", "T l"]


def test_a_link_that_leads_elsewhere_is_changed(grove: Grove, old: Tree) -> None:
    grove.current.unlink(TOP_INO, b"l", grove.now_ns)
    grove.current.symlink(TOP_INO, b"l", b"z", 0, 0, grove.now_ns)

    assert told(old, grove.current) == ["M l"]


def test_a_further_name_is_new_and_each_name_of_a_changed_file_is_told(
    grove: Grove, old: Tree
) -> None:
    grove.current.link(grove.current.resolve(b"a"), TOP_INO, b"b", grove.now_ns)
    assert told(old, grove.current) == ["A b"]

    middle = grove.snapshot("middle")
    grove.put(b"a", b"changed")

    assert told(middle, grove.current) == ["M a", "M b"]
    assert told(grove.current, old) == ["M a", "D b"]


def test_what_has_no_name_any_more_is_gone(grove: Grove, old: Tree) -> None:
    grove.current.unlink(TOP_INO, b"a", grove.now_ns)

    assert grove.current.orphans()
    assert told(old, grove.current) == ["D a"]


def test_one_number_for_two_objects_of_two_branches_is_two_objects(grove: Grove, old: Tree) -> None:
    """Both clones give the next inode number to something of their own."""
    grove.put(b"mine", b"1", old)
    grove.put(b"yours", b"2")

    assert told(old, grove.current) == ["D mine", "A yours"]


def test_two_branches_made_the_same(grove: Grove, old: Tree) -> None:
    for tree in (old, grove.current):
        grove.put(b"n", b"same", tree)

    assert told(old, grove.current) == []


# --- trees that share nothing -----------------------------------------------------------------


def test_trees_of_two_lineages_are_compared_by_path(grove: Grove, old: Tree) -> None:
    new = grove.forest.new_tree(0o755, 0, 0)
    for path in (b"d/e/x", b"d/f", b"z/below"):
        grove.put(path, b"content of " + path, new)
    grove.put(b"d/f", b"changed", new)
    new.symlink(TOP_INO, b"l", b"a", 0, 0, grove.now_ns)
    grove.put(b"t/u/v", b"", new)

    assert told(old, new) == [
        "D a", "M d/f", "D d/g", "A t", "A t/u", "A t/u/v", "T z", "A z/below",
    ]  # fmt: skip
    assert told(new, old) == [
        "A a", "M d/f", "A d/g", "D t", "D t/u", "D t/u/v", "T z", "D z/below",
    ]  # fmt: skip
    grove.forest.drop(new.root.root_id)


def test_a_difference_names_the_inodes_on_both_sides(grove: Grove, old: Tree) -> None:
    ino = grove.put(b"a", b"changed")

    assert list(diff(old, grove.current)) == [Difference("M", b"a", ino, ino)]


# --- content ---------------------------------------------------------------------------------


def test_content_is_compared_by_size_digest_extents_and_bytes(grove: Grove, old: Tree) -> None:
    noise = os.urandom(2_500_000)
    first, second = grove.put(b"1", noise), grove.put(b"2", noise)
    tree = grove.current
    assert same_content(tree, first, tree, second), "the same blocks"
    exhaust(canonicalise(tree, second))
    assert tree.content.extents(first) != tree.content.extents(second)
    assert same_content(tree, first, tree, second), "the same bytes in other blocks"
    exhaust(canonicalise(tree, first))
    assert same_content(tree, first, tree, second), "the same digest"

    tree.write(second, 2_400_000, b"different", grove.now_ns)
    assert not same_content(tree, first, tree, second), "other bytes"
    exhaust(canonicalise(tree, second))
    assert not same_content(tree, first, tree, second), "another digest"
    tree.truncate(second, 5, grove.now_ns)
    assert not same_content(tree, first, tree, second), "another size"

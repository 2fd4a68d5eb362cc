"""Line diffs are right for any two texts, and end soon for the worst."""

import time

from hypothesis import given
from hypothesis import strategies as st

from kaifs.service.line_diff import changes, hunks, split_lines

texts = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"\n", b"x y\n"]), max_size=40).map(
    b"".join
)
tails = st.sampled_from([b"", b"no newline", b"\x0c", b"a\r"])


def applied(before: list[bytes], after: list[bytes]) -> list[bytes]:
    """Return *before* with the changes made, and check that what is left alone is equal."""
    found = []
    place = new_place = 0
    for change in changes(before, after):
        assert before[place : change.start] == after[new_place : change.new_start]
        assert (change.start, change.new_start) >= (place, new_place)
        found += before[place : change.start] + after[change.new_start : change.new_stop]
        place, new_place = change.stop, change.new_stop
    assert before[place:] == after[new_place:]
    return found + before[place:]


@given(texts, tails, texts, tails)
def test_the_changes_lead_from_one_text_to_the_other(
    old: bytes, old_tail: bytes, new: bytes, new_tail: bytes
) -> None:
    before, after = split_lines(old + old_tail), split_lines(new + new_tail)

    assert b"".join(before) == old + old_tail
    assert applied(before, after) == after


@given(texts)
def test_equal_texts_have_no_changes(text: bytes) -> None:
    lines = split_lines(text)

    assert changes(lines, list(lines)) == []
    assert list(hunks(lines, list(lines))) == []


def test_one_line_in_the_middle_is_one_change() -> None:
    before = [b"same\n"] * 1000 + [b"old\n"] + [b"same\n"] * 1000
    after = [b"same\n"] * 1000 + [b"new\n", b"more\n"] + [b"same\n"] * 1000

    (change,) = changes(before, after)

    assert (change.start, change.stop, change.new_start, change.new_stop) == (
        1000,
        1001,
        1000,
        1002,
    )


def test_hunks_are_those_of_diff() -> None:
    """Three lines around a change; changes with no more than six between them are one hunk."""
    before = [b"%d\n" % number for number in range(1, 31)]
    after = [*before[:4], b"five\n", *before[5:11], b"twelve\n", *before[12:24], *before[25:]]

    assert b"".join(hunks(before, after)) == (
        b"@@ -2,14 +2,14 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n 9\n 10\n 11\n-12\n+twelve\n"
        b" 13\n 14\n 15\n"
        b"@@ -22,7 +22,6 @@\n 22\n 23\n 24\n-25\n 26\n 27\n 28\n"
    )
    assert b"".join(hunks([], [b"x"])) == b"@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n"


def test_a_short_way_is_found_without_unique_lines() -> None:
    before = [b"a\n", b"b\n"] * 20
    after = [*before[:10], b"b\n", *before[10:]]

    assert sum(change.new_stop - change.new_start for change in changes(before, after)) == 1


def test_texts_that_would_take_for_ever_end_soon() -> None:
    """Every line many times, in another order: a search for the shortest way would not end."""
    before = [b"%d\n" % (number * 7919 % 50) for number in range(60_000)]
    after = [b"%d\n" % (number * 104729 % 50) for number in range(60_000)]
    began = time.monotonic()

    assert applied(before, after) == after

    assert time.monotonic() - began < 10

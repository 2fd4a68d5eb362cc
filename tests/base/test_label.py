"""Labels are exactly SemVer 2.0.0, and are ordered as semver.org orders them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.errors import BadLabelError
from kaifs.base.label import LABEL_MAX, Bump, Label, parse_label

# semver.org's own examples (the list beside its suggested regular expression).
VALID = """\
0.0.4 1.2.3 10.20.30 1.1.2-prerelease+meta 1.1.2+meta 1.1.2+meta-valid 1.0.0-alpha 1.0.0-beta
1.0.0-alpha.beta 1.0.0-alpha.beta.1 1.0.0-alpha.1 1.0.0-alpha0.valid 1.0.0-alpha.0valid
1.0.0-alpha-a.b-c-somethinglong+build.1-aef.1-its-okay 1.0.0-rc.1+build.1 2.0.0-rc.1+build.123
1.2.3-beta 10.2.3-DEV-SNAPSHOT 1.2.3-SNAPSHOT-123 1.0.0 2.0.0 1.1.7 2.0.0+build.1848
2.0.1-alpha.1227 1.0.0-alpha+beta 1.2.3----RC-SNAPSHOT.12.9.1--.12+788
1.2.3----R-S.12.9.1--.12+meta 1.2.3----RC-SNAPSHOT.12.9.1--.12
1.0.0+0.build.1-rc.10000aaa-kk-0.1 1.0.0-0A.is.legal
99999999999999999999999.999999999999999999.99999999999999999
""".split()

INVALID = """\
1 1.2 1.2.3-0123 1.2.3-0123.0123 1.1.2+.123 +invalid -invalid -invalid+invalid -invalid.01 alpha
alpha.beta alpha.beta.1 alpha.1 alpha+beta alpha_beta alpha. alpha.. beta 1.0.0-alpha_beta -alpha.
1.0.0-alpha.. 1.0.0-alpha..1 1.0.0-alpha...1 1.0.0-alpha....1 1.0.0-alpha.....1 1.0.0-alpha......1
1.0.0-alpha.......1 01.1.1 1.01.1 1.1.01 1.2.3.DEV 1.2-SNAPSHOT
1.2.31.2.3----RC-SNAPSHOT.12.09.1--..12+788 1.2-RC-SNAPSHOT -1.0.3-gamma+b7718 +justmeta
9.8.7+meta+meta 9.8.7-whatever+meta+meta
99999999999999999999999.999999999999999999.99999999999999999----RC-SNAPSHOT.12.09.1--------..12
""".split()

# What looks right and is not: prefixes, white space, ranges, other digits, names of folders.
NEARLY = [
    "", "v1.0.0", "V1.0.0", "=1.0.0", " 1.0.0", "1.0.0 ", "1.0.0\n", "\n1.0.0", "1.0.0\0",
    "^1.0.0", "~1.0", "1.x", "*", "latest", ".", "..", "1.0.0/x", "1.0.0-", "1.0.0+", "1.0.0-+b",
    "1.0.0-é", "1.0.\u0663", "\uff11.0.0", "-1.0.0", "1.-0.0", "1_0.0.0", "1,0,0",
]  # fmt: skip

# semver.org, paragraph 11: lowest precedence first.
ASCENDING = """\
0.0.1 0.1.0-0 0.1.0 1.0.0-0 1.0.0-2 1.0.0-11 1.0.0--1 1.0.0-A 1.0.0-a 1.0.0-alpha 1.0.0-alpha.1
1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 1.0.1 1.2.0 1.10.0 2.0.0
2.1.0 2.1.1 10.0.0
""".split()

numbers = st.integers(0, 12) | st.integers(0, 10**25)
alphanumeric = st.text("0123456789abzABZ-", min_size=1, max_size=4)
identifiers = st.lists(
    alphanumeric.filter(lambda text: not (text.isdigit() and text[0] == "0" and text != "0")),
    min_size=1,
    max_size=3,
).map(".".join)
builds = st.lists(alphanumeric, min_size=1, max_size=3).map(".".join)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Semantic versions: small numbers and few letters, so that neighbours are common."""
    text = f"{draw(numbers)}.{draw(numbers)}.{draw(numbers)}"
    if draw(st.booleans()):
        text += "-" + draw(identifiers)
    if draw(st.booleans()):
        text += "+" + draw(builds)
    return text


labels = texts().map(Label)


def precedence(text: str) -> tuple[object, ...]:
    """Return semver.org's precedence of *text* as a sort key, written from its paragraph 11."""
    core, _, pre = text.partition("+")[0].partition("-")
    parts = [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".") if part
    ]
    return ([int(part) for part in core.split(".")], not pre, parts)


@pytest.mark.parametrize("text", VALID)
def test_valid_examples_are_kept_as_they_are(text: str) -> None:
    assert str(Label(text)) == text


@pytest.mark.parametrize("text", INVALID + NEARLY)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(BadLabelError) as caught:
        Label(text)

    assert caught.value.code == "E120"


def test_refusal_names_the_label_and_is_one_line() -> None:
    with pytest.raises(BadLabelError, match=r"^E120: .*'1\.0\.0\\n'") as caught:
        Label("1.0.0\n")

    assert "\n" not in str(caught.value)


def test_length_limit_is_exact_and_leaves_room_for_the_signature_name() -> None:
    longest = "1.0.0-" + "a" * (LABEL_MAX - 6)

    assert len(Label(longest).text) == LABEL_MAX
    assert len(longest + ".json.sig") <= 255
    with pytest.raises(BadLabelError):
        Label(longest + "a")


def test_huge_text_is_refused_without_being_shown_whole() -> None:
    with pytest.raises(BadLabelError) as caught:
        Label("9" * 100_000)

    assert len(str(caught.value)) < 400


def test_semver_org_precedence() -> None:
    """Every pair of the ascending list compares as the list has it."""
    for low, high in itertools.combinations(ASCENDING, 2):
        assert Label(low) < Label(high), (low, high)
        assert Label(high) > Label(low), (low, high)
        assert Label(low) != Label(high), (low, high)


@given(labels, labels)
def test_order_is_precedence_then_text(a: Label, b: Label) -> None:
    """Build metadata decides only between labels of the same precedence."""
    expected = (precedence(a.text), a.text) < (precedence(b.text), b.text)

    assert (a < b) is expected


@given(labels, labels)
def test_order_is_total(a: Label, b: Label) -> None:
    """Exactly one of <, ==, > holds, and <= and >= agree."""
    assert [a < b, a == b, a > b].count(True) == 1
    assert (a <= b) is (a < b or a == b)
    assert (a >= b) is (b <= a)


@given(labels, labels, labels)
def test_order_is_transitive(a: Label, b: Label, c: Label) -> None:
    low, middle, high = sorted([a, b, c])

    assert low <= middle <= high
    assert low <= high


@given(labels, st.sampled_from(["major", "minor", "patch"]))
def test_bump_grows_and_drops_prerelease_and_build(label: Label, part: Bump) -> None:
    bumped = label.bump(part)

    assert bumped > label
    assert not bumped.is_prerelease
    assert "+" not in bumped.text
    assert bumped.text == bumped.core


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("1.2.3", "major", "2.0.0"),
        ("1.2.3", "minor", "1.3.0"),
        ("1.2.3", "patch", "1.2.4"),
        ("1.2.3-rc.1+b", "patch", "1.2.4"),
        ("0.0.9", "patch", "0.0.10"),
    ],
)
def test_bump_moves_one_part_and_resets_the_ones_after_it(
    text: str, part: Bump, expected: str
) -> None:
    assert Label(text).bump(part).text == expected


@given(texts())
def test_labels_of_one_text_are_one_key(text: str) -> None:
    assert Label(text) == Label(text)
    assert hash(Label(text)) == hash(Label(text))
    assert repr(Label(text)) == f"Label({text!r})"


def test_build_metadata_makes_another_label_of_the_same_core() -> None:
    plain, built = Label("1.0.0"), Label("1.0.0+build.7")

    assert plain != built
    assert plain.core == built.core == "1.0.0"
    assert Label("1.0.0-rc.1+x").core == "1.0.0-rc.1"


def test_a_label_equals_only_labels() -> None:
    """A label is not its text, so that the two cannot be mixed up as keys."""
    assert Label("1.0.0") != "1.0.0"
    with pytest.raises(TypeError):
        _ = Label("1.0.0") < "2.0.0"


def test_parse_label_parses_each_text_once_and_refuses_every_time() -> None:
    assert parse_label("3.1.4") is parse_label("3.1.4")
    for _ in range(2):
        with pytest.raises(BadLabelError):
            parse_label("3.1")

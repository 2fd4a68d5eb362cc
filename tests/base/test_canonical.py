"""Canonical JSON is RFC 8785's, shown by the RFC's own examples."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.canonical import canonical_json, spell_number
from kaifs.base.errors import ArgumentValueError


def double(bits: str) -> float:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_spelled_as_in_appendix_b(bits: str, text: str) -> None:
    assert spell_number(double(bits)) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    """RFC 8785, section 3.2.2.3."""
    with pytest.raises(ArgumentValueError):
        canonical_json({"value": value})


def test_whole_numbers_are_exact_or_refused() -> None:
    """A reader that has doubles only would read another number."""
    assert canonical_json([(1 << 53) - 1, -((1 << 53) - 1), 1.0]) == (
        b"[9007199254740991,-9007199254740991,1]"
    )
    with pytest.raises(ArgumentValueError):
        canonical_json(1 << 53)


def test_the_example_of_section_3_2_2() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '€$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }

    assert canonical_json(value) == (
        b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_members_are_sorted_by_utf_16_code_units() -> None:
    """The example of section 3.2.3: by code points the last two would change places."""
    value = {
        "€": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "😀": "Emoji: Grinning Face",
        "\u0080": "Control",
        "ö": "Latin Small Letter O With Diaeresis",
    }

    assert list(json.loads(canonical_json(value)).values()) == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


@pytest.mark.parametrize("value", ["\ud800", ["a\udfff"], {"\ud83d": 1}, {"a": "\udcff"}])
def test_half_a_surrogate_pair_is_refused(value: object) -> None:
    """RFC 8785, section 3.2.2.2: it has no UTF-8."""
    with pytest.raises(ArgumentValueError):
        canonical_json(value)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53) + 1, (1 << 53) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)


@given(
    st.recursive(
        scalars,
        lambda below: (
            st.lists(below)
            | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), below)
        ),
        max_leaves=20,
    )
)
def test_what_is_read_back_is_the_same_value_and_spelling(value: object) -> None:
    encoded = canonical_json(value)

    # As a reader with doubles only has it: that is what the digits are chosen for.
    read = json.loads(encoded, parse_int=float)
    assert read == value
    assert canonical_json(read) == encoded

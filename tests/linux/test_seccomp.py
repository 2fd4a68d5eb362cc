"""Filters as the kernel gets them, and what Landlock can do. The attack suite runs them."""

import struct

import pytest

from kaifs.linux.landlock import Access, handled, ruleset_attributes
from kaifs.linux.seccomp import (
    Argument,
    Compare,
    Rule,
    SeccompUnavailable,
    compile_filter,
    system_call_number,
)


def test_call_is_known_by_name_by_number_or_not_at_all() -> None:
    assert (system_call_number("read") or 0) >= 0
    assert (system_call_number("mseal") or 0) > 0
    assert system_call_number("no_such_call") is None


def test_filter_is_a_program_of_whole_instructions_that_grows_with_its_rules() -> None:
    one = compile_filter([Rule("mkdir")])
    two = compile_filter([Rule("mkdir"), Rule("socket", Argument(0, Compare.GREATER, 16), 97)])

    assert len(one) % 8 == len(two) % 8 == 0
    assert len(one) < len(two)


def test_rule_about_no_call_is_refused() -> None:
    with pytest.raises(SeccompUnavailable, match="no_such_call"):
        compile_filter([Rule("no_such_call")])


def test_landlock_handles_what_its_version_knows() -> None:
    assert handled(1) == Access(0x1FFF)
    assert handled(2) == Access(0x3FFF)
    assert handled(3) == handled(4) == Access(0x7FFF)
    assert handled(5) == handled(9) == Access(0xFFFF)
    assert struct.unpack("=Q", ruleset_attributes(5)) == (0xFFFF,)
    assert struct.unpack("=QQQ", ruleset_attributes(6)) == (0xFFFF, 0, 3)

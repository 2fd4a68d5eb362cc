"""Canonical JSON: RFC 8785, one spelling for each value.

What is hashed and signed is bytes, so a value must have one spelling only:
members sorted by UTF-16 code units, no spaces, numbers as ECMAScript writes
them, strings as short as they can be, UTF-8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from kaifs.base.errors import ArgumentValueError

INTEGER_MAX: Final = (1 << 53) - 1
"""Greatest whole number that every reader of JSON keeps exactly. Source: RFC 7493, section 2.2."""

_encode_string: Final = json.JSONEncoder(ensure_ascii=False).encode


def canonical_json(value: Any) -> bytes:
    """Return *value*, of dicts, lists, tuples and plain scalars, as RFC 8785 spells it.

    Raises:
        ArgumentValueError: a text has half a surrogate pair, or a number cannot be told in JSON.
    """
    try:
        return "".join(_spell(value)).encode()
    except UnicodeEncodeError as error:
        raise ArgumentValueError(f"{error.object[error.start]!a} is no character") from error


def _spell(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield _encode_string(value)
        case None:
            yield "null"
        case bool():
            yield "true" if value else "false"
        case int():
            yield _spell_integer(value)
        case float():
            yield spell_number(value)
        case dict():
            separator = "{"
            for name in sorted(value, key=_code_units):
                yield separator + _encode_string(name) + ":"
                yield from _spell(value[name])
                separator = ","
            yield "}" if value else "{}"
        case list() | tuple():
            separator = "["
            for element in value:
                yield separator
                yield from _spell(element)
                separator = ","
            yield "]" if value else "[]"
        case _:
            raise TypeError(f"{type(value).__name__} has no JSON")


def _code_units(name: str) -> bytes:
    # Big-endian, so that bytes sort as the code units do.
    return name.encode("utf-16-be")


def _spell_integer(value: int) -> str:
    if abs(value) > INTEGER_MAX:
        raise ArgumentValueError(f"{value:.6g} is more than a number in JSON holds exactly")
    return str(value)


def spell_number(value: float) -> str:
    """Return *value* as ECMAScript's Number::toString(value, 10) does.

    Python's repr has the same shortest digits; only where the point goes differs.

    Raises:
        ArgumentValueError: it is no number, or infinite.
    """
    if not math.isfinite(value):
        raise ArgumentValueError(f"{value} is no number in JSON")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # The value is 0.DIGITS times ten to the power of *point*.
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    power = f"{point - 1:+d}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{power}"

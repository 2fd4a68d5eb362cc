"""Test suites: what is run in a snapshot, read from a file or made by detection.

A suite is a list of tables `test`. The file is TOML, YAML or JSON, of the
user's or of the agent's making: neither is trusted. What does not fit is refused
in one line.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Final

import msgspec

from kaifs.base.digest import sha256
from kaifs.base.errors import SuiteError
from kaifs.service.documents import DocumentError, load_document, one_line

TESTS_MAX: Final = 1000
TIMEOUT_S: Final = 300.0
"""Seconds that one test may take if it does not say."""
_TIMEOUT_MAX_S: Final = 86_400.0

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=32_768)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=_TIMEOUT_MAX_S)]
_Words = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=32_768)], ...], msgspec.Meta(min_length=1)
]


class TestCase(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """One command and what it must come to."""

    __test__: ClassVar[bool] = False  # for pytest, which takes the name for a test's

    name: _Name
    command: _Text | _Words
    """Text for the shell, or the program and its arguments."""
    timeout: _Seconds = TIMEOUT_S
    """Seconds."""
    env: dict[_Name, str] = {}
    expect_exit: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    expect_output: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    """Regular expression that must be found in what it writes."""


class TestSuite(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """What is run, in this order."""

    __test__: ClassVar[bool] = False

    test: Annotated[tuple[TestCase, ...], msgspec.Meta(min_length=1, max_length=TESTS_MAX)]

    def canonical(self) -> bytes:
        """Return the suite as JSON with every member, sorted, without spaces: what is hashed."""
        plain = msgspec.to_builtins(self)
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical form, lower-case hex."""
        return sha256(self.canonical()).hexdigest()


def load_suite(payload: bytes, name: str) -> TestSuite:
    """Return the suite in a file called *name* with bytes *payload*.

    Raises:
        SuiteError: there is none in it.
    """
    try:
        return make_suite(load_document(payload, name), name)
    except DocumentError as error:
        raise SuiteError(str(error)) from error


def make_suite(document: Any, name: str) -> TestSuite:
    """Return the suite that *document* is, read from the file *name*.

    Raises:
        SuiteError: it is none.
    """
    try:
        suite = msgspec.convert(document, TestSuite)
    except msgspec.ValidationError as error:
        raise SuiteError(f"{name}: {one_line(error)}") from error
    _check(suite, name)
    return suite


def _check(suite: TestSuite, name: str) -> None:
    names = [case.name for case in suite.test]
    if len(set(names)) < len(names):
        raise SuiteError(f"{name}: two tests have one name")
    for case in suite.test:
        words = (case.command,) if isinstance(case.command, str) else case.command
        for text in (case.name, *words, *case.env, *case.env.values()):
            if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise SuiteError(f"{name}: {case.name!a} has a character that no command can have")
        if any("=" in variable for variable in case.env):
            raise SuiteError(f"{name}: {case.name!a} has a variable with '=' in its name")
        if any(letter < " " for letter in case.name):
            raise SuiteError(f"{name}: {case.name!a} is no name")
        if case.expect_output is not None:
            try:
                re.compile(case.expect_output)
            except (re.error, RecursionError, OverflowError) as error:
                text = f"{name}: {case.name!a}: expectOutput is no regular expression: {error}"
                raise SuiteError(text) from error

"""What is remembered of tests: the evidence that a version's record carries."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from kaifs.service.isolation import IsolationConfig, Resources


class TestFailure(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One test that failed, as in the specification's TestResult."""

    __test__: ClassVar[bool] = False  # for pytest, which takes the name for a test's

    test: str
    error: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What tests were run in a snapshot, how, and what they came to."""

    command: tuple[str, ...]
    """Each test's command, in the order in which they ran."""
    suite: str
    """Where the suite came from: a file's name, or the tool that was detected."""
    suite_hash: str
    """SHA-256 of the suite's canonical form."""
    success: bool
    passed_tests: int
    total_tests: int
    failures: tuple[TestFailure, ...]
    """The first of them."""
    duration_s: int | float
    """Milliseconds are its last digits."""
    output_hash: str
    """SHA-256 of the output that is kept, which `test --log` prints."""
    output_bytes: int
    limits: Resources
    """What was asked for."""
    unenforced: tuple[str, ...] = ()
    """Of that, what the machine could not have and the tests ran without, each with the reason.
    Only for an ordinary user, and never what was asked for by name."""
    isolation: IsolationConfig
    """Without the values of the variables that were given."""
    tested_at: str

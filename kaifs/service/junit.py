"""JUnit XML: how many tests there were, and which failed.

Test frameworks agree on little more than `testcase` elements with `failure`,
`error` or `skipped` inside. The file comes out of a sandbox: a document type
declaration, and with it every entity, is refused, and size, depth and counts
are bounded.
"""

from __future__ import annotations

import xml.parsers.expat as expat
from dataclasses import dataclass, field
from typing import Final

SIZE_MAX: Final = 8 << 20
"""Bytes in a report."""
DEPTH_MAX: Final = 64
TEXT_MAX: Final = 2000
"""Characters kept of what one failure says."""
FAILURES_MAX: Final = 1000
"""Failures of which more than the count is kept."""


class ReportError(Exception):
    """The file is no JUnit report."""


@dataclass(frozen=True, slots=True)
class ReportedFailure:
    """One test that failed."""

    test: str
    error: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a framework says of its tests. Skipped ones do not count."""

    total: int
    failed: int
    failures: tuple[ReportedFailure, ...]
    """The first `FAILURES_MAX` of the failed."""


def read_report(payload: bytes) -> Report:
    """Return what the JUnit XML file *payload* says.

    Raises:
        ReportError: it is none.
    """
    if len(payload) > SIZE_MAX:
        raise ReportError(f"over {SIZE_MAX >> 20} MiB")
    reader = _Reader()
    try:
        reader.parser.Parse(payload, True)
    except expat.ExpatError as error:
        raise ReportError(str(error)) from error
    except (ValueError, LookupError) as error:  # an encoding that does not exist
        raise ReportError(str(error)) from error
    if not reader.is_report:
        raise ReportError("no testsuite in it")
    return Report(reader.total, reader.failed, tuple(reader.failures))


@dataclass(slots=True)
class _Reader:
    total: int = 0
    failed: int = 0
    failures: list[ReportedFailure] = field(default_factory=list)
    is_report: bool = False
    parser: expat.XMLParserType = field(init=False)
    _depth: int = 0
    _name: str = ""
    _outcome: str | None = None
    _is_skipped: bool = False
    _text: list[str] | None = None
    _size: int = 0

    def __post_init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._take

    def _refuse_doctype(self, *_: object) -> None:
        raise ReportError("a document type is not allowed")

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ReportError("nested too deeply")
        match element:
            case "testsuites" | "testsuite":
                self.is_report = True
            case "testcase":
                names = (attributes.get("classname", ""), attributes.get("name", ""))
                self._name = ".".join(name for name in names if name) or "?"
                self._outcome, self._is_skipped = None, False
            case "failure" | "error":
                first = self._outcome is None
                if first:
                    self._outcome = attributes.get("message", "") or attributes.get("type", "")
                    if not self._outcome:
                        self._text, self._size = [], 0
            case "skipped":
                self._is_skipped = True

    def _end(self, element: str) -> None:
        self._depth -= 1
        if element in ("failure", "error") and self._text is not None:
            lines = "".join(self._text).strip().splitlines()
            self._outcome = lines[-1] if lines else element
            self._text = None
        elif element == "testcase":
            self._count()

    def _count(self) -> None:
        if self._outcome is not None:
            self.total += 1
            self.failed += 1
            if len(self.failures) < FAILURES_MAX:
                text = " ".join(self._outcome.split())
                self.failures.append(ReportedFailure(self._name[:TEXT_MAX], text[:TEXT_MAX]))
        elif not self._is_skipped:
            self.total += 1
        self._name, self._outcome, self._is_skipped = "?", None, False

    def _take(self, text: str) -> None:
        if self._text is not None and self._size < TEXT_MAX * 4:
            self._text.append(text)
            self._size += len(text)

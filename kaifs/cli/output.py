"""What a command prints: text for people, or one JSON document."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

from kaifs.base.errors import KaifsError

DONE: Final = "✅"
FAILED: Final = "❌"
"""Source: specification, AgentVersionCLI."""

_COLOURS: Final = {"red": 31, "green": 32, "yellow": 33, "bold": 1, "dim": 2}
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def print_json(value: Any) -> None:
    """Print *value* as one JSON document on stdout."""
    import msgspec

    try:
        document = msgspec.json.encode(value)
    except UnicodeEncodeError:
        # Names that are no text, from a command line or a folder.
        document = msgspec.json.encode(_as_text(msgspec.to_builtins(value)))
    write_bytes(msgspec.json.format(document, indent=2) + b"\n")
    sys.stdout.buffer.flush()


def print_plain_json(value: dict[str, Any]) -> None:
    """As `print_json`, of what a daemon has told in plain values."""
    import json

    write_bytes(json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")
    sys.stdout.buffer.flush()


def _as_text(value: Any) -> Any:
    """Return *value*, of JSON's types, with escapes in place of what is no Unicode."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list():
            return [_as_text(one) for one in value]
        case dict():
            return {_as_text(name): _as_text(one) for name, one in value.items()}
        case _:
            return value


def write_bytes(payload: bytes) -> None:
    """Write *payload* to stdout as it is."""
    # With PYTHONUNBUFFERED there is no buffer behind `buffer`, and a write may be short.
    rest = memoryview(payload)
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) :]


def say(args: argparse.Namespace, text: str) -> None:
    """Print what a person reads on the way: on stdout, on stderr beside JSON, not if quiet."""
    if not args.quiet:
        print(text, file=sys.stderr if args.json else sys.stdout)


def warn(args: argparse.Namespace, text: str) -> None:
    """Print what went not quite as asked, on stderr."""
    if not args.quiet:
        print(f"kaifs: {text}", file=sys.stderr)


def tell_failure(
    args: argparse.Namespace, error: KaifsError, result: Mapping[str, Any] | None = None
) -> int:
    """Print an expected failure, and return the exit status.

    Args:
        args: The command.
        error: The failure.
        result: What the document has beside `error`, for a verb whose result tells of failures
            too.
    """
    print(f"kaifs: {error}", file=sys.stderr)
    if args.json:
        failure = {"code": str(error.code), "message": error.message, "details": error.details}
        if error.subject:
            failure["details"] = {"subject": error.subject, **error.details}
        print_json({**(result or {}), "error": failure})
    trouble: int = args.trouble
    return trouble


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return *text* in *colour* if *stream* (stdout) is a terminal and nobody objects."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Return *text* without what a terminal would obey: for what tests and agents write."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def format_size(size: int) -> str:
    """Return *size* bytes as people read it: `0 B`, `1.5 KiB`."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    unit = 0
    while value >= 1024 and unit + 1 < len(_UNITS):
        value /= 1024
        unit += 1
    return f"{value:.1f} {_UNITS[unit]}"


def format_age(seconds: float) -> str:
    """Return a duration in its largest whole unit: `12s`, `5m`, `3h`, `2d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def table(rows: list[tuple[str, ...]]) -> str:
    """Return *rows*, the first being the heading, as aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    heading, *rest = lines
    return "\n".join([coloured(heading, "bold"), *rest])

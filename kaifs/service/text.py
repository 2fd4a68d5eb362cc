"""Names of files as text: they are bytes, and JSON and terminals want characters."""

import re
from typing import Final

_CONTROL: Final = re.compile(rb'[\x00-\x1f\x7f"\\]')
_SHORT: Final = {
    0x07: b"\\a",
    0x08: b"\\b",
    0x09: b"\\t",
    0x0A: b"\\n",
    0x0B: b"\\v",
    0x0C: b"\\f",
    0x0D: b"\\r",
    0x22: b'\\"',
    0x5C: b"\\\\",
}


def path_text(path: bytes) -> str:
    r"""Return *path* for JSON: itself if it is UTF-8, else with `\xNN` for bytes that are not.

    A name that holds the four characters `\xff` reads like one that holds that
    byte; manifests spell both exactly.
    """
    return path.decode("utf-8", "backslashreplace")


def printable_text(text: str) -> str:
    r"""Return *text* in one line, what a terminal would obey as `\xNN` or `\uNNNN`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def quote_path(path: bytes) -> bytes:
    r"""Return *path* for a line of text: in quotes with C escapes if a line could not hold it.

    As git does with core.quotePath off: bytes above 7F stay as they are.
    """
    if not _CONTROL.search(path):
        return path
    escaped = _CONTROL.sub(lambda found: _escape(found[0][0]), path)
    return b'"' + escaped + b'"'


def _escape(byte: int) -> bytes:
    return _SHORT.get(byte) or b"\\%03o" % byte

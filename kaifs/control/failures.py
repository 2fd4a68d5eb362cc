"""What the other end was told of a failure, as an exception again."""

from collections.abc import Mapping
from typing import Any

from kaifs.base.errors import KaifsError, error_classes


class RemoteBugError(Exception):
    """The daemon ran into a bug of kaifs; its log has the traceback."""


def told_error(code: str, message: str, subject: str, details: Mapping[str, Any]) -> Exception:
    """Return the exception that these are of."""
    found = next((cls for cls in error_classes() if cls.code == code), None)
    if found is None:
        return RemoteBugError(message)
    # Not the class's own __init__: some build their subject from other arguments.
    error = found.__new__(found)
    KaifsError.__init__(error, subject, **details)
    return error

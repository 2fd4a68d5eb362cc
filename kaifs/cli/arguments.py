"""Options that every verb has, and verbs that are several in one."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare what every verb takes, before and after its name."""

    def add(*names: str, **options: Any) -> None:
        # No default: what was said before the verb is not taken back behind it.
        parser.add_argument(*names, default=argparse.SUPPRESS, **options)

    add("--store", metavar="PATH", help="the store (default: $KAIFS_STORE)")
    add("--json", action="store_true", help="print one JSON document")
    add("-q", "--quiet", action="store_true", help="print only what was asked for")


class HelpFormatter(argparse.HelpFormatter):
    """Help as wide as the terminal. argparse would load shutil for that, and compressors with it."""

    def __init__(self, prog: str, **options: Any) -> None:
        # Source: argparse, which leaves two columns free.
        super().__init__(prog, **({"width": _columns() - 2} | options))


class TextFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The same, with the description's lines as they are."""


def _columns() -> int:
    """Return how many columns a terminal has. Source: shutil.get_terminal_size."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns <= 0:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns  # type: ignore[union-attr]  # None is an AttributeError
        except (AttributeError, ValueError, OSError):
            columns = 0
    return columns or 80


class Actions:
    """The actions of a verb that has several, such as `key list`: one is to be named."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._actions: _SubParsersAction[Any] = parser.add_subparsers(
            title="actions",
            metavar="ACTION",
            dest="action",
            required=True,
            parser_class=argparse.ArgumentParser,
        )

    def add(self, name: str, does: str) -> argparse.ArgumentParser:
        """Return the parser of one more action."""
        parser: argparse.ArgumentParser = self._actions.add_parser(
            name, help=does, description=does, formatter_class=HelpFormatter
        )
        add_common(parser)
        return parser

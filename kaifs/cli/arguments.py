"""Options that every verb has, and verbs that are several in one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare what every verb takes, before and after its name."""
    parser.add_argument("--store", metavar="PATH", help="the store (default: $KAIFS_STORE)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what was asked for")


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
        self._common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        add_common(self._common)

    def add(self, name: str, does: str) -> argparse.ArgumentParser:
        """Return the parser of one more action."""
        parser: argparse.ArgumentParser = self._actions.add_parser(
            name, help=does, description=does, parents=[self._common]
        )
        return parser

"""The options that say which versions are kept: what `prune` and `policy` share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kaifs.service.retention import Retention

_DIGITS_MAX = 18
_COUNTED = {
    "last": "the newest N",
    "daily": "the newest of each of the last N days that have one",
    "weekly": "the same for weeks",
    "monthly": "the same for months",
    "yearly": "the same for years",
}


def count(text: str) -> int:
    """Return the number that *text* spells; what it may be the verb says.

    Raises:
        ArgumentTypeError: it spells none, or one that no message can hold.
    """
    if len(text) > _DIGITS_MAX:
        raise argparse.ArgumentTypeError(f"{text[:_DIGITS_MAX]}... is no number that makes sense")
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error


def add_retention(parser: argparse.ArgumentParser) -> None:
    """Declare the rules of what is kept."""
    rules = parser.add_argument_group("rules of what is kept; days are those of UTC")
    for name, what in _COUNTED.items():
        rules.add_argument(f"--keep-{name}", type=count, default=0, metavar="N", help=what)
    rules.add_argument(
        "--keep-within",
        default="",
        metavar="DURATION",
        help="those made within 1y6m2w3d12h, or a part of that, before the newest",
    )
    rules.add_argument(
        "--keep-tagged",
        nargs="?",
        const="*",
        default=[],
        action="append",
        metavar="PATTERN",
        help="those with a tag, or with one that fits the pattern; can be repeated",
    )
    rules.add_argument(
        "--keep-type",
        dest="keep_types",
        default=[],
        action="append",
        choices=("auto", "manual", "rollback", "release"),
        help="those of the type; can be repeated",
    )


def retention(args: argparse.Namespace) -> Retention:
    """Return the rules that were given."""
    from kaifs.service.retention import Retention

    return Retention(
        **{f"keep_{name}": getattr(args, f"keep_{name}") for name in _COUNTED},
        keep_within=args.keep_within,
        keep_tagged=tuple(args.keep_tagged),
        keep_types=tuple(args.keep_types),
    )


def retention_text(rules: Retention) -> str:
    """Return *rules* as the options that say them; `-` if there is none."""
    words = [
        f"--keep-{name} {count}" for name in _COUNTED if (count := getattr(rules, f"keep_{name}"))
    ]
    if rules.keep_within:
        words.append(f"--keep-within {rules.keep_within}")
    words += [f"--keep-tagged {pattern}" for pattern in rules.keep_tagged]
    words += [f"--keep-type {kind}" for kind in rules.keep_types]
    return " ".join(words) or "-"

"""The options that describe a version that is being made."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kaifs.service.record import Description


def add_description(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-m", "--notes", default="", help="notes of the version")
    parser.add_argument("--tag", action="append", default=[], help="tag; may be repeated")
    parser.add_argument("--author", default=None, help="who made it (default: system)")
    parser.add_argument("--commit-hash", default="", metavar="HASH", help="of the source code")
    parser.add_argument(
        "--type",
        choices=("auto", "manual", "rollback", "release"),
        default="manual",
        help="why it is made (default: manual)",
    )


def description(args: argparse.Namespace) -> Description:
    """Return what the options say."""
    from kaifs.service.record import DEFAULT_AUTHOR, Description

    return Description(
        author=args.author or DEFAULT_AUTHOR,
        commit_hash=args.commit_hash,
        snapshot_type=args.type,
        notes=args.notes,
        tags=tuple(args.tag),
    )

"""Compare two trees, or a snapshot with what it was made from. Exit status: 0 the same, 1 different, 2 trouble."""

import argparse
from typing import Any

from kaifs.cli.diffstat import stat_lines
from kaifs.cli.output import print_json, write_bytes
from kaifs.cli.session import call

_DIFFERENT = 1
_TROUBLE = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("old", metavar="REF")
    parser.add_argument(
        "new", metavar="REF", nargs="?", help="default: the first is a snapshot, told from its base"
    )
    style = parser.add_mutually_exclusive_group()
    style.add_argument(
        "--name-status",
        dest="style",
        action="store_const",
        const="names",
        default="names",
        help="a letter and a path for each difference (default)",
    )
    style.add_argument(
        "--stat", dest="style", action="store_const", const="stat", help="how much of each file"
    )
    style.add_argument(
        "-p", "--patch", dest="style", action="store_const", const="patch", help="unified patch"
    )
    parser.set_defaults(trouble=_TROUBLE)


def run(args: argparse.Namespace) -> int:
    """Compare them."""
    from kaifs.service.diff import Params

    has_changes = args.json or args.style == "stat"
    params = Params(old=args.old, new=args.new, style=args.style, has_changes=has_changes)
    patch = bytearray()
    is_patch = args.style == "patch"

    def take(payload: bytes) -> None:
        if not args.json:
            write_bytes(payload)
        elif is_patch:
            patch.extend(payload)

    found = call(args, "diff", params, has_progress=args.style == "stat", on_output=take)
    if args.json:
        document: dict[str, Any] = {"isDifferent": found.is_different, "changes": found.changes}
        if is_patch:
            document["patch"] = patch.decode("utf-8", "backslashreplace")
        print_json(document)
    elif args.style == "stat":
        for line in stat_lines(found.changes):
            print(line)
    return _DIFFERENT if found.is_different else 0

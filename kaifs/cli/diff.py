"""Compare two trees, or a snapshot with what it was made from. Exit status: 0 the same, 1 different, 2 trouble."""

import argparse
from typing import Any

from kaifs.cli.output import coloured, print_json, write_bytes
from kaifs.cli.session import call

_DIFFERENT = 1
_TROUBLE = 2
_GRAPH_WIDTH = 40


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

    params = Params(old=args.old, new=args.new, style=args.style)
    patch = bytearray()
    is_patch = args.style == "patch"

    def take(payload: bytes) -> None:
        if not args.json:
            write_bytes(payload)
        elif is_patch:
            patch.extend(payload)

    found = call(args, "diff", params, on_output=take)
    if args.json:
        document: dict[str, Any] = {"isDifferent": found.is_different, "changes": found.changes}
        if is_patch:
            document["patch"] = patch.decode("utf-8", "backslashreplace")
        print_json(document)
    elif args.style == "stat":
        _print_stat(found.changes)
    return _DIFFERENT if found.is_different else 0


def _print_stat(changes: Any) -> None:
    if not changes:
        return
    names = [
        f"{change.old_path} => {change.path}" if change.old_path else change.path
        for change in changes
    ]
    width = max(map(len, names))
    most = max((change.added + change.removed for change in changes), default=0)
    scale = min(1.0, _GRAPH_WIDTH / most) if most else 1.0
    for name, change in zip(names, changes, strict=True):
        if change.is_binary:
            print(f" {name:<{width}} | Bin {change.old_size} -> {change.new_size} bytes")
            continue
        plus = coloured("+" * -int(-change.added * scale // 1), "green")
        minus = coloured("-" * -int(-change.removed * scale // 1), "red")
        print(f" {name:<{width}} | {change.added + change.removed:>5} {plus}{minus}")
    added = sum(change.added for change in changes)
    removed = sum(change.removed for change in changes)
    print(f" {len(changes)} files changed, {added} insertions(+), {removed} deletions(-)")

"""Take away the versions that no rule keeps. Without rules those of the agent's policy count.

What current or a snapshot is based on stays in any case. A rule that counts, such as
--keep-daily 7, keeps the newest of each of the last 7 days that have a version.
"""

import argparse
from typing import Any

from kaifs.cli.output import DONE, format_size, print_json, printable, say, table
from kaifs.cli.retention import add_retention, retention
from kaifs.cli.session import call

_DATE_SIZE = len("2026-11-22")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")
    add_retention(parser)


def run(args: argparse.Namespace) -> int:
    """Take them away."""
    from kaifs.service.prune import Params

    params = Params(agent=args.agent, retention=retention(args), is_dry_run=args.dry_run)
    found = call(args, "prune", params)
    if args.json:
        print_json(found)
        return 0
    if not args.quiet:
        for what, versions in (("Kept", found.kept), ("To go", found.removed)):
            if versions:
                print(f"{what}:")
                print(table([("VERSION", "CREATED", "SIZE", "TAGS", "KEPT BY"), *_rows(versions)]))
                print()
    count = f"{len(found.removed)} version{'' if len(found.removed) == 1 else 's'}"
    if found.is_dry_run:
        say(args, f"Would remove {count} of {found.agent}")
    else:
        say(args, f"{DONE} Removed {count} of {found.agent}")
    return 0


def _rows(versions: Any) -> list[tuple[str, ...]]:
    return [
        (
            version.version,
            version.created[:_DATE_SIZE],
            format_size(version.size),
            printable(", ".join(version.tags)),
            printable(", ".join(version.kept_by)),
        )
        for version in versions
    ]

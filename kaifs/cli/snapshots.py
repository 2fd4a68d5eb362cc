"""List snapshots."""

import argparse

from kaifs.cli.output import format_age, format_size, print_json, table
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", nargs="?", metavar="AGENT")


def run(args: argparse.Namespace) -> int:
    """List them."""
    from kaifs.service.snapshots import Params

    found = call(args, "snapshots", Params(agent=args.agent))
    if args.json:
        print_json(found.snapshots)
    elif found.snapshots:
        rows = [
            (
                snapshot.id,
                f"{snapshot.agent_id}@{snapshot.version}"
                if snapshot.version
                else snapshot.agent_id,
                snapshot.status,
                format_age(snapshot.age_seconds),
                format_size(snapshot.own_bytes),
            )
            for snapshot in found.snapshots
        ]
        print(table([("ID", "VERSION", "STATUS", "AGE", "OWN"), *rows]))
    return 0

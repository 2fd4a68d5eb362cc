"""List snapshots."""

import argparse

from kaifs.cli.output import format_age, format_size, print_json, table
from kaifs.cli.session import store_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", nargs="?", metavar="AGENT")


def run(args: argparse.Namespace) -> int:
    """List them."""
    from kaifs.api.snapshots import SnapshotIsolationManager

    found = SnapshotIsolationManager(store_of(args)).list_snapshots(args.agent)
    if args.json:
        print_json(found)
    elif found:
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
            for snapshot in found
        ]
        print(table([("ID", "VERSION", "STATUS", "AGE", "OWN"), *rows]))
    return 0

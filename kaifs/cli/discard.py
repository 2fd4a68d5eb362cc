"""Remove a snapshot."""

import argparse

from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import store_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="ID")


def run(args: argparse.Namespace) -> int:
    """Remove it."""
    from kaifs.api.snapshots import SnapshotIsolationManager

    gone = SnapshotIsolationManager(store_of(args)).discard_snapshot(args.reference)
    if args.json:
        print_json(gone)
    else:
        say(args, f"{DONE} Snapshot discarded: {gone.id}")
    return 0

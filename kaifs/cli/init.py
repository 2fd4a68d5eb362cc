"""Make a store in a new or empty folder."""

import argparse
from pathlib import Path

from kaifs.cli.output import print_json, say
from kaifs.cli.session import store_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", nargs="?", metavar="STORE", help="where (default: the store)")


def run(args: argparse.Namespace) -> int:
    """Make the store."""
    from kaifs.service.init import create_store

    made = create_store(Path(args.path) if args.path else store_of(args))
    if args.json:
        print_json(made)
    else:
        say(args, f"Store made: {made.path}")
    return 0

"""Take a version away. Not the current one; one that others came from only with --force."""

import argparse

from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="AGENT@LABEL")
    parser.add_argument("--force", action="store_true", help="also if others came from it")


def run(args: argparse.Namespace) -> int:
    """Take it away."""
    from kaifs.service.remove import Params

    gone = call(args, "remove", Params(reference=args.reference, force=args.force))
    if args.json:
        print_json(gone)
    else:
        say(args, f"{DONE} Removed {gone.agent}@{gone.version}")
    return 0

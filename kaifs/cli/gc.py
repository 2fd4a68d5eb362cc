"""Free what no version, snapshot or current reaches."""

import argparse

from kaifs.cli.output import DONE, format_size, print_json, say
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Free it."""
    from kaifs.service.gc import Params

    done = call(args, "gc", Params(), has_progress=True)
    if args.json:
        print_json(done)
    else:
        say(args, f"{DONE} Freed {format_size(done.freed)}; {format_size(done.stored)} stored")
    return 0

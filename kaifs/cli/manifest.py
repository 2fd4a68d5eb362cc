"""Print the canonical manifest. Its SHA-256 is the version's hash."""

import argparse

from kaifs.cli.output import print_json, write_bytes
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF")


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from kaifs.service.manifest import Params

    params = Params(reference=args.reference)
    if args.json:
        text = bytearray()
        found = call(args, "manifest", params, on_output=text.extend)
        print_json({"hash": found.hash, "manifest": text.decode("ascii")})
    else:
        call(args, "manifest", params, on_output=write_bytes)
    return 0

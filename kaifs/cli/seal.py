"""Make a version from current, or from another tree; current moves on to it.

Without LABEL the newest version's patch number grows by one, or what --bump says.
"""

import argparse

from kaifs.cli.description import add_description, description
from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import progress_bar, store_of
from kaifs.cli.signing import add_sign_key, signer_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", metavar="AGENT")
    label = parser.add_mutually_exclusive_group()
    label.add_argument("label", nargs="?", metavar="LABEL")
    label.add_argument("--bump", choices=("major", "minor", "patch"), default="patch")
    parser.add_argument("--from", dest="source", metavar="REF", help="what (default: current)")
    add_description(parser)
    add_sign_key(parser)


def run(args: argparse.Namespace) -> int:
    """Seal it."""
    from kaifs.api.versions import AgentVersionManager

    manager = AgentVersionManager(args.agent, store_of(args))
    signer = signer_of(args)
    with progress_bar(args) as on_progress:
        made = manager.seal(
            args.label,
            source=args.source,
            bump=args.bump,
            description=description(args),
            on_progress=on_progress,
            signer=signer,
        )
    if args.json:
        print_json(made)
    else:
        say(args, f"{DONE} Sealed {made.agent}@{made.version}")
        say(args, f"Hash: {made.hash}")
    return 0

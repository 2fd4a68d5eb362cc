"""Make a sealed version from a directory.

The agent is made if there is none; its first version also becomes current.
Nothing may write to the directory meanwhile.
"""

import argparse

from kaifs.cli.description import add_description, description
from kaifs.cli.output import DONE, format_size, print_json, say
from kaifs.cli.session import progress_bar, store_of
from kaifs.cli.signing import add_sign_key, signer_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--as", dest="label", metavar="LABEL", required=True, help="its version")
    add_description(parser)
    add_sign_key(parser)


def run(args: argparse.Namespace) -> int:
    """Import the directory."""
    from kaifs.api.exchange import import_folder

    signer = signer_of(args)
    with progress_bar(args) as on_progress:
        made = import_folder(
            store_of(args),
            args.agent,
            args.directory,
            args.label,
            description(args),
            on_progress,
            signer,
        )
    if args.json:
        print_json(made)
    else:
        say(
            args,
            f"{DONE} Imported {made.agent}@{made.version}: "
            f"{made.files} files, {format_size(made.size)}",
        )
    return 0

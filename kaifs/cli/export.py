"""Write a tree to a new or empty directory, or as a tar stream to stdout (-)."""

import argparse
import sys

from kaifs.cli.output import DONE, format_size, print_json, say, warn, write_bytes
from kaifs.cli.session import progress_bar, store_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("target", metavar="DIR|-")


def run(args: argparse.Namespace) -> int:
    """Export the tree."""
    from kaifs.api.exchange import export_folder, export_tar
    from kaifs.base.errors import ArgumentValueError, TargetError

    is_stream = args.target == "-"
    if is_stream and args.json:
        raise ArgumentValueError("--json and a tar stream both need stdout")
    if is_stream and sys.stdout.isatty():
        raise TargetError("stdout is a terminal")
    store, reference = store_of(args), args.reference
    with progress_bar(args) as on_progress:
        if is_stream:
            done = export_tar(store, reference, write_bytes, on_progress)
        else:
            done = export_folder(store, reference, args.target, on_progress)
    for line in done.skipped:
        warn(args, f"not kept: {line}")
    if args.json:
        print_json(done)
    elif not is_stream:
        say(args, f"{DONE} Exported {done.reference}: {done.files} files, {format_size(done.size)}")
    return 0

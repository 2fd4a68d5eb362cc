"""Write a tree to a new or empty directory, or as a tar stream to stdout (-)."""

import argparse
import sys
from pathlib import Path

from kaifs.cli.output import DONE, format_size, print_json, say, warn, write_bytes
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("target", metavar="DIR|-")


def run(args: argparse.Namespace) -> int:
    """Export the tree."""
    from kaifs.base.errors import ArgumentValueError, TargetError
    from kaifs.service.export import Params
    from kaifs.service.host_target import FolderTarget, TarTarget, feeder

    params = Params(reference=args.reference)
    target: FolderTarget | TarTarget
    is_stream = args.target == "-"
    if is_stream and args.json:
        raise ArgumentValueError("--json and a tar stream both need stdout")
    if is_stream and sys.stdout.isatty():
        raise TargetError("stdout is a terminal")
    target = TarTarget(write_bytes) if is_stream else FolderTarget(Path(args.target))
    try:
        done = call(args, "export", params, has_progress=True, on_output=feeder(target))
    finally:
        target.abandon()
    for line in target.skipped:
        warn(args, f"not kept: {line}")
    if args.json:
        print_json(done)
    elif not is_stream:
        say(args, f"{DONE} Exported {done.reference}: {done.files} files, {format_size(done.size)}")
    return 0

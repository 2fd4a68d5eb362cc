"""Run a command in a snapshot's sandbox, in the working directory /agent.

ID names a snapshot. AGENT@LABEL or AGENT makes one for this command alone, and
discards it after. Exit status: the command's; 125 kaifs failed, 126 the command
cannot be executed, 127 it was not found.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Final

from kaifs.base.errors import ArgumentValueError
from kaifs.cli.limits import add_limits, snapshot_options
from kaifs.cli.output import warn
from kaifs.cli.session import store_of
from kaifs.cli.testing import warn_unenforced

_TROUBLE: Final = 125


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = "kaifs run [options] ID|AGENT@LABEL -- CMD..."
    parser.add_argument("reference", metavar="ID|AGENT@LABEL")
    parser.add_argument("command", metavar="CMD", nargs="*")
    parser.add_argument(
        "--keep", action="store_true", help="keep the snapshot that was made, and print its id"
    )
    parser.add_argument("--read-only", action="store_true", help="nothing in it can be changed")
    add_limits(parser)
    parser.set_defaults(trouble=_TROUBLE, takes_command=True)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    if not args.command:
        raise ArgumentValueError("no command; write it after --")
    from kaifs.api.snapshots import SnapshotIsolationManager, SnapshotOptions, reference_of

    manager = SnapshotIsolationManager(store_of(args))
    options = snapshot_options(args)
    is_plain = not args.keep and options == SnapshotOptions()
    with manager.lend_snapshot(
        args.reference, None if is_plain else options, keep=args.keep
    ) as snapshot:
        reference = reference_of(snapshot)
        if args.keep:
            warn(args, f"kept as {reference}")
        return manager.run_in_snapshot(
            reference, args.command, on_unenforced=partial(warn_unenforced, args)
        )

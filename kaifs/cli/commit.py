"""Make a snapshot whose tests passed the agent's next version.

What it changed is merged onto current. If that cannot be done, the conflicts are
listed and nothing is changed; --rebase first brings what current has changed
into the snapshot, and tests it again.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kaifs.base.errors import MergeConflictError
from kaifs.cli.description import add_description, description
from kaifs.cli.output import DONE, print_json, say, warn
from kaifs.cli.session import progress_bar, store_of
from kaifs.cli.signing import add_sign_key, signer_of
from kaifs.cli.testing import run_tests

if TYPE_CHECKING:
    from kaifs.api.snapshots import SnapshotIsolationManager


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="ID")
    label = parser.add_mutually_exclusive_group()
    label.add_argument("--as", dest="label", metavar="LABEL", help="the new version")
    label.add_argument("--bump", choices=("major", "minor", "patch"), default="patch")
    parser.add_argument(
        "--rebase", action="store_true", help="merge current into the snapshot and test it first"
    )
    parser.add_argument(
        "--suite",
        "--test-suite",
        metavar="FILE",
        help="what to test it by after --rebase (default: what it was last tested by)",
    )
    add_description(parser)
    add_sign_key(parser)
    parser.set_defaults(type="auto")


def run(args: argparse.Namespace) -> int:
    """Commit it."""
    from kaifs.api.snapshots import SnapshotIsolationManager

    manager = SnapshotIsolationManager(store_of(args))
    signer = signer_of(args)
    try:
        if args.rebase and not _rebase(args, manager):
            return 1
        with progress_bar(args) as on_progress:
            done = manager.commit_snapshot(
                args.reference,
                label=args.label,
                bump=args.bump,
                description=description(args),
                on_progress=on_progress,
                signer=signer,
            )
    except MergeConflictError as error:
        _list_conflicts(args, error)
        raise
    if args.json:
        print_json(done)
    else:
        say(args, f"{DONE} Snapshot committed: {done.agent_id}@{done.version}")
    if done.backup is not None:
        warn(args, f"what was written to current meanwhile is in {done.agent_id}@{done.backup}")
    return 0


def _rebase(args: argparse.Namespace, manager: SnapshotIsolationManager) -> bool:
    """Bring current's changes into the snapshot. Return whether its tests pass then."""
    from kaifs.api.snapshots import read_suite

    suite = None if args.suite is None else read_suite(args.suite)
    source = args.suite or ""
    rebased = manager.rebase_snapshot(args.reference)
    say(args, f"{DONE} Snapshot rebased: {rebased.snapshot.id}")
    if suite is None:
        suite, source = rebased.suite, rebased.source
    result = run_tests(args, args.reference, suite, source)
    if not result.success and args.json:
        print_json(result)
    return result.success


def _list_conflicts(args: argparse.Namespace, error: MergeConflictError) -> None:
    conflicts = error.details.get("conflicts")
    if isinstance(conflicts, list) and not args.quiet:
        for conflict in conflicts:
            print(f"  {conflict}", file=sys.stderr)

"""Make a snapshot: a writable tree of its own that starts as what REF shows.

Limits are kept with the snapshot and enforced, or refused, when something is to
run in it.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kaifs.api import access
from kaifs.base.errors import ArgumentValueError, SnapshotNotFoundError
from kaifs.cli.limits import add_limits, plain_limits
from kaifs.cli.output import DONE, print_json, print_plain_json, say

if TYPE_CHECKING:
    from kaifs.service.suite import TestSuite


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("--name", help="its id (default: a generated one)")
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--read-only", action="store_true", help="nothing in it can be changed")
    access.add_argument("--writable", action="store_true", help="the default")
    add_limits(parser)
    parser.add_argument("--test", action="store_true", help="run the test suite in it")
    parser.add_argument("--suite", "--test-suite", metavar="FILE", help="the test suite")


def run(args: argparse.Namespace) -> int:
    """Make the snapshot, and test it if asked to."""
    # Before anything is made: a suite that cannot be read.
    suite = _read_suite(args)
    params = {
        "reference": args.reference,
        "name": args.name,
        "readOnly": args.read_only,
        "limits": plain_limits(args),
    }
    if not args.json:
        say(args, f"Creating isolated snapshot for {args.reference}...")
    made = access.call_plain(access.store_name(args.store), "snapshot", params)
    if args.quiet and not args.json:
        print(made["id"])
    elif not args.json:
        say(args, f"{DONE} Snapshot created: {made['id']}")
        say(args, f"Path: {made['path']}")
    if args.test:
        return _test(args, made, suite)
    if args.json:
        print_plain_json(made)
    return 0


def _read_suite(args: argparse.Namespace) -> TestSuite | None:
    if args.suite is not None and not args.test:
        raise ArgumentValueError("--suite needs --test")
    if args.suite is None:
        return None
    from kaifs.api.snapshots import read_suite

    return read_suite(args.suite)


def _test(args: argparse.Namespace, made: dict[str, Any], suite: TestSuite | None) -> int:
    from kaifs.api.snapshots import SnapshotIsolationManager
    from kaifs.cli.session import store_of
    from kaifs.cli.testing import run_tests

    # As `reference_of` has it: another agent may have one of the same id.
    reference = f"{made['agentId']}/@snapshots/{made['id']}"
    try:
        result = run_tests(args, reference, suite, args.suite or "")
    except BaseException:
        # All that was asked for, or nothing.
        with suppress(SnapshotNotFoundError):
            SnapshotIsolationManager(store_of(args)).rollback_snapshot(reference)
        raise
    if args.json:
        print_json({**made, "status": result.status, "tests": result})
    return 0 if result.success else 1

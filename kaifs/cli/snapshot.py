"""Make a snapshot: a writable tree of its own that starts as what REF shows.

Limits are kept with the snapshot and enforced, or refused, when something is to
run in it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kaifs.base.errors import ArgumentValueError
from kaifs.cli.limits import add_limits, limits
from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import call

if TYPE_CHECKING:
    from kaifs.service.isolation import IsolatedSnapshot
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
    from kaifs.service.snapshot import Params

    # Before anything is made: a suite that cannot be read.
    suite = _prepare_tests(args)
    params = Params(
        reference=args.reference,
        name=args.name,
        read_only=args.read_only,
        limits=limits(args),
    )
    say(args, f"Creating isolated snapshot for {args.reference}...")
    made = call(args, "snapshot", params)
    if args.quiet and not args.json:
        print(made.id)
    elif not args.json:
        say(args, f"{DONE} Snapshot created: {made.id}")
        say(args, f"Path: {made.path}")
    if args.test:
        return _test(args, made, suite)
    if args.json:
        print_json(made)
    return 0


def _prepare_tests(args: argparse.Namespace) -> TestSuite | None:
    if args.suite is not None and not args.test:
        raise ArgumentValueError("--suite needs --test")
    if not args.test:
        return None
    from kaifs.cli import sandbox_session
    from kaifs.cli.testing import read_suite

    suite = None if args.suite is None else read_suite(args.suite)
    sandbox_session.prepare(args)
    return suite


def _test(args: argparse.Namespace, made: IsolatedSnapshot, suite: TestSuite | None) -> int:
    from kaifs.cli.testing import run_tests

    reference = f"{made.agent_id}/@snapshots/{made.id}"
    try:
        result = run_tests(args, reference, suite, args.suite or "")
    except BaseException:
        # All that was asked for, or nothing.
        from kaifs.service.discard import Params

        call(args, "discard", Params(reference=reference))
        raise
    if args.json:
        import msgspec

        made = msgspec.structs.replace(made, status=result.status)
        print_json({**msgspec.to_builtins(made), "tests": result})
    return 0 if result.success else 1

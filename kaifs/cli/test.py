"""Run a test suite in a snapshot and keep what came of it.

Without --suite what the snapshot's own files say is run: the `test` table of
agent.toml, agent.yaml or agent.json, pytest, npm test, make test, cargo test or
go test, whichever is found first. Exit status: 0 all passed, 1 not.
"""

import argparse

from kaifs.cli.output import print_json, write_bytes
from kaifs.cli.session import store_of
from kaifs.cli.testing import run_tests


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="ID")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--suite", "--test-suite", metavar="FILE", help="TOML, YAML or JSON: a list of tables test"
    )
    what.add_argument(
        "--log", action="store_true", help="print what the last tests wrote, and run nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Run the tests, or show what they wrote."""
    if args.log:
        return _print_log(args)
    from kaifs.api.snapshots import read_suite

    suite = None if args.suite is None else read_suite(args.suite)
    result = run_tests(args, args.reference, suite, args.suite or "")
    if args.json:
        print_json(result)
    return 0 if result.success else 1


def _print_log(args: argparse.Namespace) -> int:
    from kaifs.api.snapshots import SnapshotIsolationManager

    log = SnapshotIsolationManager(store_of(args)).test_log(args.reference)
    if args.json:
        print_json({"log": log.decode("utf-8", "backslashreplace")})
    else:
        write_bytes(log)
    return 0

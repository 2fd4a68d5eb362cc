"""Make current show an older version. What current had uncommitted is sealed first."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kaifs.base.errors import KaifsError
from kaifs.cli.output import DONE, FAILED, print_json, printable, say, tell_failure
from kaifs.cli.session import store_of

if TYPE_CHECKING:
    from kaifs.service.rollback import RollbackResult


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("label", metavar="LABEL")


def run(args: argparse.Namespace) -> int:
    """Roll back."""
    from kaifs.api.versions import AgentVersionManager, failed_rollback

    if not args.json:
        # Source: specification, AgentVersionCLI.rollback.
        say(args, f"Rolling back {args.agent} to version {args.label}...")
    try:
        done = AgentVersionManager(args.agent, store_of(args)).rollback(args.label)
    except KaifsError as error:
        return _tell_failed(args, error, failed_rollback(args.label, error))
    if args.json:
        print_json(done)
    else:
        say(args, f"{DONE} Successfully rolled back to {done.target_version}")
        say(args, f"Previous version: {done.previous_version or 'none'}")
    return 0


def _tell_failed(args: argparse.Namespace, error: KaifsError, failed: RollbackResult) -> int:
    import msgspec

    if not args.json:
        # Source: specification, AgentVersionCLI.rollback.
        say(args, f"{FAILED} Rollback failed: {failed.error}")
        for step in failed.steps:
            say(args, f"  {DONE if step.success else FAILED} {step.step}")
            if step.error is not None:
                say(args, f"    Error: {printable(step.error)}")
    # The result has the steps: they are not told twice.
    error.details.pop("steps", None)
    return tell_failure(args, error, msgspec.to_builtins(failed))

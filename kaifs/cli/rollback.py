"""Make current show an older version. What current had uncommitted is sealed first."""

import argparse

from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("label", metavar="LABEL")


def run(args: argparse.Namespace) -> int:
    """Roll back."""
    from kaifs.service.rollback import Params

    # Source: specification, AgentVersionCLI.rollback.
    say(args, f"Rolling back {args.agent} to version {args.label}...")
    done = call(args, "rollback", Params(agent=args.agent, version=args.label))
    if args.json:
        print_json(done)
    else:
        say(args, f"{DONE} Successfully rolled back to {done.target_version}")
        say(args, f"Previous version: {done.previous_version or 'none'}")
    return 0

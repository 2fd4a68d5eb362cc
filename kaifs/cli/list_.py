"""List agents, or the versions of one, newest first."""

import argparse

from kaifs.cli.output import format_size, print_json, table
from kaifs.cli.session import call

_DATE_SIZE = len("2026-11-22")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", nargs="?", metavar="AGENT")


def run(args: argparse.Namespace) -> int:
    """List them."""
    from kaifs.service.list_ import Params

    found = call(args, "list", Params(agent=args.agent))
    if args.json:
        print_json(found.agents if args.agent is None else found.versions)
    elif args.agent is not None:
        # Source: specification, AgentVersionCLI.listVersions.
        print(f"\nVersions for {args.agent}:\n")
        for version in found.versions:
            print(f"  {version.version}{' (current)' if version.is_current else ''}")
            created = version.metadata.created[:_DATE_SIZE]
            print(f"    Created: {created} by {version.metadata.author}")
            print(f"    Size: {format_size(version.size)}")
            if version.metadata.notes:
                print(f"    Notes: {version.metadata.notes}")
            print()
    elif found.agents:
        rows = [
            (agent.agent, agent.version or "-", str(agent.versions), str(agent.snapshots))
            for agent in found.agents
        ]
        print(table([("AGENT", "CURRENT", "VERSIONS", "SNAPSHOTS"), *rows]))
    return 0

"""List agents, or the versions of one, newest first."""

import argparse

from kaifs.cli.output import format_size, print_json, printable, table, warn
from kaifs.cli.session import call

_DATE_SIZE = len("2026-11-22")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", nargs="?", metavar="AGENT")
    parser.add_argument(
        "--tag",
        dest="tags",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only versions with a tag that fits; can be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """List them."""
    from kaifs.service.list_ import Params

    found = call(args, "list", Params(agent=args.agent, tags=tuple(args.tags)))
    for label in found.damaged:
        name = f"{args.agent}@{label}"
        warn(args, f"{name}: its record is unreadable: 'kaifs verify {name}' sets it aside")
    if args.json:
        print_json(found.agents if args.agent is None else found.versions)
    elif args.agent is not None:
        # Source: specification, AgentVersionCLI.listVersions.
        print(f"\nVersions for {args.agent}:\n")
        for version in found.versions:
            print(f"  {version.version}{' (current)' if version.is_current else ''}")
            created = version.metadata.created[:_DATE_SIZE]
            print(f"    Created: {created} by {printable(version.metadata.author)}")
            print(f"    Size: {format_size(version.size)}")
            if args.tags:
                print(f"    Tags: {printable(', '.join(version.metadata.tags))}")
            if version.metadata.notes:
                lines = map(printable, version.metadata.notes.splitlines())
                print("    Notes: " + "\n           ".join(lines))
            print()
    elif found.agents:
        rows = [
            (agent.agent, agent.version or "-", str(agent.versions), str(agent.snapshots))
            for agent in found.agents
        ]
        print(table([("AGENT", "CURRENT", "VERSIONS", "SNAPSHOTS"), *rows]))
    return 0

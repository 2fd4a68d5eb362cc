"""Make a snapshot: a writable tree of its own that starts as what REF shows.

Options that limit what runs in a snapshot are refused (E103) while this kaifs
cannot enforce them.
"""

import argparse

from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("--name", help="its id (default: a generated one)")
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--read-only", action="store_true", help="nothing in it can be changed")
    access.add_argument("--writable", action="store_true", help="the default")
    parser.add_argument("--container", action="store_true", help="run in a container")
    parser.add_argument("--image", help="image of the container")
    parser.add_argument("--network", action="store_true", help="let commands reach the network")
    parser.add_argument("--memory", metavar="SIZE", help="most memory of a command")
    parser.add_argument("--cpus", metavar="COUNT", help="most processors of a command")
    parser.add_argument("--storage", metavar="SIZE", help="most bytes that the snapshot may take")
    parser.add_argument("--pids", metavar="COUNT", help="most processes of a command")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="for commands")
    parser.add_argument("--allow", action="append", default=[], metavar="PATH", help="to commands")
    parser.add_argument("--deny-syscall", action="append", default=[], metavar="NAME")
    parser.add_argument("--test", action="store_true", help="run the test suite in it")
    parser.add_argument("--suite", "--test-suite", metavar="FILE", help="the test suite")


def run(args: argparse.Namespace) -> int:
    """Make the snapshot."""
    from kaifs.service.isolation import Limits
    from kaifs.service.snapshot import Params

    limits = Limits(
        container=args.container,
        image=args.image,
        network=args.network,
        memory=args.memory,
        cpus=args.cpus,
        storage=args.storage,
        pids=args.pids,
        env=tuple(args.env),
        allow=tuple(args.allow),
        deny_syscall=tuple(args.deny_syscall),
    )
    params = Params(
        reference=args.reference, name=args.name, read_only=args.read_only, limits=limits
    )
    say(args, f"Creating isolated snapshot for {args.reference}...")
    made = call(args, "snapshot", params)
    if args.json:
        print_json(made)
    elif args.quiet:
        print(made.id)
    else:
        say(args, f"{DONE} Snapshot created: {made.id}")
        say(args, f"Path: {made.path}")
    return 0

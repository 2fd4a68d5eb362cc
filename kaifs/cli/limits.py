"""The options that say what commands in a snapshot may use and touch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kaifs.service.isolation import Limits


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--container", action="store_true", help="run in a container")
    parser.add_argument("--image", help="image of the container (default: kai-agent-runtime)")
    parser.add_argument("--network", action="store_true", help="let commands reach the network")
    parser.add_argument("--memory", metavar="SIZE", help="most memory (default: 512m)")
    parser.add_argument("--cpus", metavar="COUNT", help="most processors (default: 0.5)")
    parser.add_argument("--storage", metavar="SIZE", help="most bytes to store (default: 1g)")
    parser.add_argument("--pids", metavar="COUNT", help="most processes (default: 512)")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="for commands")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATH[:rw]",
        help="show a folder of this machine to commands",
    )
    parser.add_argument("--deny-syscall", action="append", default=[], metavar="NAME")


def limits(args: argparse.Namespace) -> Limits:
    """Return what the options say."""
    from kaifs.service.isolation import Limits

    return Limits(
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

"""The options that say what commands in a snapshot may use and touch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kaifs.base.errors import ArgumentValueError

if TYPE_CHECKING:
    from kaifs.api.snapshots import SnapshotOptions


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


def snapshot_options(args: argparse.Namespace) -> SnapshotOptions:
    """Return what the options say.

    Raises:
        ArgumentValueError: `--env` without a value.
    """
    from kaifs.api.snapshots import AGENT_PATH, SnapshotOptions

    return SnapshotOptions(
        use_container=args.container,
        container_image=args.image,
        network_access=args.network,
        memory_limit=args.memory,
        cpu_limit=args.cpus,
        storage_limit=args.storage,
        pids_limit=args.pids,
        environment=dict(map(_variable, args.env)),
        read_only=args.read_only,
        allowed_paths=(AGENT_PATH, *args.allow),
        blocked_syscalls=tuple(args.deny_syscall),
    )


def plain_limits(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the options say as the verb `snapshot` takes it, without loading its types.

    Raises:
        ArgumentValueError: as `snapshot_options`.
    """
    return {
        "container": args.container,
        "image": args.image,
        "network": args.network,
        "memory": args.memory,
        "cpus": args.cpus,
        "storage": args.storage,
        "pids": args.pids,
        "env": [f"{name}={value}" for name, value in dict(map(_variable, args.env)).items()],
        "allow": args.allow,
        "denySyscall": args.deny_syscall,
    }


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentValueError(f"env: {name!a} is not NAME=VALUE")
    return name, value

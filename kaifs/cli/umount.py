"""Unmount; returns when all is on disk and the server has ended."""

import argparse
from pathlib import Path

from kaifs.cli.output import DONE, print_json, say, warn


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("mountpoint", metavar="MNT")
    parser.add_argument(
        "--lazy", action="store_true", help="also if processes use it; they keep what is open"
    )


def run(args: argparse.Namespace) -> int:
    """Unmount it."""
    from kaifs.daemon.lifecycle import umount

    done = umount(Path(args.mountpoint), lazy=args.lazy)
    if args.json:
        print_json({"mountpoint": str(done.mountpoint), "hasEnded": done.has_ended})
    elif done.is_gone:
        say(args, f"{DONE} Unmounted {done.mountpoint}")
    else:
        warn(args, f"{done.mountpoint} is detached; the server ends with its last user")
    return 0

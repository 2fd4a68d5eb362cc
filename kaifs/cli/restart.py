"""Let a new process go on with a mount, with the code that is installed now.

For upgrades: what programs have open stays open, and they wait for a moment at
most. Without an argument it is the mount of the store.
"""

import argparse
from pathlib import Path

from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import store_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", nargs="?", metavar="MNT|STORE")


def run(args: argparse.Namespace) -> int:
    """Restart it."""
    from kaifs.daemon.lifecycle import restart

    info = restart(Path(args.path) if args.path else store_of(args))
    if args.json:
        print_json({"pid": info.pid, "supervisorPid": info.supervisor_pid})
    else:
        say(args, f"{DONE} Process {info.pid} serves {info.mounts[0].mountpoint} now")
    return 0

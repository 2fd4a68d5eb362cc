"""Mount a store; returns when the mount answers.

Called as mount.kaifs, or by mount(8), the arguments are STORE MNT -o OPTIONS.
"""

import argparse
from pathlib import Path

from kaifs.cli.output import DONE, print_json, say
from kaifs.cli.session import store_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("paths", nargs="+", metavar="[STORE] MNT")
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="ro rw agent=NAME view=VIEW allow_other uid= gid= transport=auto|kernel|pyfuse3 "
        "commit=SECONDS compress=none|zstd[:N] and others, separated by commas",
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="serve in this process")
    # What mount(8) passes to its helpers. Source: mount(8), external helpers.
    parser.add_argument("-n", "-s", "-v", dest="ignored", action="store_true", help="ignored")


def run(args: argparse.Namespace) -> int:
    """Mount the store."""
    from kaifs.base.errors import ArgumentValueError
    from kaifs.daemon.lifecycle import mount

    *store, mountpoint = args.paths
    if len(store) > 1:
        raise ArgumentValueError("give one store and one mountpoint")
    path = Path(store[0]) if store else store_of(args)
    info = mount(path, Path(mountpoint), args.options, foreground=args.foreground)
    if args.json:
        print_json({"mountpoint": mountpoint, "pid": None if info is None else info.pid})
    elif info is not None:
        say(args, f"{DONE} Mounted {path} on {mountpoint}")
    return 0

"""Tell what this machine has and lacks for kaifs, with the command that mends it.

Nothing is changed. Exit status: 0 if nothing that is needed is missing, else 1.
"""

import argparse
from itertools import groupby

from kaifs.cli.output import DONE, FAILED, coloured, print_json, printable
from kaifs.cli.session import store_of

_TITLES = {
    "python": "Python",
    "kernel": "Kernel",
    "mount": "Mounts",
    "sandbox": "Sandboxes",
    "tools": "Tools",
    "limits": "Limits",
    "store": "Store",
}
_LACKING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Look and tell."""
    from kaifs.api.doctor import examine

    found = examine(store_of(args))
    status = 0 if found.is_complete else _LACKING
    if args.json:
        print_json(found)
        return status
    for group, checks in groupby(found.checks, key=lambda check: check.group):
        shown = [check for check in checks if not (args.quiet and check.ok)]
        if shown:
            print(coloured(_TITLES[group], "bold"))
        for check in shown:
            if check.ok:
                print(f"  {coloured('ok', 'green')}    {printable(check.found)}")
                continue
            note = "" if check.is_needed else " (not needed)"
            colour = "red" if check.is_needed else "yellow"
            print(f"  {coloured('lack', colour)}  {printable(check.found)}{note}")
            if check.remedy:
                print(f"        mend: {check.remedy}")
    if not args.quiet:
        print()
        if found.is_complete:
            print(f"{DONE} Nothing that is needed is missing")
        else:
            print(f"{FAILED} Something that is needed is missing")
    return status

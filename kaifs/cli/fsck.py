"""Check every invariant of the store; with --repair mend what can be mended.

Exit status: 0 clean, 1 findings are left. A store is repaired while it is not mounted.
"""

import argparse

from kaifs.cli.output import DONE, FAILED, print_json, say
from kaifs.cli.session import call

_FINDINGS = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")


def run(args: argparse.Namespace) -> int:
    """Check the store, and perhaps mend it."""
    if args.repair:
        from kaifs.service.repair import Params as RepairParams

        found = call(args, "repair", RepairParams(), has_progress=True)
    else:
        from kaifs.service.fsck import Params

        found = call(args, "fsck", Params(), has_progress=True)
    if args.json:
        print_json(found)
        return _FINDINGS if found.findings else 0
    for line in found.repaired if args.repair else ():
        print(f"{DONE} {line}")
    for finding in found.findings:
        print(f"{FAILED} I{finding.number} {finding.subject}: {finding.text}")
    if not found.findings:
        say(args, f"{DONE} Clean")
    elif args.repair:
        say(
            args, "What is left cannot be mended: 'kaifs verify --full' says which versions it hits"
        )
    return _FINDINGS if found.findings else 0

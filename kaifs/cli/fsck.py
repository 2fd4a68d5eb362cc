"""Check every invariant of the store. Exit status: 0 clean, 1 findings."""

import argparse

from kaifs.cli.output import DONE, FAILED, print_json, say
from kaifs.cli.session import call

_FINDINGS = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Check the store."""
    from kaifs.service.fsck import Params

    found = call(args, "fsck", Params(), has_progress=True)
    if args.json:
        print_json(found)
    else:
        for finding in found.findings:
            print(f"{FAILED} I{finding.number} {finding.subject}: {finding.text}")
        if not found.findings:
            say(args, f"{DONE} Clean")
    return _FINDINGS if found.findings else 0

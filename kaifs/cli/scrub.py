"""Read everything that the store has, heal what it has twice, name what is damaged.

Exit status: 0 nothing is damaged, or all of it was healed; 1 something is damaged.
"""

import argparse

from kaifs.cli.output import DONE, FAILED, format_size, print_json, say
from kaifs.cli.session import call

_DAMAGED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Scrub the store."""
    from kaifs.service.scrub import Params

    found = call(args, "scrub", Params(), has_progress=True)
    if args.json:
        print_json(found)
    for healed, what in ((found.healed_blocks, "blocks"), (found.healed_records, "records")):
        if healed:
            say(args, f"{DONE} {healed} damaged {what} healed from an identical copy")
    for one in () if args.json else found.validations:
        print(f"{FAILED} {one.reference}")
        for text in one.errors:
            print(f"  {one.reference}: {text}")
        if one.quarantined:
            print(f"  {one.reference} is in quarantine: see 'kaifs quarantine list'")
    for text in () if args.json else found.lost_records:
        print(f"{FAILED} {text} is damaged in both copies of the index: see 'kaifs fsck'")
    for fallback in found.fallbacks:
        say(args, f"{fallback.agent}: current fell back to {fallback.version}")
    say(args, f"{format_size(found.read_bytes)} read, {found.damaged_blocks} blocks damaged")
    return _DAMAGED if found.damaged_blocks or found.lost_records else 0

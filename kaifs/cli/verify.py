"""Check that versions are what they were: signatures, content, dependencies, permissions, lineage.

REF is a version, an agent (its current) or a snapshot; without one every version that
you may read is verified. What verified before and cannot have changed since is not
read again unless --full. A damaged version is put into quarantine. Exit status: 0
everything is valid, 1 something is not.
"""

import argparse

from kaifs.cli.output import DONE, FAILED, format_size, print_json, say
from kaifs.cli.session import progress_bar, store_of

_INVALID = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("references", nargs="*", metavar="REF")
    parser.add_argument("--full", action="store_true", help="read everything again")
    parser.add_argument(
        "--reproduce", action="store_true", help="seal each version again and compare"
    )


def run(args: argparse.Namespace) -> int:
    """Verify them."""
    from kaifs.api.security import VersionSecurityManager

    manager = VersionSecurityManager(store_of(args))
    with progress_bar(args) as on_progress:
        found = manager.verify(
            args.references, full=args.full, reproduce=args.reproduce, on_progress=on_progress
        )
    invalid = [one for one in found.validations if not one.valid]
    if args.json:
        print_json(found.validations[0] if len(args.references) == 1 else found.validations)
    else:
        for one in found.validations:
            if one.valid:
                say(args, f"{DONE} {one.reference}{' (unchanged)' if one.is_skipped else ''}")
            else:
                print(f"{FAILED} {one.reference}")
            for text in one.errors:
                print(f"  {one.reference}: {text}")
            for text in one.warnings:
                say(args, f"  warning: {text}")
            if one.quarantined:
                print(f"  {one.reference} is in quarantine: see 'kaifs quarantine list'")
    for fallback in found.fallbacks:
        say(args, f"{fallback.agent}: current fell back to {fallback.version}")
    valid = len(found.validations) - len(invalid)
    say(
        args,
        f"{valid} of {len(found.validations)} valid, {format_size(found.read_bytes)} read",
    )
    return _INVALID if invalid else 0

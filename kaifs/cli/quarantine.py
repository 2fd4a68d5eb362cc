"""Versions that are set aside: list them, add one, release one that verifies again.

Damaged versions come here by themselves, when 'kaifs verify' or a read meets the damage.
"""

import argparse

from kaifs.cli.arguments import Actions
from kaifs.cli.output import DONE, print_json, printable, say, table, warn
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = Actions(parser)
    listing = actions.add("list", "show what is in quarantine, why, and from where")
    listing.add_argument("agent", nargs="?", metavar="AGENT")
    adding = actions.add("add", "set a version aside")
    adding.add_argument("reference", metavar="REF", help="AGENT@LABEL")
    adding.add_argument("--reason", metavar="TEXT", required=True)
    release = actions.add("release", "give a version back, if it verifies again")
    release.add_argument("reference", metavar="REF", help="AGENT@LABEL")


def run(args: argparse.Namespace) -> int:
    """Do what is asked for."""
    {"list": _list, "add": _add, "release": _release}[args.action](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from kaifs.service.quarantine_list import Params

    found = call(args, "quarantine-list", Params(agent=args.agent))
    if args.json:
        print_json(found.versions)
    elif found.versions:
        rows = [
            (
                f"{one.agent}@{one.version}",
                one.quarantined_at[: len("2026-11-22T20:15:03")],
                one.original_path,
                printable(one.errors[0] if one.errors else one.reason),
            )
            for one in found.versions
        ]
        print(table([("VERSION", "SINCE", "FROM", "WHY"), *rows]))


def _add(args: argparse.Namespace) -> None:
    from kaifs.service.quarantine_add import Params

    made = call(args, "quarantine-add", Params(reference=args.reference, reason=args.reason))
    if args.json:
        print_json(made)
    else:
        say(args, f"{DONE} {made.agent}@{made.version} is in quarantine")


def _release(args: argparse.Namespace) -> None:
    from kaifs.service.quarantine_release import Params

    done = call(args, "quarantine-release", Params(reference=args.reference), has_progress=True)
    if args.json:
        print_json(done)
    else:
        for text in done.warnings:
            warn(args, f"{args.reference}: {text}")
        say(args, f"{DONE} Released {done.agent}@{done.version}")

"""Run a command in a snapshot's sandbox, in the working directory /agent.

ID names a snapshot. AGENT@LABEL or AGENT makes one for this command alone, and
discards it after. Exit status: the command's; 125 kaifs failed, 126 the command
cannot be executed, 127 it was not found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from kaifs.base.errors import ArgumentValueError, InvalidVersionError, KaifsError
from kaifs.cli import sandbox_session
from kaifs.cli.limits import add_limits, limits
from kaifs.cli.output import warn
from kaifs.cli.session import call

if TYPE_CHECKING:
    from kaifs.service.isolation import IsolatedSnapshot

_TROUBLE: Final = 125


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = "kaifs run [options] ID|AGENT@LABEL -- CMD..."
    parser.add_argument("reference", metavar="ID|AGENT@LABEL")
    parser.add_argument("command", metavar="CMD", nargs="*")
    parser.add_argument(
        "--keep", action="store_true", help="keep the snapshot that was made, and print its id"
    )
    parser.add_argument("--read-only", action="store_true", help="nothing in it can be changed")
    add_limits(parser)
    parser.set_defaults(trouble=_TROUBLE, takes_command=True)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    if not args.command:
        raise ArgumentValueError("no command; write it after --")
    sandbox_session.prepare(args)
    with (
        _snapshot(args) as snapshot,
        sandbox_session.open_session(args, snapshot) as session,
    ):
        return session.run_foreground(args.command)


@contextmanager
def _snapshot(args: argparse.Namespace) -> Iterator[IsolatedSnapshot]:
    """Lend the snapshot that is meant, or one that is made and goes again."""
    from kaifs.service.isolation import Limits
    from kaifs.service.snapshot import Params

    asked = limits(args)
    found = _find(args)
    if found is not None:
        if args.keep or args.read_only or asked != Limits():
            text = "limits and --keep are for a snapshot that is made; this one is there already"
            raise ArgumentValueError(f"{args.reference}: {text}")
        yield found
        return
    params = Params(reference=args.reference, read_only=args.read_only, limits=asked)
    made: IsolatedSnapshot = call(args, "snapshot", params)
    if args.keep:
        warn(args, f"kept as {made.agent_id}/@snapshots/{made.id}")
        yield made
        return
    try:
        yield made
    finally:
        _discard(args, made)


def _find(args: argparse.Namespace) -> IsolatedSnapshot | None:
    """Return the snapshot that the reference names, None if it names something else."""
    from kaifs.service.show import Params

    try:
        found = call(args, "show", Params(reference=args.reference))
    except InvalidVersionError:
        if "@" in args.reference:
            raise
        # An agent without a version has a current all the same.
        return None
    snapshot: IsolatedSnapshot | None = found.snapshot
    return snapshot


def _discard(args: argparse.Namespace, snapshot: IsolatedSnapshot) -> None:
    from kaifs.service.discard import Params

    reference = f"{snapshot.agent_id}/@snapshots/{snapshot.id}"
    try:
        call(args, "discard", Params(reference=reference))
    except KaifsError as error:
        # The command's own status counts; what is left over is told.
        warn(args, f"could not discard {reference}: {error}")

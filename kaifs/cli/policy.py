"""Show what is demanded of an agent's versions, or change it.

With --require-signature yes, seal, import and commit refuse to make a version
that is not signed, and snapshot, rollback and commit refuse to use one that
nobody trusted has signed. The rules of what is kept are for prune; those given take the
place of all that were set before.
"""

import argparse

from kaifs.cli.output import coloured, print_json
from kaifs.cli.retention import add_retention, retention, retention_text
from kaifs.cli.session import call

_ANSWERS = {"yes": True, "no": False}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument(
        "--require-signature", choices=_ANSWERS, help="whether versions must be signed"
    )
    parser.add_argument(
        "--on-damage",
        choices=("keep", "fallback"),
        help="what current does when its version is damaged: go on, or fall back to a good one",
    )
    parser.add_argument("--keep-all", action="store_true", help="have no rules of what is kept")
    add_retention(parser)


def run(args: argparse.Namespace) -> int:
    """Show it."""
    from kaifs.base.errors import ArgumentValueError
    from kaifs.service.policy import Params

    required = args.require_signature
    rules = retention(args)
    if args.keep_all and rules:
        raise ArgumentValueError("--keep-all beside a rule of what is kept")
    params = Params(
        agent=args.agent,
        require_signature=None if required is None else _ANSWERS[required],
        on_damage=args.on_damage,
        retention=rules if rules or args.keep_all else None,
    )
    policy = call(args, "policy", params)
    if args.json:
        print_json(policy)
        return 0
    rows = [
        ("Require signature", "yes" if policy.require_signature else "no"),
        ("On damage", policy.on_damage),
        ("Prune", retention_text(policy.retention)),
    ]
    for name, value in rows:
        print(coloured(f"{name}:".ljust(19), "bold") + value)
    return 0

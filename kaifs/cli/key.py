"""Show and change the keys of a store: its own, the trusted, the revoked.

The store's own key signs every version that is made. KEY is the file of a public
key, or `-` for stdin; `revoke` also takes a fingerprint, such as SHA256:….
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from kaifs.cli.arguments import Actions
from kaifs.cli.output import DONE, print_json, printable, say, table
from kaifs.cli.session import call

if TYPE_CHECKING:
    from kaifs.service.key import Action


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = Actions(parser)
    actions.add("list", "show the store's key, and who is trusted")
    generate = actions.add("generate", "make the store's own key, which signs from then on")
    generate.add_argument("--comment", default="", help="what is said of the key")
    generate.add_argument(
        "--as", dest="principals", metavar="PRINCIPAL", help="in whose name (default: store)"
    )
    trust = actions.add("trust", "trust what a public key signs")
    trust.add_argument("key", metavar="KEY")
    trust.add_argument("--as", dest="principals", metavar="PRINCIPAL", required=True)
    trust.add_argument("--valid-after", metavar="TIME", help="versions made from then on")
    trust.add_argument("--valid-before", metavar="TIME", help="versions made until then")
    revoke = actions.add("revoke", "refuse all that a key has signed, whenever that was")
    revoke.add_argument("key", metavar="KEY")
    rotate = actions.add("rotate", "give the store a new key; the old one counts for the past")
    rotate.add_argument(
        "--comment", default="", help="what is said of the key (default: as before)"
    )
    export = actions.add("export", "print the store's public key")
    export.add_argument(
        "--allowed-signers",
        action="store_true",
        help="print who is trusted, for ssh-keygen -Y verify -f",
    )


def run(args: argparse.Namespace) -> int:
    """Do it."""
    from kaifs.service.key import Params

    result = call(args, "key", Params(action=_action(args)))
    if args.json:
        print_json(result)
    elif args.action == "export":
        _export(args, result)
    elif args.action == "list":
        _print(result)
    else:
        say(args, f"{DONE} {_said(args, result)}")
    return 0


def _action(args: argparse.Namespace) -> Action:
    from kaifs.service import key
    from kaifs.service.keyring import DEFAULT_PRINCIPAL

    match args.action:
        case "generate":
            name = args.principals
            return key.Generate(DEFAULT_PRINCIPAL if name is None else name, args.comment)
        case "trust":
            return key.Trust(
                key=_key_text(args.key),
                principals=args.principals,
                valid_after=args.valid_after,
                valid_before=args.valid_before,
            )
        case "revoke":
            from kaifs.base.allowed_signers import is_fingerprint

            return key.Revoke(args.key if is_fingerprint(args.key) else _key_text(args.key))
        case "rotate":
            return key.Rotate(args.comment)
        case _:
            return key.List()


def _key_text(name: str) -> str:
    """Return what the file of a public key holds. Of a private key nothing leaves this process."""
    from kaifs.api.signing import read_key_file
    from kaifs.base.errors import SigningKeyError
    from kaifs.base.ssh_keys import KEY_FILE_MAX, is_private, parse_public_file

    payload = sys.stdin.buffer.read(KEY_FILE_MAX) if name == "-" else read_key_file(name)
    if is_private(payload):
        raise SigningKeyError(f"{name}: a private key; name the public one")
    try:
        return parse_public_file(payload).line
    except SigningKeyError as error:
        raise SigningKeyError(f"{name}: {error.subject}") from error


def _said(args: argparse.Namespace, result: Any) -> str:
    match args.action:
        case "generate":
            return f"The store signs with {result.changed}"
        case "trust":
            return f"{result.changed} is trusted as {args.principals}"
        case "revoke":
            return f"{result.changed} is revoked"
        case _:
            is_revoked = result.previous in result.revoked
            before = "stays revoked" if is_revoked else "counts for the past"
            return f"The store signs with {result.changed}; {result.previous} {before}"


def _export(args: argparse.Namespace, result: Any) -> None:
    from kaifs.base.errors import SigningKeyError

    if args.allowed_signers:
        print(result.allowed_signers, end="")
    elif result.store_key is None:
        raise SigningKeyError("the store has none: 'kaifs key generate'")
    else:
        print(result.store_key)


def _print(result: Any) -> None:
    print(f"Store's key: {result.store_key_fingerprint or 'none'}")
    if result.signers:
        rows: list[tuple[str, ...]] = [("PRINCIPALS", "KEY", "KIND", "FROM", "UNTIL", "REMARKS")]
        rows += [_row(one) for one in result.signers]
        print()
        print(table(rows))
    for fingerprint in result.revoked:
        print(f"Revoked: {fingerprint}")


def _row(one: Any) -> tuple[str, ...]:
    remarks = [
        text
        for text, holds in (
            ("store", one.is_store_key),
            ("revoked", one.is_revoked),
            ("cert-authority: not used", one.is_authority),
        )
        if holds
    ]
    if one.comment:
        remarks.append(one.comment)
    return (
        printable(one.principals),
        one.key,
        one.kind,
        (one.valid_after or "-").replace(".000000", ""),
        (one.valid_before or "-").replace(".000000", ""),
        printable(", ".join(remarks)),
    )

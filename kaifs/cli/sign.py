"""Sign a version that is there, in place of the signature that it has.

Without --key and --agent the store's own key signs.
"""

import argparse

from kaifs.cli.output import DONE, print_json, say, warn
from kaifs.cli.session import store_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF", help="AGENT@LABEL")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--key", metavar="FILE", help="sign with this SSH key")
    who.add_argument(
        "--agent",
        metavar="FINGERPRINT",
        nargs="?",
        const="",
        help="sign with this key of ssh-agent; without FINGERPRINT the only one that it has",
    )


def run(args: argparse.Namespace) -> int:
    """Sign it."""
    from kaifs.api.signing import agent_signer, sign_version
    from kaifs.cli.signing import key_signer

    signer = None
    if args.key is not None:
        signer = key_signer(args.key)
    elif args.agent is not None:
        signer = agent_signer(args.agent or None)
    signed = sign_version(store_of(args), args.reference, signer)
    found = signed.signature
    assert found is not None, "it was signed"
    if args.json:
        print_json({"agent": signed.agent, "version": signed.version, "signature": found})
        return 0
    name = f" of {found.principals}" if found.principals else ""
    say(args, f"{DONE} Signed {signed.agent}@{signed.version} with {found.key}{name}")
    if found.status != "good":
        warn(args, f"the store does not trust it: {found.text}")
    return 0

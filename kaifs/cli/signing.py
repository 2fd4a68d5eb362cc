"""The options that sign with a key of the user's, and asking for its passphrase."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from kaifs.base.errors import SigningKeyError

if TYPE_CHECKING:
    from kaifs.service.steps import Signer


def add_sign_key(parser: argparse.ArgumentParser) -> None:
    """Declare the option of a verb that makes a version."""
    parser.add_argument(
        "--sign-key",
        metavar="FILE",
        help="sign with this SSH key instead of the store's; of a public key the rest is in "
        "ssh-agent",
    )


def signer_of(args: argparse.Namespace) -> Signer | None:
    """Return what signs with the key that `--sign-key` names, None if it is not there."""
    return None if args.sign_key is None else key_signer(args.sign_key)


def key_signer(path: str) -> Signer:
    """Return what signs with the key in the file *path*. Asks for its passphrase if it has one."""
    from kaifs.api.signing import file_signer

    return file_signer(path, _ask_passphrase)


def _ask_passphrase(name: str) -> str:
    from getpass import getpass

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        text = f"{name}: it is encrypted, and there is no terminal to ask at; let ssh-agent sign"
        raise SigningKeyError(text) from error
    return getpass(f"Passphrase of {name}: ")

"""Signing with the user's own key: from a file, or in their ssh-agent.

It all happens in the process that the user started. Whoever has the store open
sees the signature alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

from kaifs.api.access import call
from kaifs.api.ssh_agent import find_agent_key, sign_by_agent
from kaifs.base import sshsig
from kaifs.base.errors import SigningKeyError
from kaifs.base.ssh_keys import (
    KEY_FILE_MAX,
    is_encrypted,
    is_private,
    load_private,
    parse_public_file,
)
from kaifs.service import sign
from kaifs.service.keyring import NAMESPACE
from kaifs.service.steps import Signer

_Key = TypeVar("_Key")

AskPassphrase: TypeAlias = Callable[[str], str]
"""Returns the passphrase of the key in the file that it is told."""


def file_signer(
    path: str | os.PathLike[str], ask_passphrase: AskPassphrase | None = None
) -> Signer:
    """Return what signs with the key in a file.

    A private key of OpenSSH's or a PEM format; of a public key ssh-agent has the other half.

    Raises:
        SigningKeyError: the file holds no key that can be used, others may read it, or it is
            encrypted and the passphrase is not to be had.
    """
    name = os.fsdecode(path)
    payload = read_key_file(path)
    if not is_private(payload):
        return agent_signer(_of(name, lambda: parse_public_file(payload)).fingerprint)
    passphrase = None
    if is_encrypted(payload):
        if ask_passphrase is None:
            raise SigningKeyError(f"{name}: it is encrypted; let ssh-agent sign")
        passphrase = ask_passphrase(name).encode(errors="surrogateescape")
    key = _of(name, lambda: load_private(payload, passphrase))
    return lambda record: sshsig.sign(record, NAMESPACE, key.public, key.sign).armored()


def agent_signer(fingerprint: str | None = None) -> Signer:
    """Return what signs with a key in the user's ssh-agent; None: with the only one that it has.

    Raises:
        SigningKeyError: there is no such key, or no agent.
    """
    key = find_agent_key(fingerprint)
    return lambda record: sshsig.sign(
        record, NAMESPACE, key, lambda message: sign_by_agent(key, message)
    ).armored()


def sign_version(store: Path, reference: str, signer: Signer | None = None) -> sign.Result:
    """Sign a version that is there, in place of the signature that it has.

    Args:
        store: The store.
        reference: `AGENT@LABEL`.
        signer: None: the store's own key signs.

    Raises:
        BadSignatureError: what *signer* made is no signature of the record.
        UntrustedKeyError: its key is revoked; or it is not trusted, and the policy requires that.
        SigningKeyError: the store has no key, or *signer* failed.
        KaifsError: as the reference; E105.
    """
    result: sign.Result
    if signer is None:
        result = call(store, "sign", sign.Params(reference=reference))
        return result
    shown: sign.Result = call(store, "sign", sign.Params(reference=reference, caller_signs=True))
    params = sign.Params(reference=reference, caller_signs=True, signature=signer(shown.record))
    result = call(store, "sign", params)
    return result


def read_key_file(path: str | os.PathLike[str]) -> bytes:
    """Return what a key file holds.

    Raises:
        SigningKeyError: it cannot be read, is too large, or is a private key that others may read.
    """
    name = os.fsdecode(path)
    try:
        with Path(path).open("rb") as file:
            payload = file.read(KEY_FILE_MAX + 1)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise SigningKeyError(f"{name}: {error.strerror}") from error
    if len(payload) > KEY_FILE_MAX:
        raise SigningKeyError(f"{name}: too large for a key")
    # As ssh has it: only its owner can tell who else should read it.
    is_open = (
        stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o077
    )
    if is_private(payload) and is_open:
        raise SigningKeyError(f"{name}: others may read it; 'chmod 600' it")
    return payload


def _of(name: str, read: Callable[[], _Key]) -> _Key:
    try:
        return read()
    except SigningKeyError as error:
        raise SigningKeyError(f"{name}: {error.subject}") from error

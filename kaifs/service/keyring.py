"""The keys of a store: its own, whom it trusts, whom no longer. Files in `STORE/keys/`.

::

    signing_key        the store's own private key, in OpenSSH's format
    signing_key.next   the one that is about to take its place
    allowed_signers    trusted signers
    revoked_keys       public keys that count for nothing, whenever they signed

The last two are text that ssh-keygen reads as well, and that people may edit. All
is read anew whenever it is needed, and changed under the store's lock: each file
at once and durably. A new key of the store's own counts from the moment in which
`allowed_signers` names it; a process that dies before leaves the old one, one that
dies after leaves what the next reader finishes.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from kaifs.base.allowed_signers import FILE_MAX, Signer, parse_revoked, parse_signers
from kaifs.base.errors import SignersFileError, SigningKeyError, StoreIOError
from kaifs.base.ssh_keys import (
    KEY_FILE_MAX,
    PrivateKey,
    PublicKey,
    generate_private,
    load_private,
    public_of_private,
    with_comment,
)
from kaifs.linux.files import fsync_directory, read_file, write_durably
from kaifs.store.store import Store

KEYS_FOLDER: Final = "keys"
SIGNING_KEY: Final = "signing_key"
NEXT_KEY: Final = "signing_key.next"
ALLOWED_SIGNERS: Final = "allowed_signers"
REVOKED_KEYS: Final = "revoked_keys"

NAMESPACE: Final = "kaifs-record"
"""What signatures of records are made for."""

KeyStatus = Literal["good", "unknown", "revoked", "expired"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a store holds of a key."""

    status: KeyStatus
    """`expired`: it is known, but did not count at the time in question."""
    principals: str
    """In whose name it signs; empty if it is unknown."""
    text: str
    """In words."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a store trusts."""

    signers: tuple[Signer, ...]
    revoked: frozenset[str]
    """Fingerprints."""

    def standing(self, key: PublicKey, second: int) -> Standing:
        """Return what is held of *key* for a record made at *second*, seconds since 1970."""
        found = [one for one in self.signers if one.key == key and not one.is_authority]
        fitting = [one for one in found if one.is_for(NAMESPACE)]
        valid = [one for one in fitting if one.is_valid_at(second)]
        principals = ",".join(dict.fromkeys(one.principals for one in valid or fitting))
        if key.fingerprint in self.revoked:
            return Standing("revoked", principals, f"{key.fingerprint} is revoked")
        if valid:
            return Standing("good", principals, f"{key.fingerprint} of {principals}")
        if fitting:
            text = f"{key.fingerprint} of {principals} was not valid when the version was made"
            return Standing("expired", principals, text)
        if found:
            text = f"{key.fingerprint} is trusted for other things than {NAMESPACE}"
            return Standing("unknown", "", text)
        return Standing("unknown", "", f"{key.fingerprint} is unknown")


# --- reading ---------------------------------------------------------------------------------


def load_trust(store: Store) -> Trust:
    """Return whom *store* trusts.

    Raises:
        SignersFileError: a file makes no sense.
        StoreIOError: one cannot be read.
    """
    signers = parse_signers(_read(store, ALLOWED_SIGNERS, FILE_MAX), ALLOWED_SIGNERS)
    revoked = parse_revoked(_read(store, REVOKED_KEYS, FILE_MAX), REVOKED_KEYS)
    return Trust(signers, revoked)


def find_store_key(store: Store) -> PublicKey | None:
    """Return the public half of the store's own key, None if it has none.

    Raises:
        SigningKeyError: the file is none.
    """
    payload = _read_store_key(store)
    if not payload:
        return None
    try:
        return public_of_private(payload)
    except SigningKeyError as error:
        raise SigningKeyError(f"{SIGNING_KEY} of the store: {error.subject}") from error


def load_store_key(store: Store) -> PrivateKey | None:
    """Return the store's own key, None if it has none.

    Raises:
        SigningKeyError: the file is none, or others may read it.
    """
    payload = _read_store_key(store)
    if not payload:
        return None
    try:
        return load_private(payload)
    except SigningKeyError as error:
        raise SigningKeyError(f"{SIGNING_KEY} of the store: {error.subject}") from error


def _read_store_key(store: Store) -> bytes:
    """Return the file of the store's own key, empty if there is none."""
    _finish_change(store)
    path = _path(store, SIGNING_KEY)
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreIOError(f"{path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise SigningKeyError(f"{path}: others may read it; it must have mode 0600")
    return _read(store, SIGNING_KEY, KEY_FILE_MAX)


def _read(store: Store, name: str, limit: int) -> bytes:
    """Return what a file holds, empty if there is none; one byte over *limit* is kept."""
    path = _path(store, name)
    try:
        return read_file(path, limit + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreIOError(f"{path}: {error.strerror}") from error


# --- changing --------------------------------------------------------------------------------


def generate_store_key(store: Store, principals: str, comment: str) -> PublicKey:
    """Give the store a key of its own, which is trusted from now on, and return its public half.

    Raises:
        SigningKeyError: it has one, or *comment* cannot be one.
        SignersFileError: the trusted signers cannot be read.
    """
    if find_store_key(store) is not None:
        raise SigningKeyError("the store has a key; 'kaifs key rotate' replaces it")
    payload = generate_private()
    signer = _new_signer(payload, principals, comment)
    load_trust(store)
    _change_store_key(store, payload, [*_signer_lines(store), signer.text])
    return signer.key


def rotate_store_key(store: Store, comment: str) -> tuple[PublicKey, PublicKey]:
    """Give the store another key of its own; return the old and the new public half.

    The new one signs in the same name. The old one stays trusted for what was made
    until now.

    Raises:
        SigningKeyError: it has none, or *comment* cannot be one.
        SignersFileError: the trusted signers cannot be read.
    """
    old = find_store_key(store)
    if old is None:
        raise SigningKeyError("the store has no key; 'kaifs key generate' makes one")
    lines = _signer_lines(store)
    now_s = store.clock.now_ns() // 1_000_000_000
    mine = [one for one in load_trust(store).signers if one.key == old and not one.is_authority]
    for one in mine:
        if one.valid_before_s is None or one.valid_before_s > now_s:
            after_s = one.valid_after_s
            if after_s is not None and after_s >= now_s:
                # It never counted.
                lines[one.line - 1] = "# " + lines[one.line - 1].lstrip()
                continue
            lines[one.line - 1] = replace(one, valid_before_s=now_s).text
    payload = generate_private()
    principals = mine[-1].principals if mine else DEFAULT_PRINCIPAL
    signer = _new_signer(payload, principals, comment or (mine[-1].key.comment if mine else ""))
    _change_store_key(store, payload, [*lines, signer.text])
    return old, signer.key


def trust(store: Store, signer: Signer) -> None:
    """Add a line of trusted signers.

    Raises:
        SigningKeyError: the very line is there.
        SignersFileError: the lines that are there cannot be read.
    """
    if any(replace(one, line=0) == replace(signer, line=0) for one in load_trust(store).signers):
        raise SigningKeyError(f"{signer.key.fingerprint} is trusted like that already")
    _write_lines(store, ALLOWED_SIGNERS, [*_signer_lines(store), signer.text])


def revoke(store: Store, key: PublicKey) -> None:
    """Let *key* count for nothing, whenever it signed.

    Raises:
        SigningKeyError: it is revoked already.
        SignersFileError: the lines that are there cannot be read.
    """
    if key.fingerprint in load_trust(store).revoked:
        raise SigningKeyError(f"{key.fingerprint} is revoked already")
    _write_lines(store, REVOKED_KEYS, [*_lines(store, REVOKED_KEYS), key.line])


DEFAULT_PRINCIPAL: Final = "store"
"""In whose name a store's own key signs if nothing else is said."""


def _new_signer(payload: bytes, principals: str, comment: str) -> Signer:
    key = with_comment(public_of_private(payload), comment)
    return Signer(principals, key, namespaces=NAMESPACE)


def _change_store_key(store: Store, payload: bytes, signer_lines: list[str]) -> None:
    """Let the key in *payload* be the store's own. What counts is the second of three writes."""
    _write(store, NEXT_KEY, payload)
    _write_lines(store, ALLOWED_SIGNERS, signer_lines)
    _finish_change(store)


def _finish_change(store: Store) -> None:
    """Finish, or take back, a change of the store's own key that a process left when it died."""
    path = _path(store, NEXT_KEY)
    payload = _read(store, NEXT_KEY, KEY_FILE_MAX)
    if not payload:
        return
    try:
        key = public_of_private(payload)
    except SigningKeyError:
        is_due = False
    else:
        is_due = any(one.key == key for one in load_trust(store).signers)
    try:
        if is_due:
            os.rename(path, _path(store, SIGNING_KEY))
        else:
            os.unlink(path)
        fsync_directory(path.parent)
    except OSError as error:
        raise StoreIOError(f"{path}: {error.strerror}") from error


def _signer_lines(store: Store) -> list[str]:
    return _lines(store, ALLOWED_SIGNERS)


def _lines(store: Store, name: str) -> list[str]:
    text = _read(store, name, FILE_MAX).decode()
    return text.removesuffix("\n").split("\n") if text else []


def _write_lines(store: Store, name: str, lines: list[str]) -> None:
    payload = "".join(f"{line}\n" for line in lines).encode()
    if len(payload) > FILE_MAX:
        raise SignersFileError(f"{name}: more than {FILE_MAX} bytes")
    _write(store, name, payload)


def _write(store: Store, name: str, payload: bytes) -> None:
    path = _path(store, name)
    folder = os.stat(store.path)
    # Root makes them for whoever the store belongs to.
    owner = (folder.st_uid, folder.st_gid) if os.geteuid() == 0 else None
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if owner is not None:
            os.chown(path.parent, *owner)
        write_durably(path, payload, owner=owner)
        fsync_directory(store.path)
    except OSError as error:
        raise StoreIOError(f"{path}: {error.strerror}") from error


def _path(store: Store, name: str) -> Path:
    return store.path / KEYS_FOLDER / name

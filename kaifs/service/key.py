"""Shows and changes the keys of a store: its own, the trusted, the revoked."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

import msgspec

from kaifs.base.allowed_signers import (
    Signer,
    check_principals,
    is_fingerprint,
    parse_moment,
)
from kaifs.base.clock import format_time
from kaifs.base.errors import (
    ArgumentValueError,
    BadSignatureError,
    SigningKeyError,
)
from kaifs.base.ssh_keys import PublicKey, parse_public_file, with_comment
from kaifs.base.sshsig import parse_armored
from kaifs.service import keyring
from kaifs.service.context import Context
from kaifs.service.keyring import DEFAULT_PRINCIPAL, NAMESPACE, find_store_key, load_trust
from kaifs.service.steps import Item, Step


class List(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="list"):
    """Show the keys."""


class Generate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="generate"):
    """Make a key of the store's own."""

    principals: str = DEFAULT_PRINCIPAL
    comment: str = ""


class Trust(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="trust"):
    """Trust a public key."""

    key: str
    """What its `.pub` file holds."""
    principals: str
    """In whose name it signs: names or patterns with commas between."""
    valid_after: str | None = None
    valid_before: str | None = None


class Revoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="revoke"):
    """Refuse everything that a key has signed."""

    key: str
    """What its `.pub` file holds, or the fingerprint of a key that the store has seen."""


class Rotate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="rotate"):
    """Make another key the store's own; the old one is trusted for what it has signed."""

    comment: str = ""
    """Empty: as before."""


Action: TypeAlias = List | Generate | Trust | Revoke | Rotate


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to do."""

    action: Action = List()


class SignerInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One line of trusted signers."""

    principals: str
    key: str
    """Fingerprint."""
    kind: str
    comment: str
    namespaces: str | None
    valid_after: str | None
    valid_before: str | None
    is_authority: bool
    """Stands for certificates, which are not used: nothing is trusted by it."""
    is_store_key: bool
    is_revoked: bool


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The keys as they are now."""

    store_key: str | None
    """Public key of the store's own, as in a `.pub` file; None if it has none."""
    store_key_fingerprint: str | None
    signers: tuple[SignerInfo, ...]
    revoked: tuple[str, ...]
    """Fingerprints."""
    changed: str | None = None
    """Fingerprint of the key that was made, trusted or revoked."""
    previous: str | None = None
    """Fingerprint of the store's own key before it was rotated."""
    allowed_signers: str = ""
    """All trusted signers, as `ssh-keygen -Y verify -f` takes them."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Show the keys, after what *params* say was changed.

    Raises:
        AccessDeniedError: only the store's owner changes them.
        SigningKeyError: a key makes no sense here.
        SignersFileError: the files as they are make no sense.
        ArgumentValueError: a name or a time makes no sense.
    """
    yield from ()
    changed, previous = _change(context, params.action)
    store = context.store
    own, trust = find_store_key(store), load_trust(store)
    comments = {one.key: one.key.comment for one in trust.signers}
    return Result(
        store_key=None if own is None else with_comment(own, comments.get(own, "")).line,
        store_key_fingerprint=None if own is None else own.fingerprint,
        signers=tuple(
            _described(one, own, one.key.fingerprint in trust.revoked) for one in trust.signers
        ),
        revoked=tuple(sorted(trust.revoked)),
        changed=changed,
        previous=previous,
        allowed_signers="".join(f"{one.text}\n" for one in trust.signers),
    )


def _change(context: Context, action: Action) -> tuple[str | None, str | None]:
    """Return the fingerprints of the key that is new or changed, and of that before."""
    store = context.store
    if not isinstance(action, List):
        context.require_store_owner("changes its keys")
    match action:
        case Generate(principals=principals, comment=comment):
            check_principals(principals)
            made = keyring.generate_store_key(store, principals, comment)
            return made.fingerprint, None
        case Trust():
            signer = _signer(action)
            keyring.trust(store, signer)
            return signer.key.fingerprint, None
        case Revoke(key=text):
            key = _find_key(context, text)
            keyring.revoke(store, key)
            return key.fingerprint, None
        case Rotate(comment=comment):
            old, new = keyring.rotate_store_key(store, comment)
            return new.fingerprint, old.fingerprint
        case List():
            return None, None


def _signer(action: Trust) -> Signer:
    check_principals(action.principals)
    after, before = action.valid_after, action.valid_before
    after_s = None if after is None else parse_moment(after)
    before_s = None if before is None else parse_moment(before)
    if after_s is not None and before_s is not None and before_s <= after_s:
        raise ArgumentValueError(f"valid before {before} is not after {after}")
    return Signer(
        principals=action.principals,
        key=parse_public_file(action.key.encode("utf-8", "replace")),
        namespaces=NAMESPACE,
        valid_after_s=after_s,
        valid_before_s=before_s,
    )


def _find_key(context: Context, text: str) -> PublicKey:
    """Return the public key in *text*, or the known one that has it as its fingerprint.

    The list of the revoked has whole keys, for ssh-keygen takes no fingerprints.
    """
    if not is_fingerprint(text):
        return parse_public_file(text.encode("utf-8", "replace"))
    store = context.store
    known = [one.key for one in load_trust(store).signers]
    own = find_store_key(store)
    if own is not None:
        known.append(own)
    for key in known:
        if key.fingerprint == text:
            return key
    for agent in store.agents():
        for version in store.versions(agent.agent_id):
            try:
                key = parse_armored(version.signature).key
            except BadSignatureError:
                continue
            if key.fingerprint == text:
                return key
    raise SigningKeyError(f"{text}: no such key has been seen here; give its .pub file")


def _described(signer: Signer, own: PublicKey | None, is_revoked: bool) -> SignerInfo:
    return SignerInfo(
        principals=signer.principals,
        key=signer.key.fingerprint,
        kind=signer.key.kind,
        comment=signer.key.comment,
        namespaces=signer.namespaces,
        valid_after=_moment(signer.valid_after_s),
        valid_before=_moment(signer.valid_before_s),
        is_authority=signer.is_authority,
        is_store_key=signer.key == own,
        is_revoked=is_revoked,
    )


def _moment(second: int | None) -> str | None:
    return None if second is None else format_time(second * 1_000_000_000)

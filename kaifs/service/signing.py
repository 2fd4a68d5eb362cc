"""Signatures of version records: made, checked, required.

A signature is one over the record's bytes in the SSHSIG format, so that it can
be checked without kaifs: `ssh-keygen -Y verify` takes what is served at `@meta/`.
The record holds the hash of the manifest and the hash of the parent's record, so
a signature covers the version's content and its whole lineage.

A store with a key of its own signs every version that is made in it. A user's
key never comes here: their process signs what the verb shows it (`Sign`).
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from datetime import datetime
from typing import Final, Literal

import msgspec

from kaifs.base import sshsig
from kaifs.base.errors import (
    BadSignatureError,
    KaifsError,
    SigningKeyError,
    UnsignedError,
    UntrustedKeyError,
)
from kaifs.base.ssh_keys import PublicKey
from kaifs.base.sshsig import parse_armored
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.findings import Finding, Findings
from kaifs.service.keyring import NAMESPACE, find_store_key, load_store_key, load_trust
from kaifs.service.policy import policy_of
from kaifs.service.steps import Item, Sign, Signature, Step

log = logging.getLogger(__name__)

SignatureStatus = Literal["good", "bad", "unknown", "revoked", "expired"]

_WHAT: Final = {
    "unknown": "signed by a key that is not trusted",
    "revoked": "signed by a revoked key",
    "expired": "signed by a key that was not valid then",
}


class SignatureInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A version's signature, as it stands now."""

    status: SignatureStatus
    """`good`: by a trusted key, over the record as it is."""
    principals: str = ""
    """In whose name the key signs; empty if it is unknown."""
    key: str = ""
    """Its fingerprint."""
    kind: str = ""
    text: str = ""
    """What is wrong, in words; empty if nothing is."""


class _When(msgspec.Struct):
    created: str


class _Made(msgspec.Struct):
    """The one field of a record that its signature's standing depends on."""

    metadata: _When


# --- making ------------------------------------------------------------------------------


def require_signer(context: Context, agent: AgentRecord | None, *, caller_signs: bool) -> None:
    """Check that a version that is about to be made will be signed if it must be.

    Asked before the work begins, so that it is not done in vain.

    Args:
        context: Where.
        agent: Whose; None for one that is made with it, of which nothing is required.
        caller_signs: Whether a key of the user's will sign.

    Raises:
        UnsignedError: nobody would sign.
        UntrustedKeyError, SigningKeyError, SignersFileError: the store's key is of no use.
    """
    if caller_signs:
        return
    key = find_store_key(context.store)
    if key is not None:
        _check_store_key(context, agent, key)
    elif agent is not None and policy_of(agent).require_signature:
        raise UnsignedError(f"{agent.name}: the store has no key")


def sign_record(
    context: Context, agent: AgentRecord | None, record: bytes, *, is_backup: bool = False
) -> bytes:
    """Return the signature of *record* by the store's key, armored; empty if it has none.

    Args:
        context: Where.
        agent: Whose record it is; None for one that is made with it.
        record: Canonical bytes.
        is_backup: What a rollback saves is worth more unsigned than not at all.

    Raises:
        UnsignedError: the agent's policy requires one.
        UntrustedKeyError, SigningKeyError, SignersFileError: the store's key is of no use.
    """
    try:
        key = load_store_key(context.store)
        if key is not None:
            _check_store_key(context, agent, key.public)
            return sshsig.sign(record, NAMESPACE, key.public, key.sign).armored()
        if agent is not None and policy_of(agent).require_signature and not is_backup:
            raise UnsignedError(f"{agent.name}: the store has no key")
    except KaifsError as error:
        if not is_backup:
            raise
        log.warning("backup_unsigned", extra={"error": str(error)})
    return b""


def _check_store_key(context: Context, agent: AgentRecord | None, key: PublicKey) -> None:
    """Check that what the store's own key signs now can be used.

    Raises:
        UntrustedKeyError: it is revoked; or it is not trusted, and the policy requires that.
    """
    now_s = context.store.clock.now_ns() // 1_000_000_000
    standing = load_trust(context.store).standing(key, now_s)
    is_required = agent is not None and policy_of(agent).require_signature
    if standing.status == "revoked" or (is_required and standing.status != "good"):
        text = f"the store's own key: {standing.text}; 'kaifs key rotate' makes a new one"
        raise UntrustedKeyError(text, reason=standing.status, key=key.fingerprint)


def ask_signature(
    context: Context, agent: AgentRecord | None, record: bytes
) -> Generator[Step, Item | None, bytes]:
    """Have the caller's process sign *record*, and return its signature, armored. One step.

    Raises:
        SigningKeyError: no answer came.
        KaifsError: as `accept_signature`.
    """
    answer = yield Sign(record)
    if not isinstance(answer, Signature):
        raise SigningKeyError("no signature came")
    return accept_signature(context, agent, record, answer.armored)


def accept_signature(
    context: Context, agent: AgentRecord | None, record: bytes, armored: bytes
) -> bytes:
    """Return a signature that somebody has made of *record*, as it is to be kept.

    A key that is unknown is no reason to refuse unless the agent's policy is: it may be
    trusted later, or elsewhere.

    Raises:
        BadSignatureError: it is none of exactly these bytes for records.
        UntrustedKeyError: its key is revoked; or it is not trusted, and the policy requires that.
        SignersFileError: the trusted signers cannot be read.
    """
    signature = parse_armored(armored)
    signature.verify(record, NAMESPACE)
    standing = load_trust(context.store).standing(signature.key, _created_s(record))
    is_required = agent is not None and policy_of(agent).require_signature
    if standing.status == "revoked" or (is_required and standing.status != "good"):
        raise UntrustedKeyError(
            standing.text, reason=standing.status, key=signature.key.fingerprint
        )
    return signature.armored()


# --- checking ----------------------------------------------------------------------------


def describe_signature(context: Context, version: VersionRecord) -> SignatureInfo | None:
    """Return how a version's signature stands now, None if it has none.

    Raises:
        SignersFileError, StoreIOError: the trusted signers cannot be read.
    """
    if not version.signature:
        return None
    try:
        signature = parse_armored(version.signature)
    except BadSignatureError as error:
        return SignatureInfo(status="bad", text=error.subject)
    key = signature.key
    try:
        signature.verify(version.record, NAMESPACE)
        created_s = _created_s(version.record)
    except KaifsError as error:
        return SignatureInfo(status="bad", key=key.fingerprint, kind=key.kind, text=error.subject)
    standing = load_trust(context.store).standing(key, created_s)
    return SignatureInfo(
        status=standing.status,
        principals=standing.principals,
        key=key.fingerprint,
        kind=key.kind,
        text="" if standing.status == "good" else standing.text,
    )


def shown_signature(context: Context, version: VersionRecord) -> SignatureInfo | None:
    """Return what is told of a version's signature, also where it cannot be judged."""
    try:
        return describe_signature(context, version)
    except KaifsError as error:
        return SignatureInfo(status="unknown", text=str(error))


def check_signature(context: Context, agent: AgentRecord, version: VersionRecord) -> Findings:
    """Check who has signed a version, and what."""
    try:
        found = describe_signature(context, version)
        if found is None:
            return _unsigned(context, agent)
    except KaifsError as error:
        return _error(str(error))
    if found.status == "good":
        return Findings()
    if found.status == "bad":
        return _error(f"signature: {found.text}", is_damage=True)
    return _error(f"{_WHAT[found.status]}: {found.text}")


def _unsigned(context: Context, agent: AgentRecord) -> Findings:
    if policy_of(agent).require_signature:
        return _error("no signature, and the policy requires one")
    if find_store_key(context.store) is None:
        return Findings()
    return Findings(warnings=(Finding("signature", "no signature, though the store has a key"),))


def _error(text: str, *, is_damage: bool = False) -> Findings:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return Findings(errors=(Finding("signature", printable, is_damage),))


def require_trusted(context: Context, agent: AgentRecord, version: VersionRecord) -> None:
    """Check that a version may be used: made current, or a snapshot of.

    What a revoked key has signed may not, whatever the policy. The rest only counts if
    the policy requires a signature; without that this costs no cryptography.

    Raises:
        UnsignedError: it is not signed, and has to be.
        BadSignatureError: what is there is no signature of its record.
        UntrustedKeyError: nobody whom the store trusts has signed it.
        SignersFileError: the trusted signers cannot be read.
    """
    name = f"{agent.name}@{version.label}"
    is_required = policy_of(agent).require_signature
    if not version.signature:
        if is_required:
            raise UnsignedError(name)
        return
    if not is_required:
        _refuse_revoked(context, name, version)
        return
    found = describe_signature(context, version)
    assert found is not None, "it has a signature"
    _refuse(name, found, ("bad", "unknown", "revoked", "expired"))


def require_unforged(context: Context, agent: AgentRecord, version: VersionRecord) -> None:
    """Check that a version may be used, and that its signature, if it has one, is good.

    Raises:
        KaifsError: as `require_trusted`; E177 whatever the policy.
    """
    require_trusted(context, agent, version)
    found = describe_signature(context, version)
    if found is not None:
        _refuse(f"{agent.name}@{version.label}", found, ("bad",))


def _refuse_revoked(context: Context, name: str, version: VersionRecord) -> None:
    revoked = load_trust(context.store).revoked
    if not revoked:
        return
    try:
        key = parse_armored(version.signature).key
    except BadSignatureError as error:
        raise BadSignatureError(f"{name}: {error.subject}") from error
    if key.fingerprint in revoked:
        text = f"{name}: {key.fingerprint} is revoked"
        raise UntrustedKeyError(text, reason="revoked", key=key.fingerprint)


def _refuse(name: str, found: SignatureInfo, refused: tuple[SignatureStatus, ...]) -> None:
    if found.status not in refused:
        return
    if found.status == "bad":
        raise BadSignatureError(f"{name}: {found.text}")
    raise UntrustedKeyError(f"{name}: {found.text}", reason=found.status, key=found.key)


def _created_s(record: bytes) -> int:
    """Return when the version was made, as its record says, seconds since 1970.

    Raises:
        BadSignatureError: the record says nothing.
    """
    try:
        created = msgspec.json.decode(record, type=_Made).metadata.created
        return int(datetime.fromisoformat(created).timestamp())
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise BadSignatureError("the record does not say when it was made") from error

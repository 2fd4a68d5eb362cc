"""Signs a version that is there: with the store's key, or with what the caller's process made.

A version has one signature; signing again replaces it.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from kaifs.base.errors import SigningKeyError
from kaifs.service.context import Context
from kaifs.service.reference import resolve_version
from kaifs.service.signing import (
    SignatureInfo,
    accept_signature,
    describe_signature,
    sign_record,
)
from kaifs.service.steps import Item, Step


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to sign, and how far it is."""

    reference: str
    caller_signs: bool = False
    """Whether a key of the user's signs. Their process asks twice: without a signature it is told the record's
    bytes, with one that is checked and kept. So nobody waits while a user finds the passphrase."""
    signature: bytes | None = None
    """Armored, of the record's bytes."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A version's record, and how its signature stands."""

    agent: str
    version: str
    record: bytes
    signature: SignatureInfo | None


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Sign a version, or tell what there is to sign.

    Raises:
        BadSignatureError: the signature is none of the record as it is.
        UntrustedKeyError: its key is revoked; or it is not trusted, and the policy requires that.
        SigningKeyError: the store has no key that could sign.
        KaifsError: as `resolve_version`; E105.
    """
    yield from ()
    agent, version = resolve_version(context.store, params.reference)
    context.require_owner(agent)
    if params.signature is not None:
        made = accept_signature(context, agent, version.record, params.signature)
        version = context.store.sign_version(version, made)
    elif not params.caller_signs:
        made = sign_record(context, agent, version.record)
        if not made:
            raise SigningKeyError("the store has none: 'kaifs key generate', --key or --agent")
        version = context.store.sign_version(version, made)
    return Result(
        agent=agent.name,
        version=version.label,
        record=version.record,
        signature=describe_signature(context, version),
    )

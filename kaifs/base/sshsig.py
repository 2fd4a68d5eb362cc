"""SSHSIG: OpenSSH's format of a signature over any bytes, for one purpose.

The purpose is the namespace: a signature made for one is worth nothing for
another. What is signed is a short header with the namespace and the hash of the
message. Source: OpenSSH, PROTOCOL.sshsig.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kaifs.base import ssh_keys
from kaifs.base.errors import BadSignatureError, SigningKeyError
from kaifs.base.ssh_keys import PublicKey, WireReader, parse_public_blob, wire_string

MAGIC: Final = b"SSHSIG"
VERSION: Final = 1
HASH: Final = "sha512"
"""Of the signatures that are made; `sha256` is accepted as well."""
ARMORED_MAX: Final = 1 << 14
"""Most bytes of an armored signature: one by an RSA key of 16384 bits has 6 KiB."""

_HASHES: Final = ("sha256", "sha512")
_BEGIN: Final = b"-----BEGIN SSH SIGNATURE-----"
_END: Final = b"-----END SSH SIGNATURE-----"
_LINE: Final = 70
"""Letters of base64 in a line, as ssh-keygen has it."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature, not yet checked."""

    key: PublicKey
    namespace: str
    hash_algorithm: str
    blob: bytes
    """What the key made: algorithm and bytes."""

    def armored(self) -> bytes:
        """Return it as text, as `ssh-keygen -Y sign` writes it."""
        packed = MAGIC + VERSION.to_bytes(4, "big")
        for part in (self.key.blob, self.namespace, b"", self.hash_algorithm, self.blob):
            packed += wire_string(part)
        encoded = base64.b64encode(packed)
        lines = [encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE)]
        return b"\n".join([_BEGIN, *lines, _END, b""])

    def verify(self, message: bytes, namespace: str) -> None:
        """Check that it is one of *message* for *namespace* by its own key.

        Whether that key is trusted is another question.

        Raises:
            BadSignatureError: it is not.
        """
        if self.namespace != namespace:
            raise BadSignatureError(f"made for {self.namespace!a}, not for {namespace!a}")
        signed = _signed(message, namespace, self.hash_algorithm)
        ssh_keys.verify(self.key, self.blob, signed)


def sign(
    message: bytes, namespace: str, key: PublicKey, sign_bytes: Callable[[bytes], bytes]
) -> Signature:
    """Return a signature of *message* for *namespace*.

    Args:
        message: Any bytes.
        namespace: What for.
        key: Whose.
        sign_bytes: Returns that key's signature of bytes, as it travels.
    """
    return Signature(key, namespace, HASH, sign_bytes(_signed(message, namespace, HASH)))


def parse_armored(text: bytes) -> Signature:
    """Return the signature in *text*.

    Raises:
        BadSignatureError: it holds none that can be checked.
    """
    if len(text) > ARMORED_MAX:
        raise BadSignatureError(f"a signature of more than {ARMORED_MAX} bytes")
    stripped = text.strip()
    if not stripped.startswith(_BEGIN) or not stripped.endswith(_END):
        raise BadSignatureError("not an armored SSH signature")
    encoded = b"".join(stripped.removeprefix(_BEGIN).removesuffix(_END).split())
    try:
        return _parse(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadSignatureError(f"not an SSH signature: {error}") from error
    except SigningKeyError as error:
        raise BadSignatureError(error.subject) from error


def _parse(packed: bytes) -> Signature:
    reader = WireReader(packed)
    if reader.take(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as one")
    if (version := reader.number()) != VERSION:
        raise ValueError(f"version {version}, known is {VERSION}")
    blob, namespace = reader.string(), reader.text()
    # Reserved; what is in it is to be ignored, but it is signed.
    if reader.string():
        raise ValueError("its reserved field is not empty")
    algorithm, made = reader.text(), reader.string()
    reader.end()
    if not namespace:
        raise ValueError("it has no namespace")
    if algorithm not in _HASHES:
        raise ValueError(f"hash {algorithm!a}, known are sha256 and sha512")
    return Signature(parse_public_blob(blob), namespace, algorithm, made)


def _signed(message: bytes, namespace: str, algorithm: str) -> bytes:
    digest = hashlib.new(algorithm, message).digest()
    parts = (namespace, b"", algorithm, digest)
    return MAGIC + b"".join(wire_string(part) for part in parts)

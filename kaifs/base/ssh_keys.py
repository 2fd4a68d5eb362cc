"""SSH keys: how OpenSSH writes them, and signing and verifying with them.

Formats and names are those of RFC 4251, 4253, 5656, 8332 and 8709, and of
OpenSSH's PROTOCOL.u2f for keys in a security token. Keys and signatures come from
anywhere: whatever is not exactly as it must be is refused.

The cryptography itself is that of the `cryptography` package, which takes 30 ms
to load, so it is imported where it is first needed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from kaifs.base.errors import BadSignatureError, SigningKeyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurve
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

ED25519: Final = "ssh-ed25519"
SK_ED25519: Final = "sk-ssh-ed25519@openssh.com"
SK_ECDSA: Final = "sk-ecdsa-sha2-nistp256@openssh.com"
RSA: Final = "ssh-rsa"
_CURVES: Final = {
    "ecdsa-sha2-nistp256": ("nistp256", 32),
    "ecdsa-sha2-nistp384": ("nistp384", 48),
    "ecdsa-sha2-nistp521": ("nistp521", 66),
}
"""Of each kind of ECDSA key: its curve's name, and the bytes of a coordinate."""

RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 16384
"""Source: OpenSSH, OPENSSL_RSA_MAX_MODULUS_BITS."""
KEY_FILE_MAX: Final = 1 << 16
"""Most bytes of a key file that are read."""

_ED25519_SIZE: Final = 32
_LENGTH: Final = struct.Struct(">I")
_TOKEN: Final = struct.Struct(">BI")
"""Flags and counter, at the end of a token's signature. Source: PROTOCOL.u2f."""
_OPENSSH_BEGIN: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_OPENSSH_MAGIC: Final = b"openssh-key-v1\0"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key of a kind that can be verified with. Equal if the key is, whatever the comment."""

    kind: str
    """`ssh-ed25519` and the like."""
    blob: bytes
    """As it travels. Source: RFC 4253, 6.6."""
    comment: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """`SHA256:` and 43 letters, as ssh-keygen prints it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest())
        return "SHA256:" + digest.rstrip(b"=").decode()

    @property
    def line(self) -> str:
        """The line of a `.pub` file, without its end."""
        text = f"{self.kind} {base64.b64encode(self.blob).decode()}"
        return f"{text} {self.comment}" if self.comment else text


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs."""

    public: PublicKey
    sign: Callable[[bytes], bytes] = field(repr=False)
    """Returns the signature of a message as it travels: algorithm, bytes."""


# --- what travels --------------------------------------------------------------------------


class WireReader:
    """Takes fields off the front of bytes. Source: RFC 4251, 5.

    Raises:
        ValueError: what is to be taken is not there.
    """

    def __init__(self, payload: bytes) -> None:
        self._rest = payload

    def take(self, size: int) -> bytes:
        """Return the next *size* bytes."""
        if size > len(self._rest):
            raise ValueError("it ends too early")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def number(self) -> int:
        """Return the next uint32."""
        return int(_LENGTH.unpack(self.take(_LENGTH.size))[0])

    def string(self) -> bytes:
        """Return the next string."""
        return self.take(self.number())

    def text(self) -> str:
        """Return the next string, which must be printable ASCII."""
        text = self.string().decode("ascii")
        if not text.isprintable():
            raise ValueError("a name is not printable")
        return text

    def natural(self) -> int:
        """Return the next mpint, which must be positive and as short as it can be."""
        digits = self.string()
        value = int.from_bytes(digits, "big")
        if not digits or digits != _natural_bytes(value):
            raise ValueError("a number is not as it must be")
        return value

    def end(self) -> None:
        """Check that nothing is left."""
        if self._rest:
            raise ValueError("something follows the end")


def wire_string(payload: bytes | str) -> bytes:
    """Return *payload* behind its length. Source: RFC 4251, 5."""
    raw = payload.encode() if isinstance(payload, str) else payload
    return _LENGTH.pack(len(raw)) + raw


def _natural_bytes(value: int) -> bytes:
    # One bit more than the number has: the sign.
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


# --- public keys -----------------------------------------------------------------------------


def parse_public_blob(blob: bytes, comment: str = "") -> PublicKey:
    """Return the public key that travels as *blob*.

    Raises:
        SigningKeyError: it is none, or of a kind that is not verified with.
    """
    try:
        reader = WireReader(blob)
        kind = reader.text()
        _check_public(kind, reader)
        reader.end()
    except ValueError as error:
        raise SigningKeyError(f"not a public key: {error}") from error
    return PublicKey(kind, blob, comment)


def _check_public(kind: str, reader: WireReader) -> None:
    """Check the fields after the *kind*.

    Raises:
        SigningKeyError: keys of this kind are not used.
        ValueError: they make no sense.
    """
    if kind in (ED25519, SK_ED25519):
        if len(reader.string()) != _ED25519_SIZE:
            raise ValueError("not 32 bytes")
    elif kind in _CURVES or kind == SK_ECDSA:
        curve, size = _CURVES.get(kind, ("nistp256", 32))
        if reader.text() != curve:
            raise ValueError("of another curve than its kind")
        point = reader.string()
        if len(point) != 2 * size + 1 or point[0] != 4:
            raise ValueError("not a point of its curve")
    elif kind == RSA:
        exponent, modulus = reader.natural(), reader.natural()
        if not RSA_BITS_MIN <= modulus.bit_length() <= RSA_BITS_MAX:
            bits = modulus.bit_length()
            raise SigningKeyError(f"an RSA key of {bits} bits; at least {RSA_BITS_MIN} are needed")
        if exponent < 3 or not exponent & 1:
            raise ValueError("its exponent makes no sense")
    elif "-cert-" in kind:
        raise SigningKeyError(f"{kind}: certificates are not used; give the key itself")
    else:
        raise SigningKeyError(f"{kind}: keys of this kind are not used")
    if kind in (SK_ED25519, SK_ECDSA):
        reader.text()


def parse_public_line(line: str) -> PublicKey:
    """Return the key in *line*: kind, base64, and perhaps a comment, as in a `.pub` file.

    Raises:
        SigningKeyError: it holds none.
    """
    kind, _, rest = line.strip(" \t\r\n").partition(" ")
    encoded, _, comment = rest.strip(" \t").partition(" ")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SigningKeyError("not a public key: not base64") from error
    if not blob:
        raise SigningKeyError("not a public key: kind and base64 are needed")
    key = parse_public_blob(blob, comment.strip())
    if key.kind != kind:
        raise SigningKeyError("not a public key: it says that it is of another kind")
    return key


def parse_public_file(payload: bytes) -> PublicKey:
    """Return the key that a `.pub` file holds: the one line that is no comment.

    Raises:
        SigningKeyError: it holds none, or several.
    """
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise SigningKeyError("not a public key: not text") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise SigningKeyError(f"not a public key: {len(lines)} lines instead of one")
    key = parse_public_line(lines[0])
    if not key.comment.isprintable():
        raise SigningKeyError("not a public key: its comment is not printable")
    return key


# --- verifying -------------------------------------------------------------------------------


def verify(key: PublicKey, signature: bytes, message: bytes) -> None:
    """Check that *signature*, as it travels, is one of *message* by *key*.

    Raises:
        BadSignatureError: it is not.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        reader = WireReader(signature)
        algorithm, raw = reader.text(), reader.string()
        fields = WireReader(key.blob)
        fields.text()
        if key.kind in (SK_ED25519, SK_ECDSA):
            message = _token_message(key, reader, message)
        reader.end()
        if key.kind == RSA:
            _verify_rsa(fields, algorithm, raw, message)
            return
        if algorithm != key.kind:
            raise BadSignatureError(f"{algorithm} by a key of kind {key.kind}")
        if key.kind in (ED25519, SK_ED25519):
            _verify_ed25519(fields, raw, message)
        else:
            _verify_ecdsa(fields, raw, message)
    except InvalidSignature as error:
        raise BadSignatureError(f"not by {key.fingerprint} over this") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadSignatureError(str(error)) from error


def _token_message(key: PublicKey, reader: WireReader, message: bytes) -> bytes:
    """Return what a security token signs for *message*. Source: PROTOCOL.u2f."""
    trailer = reader.take(_TOKEN.size)
    fields = WireReader(key.blob)
    fields.text()
    if key.kind == SK_ECDSA:
        fields.string()
    fields.string()
    application = hashlib.sha256(fields.string()).digest()
    return application + trailer + hashlib.sha256(message).digest()


def _verify_ed25519(fields: WireReader, raw: bytes, message: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Ed25519PublicKey.from_public_bytes(fields.string()).verify(raw, message)


def _verify_ecdsa(fields: WireReader, raw: bytes, message: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    curve, digest = _curve(fields.text())
    key = ec.EllipticCurvePublicKey.from_encoded_point(curve, fields.string())
    numbers = WireReader(raw)
    r, s = numbers.natural(), numbers.natural()
    numbers.end()
    key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))


def _verify_rsa(fields: WireReader, algorithm: str, raw: bytes, message: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    digest: HashAlgorithm
    if algorithm == "rsa-sha2-512":
        digest = hashes.SHA512()
    elif algorithm == "rsa-sha2-256":
        digest = hashes.SHA256()
    else:
        # `ssh-rsa` is SHA-1. Source: RFC 8332.
        raise BadSignatureError(f"{algorithm} is not accepted of an RSA key")
    exponent, modulus = fields.natural(), fields.natural()
    RSAPublicNumbers(exponent, modulus).public_key().verify(raw, message, PKCS1v15(), digest)


def _curve(name: str) -> tuple[EllipticCurve, HashAlgorithm]:
    """Return a curve and the hash that goes with it. Source: RFC 5656, 6.2.1."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if name == "nistp256":
        return ec.SECP256R1(), hashes.SHA256()
    if name == "nistp384":
        return ec.SECP384R1(), hashes.SHA384()
    return ec.SECP521R1(), hashes.SHA512()


# --- private keys ----------------------------------------------------------------------------


def is_private(payload: bytes) -> bool:
    """Return whether a key file holds a private key, as far as its first line says."""
    first = payload.lstrip()[:80].partition(b"\n")[0]
    return first.startswith(b"-----BEGIN ") and b"PRIVATE KEY" in first


def is_encrypted(payload: bytes) -> bool:
    """Return whether the private key in *payload* needs a passphrase."""
    if not payload.lstrip().startswith(_OPENSSH_BEGIN):
        return b"ENCRYPTED" in payload[:200]
    try:
        return _opened_private(payload).string() != b"none"
    except ValueError:
        return False


def _opened_private(payload: bytes) -> WireReader:
    """Return the fields of a private key's file, cipher first. Source: PROTOCOL.key.

    Raises:
        ValueError: it is none.
    """
    text = payload.strip()
    if not text.startswith(_OPENSSH_BEGIN):
        raise ValueError("it does not begin as one")
    encoded = text.removeprefix(_OPENSSH_BEGIN).partition(b"-----END")[0]
    reader = WireReader(base64.b64decode(b"".join(encoded.split()), validate=True))
    if reader.take(len(_OPENSSH_MAGIC)) != _OPENSSH_MAGIC:
        raise ValueError("it does not begin as one")
    return reader


def public_of_private(payload: bytes) -> PublicKey:
    """Return the public half of the private key in a file of OpenSSH's format. O(1), no secrets.

    Raises:
        SigningKeyError: it holds none.
    """
    try:
        reader = _opened_private(payload)
        for _ in range(3):
            # Cipher, key derivation and its options.
            reader.string()
        if reader.number() != 1:
            raise SigningKeyError("not a private key: not one key in it")
        return parse_public_blob(reader.string())
    except ValueError as error:
        raise SigningKeyError(f"not a private key of OpenSSH's format: {error}") from error


def load_private(payload: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """Return the private key in a key file.

    Raises:
        SigningKeyError: it holds none that can be used, or *passphrase* is not the right one.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_ssh_private_key,
    )

    if not is_private(payload):
        raise SigningKeyError("not a private key")
    is_openssh = payload.lstrip().startswith(_OPENSSH_BEGIN)
    load = load_ssh_private_key if is_openssh else load_pem_private_key
    if is_encrypted(payload) and not passphrase:
        raise SigningKeyError("the key is encrypted, and no passphrase was given")
    try:
        loaded = load(payload, passphrase if is_encrypted(payload) else None)
    except UnsupportedAlgorithm as error:
        raise SigningKeyError(
            "keys of this kind do not sign here; one in a security token does through ssh-agent"
        ) from error
    except (ValueError, TypeError) as error:
        reason = "wrong passphrase, or damaged" if passphrase else "damaged"
        raise SigningKeyError(f"not a private key that can be read: {reason}") from error
    return _private_key(loaded)


def generate_private() -> bytes:
    """Return the file of a new Ed25519 key, in OpenSSH's format, not encrypted."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _private_key(loaded: PrivateKeyTypes) -> PrivateKey:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
    )

    if not isinstance(loaded, Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise SigningKeyError("keys of this kind are not used")
    line = loaded.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public = parse_public_line(line.decode())
    if isinstance(loaded, Ed25519PrivateKey):
        ed25519 = loaded
        return PrivateKey(public, lambda message: _blob(ED25519, ed25519.sign(message)))
    if isinstance(loaded, rsa.RSAPrivateKey):
        rsa_key = loaded
        return PrivateKey(
            public,
            lambda message: _blob(
                "rsa-sha2-512", rsa_key.sign(message, padding.PKCS1v15(), hashes.SHA512())
            ),
        )
    curved = loaded
    _, digest = _curve(_CURVES[public.kind][0])

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(curved.sign(message, ec.ECDSA(digest)))
        return _blob(public.kind, wire_string(_natural_bytes(r)) + wire_string(_natural_bytes(s)))

    return PrivateKey(public, sign)


def _blob(algorithm: str, raw: bytes) -> bytes:
    return wire_string(algorithm) + wire_string(raw)


def with_comment(key: PublicKey, comment: str) -> PublicKey:
    """Return *key* with another comment.

    Raises:
        SigningKeyError: *comment* does not fit on a key's line.
    """
    if not comment.isprintable():
        raise SigningKeyError(f"comment {comment!a} is not printable")
    return replace(key, comment=comment.strip())

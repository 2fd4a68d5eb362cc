"""Keys and signatures as OpenSSH has them: real ssh-keygen is the other side."""

import base64
import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base import ssh_keys, sshsig
from kaifs.base.errors import BadSignatureError, KaifsError, SigningKeyError
from kaifs.base.ssh_keys import (
    PublicKey,
    is_encrypted,
    is_private,
    load_private,
    parse_public_blob,
    parse_public_file,
    parse_public_line,
    public_of_private,
    wire_string,
)
from kaifs.base.sshsig import parse_armored

MESSAGE = b'{"version":"1.0.0"}'
NAMESPACE = "kaifs-record"


def keygen(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["ssh-keygen", *arguments], input=stdin, capture_output=True, check=False, timeout=60
    )


def make_key(path: Path, kind: str = "ed25519", *options: str, passphrase: str = "") -> Path:
    done = keygen("-q", "-t", kind, *options, "-N", passphrase, "-C", "who it is", "-f", path)
    assert done.returncode == 0, done.stderr
    return path


def is_accepted_by_keygen(folder: Path, key: PublicKey, armored: bytes, message: bytes) -> bool:
    """Whether `ssh-keygen -Y verify` takes the signature."""
    (folder / "allowed").write_text(f"who {key.line}\n")
    (folder / "signature").write_bytes(armored)
    options: list[str | Path] = [
        "-f",
        folder / "allowed",
        "-I",
        "who",
        "-n",
        NAMESPACE,
        "-s",
        folder / "signature",
    ]
    return keygen("-Y", "verify", *options, stdin=message).returncode == 0


@pytest.fixture(scope="module")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One key of each kind that can be made without a token."""
    folder = tmp_path_factory.mktemp("keys")
    return {
        "ed25519": make_key(folder / "ed25519"),
        "rsa": make_key(folder / "rsa", "rsa", "-b", "2048"),
        "ecdsa256": make_key(folder / "ecdsa256", "ecdsa", "-b", "256"),
        "ecdsa384": make_key(folder / "ecdsa384", "ecdsa", "-b", "384"),
        "ecdsa521": make_key(folder / "ecdsa521", "ecdsa", "-b", "521"),
    }


KINDS = ["ed25519", "rsa", "ecdsa256", "ecdsa384", "ecdsa521"]


def signed(path: Path, message: bytes = MESSAGE, namespace: str = NAMESPACE) -> sshsig.Signature:
    key = load_private(path.read_bytes())
    return sshsig.sign(message, namespace, key.public, key.sign)


@pytest.mark.parametrize("kind", KINDS)
def test_ssh_keygen_takes_our_signatures(
    kind: str, key_files: dict[str, Path], tmp_path: Path
) -> None:
    signature = signed(key_files[kind])

    assert is_accepted_by_keygen(tmp_path, signature.key, signature.armored(), MESSAGE)
    assert not is_accepted_by_keygen(tmp_path, signature.key, signature.armored(), MESSAGE + b" ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hashed", ["sha256", "sha512"])
def test_we_take_signatures_of_ssh_keygen(
    kind: str, hashed: str, key_files: dict[str, Path]
) -> None:
    path = key_files[kind]
    done = keygen(
        "-Y", "sign", "-f", path, "-n", NAMESPACE, "-O", f"hashalg={hashed}", stdin=MESSAGE
    )

    signature = parse_armored(done.stdout)
    signature.verify(MESSAGE, NAMESPACE)

    assert signature.hash_algorithm == hashed
    assert signature.armored() == done.stdout
    with pytest.raises(BadSignatureError):
        signature.verify(MESSAGE + b"x", NAMESPACE)


@pytest.mark.parametrize("kind", KINDS)
def test_public_keys_and_fingerprints_are_those_of_ssh_keygen(
    kind: str, key_files: dict[str, Path]
) -> None:
    path = key_files[kind]
    public = parse_public_file(path.with_suffix(".pub").read_bytes())
    listed = keygen("-l", "-f", path).stdout.decode().split()

    assert public.fingerprint == listed[1]
    assert public.comment == "who it is"
    assert public.line + "\n" == path.with_suffix(".pub").read_text()
    assert public_of_private(path.read_bytes()) == public
    assert load_private(path.read_bytes()).public == public


def test_a_key_that_we_make_is_one_of_openssh(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(ssh_keys.generate_private())
    path.chmod(0o600)

    shown = keygen("-y", "-f", path)

    assert parse_public_file(shown.stdout) == public_of_private(path.read_bytes())
    done = keygen("-Y", "sign", "-f", path, "-n", NAMESPACE, stdin=MESSAGE)
    parse_armored(done.stdout).verify(MESSAGE, NAMESPACE)


@pytest.mark.parametrize("format_name", ["OpenSSH", "PEM"])
def test_an_encrypted_key_needs_its_passphrase(format_name: str, tmp_path: Path) -> None:
    options = ("-m", "PEM") if format_name == "PEM" else ("-a", "1")
    kind = "rsa" if format_name == "PEM" else "ed25519"
    payload = make_key(tmp_path / "key", kind, *options, passphrase="open sesame").read_bytes()

    assert is_private(payload)
    assert is_encrypted(payload)
    key = load_private(payload, b"open sesame")
    signature = sshsig.sign(MESSAGE, NAMESPACE, key.public, key.sign)
    signature.verify(MESSAGE, NAMESPACE)
    with pytest.raises(SigningKeyError, match="no passphrase"):
        load_private(payload)
    with pytest.raises(SigningKeyError, match="wrong passphrase"):
        load_private(payload, b"guess")


def test_a_passphrase_for_a_key_that_has_none_is_not_used(key_files: dict[str, Path]) -> None:
    payload = key_files["ed25519"].read_bytes()

    assert not is_encrypted(payload)
    assert load_private(payload, b"x").public == public_of_private(payload)


def token_signature(private: Ed25519PrivateKey, *, flags: int = 1) -> sshsig.Signature:
    """What a security token makes: it signs a digest, its flags and a counter."""
    application = b"ssh:"
    blob = b"".join(
        wire_string(part)
        for part in (ssh_keys.SK_ED25519, private.public_key().public_bytes_raw(), application)
    )

    def sign(message: bytes) -> bytes:
        trailer = bytes([flags]) + (7).to_bytes(4, "big")
        told = hashlib.sha256(application).digest() + trailer + hashlib.sha256(message).digest()
        return wire_string(ssh_keys.SK_ED25519) + wire_string(private.sign(told)) + trailer

    return sshsig.sign(MESSAGE, NAMESPACE, parse_public_blob(blob), sign)


def test_a_signature_from_a_security_token_is_verified_as_ssh_keygen_does(tmp_path: Path) -> None:
    signature = token_signature(Ed25519PrivateKey.generate())

    parse_armored(signature.armored()).verify(MESSAGE, NAMESPACE)

    assert is_accepted_by_keygen(tmp_path, signature.key, signature.armored(), MESSAGE)
    with pytest.raises(BadSignatureError):
        signature.verify(b"other", NAMESPACE)


def test_a_signature_is_for_one_namespace(key_files: dict[str, Path]) -> None:
    signature = signed(key_files["ed25519"], namespace="file")

    with pytest.raises(BadSignatureError, match="made for 'file'"):
        signature.verify(MESSAGE, NAMESPACE)


def test_sha1_is_refused(key_files: dict[str, Path]) -> None:
    """RFC 8332: `ssh-rsa` as an algorithm is SHA-1, which can be forged."""
    signature = signed(key_files["rsa"])
    raw = signature.blob.partition(b"rsa-sha2-512")[2]
    old = sshsig.Signature(signature.key, NAMESPACE, "sha512", wire_string("ssh-rsa") + raw)

    with pytest.raises(BadSignatureError, match="ssh-rsa is not accepted"):
        old.verify(MESSAGE, NAMESPACE)


def test_a_signature_of_another_kind_than_its_key_is_refused(key_files: dict[str, Path]) -> None:
    mixed = sshsig.Signature(
        signed(key_files["ed25519"]).key, NAMESPACE, "sha512", signed(key_files["ecdsa256"]).blob
    )

    with pytest.raises(BadSignatureError, match="by a key of kind"):
        mixed.verify(MESSAGE, NAMESPACE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_of_a_signature_is_noticed(
    kind: str, key_files: dict[str, Path]
) -> None:
    """None of them is a traceback either. The key's own bytes included."""
    good = signed(key_files[kind])
    packed = base64.b64decode(b"".join(good.armored().split(b"\n")[1:-2]))
    step = 1 if kind == "ed25519" else 7
    for place in range(0, len(packed), step):
        bad = bytearray(packed)
        bad[place] ^= 0x20
        lines = base64.b64encode(bytes(bad))
        armored = b"-----BEGIN SSH SIGNATURE-----\n" + lines + b"\n-----END SSH SIGNATURE-----\n"
        with pytest.raises(BadSignatureError):
            parse_armored(armored).verify(MESSAGE, NAMESPACE)


@given(st.binary(max_size=200))
def test_anything_else_is_no_signature_and_no_key(payload: bytes) -> None:
    for parse in (
        parse_armored,
        parse_public_blob,
        parse_public_file,
        public_of_private,
        load_private,
        lambda text: parse_public_line(text.decode("latin-1")),
        lambda text: parse_armored(
            b"-----BEGIN SSH SIGNATURE-----\n"
            + base64.b64encode(b"SSHSIG\0\0\0\1" + text)
            + b"\n-----END SSH SIGNATURE-----"
        ),
        lambda text: load_private(
            b"-----BEGIN OPENSSH PRIVATE KEY-----\n"
            + base64.b64encode(b"openssh-key-v1\0" + text)
            + b"\n-----END OPENSSH PRIVATE KEY-----"
        ),
    ):
        with pytest.raises(KaifsError):
            parse(payload)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ssh-ed25519", "kind and base64"),
        ("ssh-ed25519 !!!!", "not base64"),
        ("ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOVvBDV5IRB7uZsbX5wrxKuY+ukG9r3hm4VgQM7VGUm6", "another"),
        ("ssh-dss AAAAB3NzaC1kc3M=", "ssh-dss: keys of this kind"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAAA==", "not 32 bytes"),
        (
            "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29t",
            "certificates are not used",
        ),
    ],
)
def test_what_is_no_key_is_told_why(text: str, said: str) -> None:
    with pytest.raises(SigningKeyError, match=said):
        parse_public_file(text.encode())


def test_a_short_rsa_key_is_refused(tmp_path: Path) -> None:
    path = make_key(tmp_path / "short", "rsa", "-b", "1024")

    with pytest.raises(SigningKeyError, match="1024 bits; at least 2048"):
        parse_public_file(path.with_suffix(".pub").read_bytes())


def test_a_file_with_two_keys_is_none(key_files: dict[str, Path]) -> None:
    line = key_files["ed25519"].with_suffix(".pub").read_bytes()

    with pytest.raises(SigningKeyError, match="2 lines"):
        parse_public_file(line + line)


def test_a_signature_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(BadSignatureError, match="more than"):
        parse_armored(b"x" * (sshsig.ARMORED_MAX + 1))

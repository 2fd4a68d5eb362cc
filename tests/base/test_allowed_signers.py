"""Who is trusted: files as ssh-keygen reads them."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaifs.base.allowed_signers import (
    FILE_MAX,
    Signer,
    check_principals,
    format_moment,
    matches,
    parse_moment,
    parse_revoked,
    parse_signer,
    parse_signers,
)
from kaifs.base.errors import ArgumentValueError, SignersFileError
from kaifs.base.ssh_keys import load_private, parse_public_line
from kaifs.base.sshsig import sign

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOVvBDV5IRB7uZsbX5wrxKuY+ukG9r3hm4VgQM7VGUm6"
ECDSA = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIgtXVcKY2NP"
    "aRbQMj4wVDaTZ9ZBqVtxJWpFIyNFrq3C8oZ3zqGgTAMlOX9gdzTmPvv6lMfMoGOjcLxSgpLfbPk="
)


def test_a_line_says_who_what_for_and_when() -> None:
    text = (
        'a@x,*@y cert-authority,namespaces="git,kaifs-*",valid-after="20260101Z",'
        f'valid-before="20261231235959Z" {KEY} some comment'
    )

    signer = parse_signer(text, 3)

    assert signer == Signer(
        principals="a@x,*@y",
        key=parse_public_line(KEY),
        namespaces="git,kaifs-*",
        valid_after_s=1767225600,
        valid_before_s=1798761599,
        is_authority=True,
        line=3,
    )
    assert signer.key.comment == "some comment"
    assert parse_signer(signer.text, 3) == signer


def test_options_and_spaces_are_as_ssh_keygen_takes_them() -> None:
    plain = Signer("who", parse_public_line(KEY))

    assert parse_signer(f"who {KEY}") == plain
    assert parse_signer(f"who\t  {KEY}  comment") == plain
    assert parse_signer(f'"who" {KEY}') == plain
    assert parse_signer(f'who NAMESPACES="a b" {KEY}').namespaces == "a b"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("who", "no principals and key"),
        (f"{KEY}", "not base64|not a public key"),
        ("who ssh-ed25519 AAAA", "not a public key"),
        (f'who unknown="x" {KEY}', "unknown option unknown"),
        (f"who namespaces {KEY}", "namespaces needs a value"),
        (f'who cert-authority="x" {KEY}', "cert-authority takes no value"),
        (f'who namespaces="a",namespaces="b" {KEY}', "namespaces is there twice"),
        (f'who valid-before="soon" {KEY}', "'soon': not a time"),
        (f'who valid-before="20260231" {KEY}', "not a time"),
        (f'who valid-after="2027",valid-before="2026" {KEY}', "not a time"),
        (f'who valid-after="20270101",valid-before="20260101" {KEY}', "not after valid-after"),
        (f'who namespaces="a {KEY}', "not a public key"),
        ('"who', "no principals and key"),
        ("who ssh-dss AAAAB3NzaC1kc3M=", "ssh-dss: keys of this kind"),
        ("a \x1b[31m", "not printable"),
    ],
)
def test_a_line_that_makes_no_sense_is_told_with_its_number(line: str, said: str) -> None:
    payload = f"# a comment\n\nwho {KEY}\n{line}\nwho {KEY}\n".encode()

    with pytest.raises(SignersFileError, match=rf"allowed_signers, line 4: .*({said})"):
        parse_signers(payload, "allowed_signers")


def test_binary_and_huge_files_are_refused() -> None:
    with pytest.raises(SignersFileError, match="line 2: not UTF-8"):
        parse_signers(f"who {KEY}\n".encode() + b"\xff\xfe\n", "allowed_signers")
    with pytest.raises(SignersFileError, match="line 1: not printable"):
        parse_signers(b"\0" * 100, "allowed_signers")
    with pytest.raises(SignersFileError, match="more than"):
        parse_signers(b"#" * (FILE_MAX + 1), "allowed_signers")


@given(st.binary(max_size=100))
def test_any_bytes_are_a_file_or_a_failure(payload: bytes) -> None:
    for parse in (parse_signers, parse_revoked):
        try:
            parse(payload, "file")
        except SignersFileError:
            continue


def test_revoked_keys_are_keys_or_fingerprints() -> None:
    key = parse_public_line(KEY)
    other = "SHA256:" + "A" * 43

    found = parse_revoked(f"# gone\n{KEY} a comment\n\n{other}\n".encode(), "revoked_keys")

    assert found == {key.fingerprint, other}
    with pytest.raises(SignersFileError, match="line 2"):
        parse_revoked(f"{KEY}\nnonsense\n".encode(), "revoked_keys")
    with pytest.raises(SignersFileError, match="binary revocation list"):
        parse_revoked(b"SSHKRL\n\0" + bytes(40), "revoked_keys")


@pytest.mark.parametrize(
    ("text", "patterns", "fits"),
    [
        ("kaifs-record", "kaifs-record", True),
        ("kaifs-record", "git,kaifs-record", True),
        ("kaifs-record", "kaifs-*", True),
        ("kaifs-record", "kaifs?record", True),
        ("kaifs-record", "*,!kaifs-record", False),
        ("kaifs-record", "!git", False),
        ("kaifs-record", "kaifs", False),
        ("kaifs-record", "kaifs.record", False),
        ("kaifs-record", "", False),
        ("a[b]", "a[b]", True),
    ],
)
def test_patterns(text: str, patterns: str, fits: bool) -> None:
    assert matches(text, patterns) is fits


def test_times() -> None:
    assert parse_moment("20260102Z") == 1767312000
    assert parse_moment("202601020304Z") == 1767312000 + 3 * 3600 + 4 * 60
    assert parse_moment("20260102030405Z") == 1767312000 + 3 * 3600 + 4 * 60 + 5
    assert parse_moment("2026-01-02T03:04:05Z") == parse_moment("20260102030405Z")
    assert parse_moment("2026-01-02T03:04:05+01:00") == parse_moment("20260102020405Z")
    assert format_moment(1767312000) == "20260102000000Z"
    for text in ("", "soon", "2026", "20261301Z", "19691231Z", "0001-01-01", "99991231235960Z"):
        with pytest.raises(ArgumentValueError):
            parse_moment(text)


def test_a_moment_without_a_zone_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: ssh-keygen(1), `-V`: "in the system time zone"."""
    monkeypatch.setenv("TZ", "UTC-2")
    import time

    time.tzset()
    try:
        assert parse_moment("202601020304") == parse_moment("202601020104Z")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_last_second_counts() -> None:
    signer = Signer("who", parse_public_line(KEY), valid_after_s=10, valid_before_s=20)

    valid = [second for second in (9, 10, 20, 21) if signer.is_valid_at(second)]

    assert valid == [10, 20]


def test_principals_that_would_break_the_line_are_refused() -> None:
    check_principals("me@example.com,*@example.com")
    for text in ("", "a b", 'a"b', "#a", "a,,b", "a\nb", "a\x1b"):
        with pytest.raises(ArgumentValueError):
            check_principals(text)


@pytest.mark.parametrize(
    ("options", "is_accepted"),
    [
        ("", True),
        ('namespaces="kaifs-record"', True),
        ('namespaces="kaifs-*,!kaifs-x"', True),
        ('namespaces="git"', False),
        ('valid-before="20260101Z"', True),
        ('valid-before="20251231Z"', False),
        ('valid-after="20260101000000Z"', True),
        ('valid-after="20260101000001Z"', False),
        ("cert-authority", False),
    ],
)
def test_a_line_means_what_it_means_to_ssh_keygen(
    options: str,
    is_accepted: bool,
    tmp_path: Path,
) -> None:
    key_file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key_file], check=True)
    private = load_private(key_file.read_bytes())
    line = " ".join(word for word in ("who", options, private.public.line) if word)
    allowed, signature = tmp_path / "allowed", tmp_path / "signature"
    allowed.write_text(line + "\n")
    made = sign(b"message", "kaifs-record", private.public, private.sign)
    signature.write_bytes(made.armored())
    command: list[str | Path] = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        allowed,
        "-I",
        "who",
        "-n",
        "kaifs-record",
    ]
    command += ["-s", signature, "-O", "verify-time=20260101000000Z"]

    done = subprocess.run(command, input=b"message", capture_output=True, check=False)

    signer = parse_signer(line)
    at = parse_moment("20260101000000Z")
    ours = signer.is_for("kaifs-record") and signer.is_valid_at(at) and not signer.is_authority
    assert (done.returncode == 0) is is_accepted
    assert ours is is_accepted

"""Trusted signers and revoked keys, in the text formats of ssh-keygen.

A line of trusted signers is `PRINCIPALS [OPTIONS] KIND BASE64 [COMMENT]`: patterns
of names, what holds for the key, the key. Source: ssh-keygen(1), ALLOWED SIGNERS.
Revoked keys are public keys, one a line; a fingerprint is understood as well,
though ssh-keygen itself does not take one.

A line that makes no sense spoils the whole file: who is trusted must never be a
matter of what was skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from kaifs.base.errors import ArgumentValueError, SignersFileError, SigningKeyError
from kaifs.base.ssh_keys import PublicKey, parse_public_line

FILE_MAX: Final = 1 << 20
"""Most bytes of a file: some 8,000 keys."""

_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_NAMES: Final = re.compile(r'[^\s"#,]+(?:,[^\s"#,]+)*')
"""Patterns with commas between, as this module writes them."""
_QUOTED_NAMES: Final = re.compile(r'"([^"]+)"(?=\s)|([^\s"]+)(?=\s)')
_OPTION: Final = re.compile(r'([A-Za-z-]+)(?:="((?:[^"\\]|\\.)*)")?(,|[ \t]+)')
_MOMENT: Final = re.compile(r"\d{8}(?:\d{4}(?:\d{2})?)?")
_MOMENT_MAX: Final = 253402300799
"""The last second of the year 9999."""
_KRL_MAGIC: Final = b"SSHKRL\n\0"


@dataclass(frozen=True, slots=True)
class Signer:
    """One line: a key, and in whose name, for what and when it signs."""

    principals: str
    """Patterns with commas between."""
    key: PublicKey
    namespaces: str | None = None
    """Patterns with commas between; None: any."""
    valid_after_s: int | None = None
    """Seconds since 1970; the key counts from then on."""
    valid_before_s: int | None = None
    """Seconds since 1970; the key counts up to then, that second included."""
    is_authority: bool = False
    """It stands for certificates that it has signed, not for itself."""
    line: int = 0
    """Its number in the file, from 1; 0 if it is in none."""

    def is_for(self, namespace: str) -> bool:
        """Whether the key may sign for *namespace*."""
        return self.namespaces is None or matches(namespace, self.namespaces)

    def is_valid_at(self, second: int) -> bool:
        """Whether the key counts at a time, seconds since 1970, as ssh-keygen has it."""
        return (self.valid_after_s is None or second >= self.valid_after_s) and (
            self.valid_before_s is None or second <= self.valid_before_s
        )

    @property
    def text(self) -> str:
        """The line, without its end."""
        options = ["cert-authority"] if self.is_authority else []
        if self.namespaces is not None:
            options.append(f'namespaces="{self.namespaces}"')
        if self.valid_after_s is not None:
            options.append(f'valid-after="{format_moment(self.valid_after_s)}"')
        if self.valid_before_s is not None:
            options.append(f'valid-before="{format_moment(self.valid_before_s)}"')
        words = (self.principals, ",".join(options), self.key.line)
        return " ".join(word for word in words if word)


def parse_signer(text: str, line: int = 0) -> Signer:
    """Return what a line of a file of trusted signers says.

    Raises:
        SigningKeyError: it makes no sense.
    """
    names = _QUOTED_NAMES.match(text)
    if names is None:
        raise SigningKeyError("no principals and key")
    rest = text[names.end() :].lstrip(" \t")
    options: dict[str, str | None] = {}
    # What has a key's name cannot be an option: those have no digits.
    while (option := _OPTION.match(rest)) and not rest.startswith(("ssh-", "ecdsa-", "sk-")):
        name = option[1].lower()
        if name in options:
            raise SigningKeyError(f"{name} is there twice")
        options[name] = option[2]
        rest = rest[option.end() :]
        if option[3] != ",":
            break
    return _signer(names[1] or names[2], options, parse_public_line(rest), line)


def _signer(principals: str, options: dict[str, str | None], key: PublicKey, line: int) -> Signer:
    for name, value in options.items():
        if name not in ("cert-authority", "namespaces", "valid-after", "valid-before"):
            raise SigningKeyError(f"unknown option {name}")
        if (value is None) != (name == "cert-authority"):
            raise SigningKeyError(f"{name} {'needs a' if value is None else 'takes no'} value")
    after, before = options.get("valid-after"), options.get("valid-before")
    try:
        after_s = None if after is None else parse_moment(after)
        before_s = None if before is None else parse_moment(before)
    except ArgumentValueError as error:
        raise SigningKeyError(error.subject) from error
    if after_s is not None and before_s is not None and before_s <= after_s:
        raise SigningKeyError("valid-before is not after valid-after")
    return Signer(
        principals=principals,
        key=key,
        namespaces=options.get("namespaces"),
        valid_after_s=after_s,
        valid_before_s=before_s,
        is_authority="cert-authority" in options,
        line=line,
    )


# By content, so that checking 10,000 versions reads the same file 10,000 times and parses it once.
@lru_cache(maxsize=4)
def parse_signers(payload: bytes, name: str) -> tuple[Signer, ...]:
    """Return the lines of a file of trusted signers; *name* is how a failure names it.

    Raises:
        SignersFileError: a line makes no sense; it is told by its number.
    """
    signers = []
    for number, text in _lines(payload, name):
        try:
            signers.append(parse_signer(text, number))
        except SigningKeyError as error:
            raise SignersFileError(f"{name}, line {number}: {error.subject}") from error
    return tuple(signers)


@lru_cache(maxsize=4)
def parse_revoked(payload: bytes, name: str) -> frozenset[str]:
    """Return the fingerprints of revoked keys; *name* is how a failure names the file.

    Raises:
        SignersFileError: a line makes no sense; it is told by its number.
    """
    if payload.startswith(_KRL_MAGIC):
        raise SignersFileError(f"{name}: a binary revocation list; list the keys, one a line")
    revoked = set()
    for number, text in _lines(payload, name):
        if _FINGERPRINT.fullmatch(text.split()[0]):
            revoked.add(text.split()[0])
            continue
        try:
            revoked.add(parse_public_line(text).fingerprint)
        except SigningKeyError as error:
            raise SignersFileError(f"{name}, line {number}: {error.subject}") from error
    return frozenset(revoked)


def _lines(payload: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that say something, with their numbers."""
    if len(payload) > FILE_MAX:
        raise SignersFileError(f"{name}: more than {FILE_MAX} bytes")
    for number, raw in enumerate(payload.split(b"\n"), 1):
        try:
            text = raw.decode().strip(" \t\r")
        except UnicodeDecodeError as error:
            raise SignersFileError(f"{name}, line {number}: not UTF-8") from error
        if not text.replace("\t", " ").isprintable():
            raise SignersFileError(f"{name}, line {number}: not printable")
        if text and not text.startswith("#"):
            yield number, text


def check_principals(principals: str) -> None:
    """Check that *principals* can be written as the beginning of a line.

    Raises:
        ArgumentValueError: they cannot.
    """
    if not _NAMES.fullmatch(principals) or not principals.isprintable():
        raise ArgumentValueError(
            f"principals {principals[:80]!a}: names with commas between, without spaces"
        )


def is_fingerprint(text: str) -> bool:
    """Whether *text* is a key's SHA-256 fingerprint as ssh-keygen prints it."""
    return _FINGERPRINT.fullmatch(text) is not None


def matches(text: str, patterns: str) -> bool:
    """Whether *text* fits one of *patterns*, and none that begins with `!`.

    Source: ssh_config(5), PATTERNS.
    """
    found = False
    for pattern in patterns.split(","):
        wanted = pattern.removeprefix("!")
        expression = "".join(
            {"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in wanted
        )
        if re.fullmatch(expression, text):
            if wanted != pattern:
                return False
            found = True
    return found


def parse_moment(text: str) -> int:
    """Return a time in seconds since 1970.

    `YYYYMMDD[HHMM[SS]]` as in ssh-keygen(1), or ISO 8601; with a `Z` it is UTC, without
    any zone it is this machine's local time.

    Raises:
        ArgumentValueError: it is none.
    """
    digits = text.removesuffix("Z")
    try:
        if _MOMENT.fullmatch(digits):
            moment = datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S")  # noqa: DTZ007 - local time is what the format says
            if digits != text:
                moment = moment.replace(tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(text)
        second = int(moment.timestamp())
    except (ValueError, OverflowError):
        second = -1
    if not 0 <= second <= _MOMENT_MAX:
        raise ArgumentValueError(
            f"{text[:80]!a}: not a time such as 20261231 or 2026-12-31T10:00:00Z"
        )
    return second


def format_moment(second: int) -> str:
    """Return a time as a line of trusted signers spells it, in UTC: `20261122201503Z`."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y%m%d%H%M%SZ")

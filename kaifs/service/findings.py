"""What checks of a version find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

Check = Literal["signature", "checksum", "dependency", "permission", "lineage", "reproduction"]
"""Source: specification, VersionSecurityManager; lineage and reproduction are ours."""


class ValidationResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The specification's ValidationResult."""

    valid: bool
    errors: tuple[str, ...] = ()
    """A line each."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or not as it should be."""

    check: Check
    """Who found it."""
    text: str
    """What is wrong, with the path or the field, in one line without control characters."""
    is_damage: bool = False
    """Data, record or signature are not what they were: the version goes into quarantine."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one check, or several together, found of one version."""

    errors: tuple[Finding, ...] = ()
    """With one of these the version is invalid."""
    warnings: tuple[Finding, ...] = ()

    @property
    def is_valid(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def has_damage(self) -> bool:
        """Whether the version is to be quarantined."""
        return any(finding.is_damage for finding in self.errors)


def join_findings(parts: Iterable[Findings]) -> Findings:
    """Return what all of *parts* found, in their order."""
    found = list(parts)
    return Findings(
        errors=tuple(finding for part in found for finding in part.errors),
        warnings=tuple(finding for part in found for finding in part.warnings),
    )

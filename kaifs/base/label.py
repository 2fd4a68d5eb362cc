"""Labels of versions: exact Semantic Versioning 2.0.0, nothing looser.

A label is what a user types after `@` and what a folder below `@versions/` is
called, so whatever is not a valid semantic version, or would not fit a file
name, is refused before anything is done.
"""

from functools import lru_cache, total_ordering
from typing import Final, Literal

from kaifs.base.errors import BadLabelError

LABEL_MAX: Final = 240
"""Bytes in a label: a name of at most 255 bytes must hold `LABEL.json.sig`."""

Bump = Literal["major", "minor", "patch"]


@total_ordering
class Label:
    """One semantic version. Ordered by semver.org's precedence.

    Two labels that differ only in build metadata have the same precedence;
    they are still different labels (`==` compares the text), and `<` orders
    them by their text so that sorting is stable.
    """

    __slots__ = ("_info", "_order", "text")

    def __init__(self, text: str) -> None:
        """Parse *text*.

        Raises:
            BadLabelError: *text* is no exact semantic version or is too long.
        """
        # semver costs 30 ms to import; most verbs of a mount never parse a label.
        import semver

        if len(text) > LABEL_MAX or not text.isascii():
            raise BadLabelError(text, f"longer than {LABEL_MAX} bytes or not ASCII")
        try:
            self._info = semver.Version.parse(text)
        except (ValueError, TypeError) as error:
            raise BadLabelError(text, "not MAJOR.MINOR.PATCH[-PRERELEASE][+BUILD]") from error
        self.text = text
        self._order = _order(self._info.prerelease)

    @property
    def order(self) -> tuple[object, ...]:
        """What sorts labels by precedence, then by text: several times as fast as `<`."""
        info = self._info
        return (info.major, info.minor, info.patch, self._order, self.text)

    @property
    def core(self) -> str:
        """The label without its build metadata: what must be unique in an agent."""
        return self.text.partition("+")[0]

    @property
    def is_prerelease(self) -> bool:
        """Whether a pre-release part is there."""
        return self._info.prerelease is not None

    def bump(self, part: Bump) -> "Label":
        """Return the next label: *part* grows by one, pre-release and build are dropped."""
        info = self._info.finalize_version()
        if part == "major":
            return Label(str(info.bump_major()))
        if part == "minor":
            return Label(str(info.bump_minor()))
        return Label(str(info.bump_patch()))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Label({self.text!r})"

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Label) and self.text == other.text

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Label):
            return NotImplemented
        return self.order < other.order


def _order(prerelease: str | None) -> tuple[tuple[int, int, str], ...]:
    """Return what orders pre-releases. Source: Semantic Versioning 2.0.0, section 11."""
    if prerelease is None:
        # After every pre-release.
        return ((2, 0, ""),)
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in prerelease.split(".")
    )


@lru_cache(maxsize=16384)
def parse_label(text: str) -> Label:
    """Return the label that *text* spells, parsing each text once.

    Raises:
        BadLabelError: as `Label`.
    """
    return Label(text)

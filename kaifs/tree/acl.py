"""POSIX access control lists: how a mode and a list stay in step.

The kernel decides by them who may do what. What it leaves to the file system
is here: a list that is set changes the mode's permission bits, a mode that is
set changes the list, and a directory's default list is inherited. Sources:
acl(5), and for the encoding the kernel's include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from kaifs.base.errors import InvalidOperationError

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
"""Tag, permission bits, user or group id."""

_OWNER: Final = 0x01
_USER: Final = 0x02
_GROUP: Final = 0x04
_NAMED_GROUP: Final = 0x08
_MASK: Final = 0x10
_OTHER: Final = 0x20
_NO_ID: Final = 0xFFFFFFFF
_BITS: Final = 0o7


@dataclass(frozen=True, slots=True)
class Acl:
    """One list: entries of tag, permission bits and id, in the order of the encoding."""

    entries: tuple[tuple[int, int, int], ...]

    @classmethod
    def decode(cls, value: bytes) -> Acl:
        """Return the list in an extended attribute's *value*.

        Raises:
            InvalidOperationError: it is none.
        """
        body = value[len(_VERSION) :]
        if not value.startswith(_VERSION) or len(body) % _ENTRY.size:
            raise InvalidOperationError("no access control list")
        acl = cls(tuple(_ENTRY.iter_unpack(body)))
        acl._check()
        return acl

    def _check(self) -> None:
        tags = [tag for tag, _, _ in self.entries]
        known = (_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHER)
        needs_mask = _USER in tags or _NAMED_GROUP in tags
        if (
            any(tag not in known or bits > _BITS for tag, bits, _ in self.entries)
            or any(tags.count(tag) != 1 for tag in (_OWNER, _GROUP, _OTHER))
            or tags.count(_MASK) > 1
            or (needs_mask and _MASK not in tags)
        ):
            raise InvalidOperationError("an access control list that makes no sense")

    def encode(self) -> bytes:
        """Return the list as an extended attribute's value."""
        return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in self.entries)

    @property
    def permissions(self) -> int:
        """The nine permission bits of a mode that this list shows itself as."""
        return (
            self._bits_of(_OWNER) << 6 | self._bits_of(self._group_tag) << 3 | self._bits_of(_OTHER)
        )

    @property
    def is_minimal(self) -> bool:
        """Whether a mode says all that the list says, so that it need not be kept."""
        return len(self.entries) == 3

    @property
    def _group_tag(self) -> int:
        """What the group bits of a mode stand for: the mask if there is one."""
        return _MASK if any(tag == _MASK for tag, _, _ in self.entries) else _GROUP

    def _bits_of(self, wanted: int) -> int:
        return next(bits for tag, bits, _ in self.entries if tag == wanted)

    def with_mode(self, mode: int) -> Acl:
        """Return the list after chmod(2) to *mode*."""
        bits = {_OWNER: mode >> 6 & _BITS, self._group_tag: mode >> 3 & _BITS, _OTHER: mode & _BITS}
        return Acl(tuple((tag, bits.get(tag, old), id_) for tag, old, id_ in self.entries))

    def inherited(self, mode: int) -> Acl:
        """Return the list of what is made with *mode* where this is the default list."""
        return self.with_mode(mode & self.permissions)


def minimal(mode: int) -> Acl:
    """Return the list that says what the permission bits of *mode* say."""
    return Acl(
        (
            (_OWNER, mode >> 6 & _BITS, _NO_ID),
            (_GROUP, mode >> 3 & _BITS, _NO_ID),
            (_OTHER, mode & _BITS, _NO_ID),
        )
    )

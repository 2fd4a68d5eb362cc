"""Whose an imported tree's files become."""

import os
import stat
from typing import Final

import msgspec

from kaifs.base.errors import AccessDeniedError
from kaifs.service.context import Caller
from kaifs.service.steps import Entry

_ROOT_S_ATTRIBUTES: Final = (b"security.", b"trusted.")
"""Extended attributes that only root sets. Source: xattr(7)."""


def as_made_by(caller: Caller, entry: Entry) -> Entry:
    """Return *entry* as *caller* could have made it on the mount, where the kernel checks it.

    For callers who do not own the store: they bring in no file of somebody else's, no
    device and no capability. What a client says of a tree is what anybody can send.

    Raises:
        AccessDeniedError: it is a device node.
    """
    kind, mode = stat.S_IFMT(entry.mode), entry.mode
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        path = os.fsdecode(entry.path)
        raise AccessDeniedError(f"{path}: only the store's owner imports device nodes")
    gid = entry.gid if entry.gid in (caller.gid, *caller.groups) else caller.gid
    if entry.uid != caller.uid:
        mode &= ~stat.S_ISUID
    if gid != entry.gid and kind != stat.S_IFDIR:
        mode &= ~stat.S_ISGID
    xattrs = tuple(pair for pair in entry.xattrs if not pair[0].startswith(_ROOT_S_ATTRIBUTES))
    return msgspec.structs.replace(entry, mode=mode, uid=caller.uid, gid=gid, xattrs=xattrs)

"""The running kernel as an older one: without what came after some minor version of the protocol.

A server may agree on less than the kernel offers, and the kernel keeps to it. What it sends
nevertheless is answered as by a server that does not know it, what it is told is refused as an
old kernel does, and what is in its agreement is left out. Source: the history in
include/uapi/linux/fuse.h, and `fuse_notify` in fs/fuse/dev.c: -EINVAL.
"""

import errno
import os
from typing import Any, Final

from kaifs.fuse import kernel_requests, kernel_transport, protocol
from kaifs.fuse.kernel_requests import Requests
from kaifs.fuse.kernel_transport import KernelConnection
from kaifs.fuse.protocol import Init, Notify, Opcode

RESEND_MINOR: Final = 40
"""Linux 6.9. Since when a server can be replaced."""
_OPCODES: Final = {
    Opcode.SYNCFS: 34,
    Opcode.TMPFILE: 37,
    Opcode.STATX: 39,
    Opcode.COPY_FILE_RANGE_64: 45,
}
_FLAGS: Final = {
    Init.HANDLE_KILLPRIV_V2: 33,
    Init.SETXATTR_EXT: 33,
    Init.INIT_EXT: 36,
    Init.HAS_RESEND: RESEND_MINOR,
    Init.ALLOW_IDMAP: 41,
}
_NOTIFICATIONS: Final = {Notify.RESEND: RESEND_MINOR, Notify.INC_EPOCH: 44}


def pretend(minor: int) -> None:
    """Serve every connection of this process as if the kernel spoke 7.*minor*."""
    protocol.MINOR = minor  # type: ignore[misc]
    unknown = {opcode for opcode, since in _OPCODES.items() if since > minor}
    missing = sum(flag for flag, since in _FLAGS.items() if since > minor)
    refused = {code for code, since in _NOTIFICATIONS.items() if since > minor}
    wanted, notify, make = Requests._wanted, KernelConnection._notify, Requests.__init__

    def initialise(self: Requests, *arguments: Any) -> None:
        make(self, *arguments)
        for opcode in unknown:
            del self.table[opcode]

    def refuse(self: KernelConnection, code: int, body: bytes) -> None:
        if code in refused:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        notify(self, code, body)

    def want(self: Requests) -> Init:
        return wanted(self) & ~missing

    kernel_requests.Requests.__init__ = initialise  # type: ignore[assignment, method-assign]
    kernel_requests.Requests._wanted = want  # type: ignore[method-assign]
    kernel_transport.KernelConnection._notify = refuse  # type: ignore[method-assign]

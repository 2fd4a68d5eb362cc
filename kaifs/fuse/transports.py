"""Which transport serves a mount."""

from pathlib import Path
from typing import Literal, Protocol

import trio

from kaifs.base.types import KernelNode
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.invalidate import Notifier
from kaifs.fuse.mounting import MountOptions

Name = Literal["auto", "kernel", "pyfuse3", "none"]


class Transport(Protocol):
    """One mount, by whatever transport."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def notifier(self) -> Notifier:
        """What tells the kernel that it remembers something wrongly, once mounted."""
        ...

    def mount(self, mountpoint: Path, options: MountOptions) -> None:
        """Mount. Requests wait until `serve` runs. Raises `MountFailedError`."""
        ...

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted or `terminate` is called."""
        ...

    def terminate(self) -> None:
        """Let `serve` return; the mount stays, and answers nothing."""
        ...

    def unmount(self) -> None:
        """Detach the mount if it is there, and close the connection."""
        ...


class Nowhere:
    """No mount at all: what a daemon has that only serves sandboxes."""

    name = "none"

    def __init__(self) -> None:
        self._terminated = trio.Event()

    @property
    def notifier(self) -> Notifier:
        """There is no kernel that could remember something wrongly."""
        return self

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """Nothing to do."""

    def invalidate_inode(self, node: KernelNode) -> None:
        """Nothing to do."""

    def expire_names(self) -> None:
        """Nothing to do."""

    def mount(self, mountpoint: Path, options: MountOptions) -> None:
        """Is never called."""
        raise AssertionError("there is nothing to mount")

    async def serve(self) -> None:
        """Wait for `terminate`."""
        await self._terminated.wait()

    def terminate(self) -> None:
        """Let `serve` return."""
        self._terminated.set()

    def unmount(self) -> None:
        """Nothing to do."""


def make_transport(name: Name, handlers: Handlers) -> Transport:
    """Return the transport called *name*; `auto` is pyfuse3, which works everywhere.

    Raises:
        MountFailedError: this pyfuse3 cannot be used.
    """
    if name == "none":
        return Nowhere()
    # Each is imported only if it is used: pyfuse3 alone takes 30 ms.
    if name == "kernel":
        from kaifs.fuse.kernel_requests import features_of
        from kaifs.fuse.kernel_transport import KernelMount

        return KernelMount(handlers, features_of(handlers.namespace))
    from kaifs.fuse.pyfuse3_transport import Pyfuse3Mount

    return Pyfuse3Mount(handlers)

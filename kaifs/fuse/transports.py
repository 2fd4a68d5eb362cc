"""Which transport serves a mount."""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec
import trio

from kaifs.base.errors import MountFailedError
from kaifs.base.types import KernelNode
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.invalidate import Notifier
from kaifs.fuse.mounting import MountOptions
from kaifs.meta.records import Answer

log = logging.getLogger(__name__)

Name = Literal["auto", "kernel", "pyfuse3", "none"]

OLDEST_LINUX: Final = (5, 4)
"""Since when the kernel speaks `protocol.OLDEST_MINOR`."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What is spent for requests to be answered sooner. Kernel transport only."""

    busypoll_us: int = 0
    """How long to ask for the next request without sleeping. It keeps a core busy for as long,
    once for each pause between requests; after the second in a row that lasts longer not any more,
    until a request comes sooner again."""
    keeps_awake: bool = False
    """Keep all cores awake while requests come in a row. For root."""


NO_HURRY: Final = Pace()


class Terms(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a server must know of a connection that it takes over."""

    identity: int
    """Which connection it is for the journal."""
    minor: int
    """ABI version."""
    flags: int
    """Agreed on at INIT."""
    features: dict[str, bool]
    """Fields of `kernel_requests.Features`."""
    reason: str
    """As `Transport.reason`."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection that another process can take over."""

    fd: int
    terms: Terms


class Transport(Protocol):
    """One mount, by whatever transport."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def reason(self) -> str:
        """Why it is used, or how it is mounted; for people."""
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

    @property
    def connected(self) -> Connected | None:
        """What another process needs to go on serving; None: it cannot."""
        ...

    def terminate(self) -> None:
        """Let `serve` return; the mount stays, and answers nothing."""
        ...

    def close(self) -> None:
        """Close the connection of a mount that has gone, where the process goes on without it."""
        ...

    def unmount(self) -> None:
        """Detach the mount if it is there, and close the connection."""
        ...


class Nowhere:
    """No mount at all: what a daemon has that only serves sandboxes."""

    name = "none"
    reason = "no mount was asked for"
    connected = None

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

    def close(self) -> None:
        """Nothing to do."""

    def unmount(self) -> None:
        """Nothing to do."""


class Automatic:
    """The kernel's protocol spoken directly if this machine allows, else pyfuse3."""

    def __init__(self, handlers: Handlers, pace: Pace) -> None:
        self._handlers = handlers
        self._pace = pace
        self._chosen: Transport | None = None
        self._reason = ""

    @property
    def name(self) -> str:
        """That of the one which is used; `auto` before it is known."""
        return "auto" if self._chosen is None else self._chosen.name

    @property
    def reason(self) -> str:
        """Why it is that one."""
        return self._reason

    @property
    def notifier(self) -> Notifier:
        """Leads to the one that is used."""
        return self

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """As `Notifier`."""
        self._mounted.notifier.invalidate_entry(parent, name)

    def invalidate_inode(self, node: KernelNode) -> None:
        """As `Notifier`."""
        self._mounted.notifier.invalidate_inode(node)

    def expire_names(self) -> None:
        """As `Notifier`."""
        self._mounted.notifier.expire_names()

    @property
    def _mounted(self) -> Transport:
        assert self._chosen is not None, "mount first"
        return self._chosen

    def mount(self, mountpoint: Path, options: MountOptions) -> None:
        """Mount by the first that can.

        Raises:
            MountFailedError: none can.
        """
        trouble = _kernel_trouble()
        if not trouble:
            transport = make_transport("kernel", self._handlers, self._pace)
            try:
                transport.mount(mountpoint, options)
            except MountFailedError as error:
                trouble = str(error.subject)
            else:
                self._chosen, self._reason = transport, transport.reason
                return
        log.warning("kernel_transport_unavailable", extra={"reason": trouble})
        transport = make_transport("pyfuse3", self._handlers, self._pace)
        transport.mount(mountpoint, options)
        self._chosen, self._reason = transport, f"no kernel transport: {trouble}"

    @property
    def connected(self) -> Connected | None:
        """As `Transport`."""
        return self._mounted.connected

    async def serve(self) -> None:
        """As `Transport`."""
        await self._mounted.serve()

    def terminate(self) -> None:
        """As `Transport`."""
        self._mounted.terminate()

    def close(self) -> None:
        """As `Transport`."""
        if self._chosen is not None:
            self._chosen.close()

    def unmount(self) -> None:
        """As `Transport`."""
        if self._chosen is not None:
            self._chosen.unmount()


def _kernel_trouble() -> str:
    """Return why the running kernel's protocol cannot be spoken, empty if it can.

    Once it is mounted it is too late: who speaks an older one says so in INIT.
    """
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_LINUX:
        return f"Linux {release} speaks an older protocol"
    return ""


def resume_transport(
    handlers: Handlers,
    pace: Pace,
    mountpoint: Path,
    connected: Connected,
    answer: Answer | None,
    on_answered: Callable[[], None],
) -> Transport:
    """Return a transport that serves a mount whose server is no more.

    Args:
        handlers: What requests do.
        pace: What is spent for speed.
        mountpoint: Where the mount is.
        connected: What the server had.
        answer: What it was going to answer to the last request that changed something.
        on_answered: Called when a request has been answered.
    """
    from kaifs.fuse.kernel_requests import Features
    from kaifs.fuse.kernel_transport import KernelMount

    mount = KernelMount(handlers, Features(**connected.terms.features), pace)
    mount.resume(mountpoint, connected, answer, on_answered)
    return mount


def make_transport(name: Name, handlers: Handlers, pace: Pace = NO_HURRY) -> Transport:
    """Return the transport called *name*, to be mounted.

    Raises:
        MountFailedError: this pyfuse3 cannot be used.
    """
    # Each is imported only if it is used: pyfuse3 alone takes 30 ms.
    match name:
        case "none":
            return Nowhere()
        case "auto":
            return Automatic(handlers, pace)
        case "kernel":
            from kaifs.fuse.kernel_requests import features_of
            from kaifs.fuse.kernel_transport import KernelMount

            return KernelMount(handlers, features_of(handlers.namespace), pace)
        case "pyfuse3":
            from kaifs.fuse.pyfuse3_transport import Pyfuse3Mount

            return Pyfuse3Mount(handlers)

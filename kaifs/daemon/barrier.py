"""The barrier: what programs have written so far is in the store when it returns.

With the writeback cache an acknowledged write(2) may still be in the kernel. A
helper process calls syncfs(2) on the mount and then statvfs(3), the marker: it
queues behind the WRITEs, so it is answered after them.

The trap: the kernel lets only `max_background` WRITEs into that queue at a
time, syncfs does not wait for the others (200 dirty pages, limit 12: it returns
after 13), and the marker overtakes them. So the limit is raised through
fusectl; where it cannot be, files open for writing are flushed one by one; and
in any case a barrier that has seen as many WRITEs as the limit is repeated,
because only then can something have been held back.
"""

import json
import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from kaifs.base.errors import BarrierError
from kaifs.daemon.helper_process import HelperProcess, start_helper
from kaifs.linux.mounts import FuseConnection, MountEntry, ensure_fusectl, set_read_ahead

log = logging.getLogger(__name__)

STALL_S: Final = 30.0
"""Seconds without a single WRITE after which a barrier is given up."""
DEFAULT_LIMIT: Final = 12
"""The kernel's `max_background` unless somebody raises it."""
READ_AHEAD: Final = 1 << 20
"""Bytes that the kernel reads ahead: as many as one request can have."""
ENOUGH: Final = 1024
"""Limit from which files need not be flushed one by one."""

_RECEIVE: Final = 1 << 16


class Helper:
    """The process that touches the mount, and the conversation with it.

    Started before the store or /dev/fuse is open, and with every descriptor
    closed but its socket; the same holds for a replacement.
    """

    def __init__(self, started: HelperProcess | None = None) -> None:
        """Use the process that was *started*, or start one."""
        self._lock = trio.Lock()
        self._stuck: list[subprocess.Popen[bytes]] = []
        """Killed, but not ended: they wait for the mount until its connection is aborted."""
        self._use(started or start_helper())
        self._stream: trio.SocketStream | None = None

    def _use(self, started: HelperProcess) -> None:
        self._process, self._channel = started.process, started.channel

    @property
    def pid(self) -> int:
        """Of the process that answers now."""
        return self._process.pid

    async def ask(
        self, operation: str, *, moved: Callable[[], int] = lambda: 0, **arguments: Any
    ) -> None:
        """Have *operation* done (see `barrier_helper.answer`) and wait for it.

        Args:
            operation: Its name.
            moved: Counts what shows that things still move; while it grows,
                nothing is given up.
            arguments: What it needs.

        Raises:
            OSError: It failed.
            TimeoutError: It took too long; the helper has been replaced.
        """
        request = json.dumps({"op": operation, **arguments}).encode() + b"\n"
        async with self._lock:
            try:
                reply = await self._exchange(request, moved)
            except trio.BrokenResourceError:
                # Somebody has killed it. Every operation may be done twice.
                try:
                    reply = await self._exchange(request, moved)
                except trio.BrokenResourceError as error:
                    raise OSError(f"helper ended: {error}") from error
        if reply["errno"]:
            raise OSError(reply["errno"], reply["reason"])

    async def _exchange(self, request: bytes, moved: Callable[[], int]) -> dict[str, Any]:
        if self._stream is None:
            self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._channel))
        is_answered = False
        try:
            await self._stream.send_all(request)
            reply: dict[str, Any] = json.loads(await self._receive_line(self._stream, moved))
            is_answered = True
        finally:
            if not is_answered:
                # A late answer must not be taken for the next request's.
                self._replace()
        return reply

    def close(self) -> None:
        """End the helper."""
        self._end(self._process)
        if self._stream is not None:
            self._stream.socket.close()
        self._channel.close()

    async def _receive_line(self, stream: trio.SocketStream, moved: Callable[[], int]) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            before = moved()
            received: bytes | None = None
            with trio.move_on_after(STALL_S):
                received = bytes(await stream.receive_some(_RECEIVE))
            if received is None:
                if moved() == before:
                    raise TimeoutError(f"nothing moved for {STALL_S:.0f} seconds")
                continue
            if not received:
                raise trio.BrokenResourceError("end of conversation")
            line += received
        return line

    def _replace(self) -> None:
        log.warning("helper_replaced", extra={"pid": self._process.pid})
        self.close()
        self._use(start_helper())
        self._stream = None

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        self._stuck = [stuck for stuck in [*self._stuck, process] if stuck.poll() is None]


class Traffic(Protocol):
    """What the barrier must know of the connection's requests."""

    @property
    def background_seen(self) -> int:
        """READs and WRITEs answered so far."""
        ...

    @property
    def statfs_seen(self) -> int:
        """STATFS requests answered so far."""
        ...


@dataclass(frozen=True, slots=True)
class Mounted:
    """The mount that a barrier is for."""

    mountpoint: Path
    device: int
    """Its `st_dev`."""
    connection: FuseConnection

    def limit(self) -> int:
        """Return how many background requests the kernel lets the server see at once, now."""
        try:
            return self.connection.max_background
        except (OSError, ValueError):
            return DEFAULT_LIMIT


def prepare_mount(entry: MountEntry) -> Mounted:
    """Raise the limits of a fresh mount as far as we may, and return what a barrier needs."""
    connection = FuseConnection(entry.minor)
    try:
        if ensure_fusectl() and connection.is_available:
            connection.raise_limits()
    except OSError as error:
        log.info("limits_not_raised", extra={"error": str(error)})
    try:
        set_read_ahead(entry.minor, READ_AHEAD)
    except OSError as error:
        log.info("read_ahead_not_raised", extra={"error": str(error)})
    return Mounted(entry.mountpoint, entry.device, connection)


class Barrier:
    """The barriers of one mount. Those who wait while one runs share the next."""

    def __init__(
        self,
        helper: Helper,
        mounted: Mounted,
        traffic: Traffic,
        written_paths: Callable[[], list[bytes]],
    ) -> None:
        """Make barriers for *mounted*.

        Args:
            helper: Touches the mount.
            mounted: The mount.
            traffic: Counts its requests.
            written_paths: Returns the files open for writing, relative to the mountpoint.
        """
        self._helper = helper
        self._mounted = mounted
        self._traffic = traffic
        self._written_paths = written_paths
        self._lock = trio.Lock()
        self._begun = 0
        self._reached = 0

    async def wait(self) -> None:
        """Wait until all that was written before this call has arrived.

        Raises:
            BarrierError: It cannot be made to.
        """
        wanted = self._begun + 1
        async with self._lock:
            if self._reached < wanted:
                self._begun += 1
                number = self._begun
                while await self._was_limited():
                    pass
                self._reached = number

    async def _was_limited(self) -> bool:
        """Flush once and return whether something may have been held back."""
        traffic, mounted = self._traffic, self._mounted
        writes, markers = traffic.background_seen, traffic.statfs_seen
        limit = mounted.limit()
        paths = self._written_paths() if limit < ENOUGH else []
        try:
            await self._helper.ask(
                "flush",
                moved=lambda: traffic.background_seen,
                mountpoint=str(mounted.mountpoint),
                device=mounted.device,
                paths=[os.fsdecode(path) for path in paths],
            )
        except OSError as error:
            log.warning("barrier_failed", extra={"error": str(error)})
            raise BarrierError(f"{mounted.mountpoint}: {error.strerror or error}") from error
        seen = traffic.background_seen - writes
        log.info("flushed", extra={"requests": seen, "limit": limit, "files": len(paths)})
        if traffic.statfs_seen == markers:
            raise BarrierError(f"{mounted.mountpoint}: the marker did not arrive")
        return seen >= min(limit, mounted.limit())

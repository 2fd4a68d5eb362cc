"""A server's side of the handover: what it gives its supervisor, and what it hears from it."""

import logging
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio

from kaifs.control.ongoing import Ongoing
from kaifs.daemon.handover import PROTOCOL, Kept, Line, Message
from kaifs.fuse.transports import Terms
from kaifs.linux.files import memory_file
from kaifs.linux.processes import ProcessId, identify

log = logging.getLogger(__name__)

PREPARE_MAX_S: Final = 90.0
"""Seconds to wait for a successor to be loaded; the supervisor gives it up sooner."""
DROP_MAX_S: Final = 5.0


class Facts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a successor must know of a mount beside descriptors."""

    terms: Terms
    minor: int
    """Of the mount's device number."""
    mountpoint: str
    options: str
    """The values of `-o`."""


class Succession:
    """What is to become of the mounts when this process ends."""

    def __init__(self, line: Line | None, kept: Kept | None) -> None:
        """Use *line* to the supervisor, which has *kept* from a former server."""
        self._line = line
        self._kept = set[str]() if kept is None else set(kept.connections)
        self.supervisor: ProcessId | None = None
        """None: if this process dies, nothing replaces it."""
        if line is not None and kept is not None:
            self.supervisor = identify(os.getppid())
        self._prepared: list[Message] = []
        self._heard = trio.Condition()

    @property
    def is_kept(self) -> bool:
        """Whether the supervisor has what a successor needs."""
        return bool(self._kept) and self._line is not None

    def keeps(self, name: str) -> bool:
        """Return whether the connection *name* outlives this process."""
        return name in self._kept and self._line is not None

    def keep(self, lock: int, listener: int) -> None:
        """Give the supervisor what any successor needs. Before the first `hold`."""
        if self._tell("keep", lock, listener):
            self.supervisor = identify(os.getppid())

    def hold(self, name: str, device: int, unsettled: int, facts: Mapping[str, Any]) -> None:
        """Give the supervisor a connection: from here on its mount survives."""
        if self._tell("hold", device, unsettled, name=name, facts=dict(facts)):
            self._kept.add(name)

    def stay_alone(self) -> None:
        """Tell the supervisor that nothing can be kept."""
        self._tell("alone")

    def served(self) -> None:
        """Tell the supervisor that requests are answered."""
        self._tell("served")

    def go_on(self, ongoing: Ongoing) -> bool:
        """Have a successor go on with a conversation; return whether one would.

        What is kept of one of that name so far is let go. Its descriptors stay the caller's.
        """
        return self.is_kept and self._tell(
            "go_on", *ongoing.fds, name=ongoing.name, facts=dict(ongoing.facts)
        )

    def over(self, name: str) -> None:
        """Have no successor go on with the conversation *name*."""
        self._tell("over", name=name)

    def end(self, known: bytes | None = None) -> None:
        """Tell the supervisor that this process ends on purpose.

        Args:
            known: For a successor: what the kernel knows. None: for good.
        """
        if known is None:
            self._tell("ending", again=False)
            return
        with memory_file(known) as fd:
            self._tell("ending", fd, again=True)

    async def listen(self) -> None:
        """Hear what the supervisor says; return when it is gone."""
        while self._line is not None:
            await trio.lowlevel.wait_readable(self._line.fileno())
            try:
                message = self._line.receive(is_waiting=False)
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:
                log.warning("not_understood", extra={"error": str(error)})
                message = None
            if message is None:
                self._line.close()
                self._line = self.supervisor = None
            else:
                self._prepared.append(message)
            async with self._heard:
                self._heard.notify_all()

    async def prepare(self) -> str:
        """Have a successor started; return why there is none, empty if it waits for our end."""
        message = await self._ask("replace", PREPARE_MAX_S)
        if message is None:
            return "the supervisor does not answer"
        return "" if message.op == "loaded" else str(message.fields.get("reason", message.op))

    async def drop(self, name: str) -> None:
        """Have the supervisor let the connection *name* go: its mount is to go."""
        if self.keeps(name):
            self._kept.remove(name)
            await self._ask("drop", DROP_MAX_S, name=name)

    async def _ask(self, op: str, timeout_s: float, **fields: object) -> Message | None:
        self._prepared.clear()
        if not self._tell(op, **fields):
            return None
        with trio.move_on_after(timeout_s):
            async with self._heard:
                while not self._prepared and self._line is not None:
                    await self._heard.wait()
        return self._prepared.pop() if self._prepared else None

    def _tell(self, op: str, *fds: int, **fields: object) -> bool:
        """Return whether the supervisor has been told."""
        if self._line is None:
            return False
        try:
            self._line.send(op, fds, protocol=PROTOCOL, **fields)
        except OSError as error:
            log.warning("supervisor_not_told", extra={"op": op, "error": str(error)})
            return False
        return True

"""What the daemon does about damage: it tells, and it verifies what was hit.

A read that meets damage tells it here. Each file is logged once, each view is told
to administrators once and verified, in the background: a version that is damaged is
set aside by that, and current may fall back. Nothing of it makes a request wait.
"""

import logging
import subprocess
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

import trio

from kaifs.base.clock import format_time
from kaifs.base.errors import KaifsError
from kaifs.base.types import RootId
from kaifs.meta.records import RootKind
from kaifs.service.alerting import announce, send_detached
from kaifs.service.alerts import Alert
from kaifs.service.context import Context
from kaifs.service.reference import SNAPSHOTS
from kaifs.service.steps import Commit, Exclusive, Flush, Work
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store

log = logging.getLogger(__name__)

QUEUE_MAX: Final = 64
"""Alerts, and views to be verified, that wait; what comes beyond is in the log only."""
LOGGED_MAX: Final = 10_000
"""Damaged files that are remembered as logged."""
SENDER_MAX_S: Final = 900.0
"""Seconds after which the process that sends an alert is killed, whatever its settings say."""


@dataclass(frozen=True, slots=True)
class Means:
    """What care needs of the daemon."""

    context: Callable[[], Context]
    """Of the daemon's own user."""
    barrier: Callable[[], Awaitable[None]]
    commit: Callable[[], Awaitable[None]]
    changing: trio.Lock


@dataclass(frozen=True, slots=True)
class Waiting:
    """A step of a verb that runs in the background: it goes on when this has been awaited."""

    wait: Callable[[], Awaitable[None]]


class Care:
    """The background tasks that look after damage."""

    def __init__(self, store: Store, means: Means) -> None:
        self._store = store
        self._means = means
        self._logged: set[str] = set()
        self._hit: set[RootId] = set()
        self._alerts_in, self._alerts = trio.open_memory_channel[Alert](QUEUE_MAX)
        self._roots_in, self._roots = trio.open_memory_channel[RootId](QUEUE_MAX)

    def alert(self, alert: Alert) -> None:
        """Tell administrators. Does not block and does not fail."""
        announce(alert)
        try:
            self._alerts_in.send_nowait(alert)
        except trio.WouldBlock:
            log.warning("alert_dropped", extra={"subject": alert.subject})

    def damage_met(self, root: RootId, where: str) -> None:
        """Take in that a request has met damage in the tree of *root*; *where* names the file."""
        if where not in self._logged and len(self._logged) < LOGGED_MAX:
            self._logged.add(where)
            log.error("damage_met", extra={"where": where, "code": "E102"})
        if root in self._hit:
            return
        self._hit.add(root)
        record = self._store.root(root)
        agent = self._store.agent_by_id(record.agent_id)
        self.alert(
            Alert(
                event="damaged",
                agent="" if agent is None else agent.name,
                version=record.name if record.kind is RootKind.VERSION else "",
                reason=f"a read met damage: {where}",
                time=format_time(self._store.clock.now_ns()),
                store=str(self._store.path),
            )
        )
        try:
            self._roots_in.send_nowait(root)
        except trio.WouldBlock:
            log.warning("verification_dropped", extra={"root": root})

    async def run(self) -> None:
        """Look after what comes in, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            nursery.start_soon(self._verify_all)

    async def _send(self) -> None:
        async for alert in self._alerts:
            process = send_detached(alert)
            if process is not None:
                await trio.to_thread.run_sync(_wait, process, abandon_on_cancel=True)

    async def _verify_all(self) -> None:
        async for root in self._roots:
            reference = self._reference(root)
            if reference is None:
                continue
            try:
                await self._verify(reference)
            except KaifsError as error:
                log.warning("verification_failed", extra={"of": reference, "error": str(error)})
            except Exception:
                log.exception("bug", extra={"verb": "verify"})

    def _reference(self, root_id: RootId) -> str | None:
        """Return what a user calls the view that shows a root, None if nothing does any more."""
        if not self._store.has_root(root_id):
            return None
        root = self._store.root(root_id)
        agent = self._store.agent_by_id(root.agent_id)
        if agent is None:
            return None
        match root.kind:
            case RootKind.VERSION:
                return f"{agent.name}@{root.name}"
            case RootKind.SNAPSHOT:
                return f"{agent.name}/{SNAPSHOTS}/{root.name}"
            case RootKind.HEAD if agent.head == root_id:
                return agent.name
            case _:
                return None

    async def _verify(self, reference: str) -> None:
        """Run the verb as the control socket does for a client."""
        verb = VERBS["verify"]
        await self._means.barrier()
        params = verb.params(references=(reference,), full=True)
        await run_steps(self._means, verb.run(self._means.context(), params))


async def run_steps(means: Means, steps: Generator[Any, None, object]) -> None:
    """Run a verb in the background, as the control socket does for a client.

    Beside the steps of a verb there may be `Waiting`.
    """
    is_exclusive = False
    try:
        for step in steps:
            match step:
                case Commit():
                    await means.commit()
                case Flush():
                    await means.barrier()
                case Work(run=work):
                    await trio.to_thread.run_sync(work)
                case Waiting(wait=wait):
                    await wait()
                case Exclusive() if not is_exclusive:
                    await means.changing.acquire()
                    is_exclusive = True
            await trio.lowlevel.checkpoint()
    finally:
        steps.close()
        if is_exclusive:
            means.changing.release()


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(SENDER_MAX_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.returncode:
        log.warning("alert_not_delivered", extra={"status": process.returncode})

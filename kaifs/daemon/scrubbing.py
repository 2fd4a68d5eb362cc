"""The scrub in the background: everything is read again every so many days, and nobody waits for it.

A process of its own reads the segments, and gets processor and disk only when nobody
else wants them; what needs the store is done here, in steps of about a millisecond
with nine times as long between them. How far it is, is kept in the store: a scrub
that was interrupted goes on where it was. Whatever it finds goes the way of the verb
`scrub`: healed, or verified, set aside and told.
"""

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from kaifs.base.errors import KaifsError
from kaifs.blocks.patrol import Seen
from kaifs.daemon.care import Means, Waiting, run_steps
from kaifs.service.steps import Progress
from kaifs.store.scrub import CheckMirror, Read, find_scrub
from kaifs.store.store import Store

log = logging.getLogger(__name__)

LOOK_MAX_S: Final = 3600.0
"""Seconds after which it is looked again whether a scrub is due: clocks are set."""
RETRY_S: Final = 3600.0
"""Seconds after which a scrub goes on that the disk, or somebody, has stopped."""
REST: Final = 9
"""How many times as long as a step took nothing is done after it."""
_PACKAGE_ROOT: Final = Path(__file__).parents[2]
_START: Final = "import sys; sys.path[:0] = sys.argv[1:]; import kaifs.daemon.scrub_reader as reader; reader.main()"


class Scrubbing:
    """The background task that scrubs one store."""

    def __init__(self, store: Store, means: Means, interval_ns: int) -> None:
        """Scrub *interval_ns* after the last scrub has ended; 0: never."""
        self._store = store
        self._means = means
        self._interval_ns = interval_ns

    async def run(self) -> None:
        """Scrub whenever it is due, until cancelled."""
        while self._interval_ns:
            await trio.sleep(min(self._wait_s(), LOOK_MAX_S))
            if self._wait_s():
                continue
            try:
                await self._scrub()
            except (KaifsError, OSError) as error:
                log.warning("scrub_stopped", extra={"error": str(error)})
                await trio.sleep(RETRY_S)
            except Exception:
                log.exception("bug", extra={"verb": "scrub"})
                await trio.sleep(RETRY_S)

    def _wait_s(self) -> float:
        """Return the seconds until a scrub is due, or is to go on."""
        record = find_scrub(self._store)
        if record.started_ns:
            return 0.0
        since_ns = record.finished_ns or self._store.superblock.created_ns
        return max(since_ns + self._interval_ns - self._store.clock.now_ns(), 0) / 1e9

    async def _scrub(self) -> None:
        log.info("scrub_begun", extra={"segment": find_scrub(self._store).segment})
        async with Reader.started() as reader:
            await run_steps(self._means, self._steps(reader))
        last = find_scrub(self._store).last
        log.info(
            "scrub_ended",
            extra={"read": last.read, "healed": last.healed, "damaged": last.damaged},
        )

    def _steps(self, reader: "Reader") -> Generator[Any, None, None]:
        def reading(part: Read | CheckMirror) -> Waiting:
            if isinstance(part, CheckMirror):
                return Waiting(partial(trio.to_thread.run_sync, part.run))
            return Waiting(partial(reader.read, part))

        # Not at the top: a mount is there before, and it takes long to load.
        from kaifs.service.scrub import scrub_store

        steps = scrub_store(self._means.context(), reading, resumes=True)
        begun = trio.current_time()
        try:
            for step in steps:
                if isinstance(step, Progress):
                    taken_s = trio.current_time() - begun
                    yield Waiting(partial(trio.sleep, taken_s * REST))
                else:
                    yield step
                begun = trio.current_time()
        finally:
            steps.close()


class Reader:
    """The process that reads for a scrub, and the conversation with it."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator["Reader"]:
        """Lend one that is started, and ended afterwards."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-c", _START, str(_PACKAGE_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
        )
        try:
            yield cls(process)
        finally:
            process.kill()
            # It waits for one read of the disk at most.
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    assert pipe is not None, "it was started with pipes"
                    await pipe.aclose()

    async def read(self, part: Read) -> None:
        """Have *part* read.

        Raises:
            OSError: The process has ended.
        """
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None, "it was started with pipes"
        assert answers is not None, "likewise"
        question = json.dumps([str(part.path), part.start, part.stop])
        try:
            await to.send_all(question.encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                received = bytes(await answers.receive_some())
                if not received:
                    raise OSError("the process that reads has ended")
                line += received
        except trio.BrokenResourceError as error:
            raise OSError(f"the process that reads has ended: {error}") from error
        stop, damaged, is_blind = json.loads(line)
        part.seen = Seen(stop, tuple((offset, block) for offset, block in damaged), is_blind)

"""Durability: when what the daemon has done is on the disk.

There are two ways. A **commit** makes an epoch of all that is in memory; it
happens every few seconds and before a verb answers. A **sync** writes the
journal's segments to the disk, and is what fsync(2) waits for: with the last
epoch they lead to everything that was acknowledged.

One commit and one sync at a time, their blocking parts in worker threads, so
that requests are served while the disk works. Who asks while one runs waits for
the next one, and all who wait share it: a hundred fsyncs cost two, not a hundred.
"""

import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from kaifs.base.errors import KaifsError
from kaifs.store.store import Store

log = logging.getLogger(__name__)

SWITCH_S: Final = 0.0005
"""Seconds for which a worker may keep the interpreter while a request waits. By default it is 5 ms,
and a commit of 100,000 records takes it a hundred times."""
RETRY_MAX_S: Final = 60.0
"""Seconds between two tries while the disk refuses, at most."""


class Epochs:
    """The commits of one store, on trio's thread."""

    def __init__(self, store: Store, interval_s: float) -> None:
        self._store = store
        self._interval_s = interval_s
        self._commits = _Shared(self._commit_all)
        self._syncs = _Shared(self._sync_all)

    async def commit(self) -> None:
        """Make everything that is changed now durable, as an epoch.

        Raises:
            NoSpaceError, StoreIOError: The disk refuses. Nothing is lost: it
                stays in memory and goes with the next commit.
        """
        await self._commits.run()

    async def _commit_all(self) -> None:
        if self._store.is_dirty:
            # no await between prepare_commit and the thread: the epoch is what is there now.
            commit = self._store.prepare_commit()
            try:
                # A thread cannot be given up: it writes to the store's files.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._store.write_commit, commit)
            except BaseException:
                self._store.fail_commit(commit)
                raise
            self._store.finish_commit(commit)

    async def sync(self) -> None:
        """Make everything that is changed now durable, in the journal.

        Raises:
            NoSpaceError, StoreIOError: The disk refuses. Nothing is lost: it
                stays in memory and goes with the next sync or commit.
        """
        if self._store.journal is None:
            await self._commits.run()
        else:
            await self._syncs.run()

    async def _sync_all(self) -> None:
        # As above: what was acknowledged by now is what is synced.
        self._store.flush_journal()
        sync = self._store.prepare_sync()
        is_durable = False
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._store.write_sync, sync)
            is_durable = True
        finally:
            self._store.end_sync(sync, is_durable=is_durable)

    async def run(self) -> None:
        """Commit every few seconds while something changes, until cancelled.

        A disk that refuses is asked again, less and less often.
        """
        sys.setswitchinterval(SWITCH_S)
        wait_s = self._interval_s
        while True:
            await trio.sleep(wait_s)
            try:
                await self.commit()
            except KaifsError as error:
                wait_s = min(max(wait_s * 2, 1.0), max(RETRY_MAX_S, self._interval_s))
                log.warning("commit_failed", extra={"error": str(error)})
            else:
                wait_s = self._interval_s


class _Shared:
    """Work that is done once for all who ask for it before it begins."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._lock = trio.Lock()
        self._begun = 0
        """How often it was begun: each time with everything that was there at that moment."""
        self._done = 0
        """The number of the youngest that was done without an error."""

    async def run(self) -> None:
        """Return when it has been begun after this call, and done."""
        wanted = self._begun + 1
        async with self._lock:
            # One that was begun after this call has taken our changes along.
            if self._done < wanted:
                self._begun += 1
                number = self._begun
                await self._work()
                self._done = number

"""Epochs: when what the daemon holds in memory becomes durable.

One commit at a time, its blocking part in a worker thread, so that requests
are served while the disk works. Who asks for durability while a commit runs
waits for the next one, and all who wait share it: a hundred fsyncs cost two
commits, not a hundred.
"""

import logging
from typing import Final

import trio

from kaifs.base.errors import KaifsError
from kaifs.store.store import Store

log = logging.getLogger(__name__)

RETRY_MAX_S: Final = 60.0
"""Seconds between two tries while the disk refuses, at most."""


class Epochs:
    """The commits of one store, on trio's thread."""

    def __init__(self, store: Store, interval_s: float) -> None:
        self._store = store
        self._interval_s = interval_s
        self._lock = trio.Lock()
        self._taken = 0
        """Commits begun: each took everything that was changed at that moment."""
        self._durable = 0
        """The youngest commit that is on disk."""

    async def commit(self) -> None:
        """Make everything that is changed now durable.

        Raises:
            NoSpaceError, StoreIOError: The disk refuses. Nothing is lost: it
                stays in memory and goes with the next commit.
        """
        wanted = self._taken + 1
        async with self._lock:
            # A commit that was begun after this call has taken our changes along.
            if self._durable < wanted:
                await self._commit_all()

    async def _commit_all(self) -> None:
        self._taken += 1
        number = self._taken
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
        self._durable = number

    async def run(self) -> None:
        """Commit every few seconds while something changes, until cancelled.

        A disk that refuses is asked again, less and less often.
        """
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

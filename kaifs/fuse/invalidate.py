"""Telling the kernel which names it remembers wrongly.

The kernel remembers names for ever, so what verbs change in the registry is
taken out of its cache, exactly. Telling it can block: it takes the lock of the
folder, which an unanswered request in that folder holds, and dropping an inode
writes its dirty pages back through this very server. So a thread of its own
does it, never a handler.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from kaifs.base.types import TOP_INO, KernelNode, kernel_node
from kaifs.linux.processes import NOTIFYING, set_process_name
from kaifs.store.changes import Change, HeadSwitched, VersionQuarantined
from kaifs.views.namespace import Namespace
from kaifs.views.stale import (
    StaleName,
    quarantined_roots,
    stale_names,
    switched_names,
    virtual_folders,
)

log = logging.getLogger(__name__)

LISTING_WAIT_S: Final = 0.02
"""Seconds that requests wait, at a switch, for an old listing to be dropped."""
BACKLOG_MAX: Final = 10_000
"""Invalidations in the queue beyond which none is put there for speed alone."""


class Notifier(Protocol):
    """How a transport tells the kernel. Each call may block; FileNotFoundError: not cached."""

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        """Let the kernel forget *name* in *parent*."""
        ...

    def invalidate_inode(self, node: KernelNode) -> None:
        """Let the kernel forget the attributes and the listing of *node*."""
        ...

    def expire_names(self) -> None:
        """Let the kernel look every name up again. Never blocks; only if `keeps_tops`."""
        ...


@dataclass(frozen=True, slots=True)
class _StaleNode:
    """An inode whose attributes and pages are to be forgotten."""

    node: KernelNode


@dataclass(frozen=True, slots=True)
class _Reached:
    """A mark in the queue: everything before it is done."""

    report: Callable[[], object]


class Record(Protocol):
    """Remembers, also beyond the death of this process, whether everything has been told."""

    def begin(self) -> None:
        """Count something that is to be told. For the thread that changes things."""
        ...

    def end(self) -> None:
        """Count something that has been told. For the thread that tells."""
        ...


class Invalidator:
    """One mount's invalidations, in order, by a thread of its own.

    The thread starts with the first change. Call `stop` while requests are
    still answered: an invalidation that is under way may need one.
    """

    def __init__(
        self, namespace: Namespace, notifier: Notifier, record: Record | None = None
    ) -> None:
        self._namespace = namespace
        self._notifier = notifier
        self._record = record
        self._queue: queue.SimpleQueue[StaleName | _StaleNode | _Reached | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._put_count = 0
        self._done_count = 0
        """Of what was put. Written by the thread alone."""

    def changed(self, change: Change) -> None:
        """Take in a change of the registry. Does not block.

        What a request of this mount changes, the kernel has corrected itself.
        """
        if self._namespace.acting:
            return
        if isinstance(change, HeadSwitched) and self._namespace.keeps_tops:
            self._switch(change)
            return
        for stale in stale_names(self._namespace, change):
            self._put(stale)
        if isinstance(change, VersionQuarantined):
            # What the kernel has of its files must not be read any more, by whomever.
            for node in self._namespace.known_nodes(change.root):
                self._put(_StaleNode(node))

    def _switch(self, change: HeadSwitched) -> None:
        """Let the kernel see another tree in the same folder, from one moment to the next."""
        top = _StaleNode(self._namespace.shown_node(kernel_node(change.new, TOP_INO)))
        self._begin()
        with _forgiving():
            self._notifier.expire_names()
        told = threading.Event()
        self._enqueue(top)
        self._enqueue(_Reached(told.set))
        # Names and listing change at once. But whoever reads the old listing holds its page locked
        # while it is copied, and that may need this very loop: into a mapped file of this mount.
        told.wait(LISTING_WAIT_S)
        # Again, behind replies that are under way now.
        self._put(top)

    def catch_up(self) -> None:
        """Tell the kernel whatever a server that is no more may not have told it.

        Does not block. What is in trees, only requests of the kernel have changed.
        """
        namespace = self._namespace
        self._begin()
        if namespace.keeps_tops:
            with _forgiving():
                self._notifier.expire_names()
        else:
            for stale in switched_names(namespace):
                self._put(stale)
        for folder in virtual_folders(namespace):
            self._put(_StaleNode(folder))
        for root in quarantined_roots(namespace):
            for node in namespace.known_nodes(root):
                self._put(_StaleNode(node))
        self._enqueue(_Reached(self._end))

    def withdraw(self, names: list[StaleName], nodes: list[KernelNode]) -> None:
        """Let the kernel forget *names*, each with what is below, and what *nodes* are.

        What is in use below a name stays known: it needs to be named itself. Does not block.
        """
        for name in names:
            self._put(name)
        for node in nodes:
            self._put(_StaleNode(node))

    def drop_listings(self, nodes: Sequence[KernelNode]) -> None:
        """Let the kernel ask for the listings of *nodes* again, which are not wrong. Does not block.

        Not while much else is to be told.
        """
        if self._put_count - self._done_count < BACKLOG_MAX:
            for node in nodes:
                self._put(_StaleNode(node))

    async def wait_idle(self) -> None:
        """Wait until the kernel knows of every change so far. Not from a handler."""
        if self._done_count == self._put_count:
            # Nothing to wait for; the thread would have to wake up to say so.
            await trio.lowlevel.checkpoint()
            return
        reached = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self._enqueue(_Reached(lambda: token.run_sync_soon(reached.set)))
        await reached.wait()

    def stop(self) -> None:
        """Finish what is queued, and end the thread. Blocks while the kernel does."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _begin(self) -> None:
        if self._record is not None:
            self._record.begin()

    def _end(self) -> None:
        if self._record is not None:
            self._record.end()

    def _put(self, item: StaleName | _StaleNode) -> None:
        self._begin()
        self._enqueue(item)

    def _enqueue(self, item: StaleName | _StaleNode | _Reached) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="invalidate", daemon=True)
            self._thread.start()
        self._put_count += 1
        self._queue.put(item)

    def _run(self) -> None:
        set_process_name(NOTIFYING)
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Reached):
                item.report()
            else:
                self._tell(item)
                self._end()
            self._done_count += 1

    def _tell(self, item: StaleName | _StaleNode) -> None:
        if isinstance(item, _StaleNode):
            with _forgiving():
                self._notifier.invalidate_inode(item.node)
        else:
            with _forgiving():
                self._notifier.invalidate_entry(item.parent, item.name)
            # A new name has no dentry, so it is ENOENT above, but the folder's listing is old.
            with _forgiving():
                self._notifier.invalidate_inode(item.parent)


@contextmanager
def _forgiving() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # The kernel had not remembered it.
    except OSError:
        log.exception("invalidation_failed")

"""Programs that walk through a tree and open what they find, time and again.

Under the writeback cache the kernel asks for a file's attributes anew after each close, because
it does not count blocks (fuse_flush() in fs/fuse/file.c of Linux): a GETATTR for each file that
is opened again. READDIRPLUS brings the attributes of a whole directory, but a listing that the
kernel has cached it does not ask for. So where a program asks for one file after the other
though nothing has changed, the listings of the directories that it comes to next are dropped.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from kaifs.base.errors import KaifsError
from kaifs.base.types import KernelNode
from kaifs.fuse.handlers import Handlers
from kaifs.views.attributes import Attributes
from kaifs.views.namespace import Namespace

IN_ROW: Final = 32
"""Files asked for in a row, with nothing new to tell, that make a walk."""
LAPSE_S: Final = 1.0
"""Seconds without a sign of it after which a walk is over."""
WALKS_MAX: Final = 8
"""Walks at once."""
SEEN_MAX: Final = 1 << 16
"""Directories of one walk; then it begins anew."""
ASKED_MAX: Final = 1 << 15
"""Files whose last answer is remembered, some 130 bytes each."""
ENTRIES_MAX: Final = 1024
"""Entries of directories that are looked through at once."""
LISTINGS_MAX: Final = 8 << 20
"""Bytes of replies that are kept."""
LISTING_SIZE: Final = 512
"""Bytes that each takes besides."""
NODE_SIZE: Final = 40
"""Bytes that the number of each node in it takes."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A reply to READDIR or READDIRPLUS."""

    reply: bytes
    nodes: Sequence[KernelNode] = ()
    """Those that the kernel gets to know by it."""
    folders: Sequence[KernelNode] = ()
    """The directories in it."""
    parents: Sequence[KernelNode] = ()
    """Those of them that have directories themselves."""
    is_known: bool = True
    """Whether every entry could be told with its attributes."""


class Listings:
    """Replies of late, for listings that are asked for again: one takes 10 µs for each entry."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._kept: dict[Hashable, tuple[tuple[int, ...], Listing]] = {}
        self._room = LISTINGS_MAX

    def get(
        self,
        node: KernelNode,
        cookie: int,
        room: int,
        make: Callable[[KernelNode, int, int], Listing],
    ) -> Listing:
        """Return what *make* returns, or has returned if nothing has changed since."""
        stamp = self._handlers.namespace.stamp(node)
        if stamp is None:
            return make(node, cookie, room)
        key = node, cookie, room, make
        kept = self._kept.get(key)
        if kept is not None and kept[0] == stamp:
            self._handlers.listed(kept[1].nodes)
            return kept[1]
        made = make(node, cookie, room)
        if made.is_known:
            self._room -= LISTING_SIZE + len(made.reply) + NODE_SIZE * len(made.nodes)
            if self._room < 0:
                self._kept.clear()
                self._room = LISTINGS_MAX
            self._kept[key] = stamp, made
        return made


@dataclass(slots=True)
class _Walk:
    last: float
    """When there was a sign of it, by the monotonic clock."""
    seen: set[KernelNode] = field(default_factory=set)
    """Directories that were looked through for listings to drop."""
    dropped: set[KernelNode] = field(default_factory=set)
    """Directories whose listings have been dropped, and not been asked for since."""

    def see(self, folder: KernelNode) -> None:
        if len(self.seen) >= SEEN_MAX:
            self.seen.clear()
        self.seen.add(folder)

    def drop(self, folders: Sequence[KernelNode]) -> list[KernelNode]:
        """Return those of *folders* whose listings are still to be dropped; they count as dropped."""
        if len(self.dropped) + len(folders) > SEEN_MAX:
            self.dropped.clear()
        fresh = [folder for folder in folders if folder not in self.dropped]
        self.dropped.update(fresh)
        return fresh


class Walks:
    """The walks of one connection."""

    def __init__(
        self, namespace: Namespace, drop_listings: Callable[[Sequence[KernelNode]], None]
    ) -> None:
        """Look for walks in *namespace*.

        Args:
            namespace: What is walked through.
            drop_listings: Has the kernel forget its listings of directories. Never blocks.
        """
        self._namespace = namespace
        self._drop_listings = drop_listings
        self._asked: dict[KernelNode, int] = {}
        """The ctime that was told of a file, in ns."""
        self._pid = 0
        self._in_row = 0
        """How often `_pid` was told in a row what it could have known."""
        self._walks: dict[int, _Walk] = {}

    def asked(self, pid: int, found: Attributes) -> None:
        """Note that *pid* asked for a file's attributes by themselves, and was told *found*."""
        ctime_ns = found.ctime_ns
        if self._asked.get(found.node) != ctime_ns:
            if len(self._asked) >= ASKED_MAX:
                self._asked.clear()
            self._asked[found.node] = ctime_ns
            return
        if pid != self._pid:
            self._pid, self._in_row = pid, 0
        self._in_row += 1
        if self._in_row % IN_ROW == 0:
            self._look_ahead(pid, found.node)

    def is_walking(self, pid: int) -> bool:
        """Return whether *pid* is known to walk."""
        walk = self._walks.get(pid)
        if walk is None:
            return False
        if monotonic() > walk.last + LAPSE_S:
            del self._walks[pid]
            return False
        return True

    def listed(self, pid: int, folder: KernelNode, found: Listing) -> None:
        """Note that *pid*, walking, read of *folder*, and was told *found*.

        Listings are dropped two levels down: with its listing the kernel drops the attributes of
        a directory, and the listing of the one above brings them again.
        """
        walk = self._walks[pid]
        walk.last = monotonic()
        walk.see(folder)
        walk.dropped.discard(folder)
        self._drop(walk, found.folders, found.parents, ENTRIES_MAX)

    def _look_ahead(self, pid: int, file: KernelNode) -> None:
        """Drop the listings that a walk which has come to *file* needs next."""
        now = monotonic()
        walk = self._walks.get(pid)
        if walk is None or now > walk.last + LAPSE_S:
            self._walks.pop(pid, None)
            if len(self._walks) >= WALKS_MAX:
                del self._walks[next(iter(self._walks))]
            walk = self._walks[pid] = _Walk(now)
        walk.last = now
        ahead: list[KernelNode] = []
        parents: list[KernelNode] = []
        left = ENTRIES_MAX
        # Damage on the way is for whoever comes there.
        with suppress(KaifsError):
            for folder in self._namespace.folders_above(file):
                if folder in walk.seen or left <= 0:
                    break
                walk.see(folder)
                found = self._namespace.folders_in(folder, left)
                left -= found.entries
                ahead += (one for one in found.folders if one not in walk.seen)
                parents += found.parents
        self._drop(walk, ahead, parents, left)

    def _drop(
        self, walk: _Walk, folders: Sequence[KernelNode], parents: Sequence[KernelNode], left: int
    ) -> None:
        """Drop the listings of *folders* and of what is in *parents*, looking at *left* entries."""
        ahead = list(folders)
        # As in `_look_ahead`.
        with suppress(KaifsError):
            for one in parents:
                if one not in walk.seen and left > 0:
                    walk.see(one)
                    found = self._namespace.folders_in(one, left)
                    left -= found.entries
                    ahead += found.folders
        if fresh := walk.drop(ahead):
            self._drop_listings(fresh)

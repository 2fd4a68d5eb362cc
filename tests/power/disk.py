"""A disk that remembers every write and sync, and what power loss may leave of them.

Segments go through `RecordingDevice`. LMDB writes its own file, so a commit of it
is recorded as a copy of that file before and after. What LMDB promises (mdb.c,
mdb_txn_commit) is used and not proven: pages are written and synced before the
meta page that names them, and a meta page is written whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kaifs.blocks.device import FileDevice
from kaifs.meta.database import Changes
from kaifs.store.store import INDEX_FOLDER, SEGMENT_FOLDER, Store
from kaifs.store.superblock import SUPERBLOCK_NAME

PAGE = 4096
META_PAGES = 2
INDEX_FILE = "data.mdb"


class Kind(StrEnum):
    """What was done to a file."""

    CREATE = "create"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    REMOVE = "remove"
    INDEX = "index"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Event:
    """One call that reached the disk, and which states of the scenario a reader may find then."""

    kind: Kind
    name: str
    durable: int
    """Number of the last state that was promised to survive."""
    begun: int
    """Number of the newest state that may be visible: the one that was being made."""
    offset: int = 0
    """Of a write; the new size of a truncation."""
    payload: bytes = b""
    before: bytes = b""
    """INDEX: the file before the commit; *payload* is the file after it."""


@dataclass(slots=True)
class Tape:
    """Everything that happened, in order."""

    events: list[Event] = field(default_factory=list)
    durable: int = 0
    begun: int = 0

    def note(self, kind: Kind, name: str, **rest: Any) -> None:
        """Add an event."""
        self.events.append(Event(kind, name, self.durable, self.begun, **rest))

    def at(self, number: int) -> Event:
        """Return the event with *number*; after the last one nothing is being done."""
        if number < len(self.events):
            return self.events[number]
        return Event(Kind.IDLE, "", self.durable, self.durable)


class RecordingDevice(FileDevice):
    """A real folder whose changes are also put on a tape, each before it is made."""

    def __init__(self, folder: Path, tape: Tape) -> None:
        super().__init__(folder)
        self._tape = tape

    def create(self, name: str) -> None:
        """Record and do it."""
        self._tape.note(Kind.CREATE, name)
        super().create(name)

    def write(self, name: str, offset: int, payload: bytes) -> None:
        """Record and do it."""
        self._tape.note(Kind.WRITE, name, offset=offset, payload=bytes(payload))
        super().write(name, offset, payload)

    def truncate(self, name: str, size: int) -> None:
        """Record and do it."""
        self._tape.note(Kind.TRUNCATE, name, offset=size)
        super().truncate(name, size)

    def sync(self, name: str) -> None:
        """Record and do it."""
        self._tape.note(Kind.SYNC, name)
        super().sync(name)

    def remove(self, name: str) -> None:
        """Record and do it."""
        self._tape.note(Kind.REMOVE, name)
        super().remove(name)


def record_index(store: Store, tape: Tape) -> None:
    """Put every commit of *store*'s index on *tape* from now on."""
    write = store.database.write
    path = store.path / INDEX_FOLDER / INDEX_FILE

    def recorded(changes: Changes) -> None:
        before = path.read_bytes()
        durable, begun = tape.durable, tape.begun
        write(changes)
        tape.events.append(
            Event(Kind.INDEX, INDEX_FILE, durable, begun, before=before, payload=path.read_bytes())
        )

    store.database.write = recorded  # type: ignore[method-assign]  # a tape between the two


class Loss(StrEnum):
    """What becomes of what was not synced when the power fails."""

    KEPT = "kept"
    """All of it is on the disk: a process that was killed."""
    LOST = "lost"
    """None of it is."""
    TORN = "torn"
    """All of it, and half of what was being written."""
    MIXED = "mixed"
    """Some of it, in any order; of what was being written, too."""


@dataclass(frozen=True, slots=True)
class Image:
    """What is on the disk when the power comes back."""

    segments: dict[str, bytes]
    index: bytes

    def put(self, superblock: bytes, folder: Path) -> None:
        """Make a store's folder of it."""
        for name in (INDEX_FOLDER, SEGMENT_FOLDER, "run"):
            (folder / name).mkdir(parents=True)
        (folder / SUPERBLOCK_NAME).write_bytes(superblock)
        (folder / INDEX_FOLDER / INDEX_FILE).write_bytes(self.index)
        for name, payload in self.segments.items():
            (folder / SEGMENT_FOLDER / name).write_bytes(payload)


class Disk:
    """The medium: what was synced, and what came after in the page cache alone."""

    def __init__(self, segments: dict[str, bytes], index: bytes) -> None:
        self._synced = dict(segments)
        self._later: list[Event] = []
        self.index = index

    def apply(self, event: Event) -> None:
        """Let *event* have happened whole."""
        if event.kind is Kind.INDEX:
            self.index = event.payload
        elif event.kind is Kind.SYNC:
            files = dict(self._synced)
            _replay(files, [one for one in self._later if one.name == event.name])
            self._later = [one for one in self._later if one.name != event.name]
            self._synced = files
        else:
            self._later.append(event)

    def fail(self, loss: Loss, during: Event, noise: random.Random) -> Image:
        """Return what is left when the power fails while *during* is done."""
        files = dict(self._synced)
        index = self.index
        later = list(self._later)
        match loss:
            case Loss.LOST:
                later = []
            case Loss.TORN:
                later += _half(during)
            case Loss.MIXED:
                later += _half(during)
                later = [one for one in later if noise.random() < 0.6]
        if during.kind is Kind.INDEX and loss is Loss.TORN:
            index = _pages_without_meta(during, noise, share=1.0)
        elif during.kind is Kind.INDEX and loss is Loss.MIXED:
            index = _pages_without_meta(during, noise, share=0.5)
        _replay(files, later)
        return Image({name: bytes(payload) for name, payload in files.items()}, index)


def _half(event: Event) -> list[Event]:
    if event.kind is not Kind.WRITE:
        return []
    kept = event.payload[: len(event.payload) // 2]
    return [Event(event.kind, event.name, 0, 0, event.offset, kept)]


def _replay(files: dict[str, bytes], events: list[Event]) -> None:
    for event in events:
        if event.kind is Kind.REMOVE:
            files.pop(event.name, None)
            continue
        payload = bytearray(files.get(event.name, b""))
        if event.kind is Kind.TRUNCATE:
            payload = payload[: event.offset].ljust(event.offset, b"\0")
        elif event.kind is Kind.WRITE and event.payload:
            stop = event.offset + len(event.payload)
            payload = payload.ljust(stop, b"\0")
            payload[event.offset : stop] = event.payload
        files[event.name] = bytes(payload)


def _pages_without_meta(event: Event, noise: random.Random, share: float) -> bytes:
    """Return the index with *share* of its new pages, and the meta pages that it had."""
    index = bytearray(event.before.ljust(len(event.payload), b"\0"))
    for start in range(META_PAGES * PAGE, len(event.payload), PAGE):
        page = event.payload[start : start + PAGE]
        if index[start : start + PAGE] != page and noise.random() < share:
            index[start : start + PAGE] = page
    return bytes(index)


def cases(tape: Tape, seeds: int) -> Iterator[tuple[int, Loss, int]]:
    """Yield every moment at which the power may fail, with everything that may then be left.

    What is left by chance is left in *seeds* ways.
    """
    for number in range(len(tape.events) + 1):
        for loss in Loss:
            for seed in range(seeds if loss is Loss.MIXED else 1):
                yield number, loss, seed

"""Tells the history of an agent: which version came from which, and what changed a path.

A version names its parent by label and by the hash of the parent's record. Only a
version whose record has that hash is the parent; one that was removed, or made
anew under the same label, leaves a gap.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterator, Set

import msgspec

from kaifs.base.errors import ArgumentValueError, StoreDamagedError
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.record import AgentVersion, VersionMetadata, decode_record, record_hash
from kaifs.service.reference import get_agent
from kaifs.service.steps import Item, Progress, Step
from kaifs.service.text import path_text
from kaifs.tree.diff import Difference, diff_path, find_path
from kaifs.tree.tree import Tree


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Whose history, and how much of it."""

    agent: str
    path: bytes | None = None
    """Only versions that changed what is there, or below it; from the top, as in the tree."""
    follow: bool = False
    """Go on with the name that it had before it was renamed."""
    limit: int | None = None
    """At most so many versions."""


class PathChange(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a version did to one path, compared with its parent, or with what is left before it."""

    status: str
    """A added, D deleted, M modified, R renamed, T type changed."""
    path: str
    old_path: str | None = None
    """R only: where it was."""


class LogEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One version in the history."""

    version: str
    hash: str
    parent: str | None
    """What its record names; None for a first version."""
    is_parent_here: bool
    """Whether that very version is still there; False for a first version."""
    is_parent_quarantined: bool
    """Whether it is in quarantine."""
    is_current: bool
    is_signed: bool
    size: int
    metadata: VersionMetadata
    changes: tuple[PathChange, ...] | None = None
    """Of the path that was asked for; None if none was."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Versions, newest first, each before its parent."""

    entries: tuple[LogEntry, ...]
    damaged: tuple[str, ...] = ()
    """Labels of versions whose records are unreadable, so that nothing can be told of them."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Tell an agent's history.

    Raises:
        AgentNotFoundError: there is no such agent.
        ArgumentValueError: the limit is no limit, or the path leads out.
        AccessDeniedError: the agent's folder is closed to the caller; with a path, also
            if a file of a version is.
    """
    agent = get_agent(context.store, params.agent)
    context.require_reader(agent)
    if params.limit is not None and params.limit < 1:
        raise ArgumentValueError(f"-n {params.limit}: a number from 1 on")
    store = context.store
    readable, unreadable = store.readable_versions(agent.agent_id)
    quarantined = {aside.label for aside in store.quarantined(agent.agent_id)}
    history = History(readable, quarantined)
    damaged = (*unreadable, *history.damaged)
    if params.path is None:
        entries = [_entry(agent, history, version) for version in history.newest(params.limit)]
        return Result(entries=tuple(entries), damaged=damaged)
    path = _checked(params.path)
    found = yield from _changes_of(context, agent, history, path, params)
    return Result(entries=tuple(found), damaged=damaged)


class History:
    """The versions of one agent and which comes from which."""

    def __init__(self, versions: list[VersionRecord], quarantined: Set[str] = frozenset()) -> None:
        """Know *versions*, by growing precedence, and the labels of those that are set aside."""
        self.quarantined = quarantined
        self.damaged: list[str] = []
        """Labels of versions whose records are unreadable; they are left out."""
        self._records: dict[str, AgentVersion] = {}
        for version in versions:
            try:
                self._records[version.label] = decode_record(version.record)
            except StoreDamagedError:
                self.damaged.append(version.label)
        self._versions = [version for version in versions if version.label in self._records]
        self._by_label = {version.label: version for version in self._versions}

    def record(self, version: VersionRecord) -> AgentVersion:
        """Return the record of *version*."""
        return self._records[version.label]

    def parent(self, version: VersionRecord) -> VersionRecord | None:
        """Return the version that *version* was made from, None if it is not there any more."""
        record = self._records[version.label]
        if record.parent is msgspec.UNSET:
            return None
        parent = self._by_label.get(record.parent)
        if parent is None or record_hash(parent.record) != record.parent_hash:
            return None
        return parent

    def newest(self, limit: int | None = None) -> Iterator[VersionRecord]:
        """Yield at most *limit* versions, newest first, each before its parent."""
        parents = {version.label: self.parent(version) for version in self._versions}
        children = dict.fromkeys(self._by_label, 0)
        for parent in parents.values():
            if parent is not None:
                children[parent.label] += 1
        # The place in the order by precedence decides between versions of one instant.
        places = {version.label: place for place, version in enumerate(self._versions)}
        ready = [
            (-version.created_ns, -places[version.label], version.label)
            for version in self._versions
            if not children[version.label]
        ]
        heapq.heapify(ready)
        left = len(self._versions) if limit is None else limit
        while ready and left:
            version = self._by_label[heapq.heappop(ready)[-1]]
            yield version
            left -= 1
            parent = parents[version.label]
            if parent is not None:
                children[parent.label] -= 1
                if not children[parent.label]:
                    place = -places[parent.label]
                    heapq.heappush(ready, (-parent.created_ns, place, parent.label))


def _checked(path: bytes) -> bytes:
    """Return *path* without what does not count."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names or b"\0" in path or not names:
        raise ArgumentValueError(f"path {path_text(path)!r}: name something inside the agent")
    return b"/".join(names)


def _changes_of(
    context: Context, agent: AgentRecord, history: History, path: bytes, params: Params
) -> Generator[Step, Item | None, list[LogEntry]]:
    order = list(history.newest())
    names: dict[str, bytes] = {}
    found: list[LogEntry] = []
    for number, version in enumerate(order):
        if params.limit is not None and len(found) >= params.limit:
            break
        parent = history.parent(version)
        if parent is None and history.record(version).parent is not msgspec.UNSET:
            # A gap: what is left before it says best what has changed since.
            parent = order[number + 1] if number + 1 < len(order) else None
        # Looked up again: another verb may have taken one away at the last step.
        tree, base = _tree(context, agent, version), _tree(context, agent, parent)
        if tree is not None and (base is not None or parent is None):
            here = names.get(version.label, path)
            differences = _compare(base, tree, here)
            if differences:
                found.append(_entry(agent, history, version, differences))
            before = _name_before(differences, here) if params.follow else here
            if parent is not None:
                names.setdefault(parent.label, before)
        yield Progress(number + 1, len(order), "versions", "comparing")
    return found


def _tree(context: Context, agent: AgentRecord, version: VersionRecord | None) -> Tree | None:
    """Return the tree of *version*, None if it is not there any more."""
    if version is None:
        return None
    here = context.store.find_version(agent.agent_id, version.label)
    if here is None or here.root != version.root:
        return None
    context.require_content(agent, version.root)
    return context.forest.tree(version.root)


def _compare(base: Tree | None, tree: Tree, path: bytes) -> list[Difference]:
    if base is not None:
        return diff_path(base, tree, path)
    ino = find_path(tree, path)
    return [] if ino is None else [Difference("A", path, None, ino)]


def _name_before(differences: list[Difference], path: bytes) -> bytes:
    """Return what *path*, or a folder above it, was called in the parent."""
    for difference in differences:
        if difference.old_path is None:
            continue
        if difference.path == path:
            return difference.old_path
        if path.startswith(difference.path + b"/"):
            return difference.old_path + path[len(difference.path) :]
    return path


def _entry(
    agent: AgentRecord,
    history: History,
    version: VersionRecord,
    differences: list[Difference] | None = None,
) -> LogEntry:
    record = history.record(version)
    parent = None if record.parent is msgspec.UNSET else record.parent
    is_parent_here = history.parent(version) is not None
    return LogEntry(
        version=version.label,
        hash=version.hash,
        parent=parent,
        is_parent_here=is_parent_here,
        is_parent_quarantined=not is_parent_here and parent in history.quarantined,
        is_current=version.label == agent.version,
        is_signed=bool(version.signature),
        size=version.size,
        metadata=record.metadata,
        changes=None if differences is None else tuple(map(_path_change, differences)),
    )


def _path_change(difference: Difference) -> PathChange:
    old_path = difference.old_path
    return PathChange(
        status=difference.status,
        path=path_text(difference.path) or ".",
        old_path=None if old_path is None else path_text(old_path),
    )

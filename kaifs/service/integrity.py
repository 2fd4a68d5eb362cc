"""The content of a version against its record: read from the disk, compared, remembered.

A `Verifier` looks at many trees in one run. It reads what they share once, and of a
version that verified before, and of which neither a node nor the place of a block nor
a segment's file has changed since, it reads no content at all.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Final

from kaifs.base.digest import sha256
from kaifs.base.errors import KaifsError, RollbackValidationError, StoreDamagedError
from kaifs.base.types import TOP_INO, Ino, RootId, SegmentId
from kaifs.meta.database import Table
from kaifs.meta.records import (
    ROOT,
    AgentRecord,
    RootState,
    SegmentState,
    VerifiedRecord,
    VersionRecord,
)
from kaifs.service.context import Context
from kaifs.service.facts import read_facts
from kaifs.service.findings import Finding, Findings, join_findings
from kaifs.service.policy import policy_of
from kaifs.service.record import decode_record
from kaifs.service.steps import Commit, Item, Progress, Step, Work
from kaifs.service.text import path_text, printable_text
from kaifs.store.registry import root_key
from kaifs.tree.diff import directories_to_render
from kaifs.tree.forest import Forest
from kaifs.tree.integrity import (
    Batch,
    ColdReader,
    ContentCheck,
    Located,
    LostNode,
    StoredFile,
    misplaced_entries,
    segment_state,
    settling_ns,
)
from kaifs.tree.manifest import Manifests
from kaifs.tree.tree import Tree

SHOWN: Final = 100
"""Files that are named for one thing; the rest is counted."""
NOTES_MAX: Final = 1000
"""A version with more notes is not remembered as verified."""
_INODES_AT_ONCE: Final = 500
"""Inodes looked at between two steps."""
_PIECES_AT_ONCE: Final = 2000
"""Directories' texts hashed between two steps."""
_KEPT: Final = 4
"""Trees that are kept for what comes after them in their lineage."""

WORLD_WRITABLE: Final = 1
FOREIGN_SET_ID: Final = 2
SET_ID: Final = 3
DEVICE: Final = 4
"""What an inode is noted for; docs/FORMAT.md has the numbers too."""

_NOTES: Final = {
    WORLD_WRITABLE: "everybody may write to it",
    FOREIGN_SET_ID: "it runs with the rights of a user who is not the agent's owner",
    SET_ID: "it runs with the rights of its owner or group",
    DEVICE: "it is a device",
}
_TYPES: Final = frozenset(
    {
        *(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO),
        *(stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
    }
)

_damage: Final = partial(Finding, "checksum", is_damage=True)

Steps = Generator[Step, Item | None, None]


@dataclass(slots=True)
class Survey:
    """What is known of a tree before its content is read."""

    root: RootId
    nodes: bytes = b""
    """The fingerprint of its nodes; empty if something cannot be read."""
    memo: VerifiedRecord | None = None
    """What it was when it last verified."""
    fresh: frozenset[SegmentId] = frozenset()
    """Segments of which what was read then still counts."""
    is_skipped: bool = False
    """Whether nothing of it can have changed since."""
    error: str = ""
    """Why it cannot be looked at, if it cannot."""


@dataclass(slots=True)
class Looked:
    """What was found in a tree, by inode."""

    tree: Tree
    problems: dict[Ino, str] = field(default_factory=dict)
    notes: dict[Ino, int] = field(default_factory=dict)
    lost: list[LostNode] = field(default_factory=list)
    segments: dict[SegmentId, SegmentState | None] = field(default_factory=dict)
    """Of every segment that a block of it is in, before it was read."""

    @property
    def is_sound(self) -> bool:
        """Whether everything could be read and is what it was."""
        return not self.problems and not self.lost


class Verifier:
    """Looks at trees of one store, one after the other. Close it.

    What it looks at must be sealed, and committed: it reads what the disk has.
    """

    def __init__(self, context: Context, *, full: bool) -> None:
        """Look at what *context* has; *full*: also at what verified before."""
        self._store = context.store
        self._full = full
        self._reader = ColdReader(context.store)
        self._content = ContentCheck(self._reader)
        self._states: dict[SegmentId, SegmentState | None] = {}
        self._looked: OrderedDict[tuple[int, RootId], Looked] = OrderedDict()
        # A forest of its own: what others have read or rendered does not count here.
        self._context = replace(context, forest=Forest(context.store))
        self.total = 0
        """Bytes of all the trees that are to be looked at."""
        self.done = 0

    def close(self) -> None:
        """Let everything go."""
        self._reader.close()

    @property
    def _manifests(self) -> Manifests:
        return self._context.manifests

    @property
    def read_bytes(self) -> int:
        """Bytes of content read so far."""
        return self._content.read_bytes

    # --- before ------------------------------------------------------------------------

    def settle(self) -> Steps:
        """Wait until what is read can be remembered: at most two ticks of the kernel's clock."""
        wait_ns = settling_ns(self._store)
        if wait_ns:
            yield Work(partial(time.sleep, wait_ns / 1e9))

    def survey(
        self, root_id: RootId, version: VersionRecord | None
    ) -> Generator[Step, Item | None, Survey]:
        """Find out whether a tree has to be looked at: O(nodes that it shares with none so far)."""
        survey = Survey(root_id)
        try:
            # What is in memory is right, whatever the disk has.
            value = self._store.pending.get(Table.ROOTS, root_key(root_id))
            if value is not None:
                ROOT.decode(value)
            root = self._store.root(root_id)
        except StoreDamagedError as error:
            survey.error = error.subject
            return survey
        looking = self._reader.fingerprint(root.top)
        try:
            while True:
                self.done += next(looking)
                yield Progress(self.done, 0, "nodes", "looking")
        except StopIteration as stop:
            survey.nodes = stop.value
        survey.memo = None if version is None else self._store.find_verified(root_id)
        memo = survey.memo
        if not self._full and memo is not None and memo.nodes == survey.nodes:
            states = [(state, self._state(state.segment)) for state in memo.segments]
            survey.fresh = frozenset(then.segment for then, now in states if then == now)
            survey.is_skipped = len(survey.fresh) == len(states)
        return survey

    def _state(self, segment: SegmentId) -> SegmentState | None:
        if segment not in self._states:
            self._states[segment] = segment_state(self._store, segment)
        return self._states[segment]

    # --- content -----------------------------------------------------------------------

    def look(
        self, agent: AgentRecord, survey: Survey
    ) -> Generator[Step, Item | None, tuple[Looked, Looked | None, set[Ino]]]:
        """Read what has to be read of a tree.

        Returns:
            What was found; what of its lineage it was compared with, if anything; and the
            directories that differ from that.
        """
        root = self._store.root(survey.root)
        key = agent.agent_id, root.lineage
        tree = self._reader.tree(root)
        looked, base, directories = Looked(tree), self._looked.get(key), set[Ino]()
        assert survey.memo is not None or not survey.is_skipped
        if survey.is_skipped and survey.memo is not None:
            looked.notes = {Ino(ino): note for ino, note in survey.memo.notes}
            looked.segments = {state.segment: state for state in survey.memo.segments}
            base = None
        else:
            compared = False
            if base is not None and not base.lost and survey.nodes:
                try:
                    changed = self._reader.changed(base.tree, tree)
                    directories = directories_to_render(base.tree, tree, changed)
                    yield from self._read_changed(agent, looked, base, changed)
                    compared = True
                except StoreDamagedError:
                    looked = Looked(tree)
            if not compared:
                base, directories = None, set()
                yield from self._read_all(agent, looked, survey.fresh)
        self._looked[key] = looked
        self._looked.move_to_end(key)
        while len(self._looked) > _KEPT:
            self._looked.popitem(last=False)
        return looked, base, directories

    def _read_changed(
        self, agent: AgentRecord, looked: Looked, base: Looked, changed: Iterable[Ino]
    ) -> Steps:
        inos = set(changed)
        looked.problems = {k: v for k, v in base.problems.items() if k not in inos}
        looked.notes = {k: v for k, v in base.notes.items() if k not in inos}
        looked.segments = base.segments.copy()
        files = self._reader.load(looked.tree, inos)
        yield from self._read(agent, looked, files, frozenset())

    def _read_all(self, agent: AgentRecord, looked: Looked, fresh: frozenset[SegmentId]) -> Steps:
        yield from self._read(agent, looked, self._reader.inodes(looked.tree), fresh)

    def _read(
        self,
        agent: AgentRecord,
        looked: Looked,
        inodes: Iterable[StoredFile | LostNode],
        fresh: frozenset[SegmentId],
    ) -> Steps:
        def is_wanted(pieces: list[Located]) -> bool:
            segments = {record.segment for _, record in pieces if record is not None}
            for segment in segments:
                looked.segments[segment] = self._state(segment)
            return not segments <= fresh or not segments

        done = self.done
        checking = self._content.check(self._files(agent, looked, inodes), is_wanted)
        try:
            while True:
                batch = next(checking)
                if isinstance(batch, Batch):
                    yield Work(batch.run)
                    done += batch.size
                yield Progress(min(done, self.total), self.total, "bytes", "verifying")
        except StopIteration as stop:
            looked.problems.update(stop.value)

    def _files(
        self, agent: AgentRecord, looked: Looked, inodes: Iterable[StoredFile | LostNode]
    ) -> Iterator[StoredFile | None]:
        """Yield the regular files among *inodes*; note what there is to note of all."""
        for count, found in enumerate(inodes, 1):
            if count % _INODES_AT_ONCE == 0:
                yield None
            if isinstance(found, LostNode):
                looked.lost.append(found)
                continue
            kind = stat.S_IFMT(found.inode.mode)
            note = _note(agent, found)
            if note:
                looked.notes[found.ino] = note
            if kind not in _TYPES:
                looked.problems[found.ino] = f"its mode {found.inode.mode:o} has no known type"
            elif kind == stat.S_IFREG:
                yield found
            elif kind == stat.S_IFDIR:
                try:
                    wrong = misplaced_entries(looked.tree, found.ino)
                except StoreDamagedError:
                    continue  # The node that is lost is told by itself.
                if wrong:
                    names = ", ".join(map(path_text, wrong[:3]))
                    looked.problems[found.ino] = f"directories in it are elsewhere too: {names}"

    # --- a version ---------------------------------------------------------------------

    def check_version(
        self, agent: AgentRecord, version: VersionRecord, survey: Survey
    ) -> Generator[Step, Item | None, Findings]:
        """Return what is wrong with a version's content and permissions; remember it if nothing is."""
        memo = survey.memo
        own = sha256(version.record).digest()
        errors = []
        if survey.error:
            return Findings(errors=(_damage(f"its tree cannot be read: {survey.error}"),))
        if memo is not None and memo.record != own:
            errors.append(_damage("its record is not what it was when the version last verified"))
        looked, base, directories = yield from self.look(agent, survey)
        self.done += version.size
        errors += [_damage(text) for text in self.problems(looked)]
        if self._store.root(survey.root).state is not RootState.SEALED:
            errors.append(_damage("its tree is not sealed"))
        if looked.is_sound and not survey.is_skipped:
            texts = yield from self._compare(version, looked, base, directories)
            errors += [_damage(text) for text in texts]
        if not errors and not survey.is_skipped:
            self._remember(survey, own, looked)
        permissions = self._check_permissions(agent, looked)
        return join_findings([Findings(errors=tuple(errors)), permissions])

    def _compare(
        self, version: VersionRecord, looked: Looked, base: Looked | None, directories: set[Ino]
    ) -> Generator[Step, Item | None, list[str]]:
        """Return how the tree differs from what the version's record says of it."""
        tree = looked.tree
        try:
            record = decode_record(version.record)
        except StoreDamagedError:
            return []  # Told by the check of the record.
        try:
            preparing = self._manifests.prepare(
                tree, base=None if base is None else base.tree, changed=directories
            )
            for _ in preparing:
                yield Progress(self.done, self.total, "bytes", "verifying")
            digest = sha256()
            for count, piece in enumerate(self._manifests.lines(tree), 1):
                digest.update(piece)
                if count % _PIECES_AT_ONCE == 0:
                    yield Progress(self.done, self.total, "bytes", "verifying")
            if digest.hexdigest() != record.hash:
                where = self._suspects(looked, base)
                return [f"its manifest does not have the hash that its record says{where}"]
            if self._manifests.tree_digest(tree) != record.tree_digest:
                where = self._suspects(looked, base)
                return [f"owners, times, attributes or links are not what its record says{where}"]
            facts = yield from read_facts(self._context, tree, is_backup=True)
        except KaifsError as error:
            return [f"it cannot be described: {printable_text(error.subject)}"]
        metadata = record.metadata
        found = []
        if facts.config_checksum != metadata.config_checksum:
            found.append("configChecksum in its record is not that of its files")
        if facts.agent_state_checksum != metadata.agent_state_checksum:
            found.append("agentStateChecksum in its record is not that of its files")
        return found

    def _suspects(self, looked: Looked, base: Looked | None) -> str:
        """Return in words which files it may be that were changed; empty if nothing tells.

        The hash of a tree does not say where it differs. The two copies of the index do, if
        only one was changed; else what differs from a version that is as it was.
        """
        inos = set(self._reader.differing_copies(looked.tree))
        told = ""
        if not inos and base is not None and base.is_sound:
            inos = set(self._reader.changed(base.tree, looked.tree))
            told = "one of "
        paths = sorted({path for ino in inos for path in _paths(looked.tree, ino)})
        if not paths:
            return ""
        return f": {told}{', '.join(islice(paths, SHOWN))}"

    def _remember(self, survey: Survey, own: bytes, looked: Looked) -> None:
        states = [state for state in looked.segments.values() if state is not None]
        if len(states) < len(looked.segments) or len(looked.notes) > NOTES_MAX or not survey.nodes:
            return
        self._store.put_verified(
            survey.root,
            VerifiedRecord(
                verified_ns=self._store.clock.now_ns(),
                record=own,
                nodes=survey.nodes,
                segments=tuple(sorted(states, key=lambda state: state.segment)),
                notes=tuple(sorted(looked.notes.items())),
            ),
        )

    def problems(self, looked: Looked) -> list[str]:
        """Return a line for each file of which something is wrong."""
        found = [
            f"{path}: {printable_text(text)}"
            for ino, text in looked.problems.items()
            for path in _paths(looked.tree, ino) or [f"inode {ino}"]
        ]
        if looked.lost:
            paths = self._reader.lost_paths(looked.tree, looked.lost)
            found += [f"{_text(path)}: its description is damaged" for path in paths]
            if not paths:
                found.append(f"its tree cannot be read: {looked.lost[0].text}")
        found.sort()
        rest = len(found) - SHOWN
        return found if rest <= 0 else [*found[:SHOWN], f"{rest} more"]

    def check_description(
        self, agent: AgentRecord, version: VersionRecord
    ) -> Generator[Step, Item | None, list[str]]:
        """Return how a version's metadata differs from its record. O(files); no content is read."""
        survey = yield from self.survey(version.root, version)
        if survey.error:
            return [f"its tree cannot be read: {survey.error}"]
        looked = Looked(self._reader.tree(self._store.root(version.root)))
        for found in self._files(agent, looked, self._reader.inodes(looked.tree)):
            if found is None:
                yield Progress(0, 0, "bytes", "validating")
        if not looked.is_sound:
            return self.problems(looked)
        return (yield from self._compare(version, looked, None, set()))

    # --- permissions -------------------------------------------------------------------

    def _check_permissions(self, agent: AgentRecord, looked: Looked) -> Findings:
        errors, warnings = [], []
        if agent.mode & stat.S_IWOTH:
            errors.append(f"{agent.name}: everybody may write to the agent's folder")
        try:
            top = looked.tree.inode(TOP_INO)
        except KaifsError:
            return Findings()
        if top.uid != agent.uid:
            owner = f"uid {top.uid}, the agent to uid {agent.uid}"
            warnings.append(f"its top folder belongs to {owner}")
        for code, text in _NOTES.items():
            inos = [ino for ino, note in looked.notes.items() if note == code]
            paths = sorted(path for ino in inos[:SHOWN] for path in _paths(looked.tree, ino))
            told = errors if code == FOREIGN_SET_ID else warnings
            told += [f"{path}: {text}" for path in paths]
            if len(inos) > SHOWN:
                told.append(f"{len(inos) - SHOWN} more: {text}")
        return Findings(
            tuple(Finding("permission", text) for text in errors),
            tuple(Finding("permission", text) for text in warnings),
        )


def prove_description(
    context: Context, agent: AgentRecord, version: VersionRecord
) -> Generator[Step, Item | None, None]:
    """Check that what is to be used is what was signed, if the agent's policy demands signatures.

    A signature covers the record, and the record has the hash of the tree's description.

    Raises:
        RollbackValidationError: it is not.
    """
    if not policy_of(agent).require_signature:
        return
    if context.store.is_dirty:
        yield Commit()
    verifier = Verifier(context, full=False)
    try:
        found = yield from verifier.check_description(agent, version)
    finally:
        verifier.close()
    if found:
        raise RollbackValidationError(f"{agent.name}@{version.label}: {found[0]}")


def _note(agent: AgentRecord, found: StoredFile) -> int:
    """Return what an inode is to be noted for, 0 if for nothing."""
    inode = found.inode
    kind = stat.S_IFMT(inode.mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return DEVICE
    if kind == stat.S_IFREG and inode.mode & stat.S_ISUID and inode.uid != agent.uid:
        return FOREIGN_SET_ID
    if kind == stat.S_IFREG and (
        inode.mode & stat.S_ISUID or (inode.mode & stat.S_ISGID and inode.mode & stat.S_IXGRP)
    ):
        return SET_ID
    is_shared_folder = kind == stat.S_IFDIR and inode.mode & stat.S_ISVTX
    if kind != stat.S_IFLNK and inode.mode & stat.S_IWOTH and not is_shared_folder:
        return WORLD_WRITABLE
    return 0


def _paths(tree: Tree, ino: Ino) -> list[str]:
    try:
        return [_text(path) for path in tree.paths(ino)]
    except KaifsError:
        return []


def _text(path: bytes) -> str:
    return printable_text(path_text(path)) or os.curdir

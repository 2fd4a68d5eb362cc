"""With a journal a process that dies loses nothing that it has flushed, whenever it dies.

The rules are those of the machine without one; a crash may come after any of them,
also while a commit is on its way to the disk.
"""

from __future__ import annotations

import copy
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from kaifs.store.store import Commit, StoreOptions
from tests.tree.test_machine import SteppedMachine


class JournalMachine(SteppedMachine):
    """What was flushed, or taken for a commit, is what the next process finds."""

    in_flight: Commit | None = None

    def land(self) -> None:
        """Let the commit that is in flight get to the disk."""
        if self.in_flight is not None:
            self.grove.store.write_commit(self.in_flight)
            self.grove.store.finish_commit(self.in_flight)
            self.in_flight = None

    def teardown(self) -> None:
        self.land()
        super().teardown()

    @rule()
    def commit(self) -> None:
        self.land()
        super().commit()

    @rule()
    def commit_that_fails(self) -> None:
        self.land()
        super().commit_that_fails()
        self.save()

    @rule()
    def flush(self) -> None:
        """Somebody is told that what he asked for is done."""
        self.grove.store.flush_journal()
        self.save()

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def begin_commit(self) -> None:
        """Other rules run while the commit is written."""
        self.in_flight = self.grove.store.prepare_commit()
        self.save()

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def end_commit(self) -> None:
        self.land()

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def fail_to_commit(self) -> None:
        assert self.in_flight is not None
        self.grove.store.fail_commit(self.in_flight)
        self.in_flight = None

    def abandon(self) -> None:
        """What is in a journal is not forgotten: there is no such rule."""

    @rule(commit=st.booleans())
    def reopen(self, commit: bool) -> None:
        """A process ends cleanly, or dies: without `commit` wherever it is."""
        if commit:
            self.land()
        self.in_flight = None
        super().reopen(commit)

    @rule(is_written=st.booleans())
    def die_in_a_commit(self, is_written: bool) -> None:
        """The commit is on the disk, or is not, and nobody has noted that it is."""
        if self.in_flight is None:
            self.begin_commit()
        assert self.in_flight is not None
        if is_written:
            self.grove.store.write_commit(self.in_flight)
        self.reopen(commit=False)

    @rule()
    def die_again_and_again(self) -> None:
        """What was replayed once is replayed again, with what came after it."""
        self.flush()
        models = copy.deepcopy(self.models)
        for model in models.values():
            model.nodes = {ino: node for ino, node in model.nodes.items() if node.nlink}
        for _ in range(3):
            self.reopen(commit=False)
            assert {name: one.listing() for name, one in self.models.items()} == {
                name: one.listing() for name, one in models.items()
            }
            self.agrees()


def run(folder: Path, options: StoreOptions) -> None:
    run_state_machine_as_test(
        type("Machine", (JournalMachine,), {"folder": folder, "options": options})
    )


def test_what_was_flushed_survives_a_crash_at_any_point(tmp_path: Path) -> None:
    run(tmp_path, StoreOptions(journal=True))


def test_what_was_flushed_survives_with_tiny_caches_and_segments(tmp_path: Path) -> None:
    """The tail is in many segments, its blocks are compressed, every node is read anew."""
    tiny = StoreOptions(
        zstd_level=1,
        node_cache=1,
        block_cache=1,
        segment_size=20_000,
        map_size=1 << 18,
        journal=True,
    )
    run(tmp_path, tiny)

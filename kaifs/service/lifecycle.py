"""A snapshot's states: ready, testing, and what its tests came to.

A result is kept with its evidence and with a clone of the tree as the tests
left it. It holds for that tree alone: what changes later makes the snapshot
ready again.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from kaifs.base.clock import format_time
from kaifs.base.digest import sha256
from kaifs.base.errors import SnapshotStateError, StoreDamagedError
from kaifs.base.types import RootId
from kaifs.meta.records import RootKind, RootState, SnapshotRecord
from kaifs.service.context import Context
from kaifs.service.evidence import Evidence
from kaifs.service.isolation import isolation_of
from kaifs.service.suite import TestSuite
from kaifs.service.suite_runner import LOG_MAX, SuiteRun
from kaifs.store.registry import NO_ROOT, TEST_ERROR, TEST_FAILED, TEST_PASSED, TESTING
from kaifs.tree.tested import shown_status
from kaifs.tree.tree import Tree

_UNENFORCED_MAX = 16
FAILURES_KEPT = 100
"""Failures in the evidence; the counts are of all."""


class Tested(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The last tests of a snapshot: what it keeps."""

    evidence: Evidence
    cases: TestSuite
    """What ran, to be run again after a rebase."""


def tested_of(snapshot: SnapshotRecord) -> Tested | None:
    """Return what the last tests were, None if there is no result.

    Raises:
        StoreDamagedError: the record is unreadable.
    """
    if not snapshot.evidence:
        return None
    try:
        return msgspec.json.decode(snapshot.evidence, type=Tested)
    except msgspec.MsgspecError as error:
        raise StoreDamagedError(f"evidence of snapshot {snapshot.name}: {error}") from error


def begin_test(context: Context, snapshot: SnapshotRecord) -> SnapshotRecord:
    """Note that tests run in *snapshot*; an earlier result goes.

    Raises:
        SnapshotStateError: tests run in it already.
    """
    if snapshot.status == TESTING:
        raise SnapshotStateError(f"{snapshot.name}: tests are running in it")
    changed = replace(_without_result(context, snapshot), status=TESTING)
    context.store.put_snapshot(changed)
    context.store.note_unfinished(context.store.root(snapshot.root))
    return changed


def finish_test(
    context: Context, snapshot: SnapshotRecord, suite: TestSuite, source: str, run: SuiteRun
) -> tuple[SnapshotRecord, Evidence]:
    """Keep the result of tests. Everything that they wrote is in the tree, and nobody runs."""
    store = context.store
    isolation = isolation_of(snapshot)
    log = run.log[-2 * LOG_MAX :]
    result = run.result
    evidence = Evidence(
        command=tuple(_spelled(case.command) for case in suite.test),
        suite=source,
        suite_hash=suite.hash,
        success=result.success,
        passed_tests=result.passed_tests,
        total_tests=result.total_tests,
        failures=result.failures[:FAILURES_KEPT],
        duration_s=_milliseconds(run.duration_s),
        output_hash=sha256(log).hexdigest(),
        output_bytes=len(log),
        limits=isolation.resources,
        unenforced=run.unenforced[:_UNENFORCED_MAX],
        isolation=isolation.without_values(),
        tested_at=format_time(store.clock.now_ns()),
    )
    snapshot = _without_result(context, snapshot)
    changed = replace(
        snapshot,
        status=TEST_PASSED if result.success else TEST_FAILED,
        tested=keep_clone(context, context.forest.tree(snapshot.root)),
        evidence=msgspec.json.encode(Tested(evidence=evidence, cases=suite)),
    )
    store.put_snapshot(changed)
    store.put_output(snapshot.root, log)
    return changed, evidence


def fail_test(context: Context, root_id: RootId) -> None:
    """Note that the tests in the snapshot of a root came to no result."""
    snapshot = find_by_root(context, root_id)
    if snapshot is not None and snapshot.status == TESTING:
        context.store.put_snapshot(replace(snapshot, status=TEST_ERROR))


def find_by_root(context: Context, root_id: RootId) -> SnapshotRecord | None:
    """Return the snapshot that shows a root, whatever it is called by now; None if it is gone."""
    store = context.store
    root = store.root(root_id) if store.has_root(root_id) else None
    if root is None or root.kind is not RootKind.SNAPSHOT:
        return None
    snapshot = store.find_snapshot(root.agent_id, root.name)
    return snapshot if snapshot is not None and snapshot.root == root_id else None


def require_passed(context: Context, snapshot: SnapshotRecord) -> Evidence:
    """Return the evidence of tests that passed on what the snapshot is now.

    Raises:
        SnapshotStateError: they did not, or something changed since.
    """
    status = shown_status(context.store, snapshot)
    tested = tested_of(snapshot)
    if status == TEST_PASSED and tested is not None:
        return tested.evidence
    # Source: specification, commitSnapshot.
    reason = f"Cannot commit snapshot with status: {status}"
    if snapshot.status == TEST_PASSED:
        reason += " (something changed since the tests passed)"
    raise SnapshotStateError(f"{snapshot.name}: {reason}", status=status)


def keep_clone(context: Context, tree: Tree) -> RootId:
    """Return a root that stays as *tree* is now and that nobody shows. O(1)."""
    clone = context.forest.clone(tree)
    # Not sealed: digests of what is new in it are not known. Nobody shows it, so nobody
    # changes it.
    context.store.set_root_state(clone.root, RootState.WRITABLE)
    return clone.root.root_id


def _without_result(context: Context, snapshot: SnapshotRecord) -> SnapshotRecord:
    if snapshot.tested and context.store.has_root(snapshot.tested):
        context.forest.drop(snapshot.tested)
    return replace(snapshot, tested=NO_ROOT, evidence=b"")


def _spelled(command: str | tuple[str, ...]) -> str:
    if isinstance(command, str):
        return command
    import shlex

    return shlex.join(command)


def _milliseconds(seconds: float) -> int | float:
    # Canonical JSON spells 12.0 as 12, and nothing else of this range differently from Python.
    rounded = round(min(max(seconds, 0.0), 1e9), 3)
    return int(rounded) if rounded == int(rounded) else rounded

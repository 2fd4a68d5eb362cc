"""Tests in a snapshot, as the store sees them: begun, and come to a result.

Who asks runs the commands: this verb says which, waits for the report, and
keeps it. As long as it waits the snapshot is `testing`; if the one who asked
goes away, or something fails, it becomes `test_error`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import msgspec

from kaifs.base.errors import SuiteRunError
from kaifs.base.types import RootId
from kaifs.service.context import Context
from kaifs.service.isolation import IsolatedSnapshot, describe_snapshot
from kaifs.service.lifecycle import begin_test, fail_test, find_by_root, finish_test
from kaifs.service.reference import resolve_snapshot
from kaifs.service.steps import (
    CHUNK_SIZE,
    Commit,
    Data,
    End,
    Flush,
    Item,
    Output,
    Resumable,
    ResumedElsewhereError,
    Step,
    Want,
)
from kaifs.service.suite import TestSuite
from kaifs.service.suite_detect import detect_suite
from kaifs.service.suite_runner import SuiteRun, TestResult

_REPORT_MAX: Final = 16 << 20
"""Bytes in the report of a run."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to test, and how."""

    reference: str
    suite: TestSuite | None = None
    """None: what the tree itself says."""
    source: str = ""
    """Name of the file that the suite was read from."""


class Order(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the asker is to run: the verb's only output."""

    snapshot: IsolatedSnapshot
    suite: TestSuite
    source: str


class _Begun(msgspec.Struct, frozen=True, array_like=True):
    """What runs: enough to take its report."""

    root: int
    suite: TestSuite
    source: str


class Result(TestResult, frozen=True, kw_only=True, rename="camel"):
    """The specification's TestResult, and where it was had."""

    snapshot_id: str
    agent_id: str
    status: str
    suite: str
    suite_hash: str
    duration_s: int | float
    unenforced: tuple[str, ...] = ()
    """Limits that were not in force, each with the reason."""


def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
    """Have a snapshot tested.

    Raises:
        SnapshotStateError: tests run in it already.
        SuiteError: the tree does not say how it is tested.
        SuiteRunError: no report came, or none that can be.
        KaifsError: as `resolve_snapshot`; E105.
    """
    agent, snapshot = resolve_snapshot(context.store, params.reference)
    if context.caller.uid != snapshot.uid:
        context.require_owner(agent)
    suite, source = params.suite, params.source
    if suite is None:
        detected = detect_suite(context.forest.tree(snapshot.root))
        suite, source = detected.suite, detected.source
    described = describe_snapshot(context, agent, snapshot)
    root_id = begin_test(context, snapshot).root
    begun = _Begun(root=root_id, suite=suite, source=source)
    try:
        yield Commit()
        order = Order(snapshot=described, suite=suite, source=source)
        yield Output(msgspec.json.encode(order))
        yield Resumable(root_id, msgspec.msgpack.encode(begun))
    except BaseException:
        fail_test(context, root_id)
        raise
    return (yield from _await_result(context, begun))


def resume(context: Context, state: bytes) -> Generator[Step, Item | None, Result]:
    """Go on with what another process has begun: its asker runs the tests.

    Raises:
        KaifsError: as `run`.
    """
    begun = msgspec.msgpack.decode(state, type=_Begun)
    return (yield from _await_result(context, begun))


def _await_result(context: Context, begun: _Begun) -> Generator[Step, Item | None, Result]:
    root_id = RootId(begun.root)
    try:
        ran = yield from _receive_report()
        # Nothing of the tests runs any more; what they wrote may still be on its way.
        yield Flush()
        result = _finish(context, root_id, begun.suite, begun.source, ran)
    except ResumedElsewhereError:
        raise
    except BaseException:
        fail_test(context, root_id)
        raise
    yield Commit()
    return result


def _receive_report() -> Generator[Step, Item | None, SuiteRun]:
    payload = bytearray()
    while not isinstance(item := (yield Want()), End):
        if not isinstance(item, Data) or item.offset != len(payload):
            raise SuiteRunError("who ran them went away")
        payload += item.payload
        if len(payload) > _REPORT_MAX:
            raise SuiteRunError(f"a report of over {_REPORT_MAX >> 20} MiB")
    try:
        return msgspec.msgpack.decode(bytes(payload), type=SuiteRun)
    except msgspec.MsgspecError as error:
        raise SuiteRunError(f"unreadable report: {error}") from error


def report_items(run: SuiteRun) -> Generator[Item, None, None]:
    """Yield what the asker sends as its report."""
    payload = msgspec.msgpack.encode(run)
    for offset in range(0, len(payload), CHUNK_SIZE):
        yield Data(offset, payload[offset : offset + CHUNK_SIZE])
    yield End()


def _finish(
    context: Context, root_id: RootId, suite: TestSuite, source: str, ran: SuiteRun
) -> Result:
    snapshot = find_by_root(context, root_id)
    agent = None if snapshot is None else context.store.agent_by_id(snapshot.agent_id)
    if snapshot is None or agent is None:
        raise SuiteRunError("the snapshot was discarded meanwhile")
    _check(ran)
    snapshot, evidence = finish_test(context, snapshot, suite, source, ran)
    return Result(
        success=ran.result.success,
        passed_tests=ran.result.passed_tests,
        total_tests=ran.result.total_tests,
        failures=ran.result.failures,
        snapshot_id=snapshot.name,
        agent_id=agent.name,
        status=snapshot.status,
        suite=source,
        suite_hash=evidence.suite_hash,
        duration_s=evidence.duration_s,
        unenforced=evidence.unenforced,
    )


def _check(ran: SuiteRun) -> None:
    result = ran.result
    is_sound = 0 <= result.passed_tests <= result.total_tests
    if not is_sound or result.success != (result.passed_tests == result.total_tests):
        raise SuiteRunError("a report that contradicts itself")

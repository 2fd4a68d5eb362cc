"""Invalidations, on a notifier that writes down what it is told."""

import errno
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from kaifs.base.types import KernelNode
from kaifs.fuse import invalidate
from kaifs.fuse.invalidate import Invalidator
from kaifs.store.changes import AgentAdded, HeadSwitched
from kaifs.views.namespace import MountScope, Namespace
from kaifs.views.numbers import Kind, virtual_node
from tests.views.conftest import Site


class Diary:
    """A notifier that remembers; `fail` may raise."""

    def __init__(self, fail: Callable[[], object] = lambda: None) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._fail = fail

    def invalidate_entry(self, parent: KernelNode, name: bytes) -> None:
        self.told.append((parent, name))
        self._fail()

    def invalidate_inode(self, node: KernelNode) -> None:
        self.told.append((node,))
        self._fail()

    def expire_names(self) -> None:
        self.told.append(())
        self._fail()


def namespace_of_all(*, acting: bool = False) -> Namespace:
    return cast("Namespace", SimpleNamespace(scope=MountScope(), acting=acting))


async def test_a_switch_of_a_top_that_stays_is_told_before_the_change_returns(site: Site) -> None:
    """From one moment to the next; the listing again behind the queue."""
    diary = Diary()
    namespace = site.namespace()
    namespace.keeps_tops = True
    invalidator = Invalidator(namespace, diary)
    agent = site.store.get_agent("bot")
    top = virtual_node(Kind.CURRENT, agent.agent_id)

    invalidator.changed(HeadSwitched(agent.agent_id, agent.head, agent.head))

    assert diary.told[:2] == [(), (top,)]
    await invalidator.wait_idle()
    assert diary.told == [(), (top,), (top,)]
    invalidator.stop()


async def test_each_name_is_told_with_its_listing_and_in_order() -> None:
    diary = Diary()
    invalidator = Invalidator(namespace_of_all(), diary)

    for name in ("a", "b"):
        invalidator.changed(AgentAdded(1, name))
    await invalidator.wait_idle()

    assert diary.told == [(1, b"a"), (1,), (1, b"b"), (1,)]
    invalidator.stop()


async def test_what_the_kernel_did_not_remember_is_no_failure() -> None:
    def absent() -> None:
        raise FileNotFoundError(errno.ENOENT, "not cached")

    diary = Diary(absent)
    invalidator = Invalidator(namespace_of_all(), diary)

    invalidator.changed(AgentAdded(1, "a"))
    await invalidator.wait_idle()

    assert diary.told == [(1, b"a"), (1,)]
    invalidator.stop()


async def test_a_listing_that_cannot_be_dropped_yet_does_not_hold_up_a_switch(site: Site) -> None:
    """Whoever reads it may wait for a reply of this very loop."""
    replied = threading.Event()
    diary = Diary(lambda: replied.wait() if diary.told[-1] else None)
    namespace = site.namespace()
    namespace.keeps_tops = True
    invalidator = Invalidator(namespace, diary)
    agent = site.store.get_agent("bot")
    top = virtual_node(Kind.CURRENT, agent.agent_id)

    invalidator.changed(HeadSwitched(agent.agent_id, agent.head, agent.head))
    replied.set()
    await invalidator.wait_idle()

    assert diary.told == [(), (top,), (top,)]
    invalidator.stop()


async def test_what_a_request_changes_is_not_told_back() -> None:
    diary = Diary()
    invalidator = Invalidator(namespace_of_all(acting=True), diary)

    invalidator.changed(AgentAdded(1, "a"))
    await invalidator.wait_idle()

    assert diary.told == []
    invalidator.stop()


async def test_a_call_that_blocks_does_not_hold_up_the_loop() -> None:
    """The thread waits for the kernel, which waits for a reply of this very loop."""
    replied = trio.Event()
    token = trio.lowlevel.current_trio_token()
    diary = Diary(lambda: trio.from_thread.run(replied.wait, trio_token=token))
    invalidator = Invalidator(namespace_of_all(), diary)

    invalidator.changed(AgentAdded(1, "a"))
    assert not replied.is_set()
    replied.set()
    await invalidator.wait_idle()

    assert len(diary.told) == 2
    invalidator.stop()


async def test_listings_are_dropped_for_speed_only_while_little_else_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The mark that `wait_idle` waits for may count a moment longer than that waits.
    monkeypatch.setattr(invalidate, "BACKLOG_MAX", 2)
    replied = threading.Event()
    diary = Diary(replied.wait)
    invalidator = Invalidator(namespace_of_all(), diary)

    invalidator.drop_listings([KernelNode(1), KernelNode(2)])
    invalidator.drop_listings([KernelNode(3)])
    replied.set()
    await invalidator.wait_idle()
    invalidator.drop_listings([KernelNode(4)])
    await invalidator.wait_idle()

    assert diary.told == [(1,), (2,), (4,)]
    invalidator.stop()

"""Messages that no kernel sends: each is answered, if it asks for an answer, and the next one too."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaifs.base.clock import ManualClock
from kaifs.fuse import protocol as p
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.protocol import Opcode
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from tests.fuse.kernel_end import KernelEnd
from tests.views.conftest import USER, Site, walk
from tests.views.plain_actions import PlainActions

UNANSWERED = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
ERRNO_MAX = 4095
READ_MAX = 1 << 20
"""What the kernel asks for at most (max_pages of INIT)."""

numbers = st.sampled_from([0, 1, 2, 7, 4096, READ_MAX, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
parts = st.one_of(
    numbers.map(p.U64.pack),
    numbers.map(lambda number: p.U32.pack(number & 0xFFFFFFFF)),
    st.sampled_from([b"file\0", b"folder\0", b"current\0", b"..\0", b"\0", b"x" * 300, b"a/b\0"]),
    st.binary(max_size=40),
)
bodies = st.lists(parts, max_size=12).map(b"".join)
opcodes = st.one_of(st.sampled_from([*Opcode]), st.integers(0, (1 << 32) - 1))
requests = st.tuples(opcodes, bodies, st.integers(0, 3))
"""Opcode, body, and to which of four nodes: the last is none."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """As elsewhere, without fsck in the end: a mode of no known type is taken as the kernel's word."""
    clock = ManualClock()
    store = Store.create(tmp_path / "store", clock=clock)
    forest = Forest(store)
    actions = PlainActions(forest)
    actions.make_agent_owned("bot", USER.uid, USER.gid)
    yield Site(store, forest, actions, clock)
    store.close()


async def nothing() -> None:
    """Wait for nothing."""
    await trio.lowlevel.checkpoint()


def kernel_end(site: Site) -> KernelEnd:
    handlers = Handlers(site.namespace(), nothing, nothing)
    read = handlers.read
    # All that is asked for of a huge sparse file would be put together.
    handlers.read = lambda handle, offset, size: read(  # type: ignore[method-assign]
        handle, offset, min(size, READ_MAX)
    )
    return KernelEnd(handlers)


async def check_served(end: KernelEnd) -> None:
    """Check that a request which makes sense is answered as ever."""
    answer = await end.answer_to(end.send(Opcode.STATFS))
    assert (answer.error, len(answer.body)) == (0, p.STATFS_OUT.size)


# One store for all examples: what one has made is there for the next.
@pytest.mark.logs_errors
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(requests, min_size=1, max_size=20))
async def test_any_body_of_any_opcode_is_answered_once(
    site: Site, messages: list[tuple[int, bytes, int]]
) -> None:
    end = kernel_end(site)
    namespace = site.namespace()
    current = walk(namespace, "bot/current").node
    if namespace.lookup(current, b"file") is None:
        namespace.make(current, b"file", stat.S_IFREG | 0o644, USER)
    nodes = [
        current,
        walk(namespace, "bot/current/file").node,
        walk(namespace, "bot/@snapshots").node,
        (1 << 64) - 1,
    ]

    async with end.served():
        for opcode, body, place in messages:
            unique = end.send(opcode, body, nodes[place])
            if opcode not in UNANSWERED:
                answer = await end.answer_to(unique)
                assert -ERRNO_MAX <= answer.error <= 0
                assert not (answer.error and answer.body)
            await check_served(end)


@pytest.mark.logs_errors
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.binary(max_size=200), max_size=10))
async def test_what_is_no_message_does_not_end_the_server(
    site: Site, messages: list[bytes]
) -> None:
    end = kernel_end(site)

    async with end.served():
        for message in messages:
            end.send_raw(message)
            # Its answers, to whatever it may be taken for, are no matter.
            await end.idle()
            await check_served(end)

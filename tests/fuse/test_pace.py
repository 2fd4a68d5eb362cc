"""When requests are polled for, and when cores are kept awake: counted, on a clock of the test."""

import logging
import os
import select
from pathlib import Path

import pytest
import trio
import trio.testing

from kaifs.fuse import kernel_transport
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.kernel_transport import AWAKE_S, BURST, MISSES, KernelConnection
from kaifs.fuse.protocol import Opcode
from kaifs.fuse.transports import Pace
from kaifs.linux import latency
from tests.fuse.kernel_end import Answer, KernelEnd
from tests.views.conftest import Site

POLLED_NS = 100_000
POLLING = Pace(busypoll_us=POLLED_NS // 1000)
AWAKE = Pace(keeps_awake=True)
LONG_NS = round(AWAKE_S * 1_000_000_000) * 2
"""A pause after which a burst has ended."""


class Clock:
    """Stands in for `perf_counter_ns`; each look at it takes a quarter of what is polled."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += POLLED_NS // 4
        return self.now


class Polls:
    """Stands in for `poll`: what it finds is said before."""

    def __init__(self, *found: list[tuple[int, int]]) -> None:
        self._found = list(found)
        self.count = 0

    def __call__(self, timeout: int) -> list[tuple[int, int]]:
        assert timeout == 0
        self.count += 1
        return self._found.pop(0) if self._found else []


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the transport."""
    clock = Clock()
    monkeypatch.setattr(kernel_transport, "perf_counter_ns", clock)
    return clock


async def nothing() -> None:
    """Wait for nothing."""


def kernel_end(site: Site, pace: Pace) -> KernelEnd:
    return KernelEnd(Handlers(site.namespace(), nothing, nothing), pace)


REQUEST = [(7, select.POLLIN)]


# --- polling ----------------------------------------------------------------------------------


@pytest.fixture
def polling(site: Site) -> KernelConnection:
    """A connection that polls, and is not served."""
    end = kernel_end(site, POLLING)
    end.close()
    return end.connection


def test_a_request_that_comes_soon_is_met(polling: KernelConnection) -> None:
    """Of whatever connection: the loop lets that one have its turn."""
    polls = Polls([], REQUEST, REQUEST)

    assert polling._wait_awake(polls) == REQUEST
    assert polls.count == 2


def test_after_two_vain_tries_nothing_is_polled_for(polling: KernelConnection) -> None:
    for _ in range(MISSES):
        polls = Polls()
        assert polling._wait_awake(polls) == []
        assert polls.count > 1

    polls = Polls(REQUEST)
    assert polling._wait_awake(polls) == []
    assert polls.count == 0


def test_only_vain_tries_in_a_row_count(polling: KernelConnection) -> None:
    for _ in range(3 * MISSES):
        assert polling._wait_awake(Polls()) == []
        assert polling._wait_awake(Polls(REQUEST)) == REQUEST


def test_the_core_is_offered_to_others_between_two_polls(
    polling: KernelConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: offers.append(None))
    polls = Polls()

    polling._wait_awake(polls)

    assert len(offers) == polls.count


def test_without_busypoll_nothing_is_polled_for(site: Site) -> None:
    end = kernel_end(site, Pace(busypoll_us=0))
    end.close()
    polls = Polls(REQUEST)

    assert end.connection._wait_awake(polls) == []
    assert polls.count == 0


class Sleeps:
    """How long each sleep of a connection takes on the clock, and how often it was polled for."""

    def __init__(
        self, end: KernelEnd, clock: Clock, monkeypatch: pytest.MonkeyPatch, *lengths_ns: int
    ) -> None:
        self.polls: list[int] = []
        """Vain polls before each sleep."""
        self._clock = clock
        self._lengths_ns = list(lengths_ns)
        self._yields = 0
        self._sleep = end.connection._sleep
        monkeypatch.setattr(end.connection, "_sleep", self.sleep)
        monkeypatch.setattr(os, "sched_yield", self.sched_yield)

    def sched_yield(self) -> None:
        self._yields += 1

    async def sleep(self) -> None:
        self.polls.append(self._yields)
        self._yields = 0
        await self._sleep()
        self._clock.now += self._lengths_ns.pop(0) if self._lengths_ns else 0


async def test_polling_begins_again_when_a_request_comes_after_a_short_sleep(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as sleeps are longer than what would be polled, it stays given up."""
    end = kernel_end(site, POLLING)
    # The third request comes while the second look at the clock is not far.
    sleeps = Sleeps(end, clock, monkeypatch, *[LONG_NS] * (MISSES + 1), 0, LONG_NS)

    async with end.served():
        for _ in range(MISSES + 3):
            assert len(await end.idle()) <= 1
            end.send(Opcode.STATFS)
        await end.idle()

    polled = [bool(count) for count in sleeps.polls]
    assert polled == [True] * MISSES + [False] * 2 + [True] * 2


async def test_nobody_polls_while_an_answer_waits_for_something(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it waits for may need the core, and has its turn when the loop sleeps. It is no miss."""
    synced = trio.Event()
    end = KernelEnd(Handlers(site.namespace(), synced.wait, nothing), POLLING)
    sleeps = Sleeps(end, clock, monkeypatch, *[LONG_NS] * 5)

    async with end.served():
        await end.idle()
        fsync = end.send(Opcode.FSYNC)
        for _ in range(MISSES):
            assert await end.idle() == []
            end.send(Opcode.STATFS)
            assert len(await end.idle()) == 1
        synced.set()
        assert await end.idle() == [Answer(fsync, 0, b"")]
        end.send(Opcode.STATFS)
        await end.idle()

    polled = [bool(count) for count in sleeps.polls]
    assert polled == [True] + [False] * (MISSES + 1) + [True]


# --- cores ------------------------------------------------------------------------------------


class Cores:
    """Stands in for `AwakeCores`, and counts."""

    def __init__(self) -> None:
        self.tries = 0
        self.is_held = False

    def hold(self) -> None:
        self.tries += 1
        self.is_held = True

    def release(self) -> None:
        self.is_held = False


def with_cores(
    site: Site, monkeypatch: pytest.MonkeyPatch, pace: Pace = AWAKE
) -> tuple[KernelEnd, Cores]:
    end, cores = kernel_end(site, pace), Cores()
    monkeypatch.setattr(end.connection, "_awake", cores)
    return end, cores


def send_burst(end: KernelEnd, count: int = BURST) -> None:
    for _ in range(count):
        end.send(Opcode.STATFS)


async def test_cores_are_kept_awake_from_a_burst_on_until_requests_stop(
    site: Site, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    end, cores = with_cores(site, monkeypatch)

    async with end.served():
        for number in (1, 2):
            send_burst(end, BURST - 1)
            assert len(await end.idle()) == BURST - 1
            assert not end.connection.keeps_awake
            for _ in range(5):
                send_burst(end, 1)
                await trio.sleep(AWAKE_S * 0.6)
                assert len(end.received()) == 1
                assert end.connection.keeps_awake
            await trio.sleep(3 * AWAKE_S)
            assert not end.connection.keeps_awake
            assert cores.tries == number
        send_burst(end)
        await end.idle()
        assert end.connection.keeps_awake

    assert not end.connection.keeps_awake


async def test_requests_with_pauses_are_no_burst(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, cores = with_cores(site, monkeypatch)
    Sleeps(end, clock, monkeypatch, *[LONG_NS] * 5)

    async with end.served():
        for _ in range(5):
            await end.idle()
            send_burst(end, BURST - 1)
        await end.idle()
        assert cores.tries == 0
        send_burst(end, 1)
        await end.idle()
        assert end.connection.keeps_awake


async def test_without_latency_cores_sleep_when_they_like(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, cores = with_cores(site, monkeypatch, Pace())
    send_burst(end, 3 * BURST)

    async with end.served():
        assert len(await end.idle()) == 3 * BURST

    assert cores.tries == 0


async def test_where_cores_cannot_be_kept_awake_that_is_said_once(
    site: Site,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The device is missing, or only for root: requests are answered all the same."""
    monkeypatch.setattr(latency, "DEVICE", tmp_path / "cpu_dma_latency")
    caplog.set_level(logging.INFO, kernel_transport.__name__)
    end = kernel_end(site, AWAKE)
    Sleeps(end, clock, monkeypatch, *[LONG_NS] * 3)

    async with end.served():
        for _ in range(3):
            send_burst(end, 2 * BURST)
            assert [answer.error for answer in await end.idle()] == [0] * 2 * BURST
            assert not end.connection.keeps_awake

    said = [record for record in caplog.records if record.message == "cores_not_kept_awake"]
    assert len(said) == 1

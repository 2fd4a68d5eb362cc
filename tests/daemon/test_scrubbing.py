"""The scrub in the background: when it is due it reads everything, and goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import trio

from kaifs.control.client import call
from kaifs.control.places import log_path
from kaifs.daemon import scrubbing as module
from kaifs.daemon.care import Means
from kaifs.daemon.options import DAY_NS
from kaifs.daemon.scrubbing import Reader, Scrubbing
from kaifs.meta.records import ScrubRecord, ScrubTally
from kaifs.service.seal import Params as SealParams
from kaifs.service.status import Params as StatusParams
from kaifs.store.scrub import Read, find_scrub, put_scrub
from kaifs.store.store import Store, StoreOptions
from tests.daemon.site import Site, wait_until
from tests.service.desk import Desk
from tests.service.injury import flip_content

INTERVAL_NS: Final = 30 * DAY_NS


class SmallDesk(Desk):
    """A desk on small segments, with what the scrub needs of a daemon."""

    def _open(self) -> None:
        options = StoreOptions(segment_size=10_000, block_cache=0)
        super()._open()
        self.store.close()
        self.store = Store.open(self.path, clock=self.clock, options=options)
        self.forest = type(self.forest)(self.store)
        self.context = type(self.context)(self.store, self.forest, self.context.caller)

    def means(self) -> Means:
        async def commit() -> None:
            self.store.commit()

        return Means(lambda: self.context, trio.lowlevel.checkpoint, commit, trio.Lock())

    def scrubbing(self, interval_ns: int = INTERVAL_NS) -> Scrubbing:
        return Scrubbing(self.store, self.means(), interval_ns)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task looks all the time whether it is due, and does not wait to try again."""
    monkeypatch.setattr(module, "LOOK_MAX_S", 0.002)
    monkeypatch.setattr(module, "RETRY_S", 0.002)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[SmallDesk]:
    """`bot@1.0.0` with twelve files in several segments; nothing was scrubbed."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(12):
        (folder / f"f{number}").write_bytes(os.urandom(6000))
    desk = SmallDesk(tmp_path / "store")
    desk.take("bot", "1.0.0", folder)
    desk.store.commit()
    assert len(desk.store.segments.sizes) > 3
    yield desk
    desk.store.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - it is a store's record, which has no events
            await trio.sleep(0.001)


async def ended(desk: Desk, before: int = 0) -> ScrubRecord:
    """Wait until a scrub has ended after *before*."""
    await until(lambda: find_scrub(desk.store).finished_ns > before)
    return find_scrub(desk.store)


async def test_a_store_is_scrubbed_when_it_is_due_and_again_an_interval_later(
    desk: SmallDesk, looking: None
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.scrubbing().run)
        await trio.sleep(0.02)
        assert find_scrub(desk.store) == ScrubRecord()
        desk.clock.advance_ns(INTERVAL_NS)

        first = await ended(desk)
        await trio.sleep(0.02)
        assert find_scrub(desk.store) == first
        desk.clock.advance_ns(INTERVAL_NS)
        second = await ended(desk, first.finished_ns)
        nursery.cancel_scope.cancel()

    assert first.started_ns == 0
    assert first.last.read > 12 * 6000
    assert (first.last.damaged, first.last.healed) == (0, 0)
    assert second.finished_ns == first.finished_ns + INTERVAL_NS
    assert not desk.store.is_dirty


async def test_off_is_never(desk: SmallDesk) -> None:
    desk.clock.advance_ns(100 * INTERVAL_NS)

    await desk.scrubbing(0).run()

    assert find_scrub(desk.store) == ScrubRecord()


@pytest.mark.logs_errors
async def test_what_it_finds_is_set_aside(desk: SmallDesk, looking: None) -> None:
    flip_content(desk, desk.current("bot"), b"f3")
    desk.clock.advance_ns(INTERVAL_NS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.scrubbing().run)
        found = await ended(desk)
        nursery.cancel_scope.cancel()

    assert found.last.damaged == 1
    (aside,) = desk.run("quarantine-list").versions
    assert aside.original_path == "bot/@versions/1.0.0"


@pytest.mark.logs_errors
async def test_a_scrub_that_is_interrupted_goes_on_where_it_was(
    desk: SmallDesk,
    monkeypatch: pytest.MonkeyPatch,
    looking: None,
) -> None:
    """Also in another process; what it had found was handled by then."""
    read: list[Path] = []
    original = Reader.read
    flip_content(desk, desk.current("bot"), b"f0")

    async def watched(self: Reader, part: Read) -> None:
        read.append(part.path)
        await original(self, part)

    monkeypatch.setattr(Reader, "read", watched)
    desk.clock.advance_ns(INTERVAL_NS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.scrubbing().run)
        await until(lambda: len(set(read)) == 4)
        nursery.cancel_scope.cancel()
    before = set(read[:-1])
    halfway = find_scrub(desk.store)
    assert halfway.started_ns
    assert halfway.so_far.damaged == 1
    assert desk.run("quarantine-list").versions
    desk.reopen()
    read.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.scrubbing().run)
        found = await ended(desk)
        nursery.cancel_scope.cancel()

    assert not before & set(read)
    assert found.last.damaged == 1
    assert found.last.read > 12 * 6000


async def test_a_reader_that_dies_is_tried_again_later(
    desk: SmallDesk,
    monkeypatch: pytest.MonkeyPatch,
    looking: None,
) -> None:
    original = Reader.read
    tries = 0

    async def dying(self: Reader, part: Read) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            self._process.kill()
            await self._process.wait()
        await original(self, part)

    monkeypatch.setattr(Reader, "read", dying)
    desk.clock.advance_ns(INTERVAL_NS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.scrubbing().run)
        found = await ended(desk)
        nursery.cancel_scope.cancel()

    assert found.last.read > 12 * 6000


def test_the_verb_counts_as_a_scrub(desk: SmallDesk) -> None:
    desk.run("scrub")

    found = find_scrub(desk.store)
    assert found.finished_ns == desk.clock.now_ns()
    assert found.last == ScrubTally(found.last.read, 0, 0)


@pytest.mark.fuse
@pytest.mark.root
def test_a_daemon_scrubs_beside_its_mount(site: Site) -> None:
    payload = os.urandom(9000)
    site.mount("scrub=off")
    (site.mountpoint / "agent").mkdir()
    (site.current / "own").write_bytes(payload)
    call(site.store, "seal", SealParams(agent="agent", label="1.0.0"))
    told = call(site.store, "status", StatusParams()).scrub
    assert (told.finished, told.next) == (None, None)
    site.umount()
    store = Store.open(site.store)
    put_scrub(store, ScrubRecord(finished_ns=1))
    store.close()
    for path in (site.store / "segments").iterdir():
        place = path.read_bytes().find(payload)
        if place >= 0:
            with path.open("r+b") as file:
                file.seek(place)
                file.write(bytes([payload[0] ^ 1]))

    site.mount("scrub=7")

    aside = site.mountpoint / "agent" / "@quarantine" / "1.0.0"
    wait_until(aside.exists)
    wait_until(lambda: call(site.store, "status", StatusParams()).scrub.damaged == 1)
    told = call(site.store, "status", StatusParams()).scrub
    assert told.started is None
    assert told.next > told.finished > "2026"
    wait_until(lambda: "scrub_ended" in log_path(site.store).read_text())

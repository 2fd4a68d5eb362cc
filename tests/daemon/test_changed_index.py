"""A large index that has changed while nobody had it open is mended while it is mounted."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.control.places import log_path
from kaifs.meta.database import Table
from kaifs.meta.index import CHECKED_MAX, CLOSED_NAME, INDEX_FILE
from kaifs.store.store import INDEX_FOLDER, Store
from tests.daemon.site import Site, check_store, server, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

BALLAST = random.Random(5).randbytes(CHECKED_MAX // 2)
"""What makes an index large; in both copies."""


@pytest.fixture
def large(mounted: Site) -> Iterator[Site]:
    """A store whose index is not checked at once; closed."""
    site = mounted
    (site.current / "f").write_text("content\n")
    site.umount()
    store = Store.open(site.store)
    store.database.write({Table.META: {b"ballast": BALLAST}})
    store.close()
    yield site
    check_store(site.store)


def index_file(site: Site) -> Path:
    return site.store / INDEX_FOLDER / INDEX_FILE


def test_an_index_that_has_changed_is_mended_by_a_successor(large: Site) -> None:
    """No program notices but by the moment that it waits."""
    raw = index_file(large).read_bytes()
    with index_file(large).open("r+b") as file:
        file.seek(raw.index(BALLAST[:64]))
        file.write(bytes([BALLAST[0] ^ 1]))

    first = large.mount("transport=kernel")
    open_file = (large.current / "f").open()
    wait_until(lambda: "taken_over" in log_path(large.store).read_text())

    assert server(large).pid != first.pid
    assert "index_replaced" in log_path(large.store).read_text()
    assert open_file.read() == "content\n"
    open_file.close()
    (large.current / "g").write_text("more\n")
    large.umount()
    store = Store.open(large.store)
    assert store.database.get(Table.META, b"ballast") == BALLAST
    store.close()


def test_an_index_that_is_what_it_was_is_written_to(large: Site) -> None:
    large.mount("transport=kernel")
    (large.current / "g").write_text("more\n")
    large.umount()

    assert "index_changed" not in log_path(large.store).read_text()
    assert (large.store / INDEX_FOLDER / CLOSED_NAME).exists()

"""A store, a mountpoint, and the daemon between them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.store.store import Store
from tests.daemon.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A new store and an empty mountpoint."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened")
    Store.create(tmp_path / "store").close()
    (tmp_path / "mnt").mkdir()
    found = Site(tmp_path / "store", tmp_path / "mnt")
    yield found
    found.clear()


@pytest.fixture
def mounted(site: Site) -> Site:
    """The same, mounted, with one agent called `agent`."""
    site.mount()
    (site.mountpoint / "agent").mkdir()
    return site

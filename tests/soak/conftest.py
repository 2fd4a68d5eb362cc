"""Hours of load by programs that others wrote. `scripts/soak` runs it; the suite leaves it out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.control.client import call
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.store.store import Store
from tests.daemon.site import Site, check_store
from tests.daemon.users import public_folder

collect_ignore_glob = [] if os.environ.get("KAIFS_SOAK_S") else ["test_*.py"]


@pytest.fixture(params=["pyfuse3", "kernel"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A mounted store that every user gets to; afterwards it has to be sound."""
    with public_folder("soak") as folder:
        Store.create(folder / "store").close()
        (folder / "mnt").mkdir()
        found = Site(folder / "store", folder / "mnt")
        found.mount(f"transport={request.param}", "dev", "suid")
        (found.mountpoint / "agent").mkdir()
        try:
            yield found
            found.umount()
            check_store(found.store)
        finally:
            found.clear()


@pytest.fixture(params=["current", "snapshot"])
def folder(site: Site, request: pytest.FixtureRequest) -> Path:
    """A folder in which everybody may write."""
    view = site.current
    if request.param == "snapshot":
        call(site.store, "snapshot", SnapshotParams(reference="agent", name="snap"))
        view = site.mountpoint / "agent/@snapshots/snap"
    work = view / "work"
    work.mkdir()
    work.chmod(0o777)
    return work

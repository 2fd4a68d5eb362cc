"""Which transport serves a mount, and what is said about it."""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from kaifs.base.errors import MountFailedError
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.mounting import MountOptions
from kaifs.fuse.transports import make_transport
from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import STRANGER, as_stranger, bind_with_owner
from tests.views.conftest import Site

pytestmark = pytest.mark.fuse


async def nothing() -> None:
    """Wait for nothing."""


def handlers(site: Site) -> Handlers:
    return Handlers(site.namespace(), nothing, nothing)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    where = tmp_path / "mnt"
    where.mkdir()
    return where


def test_auto_is_the_kernels_protocol_where_it_can_be_had(site: Site, place: Path) -> None:
    transport = make_transport("auto", handlers(site))
    assert transport.name == "auto"

    transport.mount(place, MountOptions())
    transport.unmount()

    expected = "mount(2)" if os.geteuid() == 0 else "fusermount3"
    assert (transport.name, transport.reason) == ("kernel", f"mounted by {expected}")


def test_an_old_kernel_gets_pyfuse3_and_status_says_so(
    site: Site, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="4.19.0-27-amd64"))
    transport = make_transport("auto", handlers(site))

    transport.mount(place, MountOptions())
    transport.unmount()

    assert transport.name == "pyfuse3"
    assert transport.reason == (
        "no kernel transport: Linux 4.19.0-27-amd64 speaks an older protocol"
    )


def test_an_older_kernel_is_served_by_what_it_knows(tmp_path: Path) -> None:
    """What a newer one asks first, COPY_FILE_RANGE_64, is not needed: it asks by the older name then."""
    mounted = MountedStore(tmp_path, {"transport": "kernel-7.43", "agents": ["bot"]})
    try:
        (mounted.current / "from").write_bytes(b"content")
        with (mounted.current / "from").open() as source, (mounted.current / "to").open("w") as to:
            for _ in range(2):
                assert os.copy_file_range(source.fileno(), to.fileno(), 7, 0, 0) == 7
        counts = mounted.counts()
    finally:
        mounted.end()

    assert counts["COPY_FILE_RANGE"] == 2
    assert counts["COPY_FILE_RANGE_64"] <= 1


def test_what_cannot_be_mounted_at_all_fails(site: Site, tmp_path: Path) -> None:
    transport = make_transport("auto", handlers(site))

    with pytest.raises(MountFailedError):
        transport.mount(tmp_path / "missing", MountOptions())

    transport.unmount()


def test_without_a_mount_there_is_nothing_to_tell(site: Site) -> None:
    transport = make_transport("none", handlers(site))

    transport.notifier.expire_names()

    assert (transport.name, transport.reason) == ("none", "no mount was asked for")


@pytest.mark.root
def test_requests_are_polled_for_and_cores_kept_awake(tmp_path: Path) -> None:
    """Both only while requests come."""
    mounted = MountedStore(
        tmp_path, {"transport": "kernel", "busypoll": 200, "latency": True, "agents": ["bot"]}
    )
    try:
        for number in range(50):
            (mounted.current / str(number)).write_bytes(b"x" * 100)
        assert len(os.listdir(mounted.current)) == 50
        mounted.ask_until(False, "is-awake")
        subprocess.run(["sync", "-f", mounted.mountpoint], check=True)
    finally:
        mounted.end()


@pytest.mark.root
def test_a_view_can_be_mounted_with_other_owners(tmp_path: Path) -> None:
    """An idmapped mount: what its users make belongs to who is mapped to them."""
    mounted = MountedStore(
        tmp_path, {"transport": "kernel", "agents": ["bot"], "agent": "bot", "view": "current"}
    )
    other = tmp_path / "other"
    other.mkdir()
    try:
        os.chown(mounted.mountpoint, 1000, 1000)
        bind_with_owner(mounted.mountpoint, other, 1000, STRANGER)
        try:
            assert as_stranger(other, lambda: Path("file").touch()) == 0
            assert as_stranger(other, lambda: os.chmod("file", 0o4711)) == 0
            assert as_stranger(other, lambda: os.rename("file", "moved")) == 0
            assert (other / "moved").stat().st_uid == STRANGER
            assert (mounted.mountpoint / "moved").stat().st_uid == 1000
        finally:
            subprocess.run(["umount", other], check=True)
    finally:
        mounted.end()


def test_a_snapshot_that_waits_can_be_given_up(tmp_path: Path) -> None:
    """Who is killed while the barrier runs is not kept waiting for it, and nothing is made."""
    mounted = MountedStore(tmp_path, {"transport": "kernel", "agents": ["bot"], "slow": True})
    try:
        folder = mounted.mountpoint / "bot/@snapshots"
        maker = subprocess.Popen(["mkdir", folder / "s"])
        mounted.ask_until(1, "barriers")

        maker.kill()

        assert maker.wait(timeout=20) == -signal.SIGKILL
        assert os.listdir(folder) == []
    finally:
        mounted.end()

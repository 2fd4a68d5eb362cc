"""Damage below a live mount: who reads it gets EIO, who should know is told, the rest goes on."""

import http.server
import json
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kaifs.control.client import call
from kaifs.control.places import log_path
from kaifs.service.policy import Params as PolicyParams
from kaifs.service.quarantine_list import Params as ListParams
from kaifs.service.quarantine_release import Params as ReleaseParams
from kaifs.service.seal import Params as SealParams
from kaifs.service.verify import Params as VerifyParams
from tests.daemon.site import Site, kill, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


OWN = {label: os.urandom(5000) for label in ("1.0.0", "1.1.0")}
"""What the file `own` of each version holds."""


@pytest.fixture(params=["pyfuse3", "kernel"])
def sealed(site: Site, request: pytest.FixtureRequest) -> Site:
    """`agent` with 1.0.0 and 1.1.0, just mounted: nothing is cached."""
    transport = f"transport={request.param}"
    site.mount(transport)
    (site.mountpoint / "agent").mkdir()
    (site.current / "lib").mkdir()
    (site.current / "lib" / "same").write_bytes(os.urandom(5000))
    for label, payload in OWN.items():
        (site.current / "own").write_bytes(payload)
        call(site.store, "seal", SealParams(agent="agent", label=label))
    site.umount()
    site.mount(transport)
    return site


def version(site: Site, label: str) -> Path:
    return site.mountpoint / "agent" / "@versions" / label


def flip(site: Site, payload: bytes) -> None:
    """Flip a bit of *payload* on the disk, wherever it is."""
    count = 0
    for path in (site.store / "segments").iterdir():
        place = path.read_bytes().find(payload)
        if place >= 0:
            count += 1
            fd = os.open(path, os.O_RDWR)
            os.pwrite(fd, bytes([payload[0] ^ 1]), place)
            os.close(fd)
    assert count == 1


def log_of(site: Site) -> str:
    return log_path(site.store).read_text()


def test_a_version_that_is_set_aside_is_eio_for_those_who_have_it_open(sealed: Site) -> None:
    """Also what the kernel had cached of it, and through a memory map; nobody else notices."""
    path = version(sealed, "1.0.0")
    assert (path / "own").read_bytes() == OWN["1.0.0"]
    fd = os.open(path / "own", os.O_RDONLY)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    flip(sealed, OWN["1.0.0"])

    found = call(sealed.store, "verify", VerifyParams(full=True))

    assert [(one.reference, one.valid) for one in found.validations] == [
        ("agent@1.0.0", False),
        ("agent@1.1.0", True),
    ]
    for attempt in (
        lambda: os.pread(fd, 100, 0),
        lambda: os.stat("own", dir_fd=folder),
        lambda: os.listdir(folder),
    ):
        with pytest.raises(OSError, match="Input/output error"):
            attempt()
    os.close(fd)
    os.close(folder)
    assert sorted(os.listdir(path.parent)) == ["1.1.0"]
    assert not path.exists()
    assert len((version(sealed, "1.1.0") / "own").read_bytes()) == 5000
    note = sealed.mountpoint / "agent" / "@quarantine" / "1.0.0" / "quarantine.json"
    assert json.loads(note.read_text())["originalPath"] == "agent/@versions/1.0.0"
    assert "E102" in log_of(sealed)
    (sealed.current / "own").write_bytes(b"current goes on")


def test_what_is_released_is_there_again_whole(sealed: Site) -> None:
    path = version(sealed, "1.0.0")
    payload = OWN["1.0.0"]
    flip(sealed, payload)
    call(sealed.store, "verify", VerifyParams(full=True))
    assert not path.exists()
    flip_back = payload[:1]
    for segment in (sealed.store / "segments").iterdir():
        place = segment.read_bytes().find(payload[1:])
        if place > 0:
            fd = os.open(segment, os.O_RDWR)
            os.pwrite(fd, flip_back, place - 1)
            os.close(fd)

    call(sealed.store, "quarantine-release", ReleaseParams(reference="agent@1.0.0"))

    with (
        (path / "own").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        assert bytes(view) == payload
    assert not (sealed.mountpoint / "agent" / "@quarantine").exists()


def test_a_read_that_meets_damage_is_told_once_and_the_version_set_aside(
    sealed: Site, tmp_path: Path
) -> None:
    """Journal or syslog are the machine's; a hook and a webhook are told here, one process each."""
    told = tmp_path / "told"
    told.mkdir()
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat > {told}/$KAIFS_EVENT; env > {told}/env\n")
    hook.chmod(0o755)
    (sealed.store / "alerts.toml").write_text(f'[[hook]]\ncommand = ["{hook}"]\n')
    with webhook() as (url, received):
        with (sealed.store / "alerts.toml").open("a") as settings:
            settings.write(f'[[webhook]]\nurl = "{url}"\nbackoff = 0.01\n')
        flip(sealed, OWN["1.1.0"])
        path = version(sealed, "1.1.0") / "own"

        with pytest.raises(OSError, match="Input/output error"):
            path.read_bytes()
        for _ in range(2):
            # It may have been set aside by now.
            with pytest.raises(OSError, match=r"Input/output error|No such file"):
                path.read_bytes()

        aside = sealed.mountpoint / "agent" / "@quarantine" / "1.1.0"
        wait_until(aside.exists)
        wait_until(lambda: {one["event"] for one in received} == {"damaged", "quarantined"})
    assert sorted(one["event"] for one in received) == ["damaged", "quarantined"]
    assert received[0]["version"] == "1.1.0"
    assert received[0]["reason"] == "a read met damage: agent@1.1.0: own"
    assert json.loads((told / "quarantined").read_text())["agent"] == "agent"
    assert "KAIFS_TEST" not in (told / "env").read_text()
    log = log_of(sealed)
    assert log.count("damage_met") == 1
    assert 'where="agent@1.1.0: own"' in log
    assert (version(sealed, "1.0.0") / "own").exists()


def test_current_falls_back_when_a_read_meets_its_damage(sealed: Site) -> None:
    call(sealed.store, "policy", PolicyParams(agent="agent", on_damage="fallback"))
    payload = os.urandom(6000)
    (sealed.current / "new").write_bytes(payload)
    sealed.umount()
    flip(sealed, payload)
    sealed.mount()

    with pytest.raises(OSError, match="Input/output error"):
        (sealed.current / "new").read_bytes()

    wait_until(lambda: not (sealed.current / "new").exists())
    assert (sealed.current / "own").read_bytes() == OWN["1.1.0"]
    wait_until(lambda: "fallback" in log_of(sealed))
    assert os.listdir(sealed.mountpoint / "agent" / "@snapshots") == ["damaged-1"]


def test_what_is_set_aside_survives_the_death_of_the_daemon(sealed: Site) -> None:
    flip(sealed, OWN["1.0.0"])
    call(sealed.store, "verify", VerifyParams(full=True))

    kill(sealed.infos[-1])
    sealed.umount(lazy=True)
    sealed.mount()

    (one,) = call(sealed.store, "quarantine-list", ListParams()).versions
    assert one.version == "1.0.0"
    assert os.listdir(sealed.mountpoint / "agent" / "@versions") == ["1.1.0"]


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve HTTP on loopback; the first request is refused, as by a server that starts."""
    received: list[dict[str, Any]] = []
    refused: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not refused:
                refused.append(1)
                self.send_response(503)
            else:
                received.append(json.loads(body))
                self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/alert", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

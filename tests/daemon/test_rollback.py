"""Rollback is one switch: whoever reads meanwhile sees the old state or the new one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kaifs.base.errors import ForeignMountError
from kaifs.control.client import call
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.seal import Params as SealParams
from tests.daemon.site import Site

pytestmark = [pytest.mark.fuse, pytest.mark.root]

FILES = 40
ROLLBACKS = 20

READER = """
import json, os, sys

FILES = 40
current = sys.argv[1]
last, troubles = None, []
os.set_blocking(0, False)
while True:
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
    try:
        text = open(f"{current}/tree/f0").read()
        if text != last:
            last = text
            print(text, flush=True)
        # By paths: once the new state was seen, the old one is not seen again.
        seen = [open(f"{current}/tree/f{number}").read() for number in range(FILES)]
        if sum(one != other for one, other in zip(seen, seen[1:])) > 1:
            troubles.append(f"back and forth: {seen}")
        # All through one directory: never a mixture there.
        folder = os.open(f"{current}/tree", os.O_RDONLY | os.O_DIRECTORY)
        texts = set()
        for name in os.listdir(f"/proc/self/fd/{folder}"):
            with open(os.open(name, os.O_RDONLY, dir_fd=folder)) as file:
                texts.add(file.read())
        os.close(folder)
        if len(texts) != 1:
            troubles.append(f"a mixture: {sorted(texts)}")
    except OSError as error:
        troubles.append(str(error))
print(json.dumps(troubles[:5]), flush=True)
"""


def said_by(reader: "subprocess.Popen[str]") -> str:
    """Return the next line of *reader*."""
    assert reader.stdout is not None
    return reader.stdout.readline().strip()


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_readers_see_the_old_state_or_the_new_one(site: Site, transport: str) -> None:
    site.mount(f"transport={transport}")
    (site.mountpoint / "agent").mkdir()
    for text, label in (("old", "1.0.0"), ("new", "1.1.0")):
        (site.current / "tree").mkdir(exist_ok=True)
        for number in range(FILES):
            (site.current / f"tree/f{number}").write_text(text)
        call(site.store, "seal", SealParams(agent="agent", label=label))
    inode = (site.current / "tree/f0").stat().st_ino
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(site.current)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [said_by(reader) for reader in readers] == ["new"] * 2

    for number in range(ROLLBACKS):
        label, text = (("1.0.0", "old"), ("1.1.0", "new"))[number % 2]
        call(site.store, "rollback", RollbackParams(agent="agent", version=label))
        assert (site.current / "tree/f0").read_text() == text
        # Each tells what it sees when that changes, once: the next switch waits for it.
        assert [said_by(reader) for reader in readers] == [text] * 2

    for reader in readers:
        troubles, _ = reader.communicate()
        assert json.loads(troubles) == []
    assert (site.current / "tree/f0").stat().st_ino == inode


@pytest.mark.parametrize("place", ["agent/current/folder", "other/current"])
@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_what_is_mounted_inside_is_not_detached(site: Site, transport: str, place: str) -> None:
    """A switch would: the kernel looks every name up again, in whatever agent."""
    site.mount(f"transport={transport}")
    for agent in ("agent", "other"):
        (site.mountpoint / agent).mkdir()
        call(site.store, "seal", SealParams(agent=agent, label="1.0.0"))
    (site.current / "folder").mkdir()
    where = site.mountpoint / place
    subprocess.run(["mount", "-t", "tmpfs", "test", where], check=True)
    try:
        with pytest.raises(ForeignMountError):
            call(site.store, "rollback", RollbackParams(agent="agent", version="1.0.0"))
        (where / "file").touch()
    finally:
        subprocess.run(["umount", where], check=True)


def test_what_was_written_before_a_rollback_is_in_the_backup(mounted: Site) -> None:
    """Also what programs wrote through files that they still have open."""
    (mounted.current / "file").write_text("sealed")
    call(mounted.store, "seal", SealParams(agent="agent", label="1.0.0"))
    with (mounted.current / "open").open("w") as still_open:
        still_open.write("not closed")
        still_open.flush()
        (mounted.current / "file").write_text("changed")

        call(mounted.store, "rollback", RollbackParams(agent="agent", version="1.0.0"))

    backup = mounted.mountpoint / "agent/@versions/1.0.1-rollback.1"
    assert (backup / "file").read_text() == "changed"
    assert (backup / "open").read_text() == "not closed"
    assert (mounted.current / "file").read_text() == "sealed"
    assert not (mounted.current / "open").exists()


def test_an_open_file_stays_on_the_old_view(mounted: Site) -> None:
    (mounted.current / "file").write_text("first")
    call(mounted.store, "seal", SealParams(agent="agent", label="1.0.0"))
    (mounted.current / "file").write_text("second")

    with (mounted.current / "file").open() as reading:
        call(mounted.store, "rollback", RollbackParams(agent="agent", version="1.0.0"))

        assert reading.read() == "second"
        assert Path(mounted.current / "file").read_text() == "first"

"""Sandboxes, and the tests in them, go on when the server of the mount gives way to another one."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kaifs.control.client import find_daemon
from kaifs.sandbox.janitor import clean, find_group_folders, find_processes
from kaifs.store.superblock import read_superblock
from tests.cli.conftest import Shell
from tests.daemon.site import Site, each_ending, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_CRASH_ROUNDS", "2"))


@pytest.fixture
def site(bot: Shell, tmp_path: Path) -> Iterator[Site]:
    """The store of `bot`, mounted."""
    (tmp_path / "mnt").mkdir()
    found = Site(bot.store, tmp_path / "mnt")
    found.mount()
    label = read_superblock(bot.store).uuid.hex()
    yield found
    assert find_processes(label) == []
    assert find_group_folders(label) == []
    assert clean(label) == []
    found.umount()
    found.clear()


def _feed(process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline()


@each_ending
def test_a_command_in_a_sandbox_notices_nothing(
    bot: Shell, site: Site, end_server: Callable[[Site], None]
) -> None:
    script = "echo up; while read line; do echo $line >>log && tail -n1 log || echo error; done"
    bot.fine("snapshot", "bot", "--name", "s", "-q")
    process = bot.start("run", "s", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"

    for number in range(ROUNDS):
        end_server(site)
        assert _feed(process, b"%d\n" % number) == b"%d\n" % number

    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, b"", b"")
    log = site.mountpoint / "bot/@snapshots/s/log"
    assert log.read_text().split() == [str(number) for number in range(ROUNDS)]


@each_ending
def test_tests_come_to_their_verdict_and_are_committed(
    bot: Shell, site: Site, tmp_path: Path, end_server: Callable[[Site], None]
) -> None:
    suite = tmp_path / "suite.toml"
    signals = tmp_path / "signals"
    signals.mkdir(mode=0o755)
    script = f"touch started; while ! test -e {signals}/go; do sleep 0.05; done; echo done >result"
    suite.write_text(
        f"[[test]]\nname = 'one'\ncommand = '{script}'\n"
        "[[test]]\nname = 'two'\ncommand = 'test -f result'\n"
    )
    bot.fine("snapshot", "bot", "--name", "s", "--allow", signals, "-q")
    process = bot.start("test", "s", "--suite", suite, "--json")
    wait_until(lambda: (site.mountpoint / "bot/@snapshots/s/started").exists())

    for _ in range(ROUNDS):
        end_server(site)
        (found,) = json.loads(bot.fine("snapshots", "bot", "--json"))
        assert found["status"] == "testing"
    (signals / "go").touch()

    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["success"]
    assert find_daemon(bot.store) is not None
    assert json.loads(bot.fine("commit", "s", "--json"))
    assert bot.fine("list", "bot").count("1.0.1") == 1
    assert (site.mountpoint / "bot/current/result").read_text() == "done\n"

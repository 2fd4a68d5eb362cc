"""An ordinary user, with fusermount3 and user namespaces, gets all of it that the kernel allows."""

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

pytestmark = [pytest.mark.fuse, pytest.mark.root]

NOBODY: Final = 65534
ROOT: Final = Path(__file__).parents[2]
SYSTEM_PYTHON: Final = Path("/usr/bin/python3")
"""root's own Python may lie where nobody else can read it."""


class User:
    """Somebody without rights, with a store, a folder and a mountpoint of their own."""

    def __init__(self, home: Path, packages: Path) -> None:
        self.home = home
        self._environment = {
            "HOME": str(home),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "KAIFS_STORE": str(home / "store"),
            "PYTHONPATH": str(packages),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KAIFS_TEST": os.environ.get("KAIFS_TEST", ""),
        }

    def kaifs(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run one command as the user."""
        return subprocess.run(
            [SYSTEM_PYTHON, "-m", "kaifs", *arguments],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def fine(self, *arguments: str) -> str:
        """Run one command that has to succeed, and return its output."""
        done = self.kaifs(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shell(self, script: str) -> str:
        """Run a script as the user: root itself may not look into the user's mount."""
        return subprocess.run(
            ["/bin/sh", "-ec", script],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    """Everything that is imported, where everybody can read it."""
    version = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if version != [str(number) for number in sys.version_info[:2]]:
        pytest.skip("NOT TESTED: the system's Python is not of the version that runs the tests")
    folder = Path("/tmp") / f"kaifs-packages-{os.getpid()}"
    shutil.copytree(sysconfig.get_path("purelib"), folder)
    shutil.copytree(ROOT / "kaifs", folder / "kaifs", dirs_exist_ok=True)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def fuse_for_all() -> Iterator[None]:
    """As udev makes it on an ordinary machine."""
    before = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", before)


@pytest.fixture
def user(packages: Path, fuse_for_all: None) -> Iterator[User]:
    """A user with one agent, `bot`."""
    home = Path("/tmp") / f"kaifs-user-{os.getpid()}"
    home.mkdir(mode=0o755)
    os.chown(home, NOBODY, NOBODY)
    found = User(home, packages)
    try:
        found.shell("mkdir folder mnt; echo first > folder/file; ln -s file folder/link")
        found.fine("init")
        found.fine("import", "bot", "folder", "--as", "1.0.0")
        yield found
    finally:
        shutil.rmtree(home)


def test_a_user_mounts_writes_seals_and_rolls_back(user: User) -> None:
    user.fine("mount", "mnt")
    try:
        assert user.shell("cat mnt/bot/current/link") == "first\n"
        user.shell("echo second > mnt/bot/current/file; mkdir mnt/bot/@snapshots/try")
        user.shell("echo third > mnt/bot/@snapshots/try/file")
        user.fine("seal", "bot")
        assert user.kaifs("diff", "bot@1.0.0", "bot@1.0.1").stdout == "M\tfile\n"
        user.fine("rollback", "bot", "1.0.0")
        assert user.shell("cat mnt/bot/current/file mnt/bot/@versions/1.0.1/file") == (
            "first\nsecond\n"
        )
        assert user.shell("cat mnt/bot/@snapshots/try/file") == "third\n"
    finally:
        user.fine("umount", "mnt")
    assert "Clean" in user.fine("fsck")


def test_a_user_runs_commands_in_a_sandbox(user: User) -> None:
    """With the daemon of a mount, and without one."""
    script = "id -u; cat /agent/link; echo inside > /agent/new; ls /agent"
    expected = "1000\nfirst\nfile\nlink\nnew\n"

    assert user.fine("run", "bot@1.0.0", "--", "sh", "-c", script) == expected
    user.fine("mount", "mnt")
    try:
        assert user.fine("run", "bot@1.0.0", "--", "sh", "-c", script) == expected
        assert user.shell("cat mnt/bot/current/file") == "first\n"
    finally:
        user.fine("umount", "mnt")


def test_a_limit_that_a_user_asks_for_and_cannot_have_is_refused(user: User) -> None:
    """Without a delegated control group there is no such thing as a silent fallback."""
    done = user.kaifs("run", "--memory", "64m", "bot@1.0.0", "--", "echo", "ran")

    if done.returncode == 0:
        assert done.stdout == "ran\n"
        pytest.skip("NOT TESTED: this machine delegates control groups to everybody")
    assert done.returncode == 125
    assert done.stderr.startswith("kaifs: E103: ")
    assert done.stdout == ""

"""What tests of sandboxes get."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.sandbox.defences import Defence
from kaifs.sandbox.policy import Policy
from kaifs.sandbox.run import start
from tests.sandbox.ground import (
    ANY_UID,
    LABEL,
    ROOT,
    AsUser,
    Attack,
    Attempt,
    FolderMount,
    leftovers,
)


@pytest.fixture(scope="session", autouse=True)
def machine_can_sandbox() -> None:
    """Without the tools there is nothing to test; `scripts/setup` installs them."""
    for tool in ("bwrap", "perl"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT TESTED: {tool} is missing")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="kaifs-test-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def agent(public: Path) -> Path:
    """The agent's files."""
    folder = public / "agent"
    folder.mkdir()
    (folder / "hello").write_text("hello\n")
    return folder


@pytest.fixture
def attack(agent: Path) -> Attack:
    """Run a command in a sandbox, with defences left out."""

    def run(
        command: str | list[str],
        *without: Defence,
        policy: Policy | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> Attempt:
        argv = ["/usr/bin/python3", "-c", command] if isinstance(command, str) else command
        with tempfile.TemporaryFile() as output:
            with start(
                policy or Policy(memory=128 << 20, timeout_s=20),
                argv,
                FolderMount(agent),
                stdin=stdin,
                stdout=output.fileno() if stdout is None else stdout,
                stderr=output.fileno(),
                label=LABEL,
                without=frozenset(without),
            ) as running:
                outcome = running.wait()
            output.seek(0)
            return Attempt(output.read().decode(errors="replace"), outcome, running.error)

    return run


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process, control group or descriptor outlives the test."""
    descriptors = os.listdir("/proc/self/fd")
    yield
    assert leftovers() == []
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


@pytest.fixture
def package(public: Path) -> Path:
    """Copies of the layers that a sandbox needs, where every user can import them."""
    folder = public / "package"
    for name in ("base", "linux", "sandbox"):
        shutil.copytree(
            ROOT / "kaifs" / name,
            folder / "kaifs" / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "kaifs" / "__init__.py", folder / "kaifs")
    return folder


@pytest.fixture
def as_user(package: Path) -> AsUser:
    """Run a Python program as an ordinary user, with kaifs to import."""

    def run(program: str, *arguments: str, uid: int = ANY_UID) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/python3", "-B", "-c", program, *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]
        return subprocess.run(
            command,
            cwd="/",
            env={"PYTHONPATH": str(package), "PATH": os.defpath, "SECRET": "of the user"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run

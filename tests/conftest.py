"""What every test gets: hypothesis profiles, and a check that it cleans up after itself.

A test that leaves a process or a mount behind fails, and what it left is ended,
so that the next test starts clean. Processes are found by a word in their
environment, which survives when a daemon leaves its parent; mounts by their
place below the test's own folder. Fixtures of a wider scope than one test are
held to the same when the last test ends.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest

MARK: Final = "KAIFS_TEST"
GRACE_S: Final = 2.0
"""A server that was told to end may need a moment after `umount` has returned."""

hypothesis.settings.register_profile("dev", max_examples=30, stateful_step_count=30, deadline=None)
hypothesis.settings.register_profile(
    "ci",
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.register_profile(
    "nightly", max_examples=2000, stateful_step_count=200, deadline=None
)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


def marked_processes(mark: str) -> list[int]:
    """Return the ids of running processes, this one aside, that inherited *mark*."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it ended, or is another user's
            continue
    return found


def mounts_below(folder: Path) -> list[str]:
    """Return the mountpoints at or below *folder*, the innermost first."""
    inside = os.fspath(folder)
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mountpoint = line.split(" ")[4].replace("\\040", " ")
        if mountpoint == inside or mountpoint.startswith(inside + "/"):
            found.append(mountpoint)
    return found[::-1]


def clear_leftovers(mark: str, folder: Path | None) -> list[str]:
    """End the processes with *mark* and unmount what is below *folder*; return what there was."""
    until = time.monotonic() + GRACE_S
    while (pids := marked_processes(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    mounts = mounts_below(folder) if folder is not None else []
    findings = [f"mount {mountpoint}" for mountpoint in mounts]
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            os.kill(pid, signal.SIGKILL)
        except (OSError, UnicodeDecodeError):
            command = "?"
        findings.append(f"process {pid}: {command.strip()}")
    for mountpoint in mounts:
        subprocess.run(["umount", "--lazy", mountpoint], check=False)
    return findings


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Mark every process that is started inside."""
    before = os.environ.get(MARK)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


def session_mark() -> str:
    """Return the mark of fixtures that outlive a test."""
    return f"session-{os.getpid()}"


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Mark what a fixture of a wider scope starts as the session's."""
    if fixturedef.scope == "function":
        return (yield)
    with marked(session_mark()):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Mark what a test starts as this test's."""
    with marked(f"{os.getpid()}-{abs(hash(item.nodeid))}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Fail a test that leaves something behind; the last one answers for wider fixtures."""
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    yield
    findings = clear_leftovers(os.environ[MARK], folder)
    if nextitem is None:
        findings += clear_leftovers(session_mark(), None)
    if findings:
        pytest.fail("left behind: " + "; ".join(findings), pytrace=False)


@pytest.fixture(autouse=True)
def no_unexpected_errors(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Fail a test in which kaifs logs an error; `logs_errors` marks one that provokes it."""
    yield
    if request.node.get_closest_marker("logs_errors"):
        return
    errors = [
        record.getMessage()
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.ERROR and record.name.partition(".")[0] == "kaifs"
    ]
    assert not errors, f"kaifs logged errors: {errors}"

"""A verb asked in plain values does what it does when asked with its types."""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from kaifs.base.errors import AgentNotFoundError, ArgumentValueError, DaemonError
from kaifs.cli.limits import add_limits, plain_limits, snapshot_options
from kaifs.control.failures import RemoteBugError
from kaifs.control.frames import FRAME_MAX, pack_frame
from kaifs.control.plain import call_plain
from tests.control.conftest import Served


async def ask(served: Served, verb: str, params: dict[str, Any]) -> Any:
    """Call from a thread, as a command in another process would."""
    return await trio.to_thread.run_sync(partial(call_plain, str(served.path), verb, params))


async def test_the_result_is_that_of_the_verb(served: Served) -> None:
    assert await ask(served, "trial", {"what": "progress"}) == {"text": ""}
    assert served.done == ["barrier", "run", "sync"]


async def test_the_daemon_itself_is_asked_as_a_verb_is(served: Served) -> None:
    place = {"mountpoint": "/mnt", "options": "", "namespace": 1}

    assert await ask(served, "mount", place) == {}
    assert await ask(served, "restart", {}) == {"pid": os.getpid()}
    assert served.done == ["mount on /mnt", f"restart by {os.geteuid()}"]


async def test_a_result_larger_than_a_frame_arrives(served: Served) -> None:
    found = await ask(served, "trial", {"what": "large", "size": 2 * FRAME_MAX})

    assert found == {"text": "y" * (2 * FRAME_MAX)}


async def test_an_error_arrives_with_its_class(served: Served) -> None:
    with pytest.raises(AgentNotFoundError) as caught:
        await ask(served, "manifest", {"reference": "nobody"})

    assert caught.value.subject == "nobody"


@pytest.mark.parametrize("params", [{}, {"what": 3}, {"what": "", "colour": "blue"}])
async def test_parameters_that_do_not_fit_are_refused(
    served: Served, params: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentValueError):
        await ask(served, "trial", params)

    assert served.done == []


async def test_what_is_no_text_is_named(served: Served) -> None:
    with pytest.raises(ArgumentValueError, match=r"\('a\\udcff' is not UTF-8\)"):
        await ask(served, "trial", {"size": 1, "what": "a\udcff"})


@pytest.mark.logs_errors
async def test_a_bug_is_told_as_one(served: Served) -> None:
    with pytest.raises(RemoteBugError, match="on purpose"):
        await ask(served, "trial", {"what": "bug"})


def test_without_a_daemon_there_is_none(tmp_path: Path) -> None:
    assert call_plain(str(tmp_path / "nothing"), "trial", {}) is None
    (tmp_path / "run").mkdir()
    assert call_plain(str(tmp_path), "trial", {}) is None


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Returns a function that has whoever asks for a store next told some bytes."""
    threads = []
    listener = socket.socket(socket.AF_UNIX)
    (tmp_path / "run").mkdir()
    listener.bind(str(tmp_path / "run" / "control.sock"))
    listener.listen()

    def tell(answer: bytes) -> str:
        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return str(tmp_path)

    yield tell
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"\xff\xff\xff\xff", pack_frame(b"{"), pack_frame(b'["result", "%", true]'), b"\1"],
)
def test_an_answer_that_makes_no_sense_is_an_error(
    impostor: Callable[[bytes], str], answer: bytes
) -> None:
    with pytest.raises(DaemonError):
        call_plain(impostor(answer), "trial", {})


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--container", "--image", "i", "--network", "--memory", "1g", "--cpus", "2"],
        ["--storage", "1g", "--pids", "7", "--env", "A=1", "--env", "A=2", "--env", "B="],
        ["--allow", "/data:rw", "--deny-syscall", "kill"],
    ],
)
def test_options_mean_the_same_in_plain_values(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.set_defaults(read_only=False)
    add_limits(parser)
    args = parser.parse_args(words)

    expected = msgspec.json.encode(snapshot_options(args).limits())

    assert plain_limits(args) == json.loads(expected)


def test_it_loads_next_to_nothing() -> None:
    """Start-up is dominated by imports: this is what a plain call is for."""
    heavy = ("msgspec", "dataclasses", "logging", "pathlib", "ctypes", "inspect")
    code = (
        "import sys; from kaifs.cli.main import main\n"
        "assert main(['--store', '/nonexistent/\\udcff', 'snapshot', 'x', '--name', '\\udcff'])\n"
        f"sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    # Without `site`: what is installed beside it may load anything.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )

    assert (done.returncode, b"is not UTF-8" in done.stderr) == (0, True)

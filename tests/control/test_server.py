"""Verbs through the socket: the same results, and nothing half done."""

import contextlib
import os
import socket
import struct
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from kaifs.base.errors import (
    AgentNotFoundError,
    ArgumentValueError,
    BarrierError,
    DaemonError,
    SourceError,
)
from kaifs.control.client import attach, call, find_daemon, shutdown
from kaifs.control.failures import RemoteBugError
from kaifs.control.frames import pack_frame
from kaifs.control.info import DaemonInfo, remove_info, write_info
from kaifs.control.messages import AttachParams, Request, encode
from kaifs.control.places import socket_path
from kaifs.linux.processes import identify
from kaifs.linux.sockets import connect_to
from kaifs.service import import_, list_, manifest
from kaifs.service.host_source import HostSource
from kaifs.service.steps import Data, End, Item, Progress, Total
from tests.control.conftest import Params, Result, Served


async def ask(served: Served, verb: str, params: msgspec.Struct, *more: Any) -> Any:
    """Call from a thread, as a command in another process would."""
    return await trio.to_thread.run_sync(partial(call, served.path, verb, params, *more))


def open_raw(served: Served, body: bytes) -> socket.socket:
    """Return a connection on which *body* was sent as it is."""
    connection = connect_to(socket_path(served.path), 10)
    connection.sendall(body)
    return connection


def request(verb: str, params: msgspec.Struct) -> bytes:
    """Return the frame of a request."""
    return pack_frame(encode(Request(verb, msgspec.Raw(encode(params)))))


async def test_a_changing_verb_is_flushed_run_and_committed_in_that_order(served: Served) -> None:
    result = await ask(served, "trial", Params(what="flush"))

    assert result == Result(text="")
    assert served.done == ["barrier", "barrier", "run", "sync"]


async def test_a_verb_is_not_run_if_the_barrier_fails(served: Served) -> None:
    served.barrier_fails = True

    with pytest.raises(BarrierError):
        await ask(served, "trial", Params(what=""))

    assert served.done == ["barrier"]


async def test_progress_and_output_arrive(served: Served) -> None:
    told: list[Progress] = []
    pieces: list[bytes] = []

    await ask(served, "trial", Params(what="progress"), None, told.append)
    await ask(served, "trial", Params(what="output", size=5 << 20), None, None, pieces.append)

    assert [(step.done, step.total) for step in told] == [(0, 2), (2, 2)]
    assert b"".join(pieces) == b"x" * (5 << 20)


async def test_a_result_larger_than_a_frame_arrives(served: Served) -> None:
    result = await ask(served, "trial", Params(what="large", size=9 << 20))

    assert result.text == "y" * (9 << 20)


async def test_an_error_arrives_with_its_class_and_changes_nothing(served: Served) -> None:
    with pytest.raises(AgentNotFoundError) as caught:
        await ask(served, "manifest", manifest.Params(reference="nobody"))

    assert caught.value.subject == "nobody"
    assert "sync" not in served.done


@pytest.mark.logs_errors
async def test_a_bug_ends_the_verb_and_not_the_server(served: Served) -> None:
    with pytest.raises(RemoteBugError, match="on purpose"):
        await ask(served, "trial", Params(what="bug"))

    assert (await ask(served, "trial", Params(what=""))).text == ""


async def test_unknown_verbs_and_parameters_are_refused(served: Served) -> None:
    class Other(msgspec.Struct):
        colour: str

    with pytest.raises(ArgumentValueError):
        await ask(served, "trial", Other("blue"))
    with open_raw(served, request("no such verb", Params(what=""))) as connection:
        answer = await trio.to_thread.run_sync(connection.recv, 4096)
        assert b"E140" in answer


async def test_an_import_through_the_socket_is_what_was_sent(
    served: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "large").write_bytes(os.urandom(3 << 20))
    for number in range(300):
        (folder / f"small{number}").write_text(str(number))

    params = import_.Params(agent="bot", label="1.0.0")
    await ask(served, "import", params, iter(HostSource(folder, served.path)))

    listed = await ask(served, "list", list_.Params(agent="bot"))
    assert "1.0.0" in str(listed)
    # An epoch before the version shows, and the journal before that is told.
    assert [what for what in served.done if what in ("commit", "sync")] == ["commit", "sync"]


async def test_a_source_that_ends_early_is_told_to_the_verb(served: Served) -> None:
    source: list[Item] = [Total(1, 1), Data(0, b"x")]

    result = await ask(served, "trial", Params(what="items"), iter(source))
    assert result.text == "TotalDataNone"
    whole = await ask(served, "trial", Params(what="items"), iter([*source, End()]))
    assert whole.text == "TotalData"


async def test_a_source_that_fails_ends_the_verb(served: Served, tmp_path: Path) -> None:
    params = import_.Params(agent="bot", label="1.0.0")

    with pytest.raises(SourceError):
        await ask(served, "import", params, iter(HostSource(tmp_path / "missing", served.path)))

    assert (await ask(served, "trial", Params(what=""))).text == ""
    assert served.store.agents() == []


async def test_a_client_that_goes_away_ends_its_verb(served: Served) -> None:
    with open_raw(served, request("trial", Params(what="for ever"))) as connection:
        assert await trio.to_thread.run_sync(connection.recv, 4096)

    with trio.fail_after(10):
        await served.closed.wait()

    assert "sync" not in served.done
    # The lock of changing verbs is free again.
    assert (await ask(served, "trial", Params(what=""))).text == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xff\xff\xff",
        struct.pack("<I", 4 << 20) + b"x" * 1000,
        pack_frame(b""),
        pack_frame(b"\xc1"),
        pack_frame(b"GET / HTTP/1.1\r\n"),
        pack_frame(encode(End())),
        request("trial", Params(what="for ever")) * 2,
        request("trial", Params(what="items")) + pack_frame(b"\x93" * 1000),
    ],
    ids=lambda body: repr(body[:12]),
)
async def test_nonsense_ends_its_own_connection_only(served: Served, body: bytes) -> None:
    with open_raw(served, body) as connection:
        connection.shutdown(socket.SHUT_WR)
        while await trio.to_thread.run_sync(_receive, connection):
            pass

    assert (await ask(served, "trial", Params(what=""))).text == ""


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


async def test_shutdown_is_passed_on(served: Served) -> None:
    result = await trio.to_thread.run_sync(partial(shutdown, served.path, lazy=True))

    assert result.ends
    assert served.done == ["shutdown lazy=True"]


async def test_a_daemon_is_found_while_it_lives_and_listens(served: Served) -> None:
    process = identify(os.getpid())
    assert process is not None
    info = DaemonInfo(
        pid=process.pid,
        supervisor_pid=process.pid,
        started_ticks=process.started,
        started_ns=0,
        mounts=[],
    )
    assert find_daemon(served.path) is None

    write_info(served.path, info)
    assert await trio.to_thread.run_sync(find_daemon, served.path) == info

    write_info(served.path, msgspec.structs.replace(info, started_ticks=1))
    assert find_daemon(served.path) is None
    remove_info(served.path)
    assert find_daemon(served.path) is None


def test_no_daemon_is_an_error_with_a_code(tmp_path: Path) -> None:
    with pytest.raises(DaemonError):
        call(tmp_path, "trial", Params(what=""))


async def test_attach_takes_the_descriptor_that_is_passed(served: Served) -> None:
    """The daemon gets it, and is told when who passed it goes away."""

    def ask() -> None:
        attachment = attach(served.path, AttachParams(reference="a/@snapshots/x"))
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        attachment.pass_descriptor(device, 7, 8)
        os.close(device)
        attachment.close()

    await trio.to_thread.run_sync(ask)
    with trio.fail_after(10):
        while not served.done:
            await trio.lowlevel.checkpoint()

    assert served.done == ["attach a/@snapshots/x 10:229 as 7:8"]


async def test_attach_takes_no_other_descriptor(served: Served) -> None:
    """A client could pass anything: a pipe that never ends, another store's segment."""

    def ask() -> bytes:
        attachment = attach(served.path, AttachParams(reference="a/@snapshots/x"))
        with open("/dev/null", "rb") as other:
            attachment.pass_descriptor(other.fileno(), 7, 8)
        with contextlib.closing(attachment):
            return attachment.wait_end()

    refusal = await trio.to_thread.run_sync(ask)

    assert b"E140" in refusal
    assert served.done == []

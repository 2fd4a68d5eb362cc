"""Signatures through the socket: the client is shown a record, and answers with one message."""

from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from kaifs.control import server
from kaifs.control.client import call
from kaifs.control.frames import pack_frame
from kaifs.control.messages import Request, encode
from kaifs.control.places import socket_path
from kaifs.linux.sockets import connect_to
from kaifs.service.steps import Data, End, Item, Signature, Signer, Total
from tests.control.conftest import Params, Result, Served


async def ask(served: Served, params: Params, signer: Signer, *items: Item) -> Any:
    """Call from a thread, as a command in another process would."""
    work = partial(call, served.path, "trial", params, source=iter(items), signer=signer)
    return await trio.to_thread.run_sync(work)


def frame(message: msgspec.Struct) -> bytes:
    return pack_frame(encode(message))


def signed(record: bytes) -> bytes:
    return b"<" + record + b">"


async def test_each_record_is_signed_in_turn(served: Served) -> None:
    result = await ask(served, Params(what="sign", size=2), signed)

    assert result == Result(text="Signature<record 0>Signature<record 1>")


async def test_a_signature_follows_the_items(served: Served) -> None:
    """The record is known only when all of them are there."""
    result = await ask(served, Params(what="items", size=1), signed, Total(0, 0), End())

    assert result == Result(text="TotalSignature")


async def test_a_signer_that_fails_ends_the_verb(served: Served) -> None:
    def fail(record: bytes) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ask(served, Params(what="sign", size=1), fail)

    with trio.fail_after(10):
        await served.closed.wait()
    assert "sync" not in served.done


async def test_a_client_that_never_signs_is_not_waited_for_long(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other verbs that change the store wait meanwhile."""
    monkeypatch.setattr(server, "SIGNATURE_TIMEOUT_S", 0.05)
    params = msgspec.Raw(encode(Params(what="sign", size=1)))

    with connect_to(socket_path(served.path), 10) as connection:
        connection.sendall(frame(Request("trial", params)))
        received = b""
        while b"None" not in received:
            received += await trio.to_thread.run_sync(connection.recv, 4096)

    assert b"record 0" in received


async def test_nothing_but_a_signature_follows_the_end(served: Served) -> None:
    params = msgspec.Raw(encode(Params(what="items", size=1)))

    with connect_to(socket_path(served.path), 10) as connection:
        connection.sendall(frame(Request("trial", params)) + frame(End()))
        received = b""
        while b"record" not in received:
            received += await trio.to_thread.run_sync(connection.recv, 4096)
        connection.sendall(frame(Data(0, b"x")))
        while await trio.to_thread.run_sync(connection.recv, 4096):
            pass

    with trio.fail_after(10):
        await served.closed.wait()
    assert "sync" not in served.done


async def test_a_client_that_hangs_up_after_signing_ends_its_verb(served: Served) -> None:
    params = msgspec.Raw(encode(Params(what="sign", size=2)))

    with connect_to(socket_path(served.path), 10) as connection:
        connection.sendall(frame(Request("trial", params)) + frame(Signature(b"first")))

    with trio.fail_after(10):
        await served.closed.wait()
    assert "sync" not in served.done

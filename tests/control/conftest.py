"""A control server over a real store and a real socket, and a verb to try it with."""

import os
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from kaifs.base.errors import BarrierError
from kaifs.control.messages import (
    AttachParams,
    AttachResult,
    MountParams,
    MountResult,
    RestartResult,
    ShutdownParams,
    ShutdownResult,
)
from kaifs.control.places import run_folder, socket_path
from kaifs.control.server import Guest, Services, serve
from kaifs.linux.sockets import listen_at
from kaifs.service.context import Caller, Context
from kaifs.service.steps import (
    End,
    Flush,
    Item,
    Output,
    Progress,
    Sign,
    Signature,
    Step,
    Want,
)
from kaifs.service.verbs import VERBS, Verb
from kaifs.store.store import Store
from kaifs.tree.forest import Forest


@dataclass
class Served:
    """A store that is served, and what the server asked of its daemon, in order."""

    path: Path
    store: Store
    done: list[str] = field(default_factory=list)
    barrier_fails: bool = False
    closed: trio.Event = field(default_factory=trio.Event)
    """The trial verb's generator was closed before its end."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the trial verb is to do."""

    what: str
    size: int = 0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What it did."""

    text: str


@pytest.fixture
async def served(tmp_path: Path, trial: list[Served]) -> AsyncIterator[Served]:
    """A server until the test ends."""
    store = Store.create(tmp_path / "store")
    forest = Forest(store)
    found = Served(store.path, store)
    trial.append(found)

    async def barrier() -> None:
        found.done.append("barrier")
        await trio.lowlevel.checkpoint()
        if found.barrier_fails:
            raise BarrierError("on purpose")

    async def commit() -> None:
        found.done.append("commit")
        store.commit()

    async def sync() -> None:
        found.done.append("sync")
        store.commit()

    async def mount(caller: Caller, params: MountParams) -> MountResult:
        await trio.lowlevel.checkpoint()
        found.done.append(f"mount on {params.mountpoint}")
        return MountResult()

    async def shutdown(caller: Caller, params: ShutdownParams) -> ShutdownResult:
        found.done.append(f"shutdown lazy={params.lazy}")
        return ShutdownResult(ends=True)

    async def attach(
        context: Context,
        params: AttachParams,
        guest: Guest,
    ) -> AttachResult:
        guest.ask()
        passed = await guest.receive()
        device = os.fstat(passed.fd).st_rdev
        numbers = f"{os.major(device)}:{os.minor(device)}"
        found.done.append(f"attach {params.reference} {numbers} as {passed.uid}:{passed.gid}")
        await guest.watch()
        os.close(passed.fd)
        return AttachResult()

    async def hold(last: Callable[[], Awaitable[None]]) -> None:
        found.done.append("held")
        await last()
        found.done.append("let go")

    async def restart(caller: Caller) -> RestartResult:
        await trio.lowlevel.checkpoint()
        found.done.append(f"restart by {caller.uid}")
        return RestartResult(pid=os.getpid())

    services = Services(
        context=lambda caller: Context(store, forest, caller),
        barrier=barrier,
        commit=commit,
        sync=sync,
        mount=mount,
        changing=trio.Lock(),
        shutdown=shutdown,
        attach=attach,
        hold=hold,
        restart=restart,
        leaving=trio.Event(),
        go_on=lambda ongoing: False,
        over=lambda name: None,
    )
    run_folder(store.path).mkdir(exist_ok=True)
    closing = trio.Event()
    with listen_at(socket_path(store.path), 0o600) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, services, closing)
            yield found
            closing.set()
    store.close(commit=False)


@pytest.fixture
def trial() -> Iterator[list[Served]]:
    """Add the verb `trial`, which does what its parameters say."""
    servers: list[Served] = []

    def run(context: Context, params: Params) -> Generator[Step, Item | None, Result]:
        served = servers[0]
        text = ""
        try:
            match params.what:
                case "progress":
                    yield Progress(0, 2, "files", "reading")
                    yield Progress(2, 2, "files", "reading")
                case "output":
                    yield Output(b"x" * params.size)
                case "large":
                    text = "y" * params.size
                case "flush":
                    yield Flush()
                case "items":
                    while not isinstance(item := (yield Want()), End):
                        text += "None" if item is None else type(item).__name__
                        if item is None:
                            break
                    if params.size:
                        answer = yield Sign(b"record")
                        text += "None" if answer is None else type(answer).__name__
                case "sign":
                    for turn in range(params.size):
                        answer = yield Sign(b"record %d" % turn)
                        text += "None" if answer is None else type(answer).__name__
                        if isinstance(answer, Signature):
                            text += answer.armored.decode()
                case "for ever":
                    while True:
                        yield Progress(0, 0, "files", "waiting")
                case "bug":
                    raise ZeroDivisionError("a bug on purpose")
        except GeneratorExit:
            served.closed.set()
            raise
        served.done.append("run")
        return Result(text=text)

    module: Any = types.ModuleType("kaifs.service.trial")
    module.Params, module.Result, module.run = Params, Result, run
    sys.modules[module.__name__] = module
    VERBS["trial"] = Verb("trial", "trial", flush=True, changes=True)
    yield servers
    del VERBS["trial"], sys.modules[module.__name__]

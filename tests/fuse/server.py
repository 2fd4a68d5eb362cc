"""A server process for the mounted tests: store, name space and transport, nothing else.

Usage: server.py STORE MOUNTPOINT OPTIONS, the last as JSON. Commands come as
lines of JSON on stdin, `[name, argument, ...]`, and are answered by one line
each. When stdin ends, it unmounts and commits.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from kaifs.base.types import RootId
from kaifs.blocks.device import FileDevice
from kaifs.fuse.handlers import Handlers
from kaifs.fuse.invalidate import Invalidator
from kaifs.fuse.kernel_transport import KernelMount
from kaifs.fuse.mounting import MountOptions
from kaifs.fuse.transports import Pace, Transport, make_transport
from kaifs.store.store import SEGMENT_FOLDER, Store, StoreOptions
from kaifs.tree.forest import Forest
from kaifs.views.namespace import MountScope, Namespace
from tests.fuse.older_kernel import pretend
from tests.store.disks import RefusingDevice, StalledDevice
from tests.views.plain_actions import PlainActions

log = logging.getLogger(__name__)


_DEVICES: dict[str, Callable[[Path], FileDevice]] = {
    "healthy": FileDevice,
    "stalled": StalledDevice,
    "refusing": RefusingDevice,
}


class Server:
    """One mounted store that tests can order about."""

    def __init__(self, store: Store, options: dict[str, Any], device: FileDevice) -> None:
        self.store = store
        self.device = device
        self.forest = Forest(store)
        self.forest.recover()
        self.actions = PlainActions(self.forest)
        self.forgotten: list[RootId] = []
        self.namespace = Namespace(
            self.forest,
            self.actions,
            scope=MountScope(options.get("agent", ""), options.get("view", "")),
            read_only=options.get("ro", False),
            on_root_forgotten=self.forgotten.append,
        )
        self.handlers = Handlers(self.namespace, self.commit, self.barrier)
        self.invalidator: Invalidator
        self.mount: Transport
        self.barriers = 0
        self.is_slow = options.get("slow", False)
        self._committing = trio.Lock()

    async def commit(self) -> None:
        """Make everything durable, with the disk's part in a thread."""
        async with self._committing:
            commit = self.store.prepare_commit()
            await trio.to_thread.run_sync(self.store.write_commit, commit)
            self.store.finish_commit(commit)

    async def barrier(self) -> None:
        """Count; the daemon has the real one."""
        self.barriers += 1
        if self.is_slow:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def obey(self, command: str, *arguments: str) -> object:
        """Do what a test asks for."""
        match command:
            case "agent":
                self.actions.make_agent_owned(arguments[0], os.getuid(), os.getgid())
            case "seal":
                self.actions.seal(*arguments)
            case "sign":
                agent = self.store.get_agent(arguments[0])
                version = self.store.get_version(agent, arguments[1])
                self.store.sign_version(version, arguments[2].encode())
            case "rollback":
                self.actions.rollback(*arguments)
            case "snapshot":
                self.actions.snapshot(arguments[0], arguments[1])
            case "discard":
                self.actions.discard(*arguments)
            case "remove":
                self.actions.remove_version(*arguments)
            case "is-forgotten":
                return int(arguments[0]) in self.forgotten
            case "forgotten":
                return [int(root) for root in self.forgotten]
            case "head":
                return int(self.store.get_agent(arguments[0]).head)
            case "known":
                return len(self.namespace.known)
            case "writers":
                return len(self.handlers.written_nodes())
            case "counts":
                assert isinstance(self.mount, KernelMount), "pyfuse3 does not count"
                return list(self.mount.counts.items())
            case "is-awake":
                assert isinstance(self.mount, KernelMount), "pyfuse3 lets cores sleep"
                return self.mount.keeps_awake
            case "statfs":
                return self.handlers.statfs_seen
            case "barriers":
                return self.barriers
            case "inodes":
                return self.store.root(self.store.get_agent(arguments[0]).head).inodes
            case "is-asked":
                assert isinstance(self.device, StalledDevice)
                return self.device.asked.is_set()
            case "wake":
                assert isinstance(self.device, StalledDevice)
                self.device.woken.set()
            case "refuse" | "accept":
                assert isinstance(self.device, RefusingDevice)
                self.device.refuses = command == "refuse"
            case "break":
                self._break(arguments[0])
            case _:
                raise ValueError(command)
        await self.invalidator.wait_idle()
        return None

    def _break(self, request: str) -> None:
        """Let a handler crash, as a bug would."""

        def crash(*arguments: object, **named: object) -> None:
            raise ZeroDivisionError("a bug")

        setattr(self.handlers, request, crash)

    async def serve(self, mountpoint: Path, options: dict[str, Any]) -> None:
        """Mount, obey stdin, unmount."""
        pace = Pace(options.get("busypoll", 0), options.get("latency", False))
        name, _, minor = options["transport"].partition("-7.")
        if minor:
            pretend(int(minor))
        mount = make_transport(name, self.handlers, pace)
        self.mount = mount
        self.invalidator = Invalidator(self.namespace, mount.notifier)
        self.handlers.drop_listings = self.invalidator.drop_listings
        mount.mount(
            mountpoint,
            MountOptions(read_only=options.get("ro", False), flags=("dev", "suid")),
        )
        self.store.on_change = self.invalidator.changed
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.serve)
                print(json.dumps("mounted"), flush=True)
                await self._obey_stdin()
                await trio.to_thread.run_sync(self.invalidator.stop)
                mount.terminate()
        finally:
            mount.unmount()
            self.namespace.forget_all()
            self.store.close()

    async def _obey_stdin(self) -> None:
        buffer = b""
        stdin = trio.lowlevel.FdStream(os.dup(0))
        while chunk := await stdin.receive_some():
            buffer += chunk
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                try:
                    answer = await self.obey(*json.loads(line))
                except Exception as error:
                    log.exception("command_failed")
                    answer = {"error": str(error)}
                print(json.dumps(answer), flush=True)


def main() -> None:
    """Serve until stdin ends."""
    logging.basicConfig(level=logging.INFO)
    path, mountpoint, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    if not (path / SEGMENT_FOLDER).exists():
        Store.create(path).close()
    device = _DEVICES[options.get("disk", "healthy")](path / SEGMENT_FOLDER)
    # A journal only where it matters that it can fail: without one nothing is written in between.
    journal = isinstance(device, RefusingDevice)
    store = Store.open(path, options=StoreOptions(journal=journal), device=device)
    server = Server(store, options, device)
    for agent in options.get("agents", []):
        if store.find_agent(agent) is None:
            server.actions.make_agent_owned(agent, os.getuid(), os.getgid())
    trio.run(server.serve, mountpoint, options)


if __name__ == "__main__":
    main()

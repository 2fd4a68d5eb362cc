"""A server that dies at an exact point of a request, for tests of what its successor does.

Usage: as `kaifs.daemon.main`. The file that `KAIFS_TEST_TRAP` names holds an opcode,
where to die (`before-journal`, `before-reply`, `after-reply`; `notifying`: before the
reply, while a thread waits for the kernel, which waits for that) and how often; it is
taken away by the last death.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kaifs.base.types import KernelNode
from kaifs.daemon import main
from kaifs.fuse.kernel_requests import Request
from kaifs.fuse.kernel_transport import KernelConnection
from kaifs.fuse.protocol import OUT_HEADER, Opcode
from kaifs.linux.processes import NOTIFYING, set_process_name

TRAP = Path(os.environ["KAIFS_TEST_TRAP"])
_nodes: dict[int, KernelNode] = {}
_opcodes: dict[int, int] = {}
"""Of requests, by their `unique`."""


def _is_set_for(place: str) -> bool:
    """Return whether a trap is set for this *place*. It may be set and taken away at any moment."""
    with suppress(FileNotFoundError):
        return place in TRAP.read_text().split()
    return False


def _step_on(place: str, unique: int) -> None:
    """Die if the trap is set for the request *unique*, and for this *place*."""
    try:
        opcode, where, times = TRAP.read_text().split()
    except FileNotFoundError:
        return
    if int(opcode) != _opcodes.get(unique) or where != place:
        return
    if int(times) == 1:
        TRAP.unlink()
    else:
        # Replaced, not written over: who reads it finds it whole.
        next_trap = TRAP.with_suffix(".next")
        next_trap.write_text(f"{opcode} {where} {int(times) - 1}")
        next_trap.rename(TRAP)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_kernel(connection: KernelConnection, folder: KernelNode) -> None:
    """Let a thread wait for the lock of *folder*, which the request that is unanswered holds."""
    started: list[int] = []

    def notify() -> None:
        set_process_name(NOTIFYING)
        started.append(threading.get_native_id())
        connection.invalidate_entry(folder, b"name")

    threading.Thread(target=notify, daemon=True).start()
    while not started or _state(started[0]) != "D":
        time.sleep(0.001)


def _state(thread: int) -> str:
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


def _patch(name: str, around: Callable[..., Any]) -> None:
    original = getattr(KernelConnection, name)

    def patched(self: KernelConnection, *arguments: Any) -> Any:
        return around(original, self, *arguments)

    setattr(KernelConnection, name, patched)


def _answer(original: Callable[..., None], self: Any, request: Request) -> None:
    request.load()
    _opcodes[request.unique] = request.opcode
    if request.opcode == Opcode.MKDIR:
        _nodes[request.unique] = request.node
    if not getattr(self, "has_trap", False):
        self.has_trap = True
        settle = self._settle

        def trapped(*answer: tuple[int, int, bytes]) -> None:
            if answer:
                _step_on("before-journal", answer[0][1])
            settle(*answer)

        self._settle = trapped
    original(self, request)


def _send(original: Callable[..., None], self: Any, parts: list[bytes]) -> None:
    _, _, unique = OUT_HEADER.unpack(parts[0])
    _step_on("before-reply", unique)
    if unique in _nodes and _is_set_for("notifying"):
        _wait_for_kernel(self, _nodes[unique])
        _step_on("notifying", unique)
    original(self, parts)
    _step_on("after-reply", unique)


if __name__ == "__main__":
    _patch("_answer", _answer)
    _patch("_send", _send)
    sys.exit(main.main())

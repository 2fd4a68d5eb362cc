"""A server that dies at an exact point of a request, for tests of what its successor does.

Usage: as `kaifs.daemon.main`. The file that `KAIFS_TEST_TRAP` names holds an opcode,
where to die (`before-journal`, `before-reply`, `after-reply`) and how often; it is
taken away by the last death.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaifs.daemon import main
from kaifs.fuse.kernel_requests import Request
from kaifs.fuse.kernel_transport import KernelConnection
from kaifs.fuse.protocol import OUT_HEADER

TRAP = Path(os.environ["KAIFS_TEST_TRAP"])
_opcodes: dict[int, int] = {}
"""Of requests, by their `unique`."""


def _step_on(place: str, unique: int) -> None:
    """Die if the trap is set for the request *unique*, and for this *place*."""
    try:
        opcode, where, times = TRAP.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    if int(opcode) != _opcodes.get(unique) or where != place:
        return
    if int(times) == 1:
        TRAP.unlink()
    else:
        TRAP.write_text(f"{opcode} {where} {int(times) - 1}")
    os.kill(os.getpid(), signal.SIGKILL)


def _patch(name: str, around: Callable[..., Any]) -> None:
    original = getattr(KernelConnection, name)

    def patched(self: KernelConnection, *arguments: Any) -> Any:
        return around(original, self, *arguments)

    setattr(KernelConnection, name, patched)


def _answer(original: Callable[..., None], self: Any, request: Request) -> None:
    request.load()
    _opcodes[request.unique] = request.opcode
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
    original(self, parts)
    _step_on("after-reply", unique)


if __name__ == "__main__":
    _patch("_answer", _answer)
    _patch("_send", _send)
    sys.exit(main.main())

"""A command's sandbox: where the verbs that run something meet what isolates it.

The verbs know a `Session` alone. `prepare` and `open_session` are the one place
that knows how a snapshot is served privately and what runs commands in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from kaifs.base.errors import SnapshotIsolationError
from kaifs.service.suite_runner import Executor

if TYPE_CHECKING:
    from kaifs.service.isolation import IsolatedSnapshot


class Session(Executor, Protocol):
    """A snapshot with everything in place to run commands in it, at `/agent`."""

    def run_foreground(self, command: Sequence[str]) -> int:
        """Run a command on our own stdin, stdout and stderr; return its exit status.

        As a shell has it: 126 if it cannot be executed, 127 if it is not found, 128
        and the signal that ended it.
        """
        ...


def prepare(args: argparse.Namespace) -> None:
    """Start what must run before a verb that needs a session: what serves private connections.

    Called before the command's first verb, as long as it has not opened the store.
    """
    del args


@contextmanager
def open_session(args: argparse.Namespace, snapshot: IsolatedSnapshot) -> Iterator[Session]:
    """Lend a session in *snapshot*. When it ends nothing of it is left: no process, no mount.

    Raises:
        SnapshotIsolationError: something that the snapshot asks for cannot be enforced; then
            nothing was run.
    """
    del args
    raise SnapshotIsolationError(f"{snapshot.id}: nothing can run commands in it yet")
    yield

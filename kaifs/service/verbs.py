"""The verbs by name, each module imported when its verb is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from kaifs.service.steps import Item, Step

if TYPE_CHECKING:
    from kaifs.service.context import Context

Run: TypeAlias = "Callable[[Context, Any], Generator[Step, Item | None, msgspec.Struct]]"
Resume: TypeAlias = "Callable[[Context, bytes], Generator[Step, Item | None, msgspec.Struct]]"


@dataclass(frozen=True, slots=True)
class Verb:
    """How a verb is run. Its module has `Params`, `Result` and `run`."""

    name: str
    module: str
    flush: bool = False
    """It looks at what programs have written: needs a barrier first."""
    changes: bool = False
    """It changes the store: needs a commit before its result is told."""
    frees: bool = False
    """It frees room: on a full disk it gets what is kept for that."""
    alone: bool = False
    """It must have the store to itself, as it is found: no daemon runs it."""

    @property
    def params(self) -> type[msgspec.Struct]:
        """The type of its parameters."""
        found: type[msgspec.Struct] = self._load().Params
        return found

    @property
    def result(self) -> type[msgspec.Struct]:
        """The type of its result."""
        found: type[msgspec.Struct] = self._load().Result
        return found

    @property
    def run(self) -> Run:
        """Makes the generator that does it."""
        found: Run = self._load().run
        return found

    @property
    def resume(self) -> Resume:
        """Makes the generator that goes on where one has yielded `Resumable`, with its state."""
        found: Resume = self._load().resume
        return found

    def _load(self) -> Any:
        return import_module(f"kaifs.service.{self.module}")


VERBS: Final = {
    verb.name: verb
    for verb in (
        Verb("commit", "commit", flush=True, changes=True),
        Verb("complete", "complete"),
        Verb("diff", "diff", flush=True),
        Verb("discard", "discard", changes=True, frees=True),
        Verb("export", "export", flush=True),
        Verb("fsck", "fsck", flush=True),
        Verb("gc", "gc", changes=True, frees=True),
        Verb("import", "import_", changes=True),
        Verb("key", "key", changes=True),
        Verb("list", "list_"),
        Verb("log", "log"),
        Verb("manifest", "manifest", flush=True),
        Verb("policy", "policy", changes=True),
        Verb("prune", "prune", changes=True, frees=True),
        Verb("quarantine-add", "quarantine_add", changes=True),
        Verb("quarantine-list", "quarantine_list"),
        # Not `changes`: they read for long, and change only at their end, by themselves.
        Verb("quarantine-release", "quarantine_release"),
        Verb("rebase", "rebase", flush=True, changes=True),
        Verb("remove", "remove", changes=True, frees=True),
        Verb("repair", "repair", changes=True, alone=True),
        Verb("rollback", "rollback", flush=True, changes=True),
        Verb("scrub", "scrub", flush=True, changes=True),
        Verb("seal", "seal", flush=True, changes=True),
        Verb("show", "show", flush=True),
        Verb("sign", "sign", changes=True),
        Verb("snapshot", "snapshot", flush=True, changes=True),
        Verb("snapshots", "snapshots"),
        Verb("status", "status"),
        # Not `changes`: it lasts as long as the tests do, and commits by itself.
        Verb("test", "testing", flush=True),
        Verb("verify", "verify", flush=True),
    )
}
"""Every verb that works on an open store."""

"""How a sandbox is called, so that what is left of it can be told from everything else."""

import re
import secrets
from dataclasses import dataclass
from typing import Final

from kaifs.linux.processes import ProcessId, identify

PREFIX: Final = "kaifs"
VARIABLE: Final = "KAIFS_SANDBOX"
"""Holds the name in the environment of the processes around a sandbox, never of those in it."""

_LABEL: Final = re.compile(r"[A-Za-z0-9]{1,64}")
_NAME: Final = re.compile(
    rf"{PREFIX}-(?P<label>[A-Za-z0-9]{{1,64}})-(?P<pid>[0-9]{{1,10}})"
    r"-(?P<started>[0-9]{1,20})-(?P<token>[0-9a-f]{8})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class SandboxName:
    """Whose a sandbox is. It names its control groups, and nothing else has such a name."""

    label: str
    """The store's uuid, or whatever else its owner looks for leftovers by."""
    warden: ProcessId
    token: str

    def __str__(self) -> str:
        return f"{PREFIX}-{self.label}-{self.warden.pid}-{self.warden.started}-{self.token}"


def new_name(label: str, warden: int) -> SandboxName:
    """Return a name for a sandbox that the process *warden* starts."""
    assert _LABEL.fullmatch(label), "a label is letters and digits"
    process = identify(warden)
    assert process is not None, "a running process has an identity"
    return SandboxName(label, process, secrets.token_hex(4))


def parse_name(text: str) -> SandboxName | None:
    """Return the name that *text* is, exactly and completely; None if it is none."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    warden = ProcessId(int(match["pid"]), int(match["started"]))
    name = SandboxName(match["label"], warden, match["token"])
    return name if str(name) == text else None

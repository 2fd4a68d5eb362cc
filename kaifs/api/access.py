"""Where a store is, and how a verb gets to it: through the daemon that serves it, if one does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from kaifs.base.errors import ArgumentValueError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import msgspec

    from kaifs.control.info import DaemonInfo
    from kaifs.service.steps import OnOutput, OnProgress, Signer, Source

STORE_VARIABLE: Final = "KAIFS_STORE"
SYSTEM_STORE: Final = "/var/lib/kaifs"


def _nothing() -> None:
    pass


on_embedded: Callable[[], None] = _nothing
"""Called before a verb runs in this process, which may then log."""


def store_name(chosen: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the store that is meant: *chosen*, the environment's, or the default."""
    chosen = chosen or os.environ.get(STORE_VARIABLE)
    if chosen:
        return os.fspath(chosen)
    if os.geteuid() == 0:
        return SYSTEM_STORE
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(data, "kaifs")


def store_path(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the store that is meant, as `store_name`."""
    from pathlib import Path

    return Path(store_name(chosen))


def call_plain(store: str, verb: str, params: dict[str, Any]) -> dict[str, Any]:
    """As `call`, with params and result as JSON has them: what takes least time to load.

    For verbs that want nothing of this process and give nothing out on their way.

    Raises:
        KaifsError: as `call`.
    """
    from kaifs.control.plain import call_plain as call_daemon

    found = call_daemon(store, verb, params)
    if found is not None:
        return found
    from pathlib import Path

    import msgspec

    from kaifs.service.embedded import run_embedded
    from kaifs.service.verbs import VERBS

    on_embedded()
    result = run_embedded(Path(store), verb, msgspec.convert(params, VERBS[verb].params))
    plain: dict[str, Any] = msgspec.to_builtins(result)
    return plain


def call(
    store: Path,
    verb: str,
    params: msgspec.Struct,
    *,
    source: Source | None = None,
    on_progress: OnProgress | None = None,
    on_output: OnOutput | None = None,
    signer: Signer | None = None,
) -> Any:
    """Run *verb* on *store* and return its result, through its daemon if one serves it.

    A verb that wants something of this process gets it from *source* or *signer*.

    Raises:
        KaifsError: the verb refuses, or the store cannot be had. Nothing was changed then.
    """
    _check_text(params)
    if find_daemon(store) is not None:
        from kaifs.control.client import call as call_daemon

        return call_daemon(store, verb, params, source, on_progress, on_output, signer)
    from kaifs.service.embedded import run_embedded

    on_embedded()
    return run_embedded(
        store,
        verb,
        params,
        source=source,
        on_progress=on_progress,
        on_output=on_output,
        signer=signer,
    )


def _check_text(params: msgspec.Struct) -> None:
    """Check that *params* can be told to anybody: a command line may have bytes that are no text.

    Raises:
        ArgumentValueError: they cannot.
    """
    import msgspec

    try:
        msgspec.msgpack.encode(params)
    except UnicodeEncodeError as error:
        raise ArgumentValueError(f"{error.object!a} is not UTF-8") from error


def find_daemon(store: Path) -> DaemonInfo | None:
    """Return the daemon that serves *store*, None if none does."""
    try:
        if not (store / "run" / "daemon.json").exists():
            # Most embedded uses end here, before the client's imports.
            return None
    except PermissionError:
        # Whoever is kept out of the folder is told so when they open the store.
        return None
    from kaifs.control.client import find_daemon as find

    return find(store)

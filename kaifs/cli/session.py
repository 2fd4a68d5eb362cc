"""One command's store: where it is, and how a verb gets to it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kaifs.base.errors import StoreNotFoundError

if TYPE_CHECKING:
    import msgspec

    from kaifs.control.info import DaemonInfo
    from kaifs.service.steps import Source

STORE_VARIABLE: Final = "KAIFS_STORE"
SYSTEM_STORE: Final = Path("/var/lib/kaifs")
SUPERBLOCK: Final = "superblock"


def store_path(option: str | None) -> Path:
    """Return the store that a command means: `--store`, the environment, or the default."""
    chosen = option or os.environ.get(STORE_VARIABLE)
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return SYSTEM_STORE
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "kaifs"


def call(
    args: argparse.Namespace,
    verb: str,
    params: msgspec.Struct,
    *,
    source: Source | None = None,
    has_progress: bool = False,
    on_output: Callable[[bytes], None] | None = None,
) -> Any:
    """Run *verb* on the command's store, through its daemon if one serves it."""
    from contextlib import nullcontext

    path = store_path(args.store)
    bar: Any = nullcontext()
    if has_progress and shows_progress(args):
        from kaifs.cli.progress import ProgressBar

        bar = ProgressBar()
    with bar as on_progress:
        if find_daemon(path) is not None:
            from kaifs.control.client import call as call_daemon

            return call_daemon(path, verb, params, source, on_progress, on_output)
        from kaifs.service.embedded import run_embedded

        return run_embedded(
            path, verb, params, source=source, on_progress=on_progress, on_output=on_output
        )


def find_daemon(path: Path) -> DaemonInfo | None:
    """Return the daemon that serves the store at *path*, None if none does."""
    if not (path / "run" / "daemon.json").exists():
        # Most embedded uses end here, before the client's imports.
        return None
    from kaifs.control.client import find_daemon as find

    return find(path)


def require_store(path: Path) -> None:
    """Check that there is a store, for what does not open one.

    Raises:
        StoreNotFoundError: there is none.
    """
    if not (path / SUPERBLOCK).exists():
        raise StoreNotFoundError(str(path))


def shows_progress(args: argparse.Namespace) -> bool:
    """Whether somebody watches a bar."""
    import sys

    return not args.quiet and sys.stderr.isatty()

"""One command's store: where it is, and how a verb gets to it."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from kaifs.api import access

if TYPE_CHECKING:
    from pathlib import Path

    import msgspec

    from kaifs.service.steps import OnOutput, OnProgress, Signer, Source


def store_of(args: argparse.Namespace) -> Path:
    """Return the store that a command means: `--store`, the environment's, or the default."""
    return access.store_path(args.store)


def call(
    args: argparse.Namespace,
    verb: str,
    params: msgspec.Struct,
    *,
    source: Source | None = None,
    has_progress: bool = False,
    on_output: OnOutput | None = None,
    signer: Signer | None = None,
) -> Any:
    """Run *verb* on the command's store, with a bar if somebody watches."""
    bar = progress_bar(args) if has_progress else nullcontext()
    with bar as on_progress:
        return access.call(
            store_of(args),
            verb,
            params,
            source=source,
            on_progress=on_progress,
            on_output=on_output,
            signer=signer,
        )


def progress_bar(args: argparse.Namespace) -> AbstractContextManager[OnProgress | None]:
    """Return a bar on stderr to be told of progress; nothing if nobody watches."""
    if not shows_progress(args):
        return nullcontext()
    from kaifs.cli.progress import ProgressBar

    return ProgressBar()


def shows_progress(args: argparse.Namespace) -> bool:
    """Whether somebody watches a bar."""
    return not args.quiet and sys.stderr.isatty()

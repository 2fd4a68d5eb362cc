"""Trees that come from this machine's folders and go to them.

The calling process reads and writes the folders, with its own rights; the store,
wherever it is served, sees items alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaifs.api.access import call
from kaifs.service import export, import_

if TYPE_CHECKING:
    from kaifs.service.host_target import FolderTarget, TarTarget
    from kaifs.service.record import Description
    from kaifs.service.sealing import MadeVersion
    from kaifs.service.steps import OnProgress, Signer


@dataclass(frozen=True, slots=True)
class Exported:
    """A tree that is outside of the store now."""

    reference: str
    files: int
    """Names, the top not counted."""
    size: int
    """Bytes of data; holes do not count."""
    skipped: tuple[str, ...]
    """What this machine or its user could not keep, in words for people."""


def import_folder(
    store: Path,
    agent: str,
    folder: str | os.PathLike[str],
    label: str,
    description: Description,
    on_progress: OnProgress | None = None,
    signer: Signer | None = None,
) -> MadeVersion:
    """Make *folder* the version *label* of *agent*, which is made if there is none.

    Nothing may write to the folder meanwhile. *signer* signs it, see
    `kaifs.api.signing`; None: the store's key, if it has one.

    Raises:
        SourceError, SourceChangedError: the folder cannot be read, or changes.
        BadNameError, BadLabelError, VersionExistsError: a name cannot be had.
        AccessDeniedError: the agent, or the store, is somebody else's.
    """
    from kaifs.service.host_source import HostSource

    # Counting first costs a walk, which is only worth it for a bar.
    source = HostSource(Path(folder), store, count=on_progress is not None)
    params = import_.Params(
        agent=agent, label=label, description=description, caller_signs=signer is not None
    )
    made: MadeVersion = call(
        store, "import", params, source=iter(source), on_progress=on_progress, signer=signer
    )
    return made


def export_folder(
    store: Path,
    reference: str,
    folder: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write what *reference* names to *folder*, which is new or empty.

    Raises:
        TargetError: the folder cannot be used.
        AccessDeniedError: a file is closed to the caller.
        KaifsError: as the reference; then the folder is as it was.
    """
    from kaifs.service.host_target import FolderTarget

    return _export(store, reference, FolderTarget(Path(folder)), on_progress)


def export_tar(
    store: Path,
    reference: str,
    write: Callable[[bytes], None],
    on_progress: OnProgress | None = None,
) -> Exported:
    """Give what *reference* names to *write* as a tar stream, piece by piece.

    Raises:
        AccessDeniedError: a file is closed to the caller.
        KaifsError: as the reference.
    """
    from kaifs.service.host_target import TarTarget

    return _export(store, reference, TarTarget(write), on_progress)


def _export(
    store: Path,
    reference: str,
    target: FolderTarget | TarTarget,
    on_progress: OnProgress | None,
) -> Exported:
    from kaifs.service.host_target import feeder

    params = export.Params(reference=reference)
    try:
        done: export.Result = call(
            store, "export", params, on_progress=on_progress, on_output=feeder(target)
        )
    finally:
        target.abandon()
    return Exported(done.reference, done.files, done.size, tuple(target.skipped))

"""A bar with an estimate of the time that is left, on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from kaifs.service import steps


class ProgressBar:
    """Draws the progress of a verb while it is entered. One bar for each step of the verb."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: dict[str, tuple[Progress, TaskID]] = {}
        self._shown: Progress | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown is not None:
            self._shown.stop()

    def __call__(self, progress: steps.Progress) -> None:
        """Show *progress*."""
        if progress.what not in self._bars:
            if self._shown is not None:
                self._shown.stop()
            self._shown = self._new(progress)
        bar, task = self._bars[progress.what]
        bar.update(task, completed=progress.done, total=progress.total or None)

    def _new(self, progress: steps.Progress) -> Progress:
        count = DownloadColumn() if progress.unit == "bytes" else MofNCompleteColumn()
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            count,
            TimeRemainingColumn(),
            console=self._console,
        )
        bar.start()
        self._bars[progress.what] = (bar, bar.add_task(progress.what, total=progress.total or None))
        return bar

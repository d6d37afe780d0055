"""A progress bar for commands that take long, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from watcher.job import Job
from watcher.text import printable


@contextmanager
def shown(job: Job) -> Iterator[None]:
    """Show on standard error how far the job is, how fast, and the time left. Show nothing where that is no terminal.

    The bar is gone at the end.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield
    else:
        with _Bar(job):
            yield


class _Bar(Progress):
    def __init__(self, job: Job) -> None:
        self._job = job
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.add_task(printable(job.run.name), total=None)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give what is drawn, several times a second, of the job as it is."""
        progress = self._job.progress
        for task in self.task_ids:
            self.update(task, completed=progress.bytes_done, total=progress.bytes_total or None)
        return super().get_renderables()

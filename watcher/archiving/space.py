"""The room on the destination, shared out among the runs that are archived at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from watcher.archiving.publication import ArchiveStore
from watcher.errors import NoSpace
from watcher.job import Job


class Space:
    """Sets room aside for each job. `minimum_free_bytes` stay free whatever the jobs take."""

    def __init__(self, archive_store: ArchiveStore, minimum_free_bytes: int) -> None:
        self._archive_store = archive_store
        self._minimum_free_bytes = minimum_free_bytes
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def jobs(self) -> list[Job]:
        """Return the jobs that have room."""
        with self._lock:
            return list(self._jobs.values())

    @contextmanager
    def reserved(self, job: Job, needs_room: bool) -> Iterator[None]:
        """Set the size of the job's run aside while the context lasts.

        `needs_room` is False for a run whose archive is finished: it takes no more. Raises NoSpace when there is not
        enough room, or when the destination cannot be asked.
        """
        self._reserve(job, needs_room)
        try:
            yield
        finally:
            with self._lock:
                del self._jobs[job.run.name]

    def _reserve(self, job: Job, needs_room: bool) -> None:
        # Not under the lock: a disk that hangs would keep `jobs`, and with it a cancel, waiting.
        free = self._archive_store.free_bytes(job.run.name)
        with self._lock:
            promised = sum(other.bytes_to_come for other in self._jobs.values())
            lack = job.size + promised + self._minimum_free_bytes - free
            if needs_room and lack > 0:
                raise NoSpace(
                    f"{lack} bytes are missing: '{self._archive_store.destination}' has {free} free; the run needs "
                    f"{job.size}, running jobs {promised} more, and minimum_free_space is {self._minimum_free_bytes}"
                )
            self._jobs[job.run.name] = job

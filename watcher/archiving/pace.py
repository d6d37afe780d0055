"""How fast runs are read: `bandwidth_limit` is shared by all jobs of this worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from watcher.job import Job
from watcher.openpgp import Source


class Pace:
    """A rate that all jobs share, in bytes a second; without one nobody waits."""

    def __init__(self, bytes_per_second: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def seconds_for(self, count: int) -> float:
        """Book `count` bytes, which were moved just now; return how long to wait before more are moved."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._rate
            return self._free_at - now


class Paced:
    """A source that is read at a pace. While a job waits for its turn it is not stalled, and a cancel ends the wait."""

    def __init__(self, source: Source, pace: Pace, job: Job) -> None:
        self._source = source
        self._pace = pace
        self._job = job

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes. Raises what the source raises, and the job's reason once it is cancelled."""
        data = self._source.read(size)
        if (seconds := self._pace.seconds_for(len(data))) > 0:
            with self._job.waiting():
                self._job.cancelled.wait(seconds)
            self._job.check()
        return data

"""Runs that wait, and a thread pool that takes one only when a thread is free for it.

What waits here is not claimed: other hosts may take it meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from watcher.errors import NotTheRunsFault
from watcher.model import Run

AWAY_SECONDS = 10.0
"""A run that could not be claimed, since the database or the destination was away, waits so long."""

logger = logging.getLogger(__name__)
Work = Callable[[Run, str | None], str]


class Dispatcher:
    """Hands runs to `work` in at most `jobs` threads, each run at most once at a time."""

    def __init__(self, work: Work, jobs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._work = work
        self._jobs = jobs
        self._clock = clock
        self._pool: list[threading.Thread] = []
        self._executor = ThreadPoolExecutor(
            jobs, thread_name_prefix="worker", initializer=lambda: self._pool.append(threading.current_thread())
        )
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: dict[str, tuple[Run, str | None]] = {}
        self._deferred: dict[str, tuple[float, Run]] = {}
        self._running: set[str] = set()
        self._open = True
        self._outcomes: Counter[str] = Counter()

    def submit(self, run: Run, stale_rev: str | None = None) -> None:
        """Let a run wait for a free thread. One that runs already waits until that has ended."""
        with self._lock:
            if self._open:
                self._deferred.pop(run.name, None)
                self._waiting[run.name] = (run, stale_rev)
                self._fill()

    def submit_later(self, run: Run, seconds: float) -> None:
        """Offer a run after so many seconds; `release_due` does it."""
        with self._lock:
            if self._open:
                self._deferred[run.name] = (self._clock() + seconds, run)

    def release_due(self) -> float | None:
        """Offer the deferred runs whose time has come; return the seconds until the next is due, if there is one."""
        with self._lock:
            now = self._clock()
            due = [run for moment, run in self._deferred.values() if moment <= now]
        for run in due:
            self.submit(run)
        with self._lock:
            return min((moment - now for moment, _ in self._deferred.values()), default=None)

    def close(self) -> None:
        """Take nothing new from now on; what runs goes on."""
        with self._idle:
            self._open = False
            self._waiting.clear()
            self._deferred.clear()
            self._idle.notify_all()

    def drain(self) -> None:
        """Wait until nothing waits and nothing runs."""
        with self._idle:
            self._idle.wait_for(lambda: not self._waiting and not self._running)

    def shutdown(self) -> None:
        """Wait for the running runs, then end the threads."""
        self.close()
        self._executor.shutdown(wait=True)

    def threads(self) -> list[threading.Thread]:
        """Return the pool's threads that have been started; each lives until `shutdown`."""
        return list(self._pool)

    def counts(self) -> tuple[int, int]:
        """Return how many runs are being worked on, and how many wait."""
        with self._lock:
            return len(self._running), len(self._waiting)

    def outcomes(self) -> Counter[str]:
        """Return how often each outcome has come so far."""
        with self._lock:
            return Counter(self._outcomes)

    def _fill(self) -> None:
        for name, (run, stale_rev) in list(itertools.islice(self._waiting.items(), 2 * self._jobs)):
            if len(self._running) == self._jobs:
                return
            if name in self._running:
                continue
            del self._waiting[name]
            self._running.add(name)
            self._executor.submit(self._run, run, stale_rev)

    def _run(self, run: Run, stale_rev: str | None) -> None:
        outcome = "error"
        try:
            outcome = self._work(run, stale_rev)
        except NotTheRunsFault as error:
            logger.warning("waits, not claimed: %s", error, extra=run.about)
            self.submit_later(run, AWAY_SECONDS)
        except Exception:
            logger.exception("a bug kept this run from being worked on", extra=run.about)
        finally:
            with self._idle:
                self._running.discard(run.name)
                self._outcomes[outcome] += 1
                self._fill()
                self._idle.notify_all()

"""Claims: ours are renewed, stale ones of others are found, and jobs that hang are ended."""

from __future__ import annotations

import logging
import threading
import time

from watcher.archiving import LeaseKeeper, StaleClaims
from watcher.daemon.waiting import WaitingRuns
from watcher.errors import StatusDBUnavailable
from watcher.statusdb import StatusDB

BRIEF_SECONDS = 1.0
"""A phase that is over sooner is not written down: a small run would cost more writes than work."""

CHECK_SECONDS = 2.0
"""How often a job is checked for a stall."""

logger = logging.getLogger(__name__)


class Claims:
    """Looks after claims until `abort` is set. `keep` and `end_stalled` each need a thread."""

    def __init__(
        self, statusdb: StatusDB, leases: LeaseKeeper, stale: StaleClaims, waiting: WaitingRuns, abort: threading.Event
    ) -> None:
        self._statusdb = statusdb
        self._leases = leases
        self._stale = stale
        self._waiting = waiting
        self._abort = abort

    def keep(self) -> None:
        """Renew all leases, and let the runs of stale claims wait for a thread, again and again.

        A phase that a job has entered is written down at once, and not at the next renewal.
        """
        due = time.monotonic() + self._leases.pause_seconds
        while not self._abort.is_set():
            if self._leases.rest(due - time.monotonic()):
                self._abort.wait(BRIEF_SECONDS)
                self._leases.renew_entered()
            if time.monotonic() >= due:
                self._leases.renew_all()
                self._look_for_stale()
                due = time.monotonic() + self._leases.pause_seconds

    def _look_for_stale(self) -> None:
        try:
            processing = self._statusdb.processing()
        except StatusDBUnavailable as error:
            logger.warning("cannot look for stale claims: %s", error)
            return
        others = [document for document in processing if not self._leases.holds(document)]
        for document in self._stale.observe(others):
            self._waiting.put_stale(document)

    def end_stalled(self, limit_seconds: float) -> None:
        """End each job in which nothing has moved for so long, again and again.

        The thread asks no disk and no database: another thread of ours may wait for just these.
        """
        while not self._abort.wait(CHECK_SECONDS):
            for job in self._leases.jobs():
                job.cancel_if_stalled(limit_seconds)

    def take_back(self, worker_id: str) -> None:
        """Let the runs wait that this worker held when it died, or could not give back. Raises StatusDBUnavailable.

        Nobody else can have them: this process has the worker's lock.
        """
        for document in self._statusdb.processing():
            if document.get("worker_id") == worker_id and not self._leases.holds(document):
                self._waiting.put_stale(document)

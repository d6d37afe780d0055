"""Leases: our claims are kept alive, and claims whose holder has died are found.

No two hosts' clocks need agree. A holder changes its document's revision five times in a lease. Another worker may
take the run over when it has seen one revision for a whole lease, on its own clock. The holder stops trusting its
claim after 0.8 of a lease, so it stops first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec

from watcher import model
from watcher.errors import ClaimLost, StatusDBUnavailable
from watcher.job import Job
from watcher.model import Claim, Document
from watcher.statusdb import StatusDB

RENEWALS_A_LEASE = 5
TRUSTED_PART = 0.8
"""The part of a lease for which a holder trusts its claim, counted from before the last renewal was sent."""

LOOK_PART = 0.5
"""The part of a lease after which a worker that has not looked at the others' claims starts to count anew."""

logger = logging.getLogger(__name__)
P = ParamSpec("P")
Operation = Callable[Concatenate[Document, str, P], Document]


def boottime() -> float:
    """Return seconds on a clock that nobody can set and that runs while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """A claim that we hold. Its writes go through here, one at a time, each over the revision of the last one."""

    def __init__(
        self, claim: Claim, job: Job, lease_seconds: float, clock: Callable[[], float], asked_at: float | None = None
    ) -> None:
        self.claim = claim
        self.job = job
        self._seconds = lease_seconds
        self._clock = clock
        self._document = claim.document
        self._renewed_at = clock() if asked_at is None else asked_at
        self._ended = False
        self._lock = threading.Lock()

    @property
    def document(self) -> Document:
        """The run document as our last write left it."""
        return self._document

    @property
    def is_trusted(self) -> bool:
        """Whether nobody can have taken the run over yet."""
        return self._clock() - self._renewed_at < self._seconds * TRUSTED_PART

    def write(self, operation: Operation[P], *args: P.args, **kwargs: P.kwargs) -> Document:
        """Do one of the operations that StatusDB has for the holder of a claim; return the document as written.

        Raises ClaimLost when another worker has the run, and StatusDBUnavailable.
        """
        with self._lock:
            return self._write(operation, *args, **kwargs)

    def renew(self, statusdb: StatusDB) -> None:
        """Renew the claim. If it is lost, cancel the job; if the database is away, log that, and go on.

        The claim of a cancelled job is not renewed: the job may hang in a disk that will never answer, and another
        host must get the run.
        """
        with self._lock:
            if self._ended or self.job.cancelled.is_set():
                return  # the claim may have ended while this thread waited for the lock
            try:
                self._write(statusdb.renew, self.job.progress)
            except ClaimLost as error:
                self.job.cancel(error)
            except StatusDBUnavailable as error:
                logger.warning("cannot renew the claim, work goes on: %s", error, extra=self.claim.run.about)

    def _write(self, operation: Operation[P], *args: P.args, **kwargs: P.kwargs) -> Document:
        asked_at = self._clock()
        self._document = operation(self._document, self.claim.token, *args, **kwargs)
        self._renewed_at = asked_at
        self._ended = model.has_ended(self._document, self.claim.token)
        return self._document


class LeaseKeeper:
    """All claims that this process holds."""

    def __init__(self, statusdb: StatusDB, lease_seconds: float, clock: Callable[[], float] = boottime) -> None:
        self._statusdb = statusdb
        self._seconds = lease_seconds
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()

    @contextmanager
    def hold(self, claim: Claim, job: Job, asked_at: float | None = None) -> Iterator[Lease]:
        """Keep a claim alive while the context lasts. `asked_at` is `now()` before the claim was asked for."""
        lease = Lease(claim, job, self._seconds, self._clock, asked_at)
        with self._lock:
            self._leases[claim.run.name] = lease
        job.on_enter = self._news.set
        try:
            yield lease
        finally:
            with self._lock:
                self._leases.pop(claim.run.name, None)

    def now(self) -> float:
        """Return the time on the leases' clock."""
        return self._clock()

    def jobs(self) -> list[Job]:
        """Return the jobs whose claims are held."""
        return [lease.job for lease in self._held()]

    def holds(self, document: Document) -> bool:
        """Say whether the claim in a document is one of ours that is alive."""
        with self._lock:
            lease = self._leases.get(document["_id"])
        return lease is not None and model.is_held(document, lease.claim.token)

    def changed(self, document: Document) -> None:
        """Renew at once if the document of a run that we hold seems to have been changed by somebody else."""
        with self._lock:
            lease = self._leases.get(document["_id"])
        if lease is not None and not model.is_held(document, lease.claim.token):
            # The change may be older than our claim. Only a write can tell.
            lease.renew(self._statusdb)

    def renew_all(self) -> None:
        """Renew every lease once."""
        for lease in self._held():
            lease.renew(self._statusdb)

    def renew_entered(self) -> None:
        """Renew each lease whose job is in another phase than its document says."""
        for lease in self._held():
            if model.phase_of(lease.document) != lease.job.progress.phase:
                lease.renew(self._statusdb)

    def rest(self, seconds: float) -> bool:
        """Wait for so long, or until a job enters a phase, or `wake` is called; say whether one of these came."""
        has_news = self._news.wait(max(seconds, 0.0))
        self._news.clear()
        return has_news

    def wake(self) -> None:
        """End a `rest`."""
        self._news.set()

    def _held(self) -> list[Lease]:
        with self._lock:
            return list(self._leases.values())

    @property
    def pause_seconds(self) -> float:
        """How long to wait between renewals."""
        return self._seconds / RENEWALS_A_LEASE


class StaleClaims:
    """Finds the claims of others whose revision has not changed for a whole lease.

    While the database is away, or this machine is suspended, holders may be unable to renew. The first worker to come
    back would then take hours of work from the others. So after such a time each claim gets a whole new lease.
    """

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = boottime) -> None:
        self._seconds = lease_seconds
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._looked_at = clock()

    def observe(self, processing: list[Document]) -> list[Document]:
        """Return those of the documents in `processing` whose runs may be taken over. Give all of them each time."""
        now = self._clock()
        has_looked = now - self._looked_at < self._seconds * LOOK_PART
        before, self._seen, self._looked_at = self._seen if has_looked else {}, {}, now
        stale = []
        for document in processing:
            seen = before.get(document["_id"])
            since = seen[1] if seen and seen[0] == document["_rev"] else now
            self._seen[document["_id"]] = (document["_rev"], since)
            if now - since >= self._seconds:
                stale.append(document)
        return stale

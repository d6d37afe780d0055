"""Whether a run may be claimed, and what it takes to work on it: the run directory, room, the claim, the lease."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from watcher.archiving.attempt import Attempt, Parts, Settings, growing_pauses
from watcher.archiving.endings import Outcome, carry_out
from watcher.archiving.lease import LeaseKeeper
from watcher.archiving.pace import Pace
from watcher.archiving.publication import ArchiveStore
from watcher.archiving.space import Space
from watcher.errors import NoSpace, RunNotSettled, WatcherError
from watcher.job import Job
from watcher.model import Claim, Document, Run, Status
from watcher.source import Stillness, hold, is_ready
from watcher.statusdb import StatusDB

logger = logging.getLogger(__name__)


class Worker:
    """Archives runs, each in the thread that calls `work`."""

    def __init__(
        self,
        settings: Settings,
        statusdb: StatusDB,
        archive_store: ArchiveStore,
        leases: LeaseKeeper,
        pauses: Callable[[], Iterator[float]] = growing_pauses,
    ) -> None:
        self._parts = Parts(settings, statusdb, archive_store, pauses, Pace(settings.bandwidth_limit))
        self._space = Space(archive_store, settings.minimum_free_space)
        self._leases = leases
        self._is_closed = False

    def close(self) -> None:
        """Claim nothing from now on; what is claimed goes on."""
        self._is_closed = True

    def cancel(self, reason: WatcherError) -> None:
        """Stop all work for `reason`, without waiting for it to end."""
        for job in self._space.jobs():
            job.cancel(reason)

    def work(self, run: Run, stale_rev: str | None = None) -> Outcome:
        """Claim a run and archive it; return what became of it.

        `stale_rev` is the revision of a dead worker's claim that may be taken over. Raises
        StatusDBUnavailable when the run could not even be claimed.
        """
        document = self._parts.statusdb.claimable(run, stale_rev)
        if document is None:
            return Outcome.NOT_OURS
        # A dead worker's claim is ended whatever has become of the run: it may have been finished.
        if stale_rev is None and not is_ready(run, self._parts.settings.policy):
            return Outcome.NOT_READY
        with self._held(run) as still:
            job = Job(run, still.first.size if still else 0, prefix=self._parts.settings.prefix)
            return self._work(document, job, still)

    def _work(self, document: Document, job: Job, still: Stillness | None) -> Outcome:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._space.reserved(job, needs_room="archive" not in document))
            except NoSpace as lack:
                logger.warning("waits: %s", lack, extra=job.run.about)
                self._parts.statusdb.note(document, lack)
                return Outcome.NO_ROOM
            return self._claim_and_archive(document, job, still)

    def _claim_and_archive(self, document: Document, job: Job, still: Stillness | None) -> Outcome:
        run, statusdb = job.run, self._parts.statusdb
        if self._is_closed:  # asked this late: to look through a large run takes a while
            return Outcome.NOT_OURS
        # Before the claim: files that a later claim stages are not among these, and are never removed by this one.
        earlier = self._parts.archive_store.staged_tokens(run.name)
        asked_at = self._leases.now()
        claim = statusdb.claim(run, self._parts.settings.worker_id, document)
        if claim is None:
            return Outcome.NOT_OURS
        _tell_claim(claim)
        with self._leases.hold(claim, job, asked_at) as lease:
            return carry_out(Attempt(self._parts, replace(claim, earlier_tokens=earlier), lease, job, still))

    def may_end(self, run: Run) -> bool:
        """Say whether a stale claim is ours to end, though the run is not here: we made it, or its archive is here.

        Raises NoSpace, StatusDBUnavailable.
        """
        document, archive_store, name = self._parts.statusdb.get(run.name) or {}, self._parts.archive_store, run.name
        is_own = document.get("worker_id") == self._parts.settings.worker_id
        return (
            is_own
            or archive_store.has_begun(name)
            or any(archive_store.receipts(name, archive_store.staged_tokens(name)))
        )

    @contextmanager
    def _held(self, run: Run) -> Iterator[Stillness | None]:
        """Hold the run's directory, listed, while the context lasts; None if it is not here, or no directory."""
        with ExitStack() as stack:
            try:
                source = stack.enter_context(hold(run, self._parts.settings.rules))
            except RunNotSettled:
                yield None
                return
            yield Stillness(source, self._parts.settings.quiet_period)


def _tell_claim(claim: Claim) -> None:
    extra = claim.run.about
    if claim.previous.get("status") == Status.PROCESSING:
        whose = claim.previous.get("worker_id")
        logger.warning("took over the stale claim of worker '%s'", whose, extra=extra)
    else:
        logger.info("claimed '%s'", claim.run.path, extra=extra)

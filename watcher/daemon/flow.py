"""The way of a run through the daemon: what notices runs, what registers them, who waits, who works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from watcher import model
from watcher.archiving import ArchiveStore, GarbageCollector, LeaseKeeper, Outcome, StaleClaims, Worker
from watcher.daemon.claims import Claims
from watcher.daemon.dispatcher import Dispatcher
from watcher.daemon.rescans import Rescans, Sources
from watcher.daemon.settings import Settings
from watcher.daemon.waiting import WaitingRuns
from watcher.discovery import Arrivals, Feed, Noticed, Observer, Places, Registrar
from watcher.figures import FiguresServer
from watcher.metrics import Metrics
from watcher.model import Document, Run, Status
from watcher.statusdb import StatusDB


@dataclass(frozen=True)
class Parts:
    """What the daemon puts together. `observe` makes the observer, given who takes its observations and its losses."""

    statusdb: StatusDB
    archive_store: ArchiveStore
    worker: Worker
    leases: LeaseKeeper
    figures: FiguresServer
    places: Places
    observe: Callable[..., Observer]
    metrics: Metrics


class Flow:
    """The parts that a run passes, and what they tell each other. `Service` starts and ends them.

    `ask_for_rescan` takes the reason for a rescan. `stopping` is set when nothing new is to begin, `abort` when all
    must end.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        ask_for_rescan: Callable[[str], None],
        stopping: threading.Event,
        abort: threading.Event,
    ) -> None:
        statusdb, metrics = parts.statusdb, parts.metrics
        self._worker = parts.worker
        self._leases = parts.leases
        self._metrics = metrics
        self._ask_for_rescan = ask_for_rescan
        self.dispatcher = Dispatcher(self._work, settings.jobs)
        self._waiting = WaitingRuns(settings.sequencing_path, statusdb, self.dispatcher)
        self.arrivals = Arrivals()
        self.observer = parts.observe(on_observation=self.arrivals.put, on_lost=self._lost)
        self.registrar = Registrar(statusdb, self._waiting.put, self.observer.stop_watching, metrics, settings.rules)
        self.feed = Feed(statusdb, self._changed, self._missed, self.registrar.forget_all)
        self.claims = Claims(statusdb, parts.leases, StaleClaims(settings.lease_seconds), self._waiting, abort)
        self.rescans = Rescans(
            settings,
            Sources(
                self.observer,
                parts.places,
                self.registrar,
                statusdb,
                self._waiting,
                self.claims,
                GarbageCollector(statusdb, parts.archive_store),
            ),
            stopping,
            self.counted,
        )

    def _work(self, run: Run, stale_rev: str | None) -> Outcome:
        # Asked in this thread: a disk that hangs may hold up this run, but not the thread that renews all leases.
        is_here = self.registrar.is_here(run, "pending" if stale_rev is None else "stale")
        if not is_here and (stale_rev is None or not self._worker.may_end(run)):
            return Outcome.NOT_HERE
        outcome = self._worker.work(run, stale_rev)
        if outcome is Outcome.NOT_READY:
            self.registrar.no_longer_ready(self.observer.watch_again(run))
        return outcome

    def _lost(self, why: str) -> None:
        self._metrics.add("events_lost")
        self._ask_for_rescan(why)

    def _changed(self, document: Document) -> None:
        if document.get("_deleted"):
            self.registrar.forget(document["_id"])
            return
        self._leases.changed(document)
        if model.status_of(document) is Status.PENDING:
            self._waiting.put(document)

    def _missed(self) -> None:
        """Look at everything anew: documents may have been changed or deleted while nobody followed the changes."""
        self.registrar.forget_all()
        self.rescans.ask()

    def counted(self) -> str:
        """Return how many runs were noticed in which way, for the log."""
        counts = self._metrics.counts()
        noticed = ", ".join(f"{counts.get(f'noticed_by_{how}', 0)} by {how}" for how in Noticed)
        lost = counts.get("events_lost", 0)
        return f"noticed so far: {noticed}" + (f"; events were lost {lost} times" if lost else "")

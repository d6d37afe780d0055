"""The daemon: its parts put together, its threads, and the order in which it ends.

`docs/architecture.md` lists the threads. Registering has a thread of its own, so that a storm of events becomes a few
large requests. Rescans have one, so that a disk that hangs keeps nobody waiting.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable

from watcher import model
from watcher.archiving import ArchiveStore, GarbageCollector, LeaseKeeper, Outcome, StaleClaims, Worker, growing_pauses
from watcher.daemon import signals
from watcher.daemon.claims import Claims
from watcher.daemon.dispatcher import Dispatcher
from watcher.daemon.health import Health
from watcher.daemon.rescans import Rescans, Sources
from watcher.daemon.settings import Settings
from watcher.daemon.systemd import Notifier
from watcher.daemon.waiting import WaitingRuns
from watcher.discovery import Feed, Noticed, Observer, Places, Registrar
from watcher.errors import ConfigError, Interrupted, StatusDBRefused, StatusDBUnavailable
from watcher.journal import printable
from watcher.metrics import Metrics
from watcher.model import Document, Run, Status
from watcher.source import Observation
from watcher.statusdb import StatusDB

TICK_SECONDS = 2.0
"""How often the main thread looks at the others, and feeds the watchdog; more often if systemd wants that."""

ABORT_SECONDS = 4.0
"""After the second signal children have so long to end, and claims to be given back."""

RESCAN_END_SECONDS = 5.0
"""How long the end waits for a rescan to be broken off. A rescan that hangs in a disk is left behind."""

logger = logging.getLogger(__name__)


class Service:
    """The whole daemon. `run` watches until a signal ends it; `run_once` archives what is ready now."""

    def __init__(
        self,
        settings: Settings,
        statusdb: StatusDB,
        archive_store: ArchiveStore,
        worker: Worker,
        leases: LeaseKeeper,
        places: Places,
        observe: Callable[..., Observer],
        metrics: Metrics,
        abort: threading.Event,
        notifier: Notifier,
    ) -> None:
        self._settings = settings
        self._statusdb = statusdb
        self._worker = worker
        self._leases = leases
        self._metrics = metrics
        self._notifier = notifier
        self._abort = abort
        self._stopping = threading.Event()
        self._exit_code = 0
        # Twice in each of systemd's periods, as sd_watchdog_enabled(3) recommends.
        self._tick_seconds = min(TICK_SECONDS, (settings.watchdog_seconds or 2 * TICK_SECONDS) / 2)
        self._inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._dispatcher = Dispatcher(self._work, settings.jobs)
        self._waiting = WaitingRuns(settings.sequencing_path, statusdb, self._dispatcher)
        self._observer = observe(on_observation=self._observed, on_lost=self._lost)
        self._registrar = Registrar(statusdb, self._waiting.put, self._observer.stop_watching, metrics, settings.rules)
        self._feed = Feed(statusdb, self._changed, self._missed, self._registrar.forget_all)
        self._claims = Claims(statusdb, leases, StaleClaims(settings.lease_seconds), self._waiting, abort)
        self._rescans = Rescans(
            settings,
            Sources(
                self._observer,
                places,
                self._registrar,
                statusdb,
                self._waiting,
                self._claims,
                GarbageCollector(statusdb, archive_store),
            ),
            self._stopping,
            self._counted,
        )
        self._health = Health(notifier, self._state)

    def run(self) -> int:
        """Watch until a signal ends it; return the exit code. Raises ConfigError if the database refuses us."""
        signals.listen(self._finish_what_runs, self._cancel_what_runs)
        self._notifier.send("STATUS=waiting for the status database")
        if self._await_database():
            self._begin_work()
            self._feed.begin()
            self._start("changes", lambda: self._feed.follow(self._stopping))
            self._start("registrar", lambda: self._registrar.follow(self._abort))
            self._observer.start()
            self._start("rescan", lambda: self._rescans.follow(self._tell_ready))
            self._watch()
        self._finish()
        return self._exit_code

    def run_once(self) -> int:
        """Archive what is ready now; return 1 if some of it failed, else 0."""
        signals.listen(self._finish_what_runs, self._cancel_what_runs)
        if self._await_database():
            self._begin_work()
            self._rescans.complete("rescan")
            self._dispatcher.drain()
        self._finish()
        outcomes = self._dispatcher.outcomes()
        logger.info("done: %s", ", ".join(f"{count} {word}" for word, count in outcomes.items()) or "nothing to do")
        good = sum(outcomes[outcome] for outcome in (Outcome.ENCRYPTED, Outcome.NOT_OURS, Outcome.NOT_HERE))
        return self._exit_code or (0 if good == outcomes.total() else 1)

    # The main thread

    def _await_database(self) -> bool:
        pauses = growing_pauses()
        while not self._stopping.is_set():
            try:
                self._statusdb.prepare()
            except StatusDBRefused as error:
                raise ConfigError(str(error)) from error
            except StatusDBUnavailable as error:
                pause = next(pauses)
                logger.warning("the status database is away, trying again in %g s: %s", pause, error)
                self._stopping.wait(pause)
            else:
                return True
        return False

    def _begin_work(self) -> None:
        self._start("lease", self._claims.keep)
        self._start("stalls", lambda: self._claims.end_stalled(self._settings.stall_limit))

    def _start(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=_guarded(target), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._look_after_threads()
            due = self._dispatcher.release_due()
            wait = min(self._tick_seconds, due if due is not None else self._tick_seconds)
            try:
                reasons = {self._inbox.get(timeout=max(wait, 0.0))}
            except queue.Empty:
                continue
            while not self._inbox.empty():
                reasons.add(self._inbox.get())
            if reasons := reasons - {""}:
                self._rescans.ask(", ".join(sorted(reasons)))

    def _look_after_threads(self) -> None:
        threads = [*self._threads, *self._dispatcher.threads()]
        if not self._stopping.is_set():  # from then on threads end as they should
            self._health.feed_watchdog(threads)
        self._health.look_for_a_hanging_disk(
            self._rescans.looking_since, self._settings.stall_limit, self._settings.sequencing_path
        )

    def _finish(self) -> None:
        """End in order: nothing new, the observer, the runs in progress under renewed leases, then the leases."""
        self._dispatcher.close()
        self._stopping.set()
        self._rescans.ask()
        for thread in self._threads:
            if thread.name == "rescan":
                thread.join(RESCAN_END_SECONDS)
        self._observer.stop()
        self._registrar.end()
        self._dispatcher.shutdown()
        self._abort.set()
        self._statusdb.close()
        signals.ignore()
        logger.info("ended; %s", self._counted())

    # What signals lead to

    def _finish_what_runs(self, number: signal.Signals) -> None:
        self._dispatcher.close()
        self._worker.close()
        self._stopping.set()
        logger.info("%s: taking nothing new, finishing what runs; once more cancels it", number.name)
        self._notifier.send("STOPPING=1", "STATUS=finishing the runs in progress")
        self._inbox.put("")

    def _cancel_what_runs(self, number: signal.Signals) -> None:
        logger.warning("%s again: cancelling", number.name)
        self._exit_code = 128 + number
        self._worker.cancel(Interrupted(f"cancelled by {number.name}"))
        deadline = time.monotonic() + ABORT_SECONDS
        while self._dispatcher.counts()[0] and time.monotonic() < deadline:
            self._abort.wait(0.02)
        self._abort.set()
        logging.shutdown()
        # A disk or a database may still hang. The claims that are left expire.
        os._exit(self._exit_code)

    # Between the parts

    def _work(self, run: Run, stale_rev: str | None) -> Outcome:
        # Asked in this thread: a disk that hangs may hold up this run, but not the thread that renews all leases.
        is_here = self._registrar.is_here(run, "pending" if stale_rev is None else "stale")
        if not is_here and (stale_rev is None or not self._worker.may_end(run)):
            return Outcome.NOT_HERE
        outcome = self._worker.work(run, stale_rev)
        if outcome is Outcome.NOT_READY:
            self._registrar.no_longer_ready(self._observer.watch_again(run))
        return outcome

    def _observed(self, observation: Observation) -> None:
        self._registrar.put(observation)

    def _lost(self, why: str) -> None:
        self._metrics.add("events_lost")
        self._inbox.put(why)

    def _changed(self, document: Document) -> None:
        if document.get("_deleted"):
            self._registrar.forget(document["_id"])
            return
        self._leases.changed(document)
        if model.status_of(document) is Status.PENDING:
            self._waiting.put(document)

    def _missed(self) -> None:
        """Look at everything anew: documents may have been changed or deleted while nobody followed the changes."""
        self._registrar.forget_all()
        self._rescans.ask()

    # Words for systemd and the log

    def _tell_ready(self) -> None:
        self._health.tell("READY=1")
        logger.info("watching '%s' with %d watches", self._settings.sequencing_path, self._observer.watches)

    def _state(self) -> str:
        running, waiting = self._dispatcher.counts()
        parts = [f"{printable(job.run.name)} {_percent(job.progress)}" for job in self._leases.jobs()]
        return f"{running} running, {waiting} waiting; {self._observer.watches} watches; {', '.join(parts) or 'idle'}"

    def _counted(self) -> str:
        counts = self._metrics.counts()
        noticed = ", ".join(f"{counts.get(f'noticed_by_{how}', 0)} by {how}" for how in Noticed)
        lost = counts.get("events_lost", 0)
        return f"noticed so far: {noticed}" + (f"; events were lost {lost} times" if lost else "")


def _guarded(target: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            target()
        except Exception:
            logger.exception("a thread has died of a bug")

    return run


def _percent(progress: model.Progress) -> str:
    if not progress.bytes_total:
        return str(progress.phase)
    return f"{progress.phase} {min(100 * progress.bytes_done // progress.bytes_total, 100)} %"

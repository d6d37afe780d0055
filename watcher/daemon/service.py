"""The daemon: its threads, its signals, what it tells systemd, and the order in which it ends.

Threads: main (health, systemd), one that reads signals, watchdog's observer (one reads inotify, one
waits for sentinels to settle, one dispatches), one that rescans and looks after the observer, one that
registers what events bring, one that follows the database's changes, one that renews all leases, one
that ends what hangs, and the pool. Registering has a thread of its own so that a storm of events
becomes a few large requests; rescanning, so that a disk that hangs keeps none of the others waiting.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from watcher import model
from watcher.archiving import LeaseKeeper, Outcome, Shelf, StaleClaims, Sweeper, Worker, growing_pauses
from watcher.daemon.dispatcher import Dispatcher
from watcher.daemon.systemd import Notifier
from watcher.discovery import Feed, Intake, Noticed, Observer, Places
from watcher.errors import ConfigError, Interrupted, NotTheRunsFault, StatusDBRefused, StatusDBUnavailable
from watcher.journal import printable
from watcher.metrics import Metrics
from watcher.model import Document, Run, Status, path_of
from watcher.source import Rules
from watcher.statusdb import StatusDB

TICK_SECONDS = 2.0
"""How often the threads' health and stalled jobs are looked at."""

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The first of these lets the running runs finish, the second cancels them."""

ABORT_SECONDS = 4.0
"""After the second signal so long for children to end and claims to be given back."""

RESCAN_END_SECONDS = 5.0
"""How long the end waits for a rescan to be broken off; one that hangs in a disk is left behind."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the daemon needs to know beside its parts; times in seconds."""

    worker_id: str
    sequencing_path: Path
    rescan_interval: float
    network_rescan_interval: float
    stall_limit: float
    lease_seconds: float
    jobs: int
    rules: Rules = field(default_factory=Rules)


class Service:
    """Everything that runs, put together."""

    def __init__(
        self,
        settings: Settings,
        statusdb: StatusDB,
        shelf: Shelf,
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
        self._places = places
        self._metrics = metrics
        self._notifier = notifier
        self._abort = abort
        self._stopping = threading.Event()
        self._exit_code = 0
        self._inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._dispatcher = Dispatcher(self._work, settings.jobs)
        self._observer = observe(on_sighting=self._sighted, on_lost=self._lost)
        self._intake = Intake(statusdb, self._offer, self._observer.handled, metrics, settings.rules)
        self._feed = Feed(statusdb, self._changed, self._missed, self._intake.forget_all)
        self._sweeper = Sweeper(statusdb, shelf)
        self._stale = StaleClaims(settings.lease_seconds)
        self._rescan_at = 0.0
        self._rescan_now = threading.Event()
        self._looking_since: float | None = None
        self._told_since: float | None = None
        self._threads: list[threading.Thread] = []

    def run(self) -> int:
        """Watch until a signal ends it; return the exit code."""
        self._listen_to_signals()
        self._notifier.send("STATUS=waiting for the status database")
        if self._await_database():
            self._begin_work()
            self._feed.begin()
            self._start("changes", lambda: self._feed.follow(self._stopping))
            self._start("intake", lambda: self._intake.follow(self._abort))
            self._observer.start()
            self._start("rescan", self._look_at_disks)
            self._watch()
        self._finish()
        return self._exit_code

    def run_once(self) -> int:
        """Archive what is ready now; return 1 if something of it failed, else 0."""
        self._listen_to_signals()
        if self._await_database():
            self._begin_work()
            self._rescan_completely("rescan")
            self._dispatcher.drain()
        self._finish()
        outcomes = self._dispatcher.outcomes()
        logger.info("done: %s", ", ".join(f"{count} {word}" for word, count in outcomes.items()) or "nothing to do")
        good = sum(outcomes[outcome] for outcome in (Outcome.ENCRYPTED, Outcome.NOT_OURS, Outcome.NOT_HERE))
        return self._exit_code or (0 if good == outcomes.total() else 1)

    # What the threads do

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._feed_watchdog()
            due = self._dispatcher.release_due()
            wait = min(TICK_SECONDS, due if due is not None else TICK_SECONDS)
            try:
                reasons = {self._inbox.get(timeout=max(wait, 0.0))}
            except queue.Empty:
                continue
            while not self._inbox.empty():
                reasons.add(self._inbox.get())
            if reasons := reasons - {""}:
                self._recover(", ".join(reasons))

    def _recover(self, why: str) -> None:
        if not (self._stopping.is_set() or self._rescan_now.is_set()):  # once for each rescan
            logger.warning("%s: a rescan finds what events did not tell", why)
            self._rescan_now.set()

    def _look_at_disks(self) -> None:
        """Rescan, and see to it that events are told. A disk that hangs may hold up this thread, and no other."""
        self._looking_since = time.monotonic()
        self._look_at_places()
        self._rescan_completely("first rescan")
        if not self._stopping.is_set():
            self._notifier.send("READY=1", f"STATUS={self._state()}")
            logger.info("watching '%s' with %d watches", self._settings.sequencing_path, self._observer.watches)
        while not self._stopping.is_set():
            left, self._looking_since = self._rescan_at - time.monotonic(), None
            is_due = self._rescan_now.wait(min(max(left, 0.0), TICK_SECONDS)) or left <= 0
            self._looking_since = time.monotonic()
            if is_due:
                self._rescan_now.clear()
                self._look_at_places()
                self._rescan("rescan")
            self._look_after_observer()

    def _look_after_observer(self) -> None:
        """Restart it if it has died, and notice what no event tells."""
        if trouble := self._observer.trouble():
            logger.error("the observer is started anew: %s", trouble)
            self._observer.restart()
            self._rescan_now.set()
        missing = self._observer.take_missing()  # first: what is away when mounts are looked at is one or the other
        if self._places.have_changed():
            self._inbox.put(f"something was mounted or unmounted in '{self._settings.sequencing_path}'")
        self._observer.look_again(missing)

    def _feed_watchdog(self) -> None:
        threads = [*self._threads, *self._dispatcher.threads()]
        dead = [thread.name for thread in threads if not thread.is_alive()]
        if self._stopping.is_set():
            return  # some have ended as they should
        if dead:
            logger.critical("threads have died: %s; systemd will restart us", ", ".join(dead))
        else:
            self._notifier.send("WATCHDOG=1", f"STATUS={self._state()}")
        since, path = self._looking_since, self._settings.sequencing_path
        if since and since != self._told_since and time.monotonic() - since >= self._settings.stall_limit:
            self._told_since = since
            logger.error("a rescan does not end: look for a disk below '%s' that does not answer", path)

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("the watcher is to end")

    def _look_at_places(self) -> None:
        """Learn where rescans have to stand in for events, and say it once."""
        before = self._places.remote
        self._places.look()
        for place, kind in self._places.remote.items():
            if before.get(place) != kind:
                logger.warning(
                    "'%s' is on a network file system (%s): what other hosts write there causes no events here; "
                    "rescanning every %g s", place, kind, self._settings.network_rescan_interval,
                )  # fmt: skip

    def _rescan_completely(self, why: str) -> None:
        """Rescan until nothing of it has failed: the status database may go away in the middle."""
        pauses = growing_pauses()
        while not self._rescan(why) and not self._stopping.wait(next(pauses)):
            pass

    def _rescan(self, why: str) -> bool:
        started = time.monotonic()
        interval = self._settings.network_rescan_interval if self._places.remote else self._settings.rescan_interval
        self._rescan_at = started + interval * random.uniform(0.9, 1.1)  # noqa: S311
        try:
            seen = self._intake.take(self._observer.sweep(), Noticed.RESCAN, self._go_on)
            for document in self._statusdb.pending():
                self._offer(document)
            self._take_back_own()
        except Interrupted:
            return False
        except NotTheRunsFault as error:
            logger.warning("%s not complete, tried again soon: %s", why, error)
            self._rescan_at = time.monotonic() + min(10.0, interval)
            return False
        seconds = time.monotonic() - started
        logger.info("%s: %d runs seen in %.2f s; %s", why, seen, seconds, self._counted())
        try:
            self._sweeper.sweep()  # now that whoever may adopt a finished archive has a document
        except NotTheRunsFault as error:
            logger.warning("debris is left until the next rescan: %s", error)
        return True

    def _keep_leases(self) -> None:
        while not self._abort.wait(self._leases.pause_seconds):
            self._leases.renew_all()
            try:
                stale = self._stale.observe(
                    [document for document in self._statusdb.processing() if not self._leases.holds(document)]
                )
            except StatusDBUnavailable as error:
                logger.warning("cannot look for stale claims: %s", error)
                continue
            for document in stale:
                self._offer_stale(document)

    def _end_stalled(self) -> None:
        """End what hangs. The thread asks no disk and no database, which may be what another of ours waits for."""
        while not self._abort.wait(TICK_SECONDS):
            for job in self._leases.jobs():
                job.cancel_if_stalled(self._settings.stall_limit)

    def _take_back_own(self) -> None:
        """Offer the runs that this worker held when it died, or could not give back: nobody else has its lock."""
        for document in self._statusdb.processing():
            if document.get("worker_id") == self._settings.worker_id and not self._leases.holds(document):
                self._offer_stale(document)

    def _changed(self, document: Document) -> None:
        if document.get("_deleted"):
            self._intake.forget(document["_id"])
            return
        self._leases.changed(document)
        if model.status_of(document) is Status.PENDING:
            self._offer(document)

    def _missed(self) -> None:
        """Look at everything anew: documents may have been changed or deleted unseen."""
        self._intake.forget_all()
        self._rescan_now.set()

    # Between the parts

    def _work(self, run: Run, stale_rev: str | None) -> Outcome:
        # Asked in this thread: a disk that hangs may hold up this run, but not who keeps all leases.
        is_here = self._intake.is_here(run, "pending" if stale_rev is None else "stale")
        if not is_here and (stale_rev is None or not self._worker.may_end(run)):
            return Outcome.NOT_HERE
        outcome = self._worker.work(run, stale_rev)
        if outcome is Outcome.NOT_READY:
            self._intake.lapsed(self._observer.watch_again(run))
        return outcome

    def _sighted(self, sighting: object) -> None:
        self._intake.put(sighting)  # type: ignore[arg-type]

    def _lost(self, why: str) -> None:
        self._metrics.add("events_lost")
        self._inbox.put(why)

    def _offer(self, document: Document) -> None:
        run = self._ours(document)
        if run is None:
            return
        wait = self._statusdb.seconds_until_due(document)
        if wait > 0:
            self._dispatcher.offer_later(run, wait)
        else:
            self._dispatcher.offer(run)

    def _offer_stale(self, document: Document) -> None:
        if run := self._ours(document):
            self._dispatcher.offer(run, document["_rev"])

    def _ours(self, document: Document) -> Run | None:
        """Return the document's run if its path is two levels below our sequencing path, be it there or not."""
        path = path_of(document)
        on_our_tree = path.parent.parent == self._settings.sequencing_path and path.name == document["_id"]
        return Run(path) if on_our_tree else None

    def _state(self) -> str:
        running, waiting = self._dispatcher.counts()
        parts = [f"{printable(job.run.name)} {_percent(job.progress)}" for job in self._leases.jobs()]
        return f"{running} running, {waiting} waiting; {self._observer.watches} watches; {', '.join(parts) or 'idle'}"

    def _counted(self) -> str:
        counts = self._metrics.counts()
        noticed = ", ".join(f"{counts.get(f'noticed_by_{how}', 0)} by {how}" for how in Noticed)
        lost = counts.get("events_lost", 0)
        return f"noticed so far: {noticed}" + (f"; events were lost {lost} times" if lost else "")

    # Beginning and end

    def _listen_to_signals(self) -> None:
        # Python calls a handler when the main thread comes to it, and that may wait for a run to finish. What is
        # written to the wakeup descriptor comes at once.
        listening, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told)
        for number in ENDING:
            signal.signal(number, _noted)
        signals = (byte[0] for byte in iter(lambda: os.read(listening, 1), b"") if byte[0] in ENDING)
        threading.Thread(target=self._obey, args=(signals,), name="signals", daemon=True).start()

    def _obey(self, signals: Iterator[int]) -> None:
        first = next(signals)
        self._dispatcher.close()
        self._worker.close()
        self._stopping.set()
        logger.info("%s: taking nothing new, finishing what runs; once more cancels it", signal.Signals(first).name)
        self._notifier.send("STOPPING=1", "STATUS=finishing the runs in progress")
        self._inbox.put("")
        second = signal.Signals(next(signals))
        logger.warning("%s again: cancelling", second.name)
        self._exit_code = 128 + second
        self._worker.cancel(Interrupted(f"cancelled by {second.name}"))
        self._exit_soon()

    def _exit_soon(self) -> None:
        deadline = time.monotonic() + ABORT_SECONDS
        while self._dispatcher.counts()[0] and time.monotonic() < deadline:
            self._abort.wait(0.02)
        self._abort.set()
        logging.shutdown()
        # Whatever still hangs is a disk or a database: the claims left over are found by their leases.
        os._exit(self._exit_code)

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
        self._start("lease", self._keep_leases)
        self._start("stalls", self._end_stalled)

    def _start(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=_guarded(target), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _finish(self) -> None:
        """End in order: nothing new, observer, running runs under renewed leases, then the leases."""
        self._dispatcher.close()
        self._stopping.set()
        self._rescan_now.set()
        for thread in self._threads:
            if thread.name == "rescan":
                thread.join(RESCAN_END_SECONDS)
        self._observer.stop()
        self._intake.end()
        self._dispatcher.shutdown()
        self._abort.set()
        self._statusdb.close()
        for number in ENDING:
            # Nothing is left to cancel. Python would hand our handlers back to the system while it ends.
            signal.signal(number, signal.SIG_IGN)
        logger.info("ended; %s", self._counted())


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Keep a signal from doing what it does by default."""


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

"""The daemon: its threads, its signals, and the order in which it ends.

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

from watcher.archiving import Outcome, growing_pauses
from watcher.daemon import signals
from watcher.daemon.flow import Flow, Parts
from watcher.daemon.health import Health
from watcher.daemon.settings import Settings
from watcher.daemon.systemd import Notifier
from watcher.errors import ConfigError, Interrupted, StatusDBRefused, StatusDBUnavailable
from watcher.figures import Figures
from watcher.text import printable

TICK_SECONDS = 2.0
"""How often the main thread looks at the others, and feeds the watchdog; more often if systemd wants that."""

ABORT_SECONDS = 4.0
"""After the second signal children have so long to end, and claims to be given back."""

RESCAN_END_SECONDS = 5.0
"""How long the end waits for a rescan to be broken off. A rescan that hangs in a disk is left behind."""

logger = logging.getLogger(__name__)


class Service:
    """The whole daemon. `run` watches until a signal ends it; `run_once` archives what is ready now.

    It is longer than other classes so that the order in which everything ends can be read in one place.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        abort: threading.Event,
        notifier: Notifier,
    ) -> None:
        self._settings = settings
        self._statusdb = parts.statusdb
        self._worker = parts.worker
        self._leases = parts.leases
        self._figures = parts.figures
        self._notifier = notifier
        self._abort = abort
        self._stopping = threading.Event()
        self._exit_code = 0
        # Twice in each of systemd's periods, as sd_watchdog_enabled(3) recommends.
        self._tick_seconds = min(TICK_SECONDS, (settings.watchdog_seconds or 2 * TICK_SECONDS) / 2)
        self._inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._flow = Flow(settings, parts, self._inbox.put, self._stopping, abort)
        self._health = Health(notifier, self._state)

    def run(self) -> int:
        """Watch until a signal ends it; return the exit code. Raises ConfigError if the database refuses us."""
        signals.listen(self._finish_what_runs, self._cancel_what_runs)
        self._notifier.send("STATUS=waiting for the status database")
        if self._await_database():
            self._begin_work()
            self._flow.feed.begin()
            self._start("changes", lambda: self._flow.feed.follow(self._stopping))
            self._start("registrar", lambda: self._flow.registrar.follow(self._flow.arrivals, self._abort))
            self._flow.observer.start()
            self._start("rescan", lambda: self._flow.rescans.follow(self._tell_ready))
            self._watch()
        self._finish()
        return self._exit_code

    def run_once(self) -> int:
        """Archive what is ready now; return 1 if some of it failed, else 0."""
        signals.listen(self._finish_what_runs, self._cancel_what_runs)
        if self._await_database():
            self._begin_work()
            self._flow.rescans.complete("rescan")
            self._flow.dispatcher.drain()
        self._finish()
        outcomes = self._flow.dispatcher.outcomes()
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
        self._start("lease", self._flow.claims.keep)
        if self._figures.open():
            self._start("figures", self._figures.serve)
        self._start("stalls", lambda: self._flow.claims.end_stalled(self._settings.stall_limit))

    def _start(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=_guarded(target), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._look_after_threads()
            due = self._flow.dispatcher.release_due()
            wait = min(self._tick_seconds, due if due is not None else self._tick_seconds)
            try:
                reasons = {self._inbox.get(timeout=max(wait, 0.0))}
            except queue.Empty:
                continue
            while not self._inbox.empty():
                reasons.add(self._inbox.get())
            if reasons := reasons - {""}:
                self._flow.rescans.ask(", ".join(sorted(reasons)))

    def _look_after_threads(self) -> None:
        threads = [*self._threads, *self._flow.dispatcher.threads()]
        if not self._stopping.is_set():  # from then on threads end as they should
            self._health.feed_watchdog(threads)
        self._health.look_for_a_hanging_disk(
            self._flow.rescans.looking_since, self._settings.stall_limit, self._settings.sequencing_path
        )

    def _finish(self) -> None:
        """End in order: nothing new, the observer, the runs in progress under renewed leases, then the leases."""
        self._flow.dispatcher.close()
        self._stopping.set()
        self._flow.rescans.ask()
        for thread in self._threads:
            if thread.name == "rescan":
                thread.join(RESCAN_END_SECONDS)
        self._flow.observer.stop()
        self._flow.arrivals.end()
        self._flow.dispatcher.shutdown()
        self._abort.set()
        self._leases.wake()
        self._figures.close()
        self._statusdb.close()
        signals.ignore()
        logger.info("ended; %s", self._flow.counted())

    # What signals lead to

    def _finish_what_runs(self, number: signal.Signals) -> None:
        self._flow.dispatcher.close()
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
        while self._flow.dispatcher.counts()[0] and time.monotonic() < deadline:
            self._abort.wait(0.02)
        self._abort.set()
        logging.shutdown()
        # A disk or a database may still hang. The claims that are left expire.
        os._exit(self._exit_code)

    # Words for systemd and the log

    def _tell_ready(self) -> None:
        self._health.tell("READY=1")
        logger.info("watching '%s' with %d watches", self._settings.sequencing_path, self._flow.observer.watches)

    def _state(self) -> str:
        running, waiting = self._flow.dispatcher.counts()
        jobs = "; ".join(f"{printable(job.run.name)} {Figures.of(job).in_words}" for job in self._leases.jobs())
        return f"{running} running, {waiting} waiting; {self._flow.observer.watches} watches; {jobs or 'idle'}"


def _guarded(target: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            target()
        except Exception:
            logger.exception("a thread has died of a bug")

    return run

"""Rescans: the full listing that finds what events did not tell, and a look after the observer and the mounts.

All of this asks the sequencers' disks, which may hang. So it has a thread of its own, for which nobody waits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from watcher.archiving import GarbageCollector, growing_pauses
from watcher.daemon.claims import Claims
from watcher.daemon.settings import Settings
from watcher.daemon.waiting import WaitingRuns
from watcher.discovery import Noticed, Observer, Places, Registrar
from watcher.errors import Interrupted, NotTheRunsFault
from watcher.statusdb import StatusDB

LOOK_SECONDS = 2.0
"""How often the observer and the mounts are looked at."""

RETRY_SECONDS = 10.0
"""The next rescan after one that failed comes this soon, or sooner if the interval is shorter."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """What a rescan reads, and to whom it gives what it finds."""

    observer: Observer
    places: Places
    registrar: Registrar
    statusdb: StatusDB
    waiting: WaitingRuns
    claims: Claims
    garbage_collector: GarbageCollector


class Rescans:
    """Rescans every `rescan_interval`, and at once when `ask` was called; until `stopping` is set.

    `counted` returns what was noticed so far, in words for the log. `looking_since` is when the last look at the
    disks began, on the monotonic clock; None while none is under way.
    """

    def __init__(
        self, settings: Settings, sources: Sources, stopping: threading.Event, counted: Callable[[], str]
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._stopping = stopping
        self._counted = counted
        self._is_asked_for = threading.Event()
        self._next_at = 0.0
        self.looking_since: float | None = None

    def follow(self, on_ready: Callable[[], None]) -> None:
        """Rescan, and look after the observer, until `stopping`. `on_ready` is called after the first rescan."""
        self.looking_since = time.monotonic()
        self._look_at_places()
        self.complete("first rescan")
        if not self._stopping.is_set():
            on_ready()
        while not self._stopping.is_set():
            left, self.looking_since = self._next_at - time.monotonic(), None
            is_due = self._is_asked_for.wait(min(max(left, 0.0), LOOK_SECONDS)) or left <= 0
            self.looking_since = time.monotonic()
            if is_due:
                self._is_asked_for.clear()
                self._look_at_places()
                self._rescan("rescan")
            self._look_after_observer()

    def ask(self, why: str = "") -> None:
        """Let a rescan begin as soon as it can. A `why` is logged, once for each rescan."""
        if why and not (self._stopping.is_set() or self._is_asked_for.is_set()):
            logger.warning("%s: a rescan finds what events did not tell", why)
        self._is_asked_for.set()

    def complete(self, why: str) -> None:
        """Rescan until a whole rescan has not failed: the status database may go away in the middle."""
        pauses = growing_pauses()
        while not self._rescan(why) and not self._stopping.wait(next(pauses)):
            pass

    def _rescan(self, why: str) -> bool:
        sources, started = self._sources, time.monotonic()
        interval = self._interval()
        self._next_at = started + interval * random.uniform(0.9, 1.1)  # noqa: S311  # hosts must not rescan in step
        try:
            seen = sources.registrar.register(sources.observer.sweep(), Noticed.RESCAN, self._go_on)
            for document in sources.statusdb.pending():
                sources.waiting.put(document)
            sources.claims.take_back(self._settings.worker_id)
        except Interrupted:
            return False
        except NotTheRunsFault as error:
            logger.warning("%s not complete, tried again soon: %s", why, error)
            self._next_at = time.monotonic() + min(RETRY_SECONDS, interval)
            return False
        seconds = time.monotonic() - started
        logger.info("%s: %d runs seen in %.2f s; %s", why, seen, seconds, self._counted())
        self._sweep()
        return True

    def _sweep(self) -> None:
        # After the scan: now each run whose finished archive may be adopted has a document.
        try:
            self._sources.garbage_collector.collect()
        except NotTheRunsFault as error:
            logger.warning("garbage is left until the next rescan: %s", error)

    def _interval(self) -> float:
        settings = self._settings
        return settings.network_rescan_interval if self._sources.places.remote else settings.rescan_interval

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("the watcher is to end")

    def _look_after_observer(self) -> None:
        """Start the observer anew if it has died, and notice mounts, which cause no event."""
        observer = self._sources.observer
        if trouble := observer.trouble():
            logger.error("the observer is started anew: %s", trouble)
            observer.restart()
            self.ask()
        # Taken before the mounts are looked at: what goes away later must stay in the list for the next look.
        missing = observer.take_missing()
        if self._sources.places.have_changed():
            self.ask(f"something was mounted or unmounted in '{self._settings.sequencing_path}'")
        observer.look_again(missing)

    def _look_at_places(self) -> None:
        """Find the sequencers on network file systems; log each new one."""
        places = self._sources.places
        before = places.remote
        places.look()
        for place, kind in places.remote.items():
            if before.get(place) != kind:
                logger.warning(
                    "'%s' is on a network file system (%s): what other hosts write there causes no events here; "
                    "rescanning every %g s", place, kind, self._settings.network_rescan_interval,
                )  # fmt: skip

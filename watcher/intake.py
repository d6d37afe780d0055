"""From sightings to registered runs: each is registered once, and what cannot be is said once."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

from watcher import model
from watcher.archive import MAX_RUN_NAME_BYTES
from watcher.errors import StatusDBUnavailable
from watcher.metrics import Metrics
from watcher.model import Document, Run, Status
from watcher.sentinels import Sighting, State, unusable_name
from watcher.statusdb import StatusDB

BATCH = 1000
"""Sightings registered in one request, when so many wait."""

RETRY_SECONDS = 5.0
"""Between tries to register while the database is away."""

logger = logging.getLogger(__name__)


class Noticed(StrEnum):
    """How this process came to know that a run is ready."""

    EVENT = "event"
    RESCAN = "rescan"
    DATABASE = "database"


class Intake:
    """Registers runs. `offer` takes each pending document that comes to light, `handled` each run done with."""

    def __init__(
        self,
        statusdb: StatusDB,
        offer: Callable[[Document], None],
        handled: Callable[[Path], None],
        metrics: Metrics,
    ) -> None:
        self._statusdb = statusdb
        self._offer = offer
        self._handled = handled
        self._metrics = metrics
        self._known: dict[str, Path] = {}
        self._told: dict[Path, str] = {}
        self._sightings: queue.SimpleQueue[Sighting | None] = queue.SimpleQueue()

    def put(self, sighting: Sighting) -> None:
        """Take a sighting that an event caused; `follow` registers it."""
        self._sightings.put(sighting)

    def end(self) -> None:
        """Make `follow` return."""
        self._sightings.put(None)

    def follow(self, stop: threading.Event) -> None:
        """Register what `put` brings, as much in one request as has come meanwhile, until `end` or `stop`."""
        while not stop.is_set():
            batch, more = self._next()
            while batch and not stop.is_set():
                try:
                    self.take(batch, Noticed.EVENT)
                    batch = []
                except StatusDBUnavailable as error:
                    logger.warning("%d runs wait to be registered: %s", len(batch), error)
                    stop.wait(RETRY_SECONDS)
            if not more:
                return

    def _next(self) -> tuple[list[Sighting], bool]:
        batch: list[Sighting] = []
        sighting = self._sightings.get()
        while sighting is not None:
            batch.append(sighting)
            if len(batch) == BATCH or self._sightings.empty():
                return batch, True
            sighting = self._sightings.get()
        return batch, False

    def take(self, sightings: Iterable[Sighting], noticed: Noticed) -> None:
        """Register the ready runs among the sightings, and offer those that are pending.

        Raises StatusDBUnavailable; then all of it may be done again.
        """
        ready = [sighting.run for sighting in sightings if self._is_acceptable(sighting)]
        if noticed is Noticed.RESCAN:
            # A rescan sees all runs there are; those that are known come out of the database if they are pending.
            ready = [run for run in ready if self._known.get(run.name) != run.path]
        if ready:
            self._register(ready, noticed)

    def forget(self, name: str) -> None:
        """Note that a run's document was deleted: the next rescan registers it again."""
        self._known.pop(name, None)

    def _register(self, runs: list[Run], noticed: Noticed) -> None:
        registration = self._statusdb.register(runs)
        for run in registration.new:
            self._metrics.add(f"noticed_by_{noticed}")
            logger.info("registered '%s', noticed by %s", run.path, noticed, extra={"run": run.name})
        for document in registration.known:
            self._known[document["_id"]] = Path(document["path"])
            if model.status_of(document) is Status.PENDING:
                self._offer(document)
        for run, document in registration.collisions:
            self._tell(logging.ERROR, run, collision(run, document))
        for run in runs:
            self._handled(run.path)

    def _is_acceptable(self, sighting: Sighting) -> bool:
        reason, level = sighting.reason, logging.ERROR
        if sighting.state is State.READY:
            reason = unusable_name(sighting.run.name, MAX_RUN_NAME_BYTES) or ""
        elif sighting.state is State.HELD:
            level = logging.WARNING
        if reason:
            self._tell(level, sighting.run, reason)
        return sighting.state is State.READY and not reason

    def _tell(self, level: int, run: Run, reason: str) -> None:
        if self._told.get(run.path) != reason:
            self._told[run.path] = reason
            logger.log(level, "'%s' is not archived: %s", run.path, reason, extra={"run": run.name})


def collision(run: Run, document: Document) -> str:
    """Return the words for a run whose name another path has."""
    return f"collision: '{document['path']}' has the same name and is registered; rename one of them"

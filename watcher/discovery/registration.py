"""Observed runs become registered ones, each once."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path

from watcher import model
from watcher.errors import StatusDBUnavailable
from watcher.metrics import Metrics
from watcher.model import Document, Run, Status, path_of
from watcher.source import Rules, Sighting, State, has_same_top, unusable_name
from watcher.statusdb import StatusDB

BATCH = 1000
"""Sightings registered in one request, when so many wait."""

REQUESTS_AT_ONCE = 2
"""The database answers one while the last answer is dealt with, and the next thousand sightings are collected."""

RETRY_SECONDS = 5.0
"""Between tries to register while the database is away."""

_WITHOUT_ARCHIVE = (Status.PENDING, Status.FAILED)

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
        rules: Rules | None = None,
    ) -> None:
        self._statusdb = statusdb
        self._rules = rules or Rules()
        self._offer = offer
        self._handled = handled
        self._metrics = metrics
        self._versions: dict[str, int] = {}  # of those: hashes of what they were like when they were last looked up
        self._known: dict[str, str] = {}  # names and paths of runs that are, or were, here and in the database
        self._doubtful: set[str] = set()  # of those: may have been deleted since they were told of; a rescan asks
        self._forgotten = 0
        self._lock = threading.Lock()
        self._asking: set[str] = set()
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

    def take(self, sightings: Iterable[Sighting], noticed: Noticed, go_on: Callable[[], None] = lambda: None) -> int:
        """Register the ready runs among the sightings, offer those that are pending; return how many sightings came.

        `go_on` is called after each sighting, and may raise to end it. Raises StatusDBUnavailable; then all of it may
        be done again.
        """
        seen, ready = 0, list[Sighting]()
        asked: deque[Future[None]] = deque()
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, "register") as beside:
            for sighting in sightings:
                seen += 1
                if self._is_news(sighting, noticed) and self._is_acceptable(sighting):
                    ready.append(sighting)
                if len(ready) == BATCH:
                    if len(asked) == REQUESTS_AT_ONCE:
                        asked.popleft().result()
                    asked.append(beside.submit(self._register, ready, noticed))
                    ready = []
                go_on()
            for batch in asked:
                batch.result()
        self._register(ready, noticed)
        return seen

    def _is_news(self, sighting: Sighting, noticed: Noticed) -> bool:
        # A rescan sees all runs there are; those that are known come out of the database if they are pending.
        name, path = sighting.run.name, str(sighting.run.path)
        is_known = sighting.state is State.READY and self._known.get(name) == path and name not in self._doubtful
        is_known &= self._versions.get(name) == hash(sighting.version)
        return noticed is not Noticed.RESCAN or not is_known

    def lapsed(self, sighting: Sighting) -> None:
        """Take a registered run that was not ready when its turn came: tell why, or offer it if it is ready again.

        Raises StatusDBUnavailable.
        """
        if sighting.state is State.ABSENT:
            is_there = os.path.isdir(sighting.run.path)  # noqa: PTH112  # Path's own may raise
            self._tell(logging.WARNING, sighting.run, "its sentinel is gone" if is_there else "it is gone itself")
        else:
            self.take([sighting], Noticed.EVENT)

    def is_here(self, run: Run, what: str) -> bool:
        """Say whether a run that the database told of is here, or was; log `what` it is if that is news.

        What is not here is another machine's, and nothing to speak of.
        """
        with self._lock:
            if self._known.get(run.name) == str(run.path) or run.name in self._asking:
                return True
        if not os.path.isdir(run.path):  # noqa: PTH112  # Path's own may raise
            return False
        with self._lock:
            self._known[run.name] = str(run.path)
            self._doubtful.add(run.name)
        self._metrics.add(f"noticed_by_{Noticed.DATABASE}")
        logger.info("'%s' is %s, noticed by %s", run.path, what, Noticed.DATABASE, extra={"run": run.name})
        return True

    def forget(self, name: str) -> None:
        """Note that a run's document was deleted: the next rescan registers it again."""
        with self._lock:
            self._forgotten += 1
            self._known.pop(name, None)
            self._versions.pop(name, None)
            self._doubtful.discard(name)

    def forget_all(self) -> None:
        """Note that documents may have been deleted unseen: the next rescan asks for all of them."""
        with self._lock:
            self._forgotten += 1
            self._known.clear()
            self._versions.clear()
            self._doubtful.clear()

    def _register(self, sightings: list[Sighting], noticed: Noticed) -> None:
        runs = [sighting.run for sighting in sightings]
        names, paths = {run.name for run in runs}, {str(run.path) for run in runs}
        forgotten = self._forgotten
        self._asking |= names  # so that what the database tells of our own writes is not news
        try:
            registration = self._statusdb.register(runs)
            with self._lock:
                known = {document["_id"]: str(path_of(document)) for document in registration.known}
                self._known |= {name: path for name, path in known.items() if path in paths}
                if self._forgotten == forgotten:
                    self._doubtful -= names
                else:
                    self._doubtful |= names
        finally:
            self._asking -= names
        for run in registration.new:
            self._metrics.add(f"noticed_by_{noticed}")
            logger.info("registered '%s', noticed by %s", run.path, noticed, extra={"run": run.name})
        collided = {run.path: collision(run, document) for run, document in registration.collisions}
        for run in runs:
            if run.path in collided:
                self._tell(logging.ERROR, run, collided[run.path])
            else:
                self._told.pop(run.path, None)
            self._handled(run.path)
        self._compare_all(sightings, registration.known)
        # Offered last: if a run turns out not to be ready any more, it is watched again, and stays so.
        for document in registration.known:
            if model.status_of(document) is Status.PENDING:
                self._offer(document)

    def _compare_all(self, sightings: list[Sighting], documents: Iterable[Document]) -> None:
        by_path = {path_of(document): document for document in documents}
        for sighting in sightings:
            if sighting.run.path in by_path:
                self._compare(sighting, by_path[sighting.run.path])
                with self._lock:  # not before: with the database away, the next rescan compares again
                    self._versions[sighting.run.name] = hash(sighting.version)

    def _compare(self, sighting: Sighting, document: Document) -> None:
        """Say in the log and in the document if an archived run is not what was archived any more."""
        run, version = sighting.run, sighting.version
        if version is None or model.status_of(document) is not Status.ENCRYPTED:
            return
        archive = document.get("archive") or {}
        was = archive.get("sentinel")
        if was and was != version.sentinel:
            change = "its sentinel was written again"
        elif self._has_same_top(run, version.top_ns, archive.get("top") or ""):
            return
        else:
            change = "its top directory holds something else"
        self._statusdb.mark_changed(document)
        logger.warning(
            "'%s' is not what was archived any more: %s; keep it, and see `changed` in the README", run.path, change,
            extra={"run": run.name},
        )  # fmt: skip

    def _has_same_top(self, run: Run, changed_ns: int, archived: str) -> bool:
        try:
            return has_same_top(run.path, changed_ns, archived, self._rules)
        except OSError:
            return True  # the run is gone, or cannot be looked at: the next rescan sees

    def _is_acceptable(self, sighting: Sighting) -> bool:
        reason, level = sighting.reason, logging.ERROR
        if sighting.state is State.READY:
            reason = unusable_name(sighting.run.name) or ""
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
    """Return the words for a run whose name another path, or a document that is no run's, has."""
    if not document:
        return "the status database takes no document for it: its path is no UTF-8, or the database forbids it"
    if model.status_of(document) is None:
        return f"collision: document '{run.name}' in the status database is no run's; rename the run, or remove it"
    words = f"collision: '{path_of(document)}' has the same name and is registered; rename one of them"
    if model.status_of(document) in _WITHOUT_ARCHIVE and not os.path.lexists(path_of(document)):
        words += f" (that one is not here: if it was moved, document '{run.name}' may be deleted)"
    return words

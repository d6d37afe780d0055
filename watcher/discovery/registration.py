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
from watcher.discovery.comparison import change_since_archived
from watcher.discovery.known import KnownRuns
from watcher.discovery.refusals import Refusals
from watcher.errors import StatusDBUnavailable
from watcher.metrics import Metrics
from watcher.model import Document, Run, Status, path_of
from watcher.source import Observation, Rules, State
from watcher.statusdb import StatusDB, collision

BATCH = 1000
"""Observations registered in one request, when so many wait."""

REQUESTS_AT_ONCE = 2
"""The database answers one while the last answer is dealt with, and the next thousand observations are collected."""

RETRY_SECONDS = 5.0
"""Between tries to register while the database is away."""

logger = logging.getLogger(__name__)


class Noticed(StrEnum):
    """How this process came to know that a run is ready."""

    EVENT = "event"
    RESCAN = "rescan"
    DATABASE = "database"


class Arrivals:
    """The observations that events cause, until they are registered."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Observation | None] = queue.SimpleQueue()

    def put(self, observation: Observation) -> None:
        """Take an observation."""
        self._queue.put(observation)

    def end(self) -> None:
        """Note that no more come."""
        self._queue.put(None)

    def next(self) -> tuple[list[Observation], bool]:
        """Wait for an observation; return all that are there then, up to a batch, and whether more may come."""
        batch: list[Observation] = []
        observation = self._queue.get()
        while observation is not None:
            batch.append(observation)
            if len(batch) == BATCH or self._queue.empty():
                return batch, True
            observation = self._queue.get()
        return batch, False


class Registrar:
    """Registers runs. `submit` takes each pending document that comes to light, `stop_watching` each run done with."""

    def __init__(
        self,
        statusdb: StatusDB,
        submit: Callable[[Document], None],
        stop_watching: Callable[[Path], None],
        metrics: Metrics,
        rules: Rules | None = None,
    ) -> None:
        self._statusdb = statusdb
        self._submit = submit
        self._stop_watching = stop_watching
        self._metrics = metrics
        self._rules = rules or Rules()
        self._known = KnownRuns()
        self._refusals = Refusals()

    def follow(self, arrivals: Arrivals, stop: threading.Event) -> None:
        """Register what arrives, as much in one request as has come meanwhile, until it ends or `stop` is set."""
        while not stop.is_set():
            batch, more = arrivals.next()
            while batch and not stop.is_set():
                try:
                    self.register(batch, Noticed.EVENT)
                    batch = []
                except StatusDBUnavailable as error:
                    logger.warning("%d runs wait to be registered: %s", len(batch), error)
                    stop.wait(RETRY_SECONDS)
            if not more:
                return

    def register(
        self, observations: Iterable[Observation], noticed: Noticed, go_on: Callable[[], None] = lambda: None
    ) -> int:
        """Register the ready runs among the observations, and submit the pending ones; return how many were observed.

        `go_on` is called after each observation; what it raises ends the work. Raises StatusDBUnavailable; then
        everything may be done again.
        """
        seen, ready = 0, list[Observation]()
        asked: deque[Future[None]] = deque()
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, "register") as beside:
            for observation in observations:
                seen += 1
                if self._is_news(observation, noticed) and self._refusals.allow(observation):
                    ready.append(observation)
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

    def _is_news(self, observation: Observation, noticed: Noticed) -> bool:
        # A rescan sees all runs. Those that are known come out of the database if they are pending.
        is_known = observation.state is State.READY and self._known.has(observation)
        return noticed is not Noticed.RESCAN or not is_known

    def no_longer_ready(self, observation: Observation) -> None:
        """Take a registered run that was not ready when its turn came: log why, or submit it if it is ready again.

        Raises StatusDBUnavailable.
        """
        if observation.state is State.ABSENT:
            is_there = os.path.isdir(observation.run.path)  # noqa: PTH112  # Path's own may raise
            self._refusals.log(
                logging.WARNING, observation.run, "its sentinel is gone" if is_there else "it is gone itself"
            )
        else:
            self.register([observation], Noticed.EVENT)

    def is_here(self, run: Run, what: str) -> bool:
        """Say whether a run that the database told of is here, or was; log `what` it is if that is news.

        A run that is not here is another machine's: nothing is logged.
        """
        if self._known.has_heard_of(run):
            return True
        if not os.path.isdir(run.path):  # noqa: PTH112  # Path's own may raise
            return False
        self._known.add_unasked(run)
        self._metrics.add(f"noticed_by_{Noticed.DATABASE}")
        logger.info("'%s' is %s, noticed by %s", run.path, what, Noticed.DATABASE, extra=run.about)
        return True

    def forget(self, name: str) -> None:
        """Note that a run's document was deleted: the next rescan registers it again."""
        self._known.forget(name)

    def forget_all(self) -> None:
        """Note that documents may have been deleted unseen: the next rescan asks for all of them."""
        self._known.forget_all()

    def _register(self, observations: list[Observation], noticed: Noticed) -> None:
        runs = [observation.run for observation in observations]
        begun = self._known.begin(runs)
        try:
            registration = self._statusdb.register(runs)
            self._known.add(runs, registration.known)
        finally:
            self._known.end(runs)
        for run in registration.new:
            self._metrics.add(f"noticed_by_{noticed}")
            logger.info("registered '%s', noticed by %s", run.path, noticed, extra=run.about)
        collided = {run.path: collision(run, document) for run, document in registration.collisions}
        for run in runs:
            if run.path in collided:
                self._refusals.log(logging.ERROR, run, collided[run.path])
            else:
                self._refusals.forget(run)
            self._stop_watching(run.path)
        self._compare_all(observations, registration.known, begun)
        # Submitted last: a run that turns out not to be ready is watched again, and its watch must not be ended here.
        for document in registration.known:
            if model.status_of(document) is Status.PENDING:
                self._submit(document)

    def _compare_all(self, observations: list[Observation], documents: Iterable[Document], begun: int) -> None:
        by_path = {path_of(document): document for document in documents}
        for observation in observations:
            if observation.run.path in by_path:
                self._compare(observation, by_path[observation.run.path])
                # Not before it was compared: if the database is away, the next rescan compares again.
                self._known.add_version(observation, begun)

    def _compare(self, observation: Observation, document: Document) -> None:
        """Log and mark in the document that an archived run is not what was archived any more."""
        run = observation.run
        if change := change_since_archived(observation, document, self._rules):
            self._statusdb.mark_changed(document)
            logger.warning(
                "'%s' is not what was archived any more: %s; keep it, and see 'changed' in docs/operation.md",
                run.path, change, extra=run.about,
            )  # fmt: skip

"""The status database's changes, followed."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator

from watcher.errors import StatusDBUnavailable
from watcher.model import Document
from watcher.statusdb import Changes, FeedLost, StatusDB

logger = logging.getLogger(__name__)


CHANGES_WAIT_SECONDS = 30.0
"""The database may hold one request for its changes for so long."""

CHECK_SECONDS = 60.0
"""How often the database is asked for its latest change. A database that was restored from an older copy would hold
our request until it has as many changes as before."""

SPIN_SECONDS = 1.0
"""The pause after an answer that came at once and was empty: some proxies do not let a request wait."""

FEED_PAUSES_SECONDS = (1.0, 2.0, 5.0)
"""Between tries to follow the changes; the last pause is repeated. It is short, so that a returned database is soon
heard."""


class Feed:
    """Follows the status database's changes.

    `changed` takes each document as it is now; `missed` is called when some changes were not told, and `returned`
    when the database was away: it may have come back with less than it had.
    """

    def __init__(
        self,
        statusdb: StatusDB,
        changed: Callable[[Document], None],
        missed: Callable[[], None],
        returned: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._statusdb = statusdb
        self._changed = changed
        self._missed = missed
        self._returned = returned
        self._clock = clock
        self._since: str | None = None
        self._trouble = ""

    def begin(self) -> None:
        """Note the latest change: `follow` starts there. Call it before the first rescan: nothing is missed then."""
        try:
            self._since = self._statusdb.changes(None, 0).since
        except StatusDBUnavailable as error:
            self._lose(error)

    def follow(self, stop: threading.Event) -> None:
        """Hand on what changes, until `stop`."""
        pauses, checked_at = _feed_pauses(), self._clock()
        while not stop.is_set():
            asked_at, before = self._clock(), self._since
            is_check = bool(self._trouble) or asked_at - checked_at >= CHECK_SECONDS
            checked_at, wait = (asked_at, 0.0) if is_check else (checked_at, CHANGES_WAIT_SECONDS)
            try:
                changes = self._statusdb.changes(self._since, wait)
            except (FeedLost, StatusDBUnavailable) as error:
                self._lose(error)
                stop.wait(next(pauses))
                continue
            pauses = _feed_pauses()
            self._take(changes)
            leads_nowhere = not changes.documents or changes.since == before
            if leads_nowhere and not is_check and self._clock() - asked_at < SPIN_SECONDS:
                stop.wait(SPIN_SECONDS)

    def _take(self, changes: Changes) -> None:
        if self._trouble:
            self._trouble = ""
            logger.info("the database's changes are followed again")
            self._returned()
        before, self._since = self._since, changes.since
        if before is None:
            self._missed()
        for document in changes.documents:
            self._changed(document)

    def _lose(self, error: FeedLost | StatusDBUnavailable) -> None:
        if isinstance(error, FeedLost):
            self._since = None
        if not self._trouble:
            self._trouble = str(error)
            logger.warning("cannot follow the database's changes: %s", error)


def _feed_pauses() -> Iterator[float]:
    return itertools.chain(FEED_PAUSES_SECONDS, itertools.repeat(FEED_PAUSES_SECONDS[-1]))

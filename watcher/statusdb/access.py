"""How documents are asked for: through the door, and again while the store is away for seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from watcher.errors import StatusDBRefused, StatusDBUnavailable
from watcher.model import Document
from watcher.statusdb.door import Door, is_run_name
from watcher.statusdb.store import Conflict, DocumentStore, Found, Undecodable, Unreadable

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Access:
    """A store behind its door. `wait` pauses for so many seconds, and returns True if nobody wants an answer any more.

    What raises StatusDBUnavailable is tried again after each of `pauses_seconds`.
    """

    def __init__(self, store: DocumentStore, wait: Callable[[float], bool], pauses_seconds: Sequence[float]) -> None:
        self.store = store
        self.door = Door()
        self._wait = wait
        self._pauses = tuple(pauses_seconds)

    def patiently(self, ask: Callable[[], T]) -> T:
        """Ask, and again after each pause while the store is unavailable. Refused credentials are not retried."""
        for pause in self._pauses:
            try:
                return ask()
            except (StatusDBRefused, Undecodable):
                raise
            except StatusDBUnavailable:
                if self._wait(pause):
                    raise
        return ask()

    def read(self, names: Sequence[str]) -> dict[str, Found]:
        """Return what the store has under these names, by name."""
        if not names:
            return {}
        found = map(self.door.admit, self.patiently(lambda: self.store.get_many(names)))
        return {one.run_id if isinstance(one, Unreadable) else one["_id"]: one for one in found}

    def readable(self, run_id: str) -> Document | None:
        """Ask for one document; return None if there is none that can be read."""
        found = self.look(run_id)
        return None if isinstance(found, Unreadable) else found

    def look(self, run_id: str) -> Found | None:
        """Ask for one document. A name that no run can have is not asked for: CouchDB has names of its own."""
        found = self.store.get(run_id) if is_run_name(run_id) else None
        if found is None:
            self.door.forget(run_id)
            return None
        return self.door.admit(found)

    def settled(self, document: Document) -> Found:
        """Remove the document's conflicting revisions, and return it. If that fails, return it as it is: it is ours."""
        try:
            return self.door.admit(self.patiently(partial(self.store.settle, document)))
        except (Conflict, StatusDBUnavailable) as error:
            logger.warning("conflicting revisions may stay: %s", error, extra={"run": document["_id"]})
            return document

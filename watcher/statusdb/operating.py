"""What operators write: over the document as it stands, whoever wrote it last."""

from __future__ import annotations

from collections.abc import Callable

from watcher import model
from watcher.errors import StatusDBUnavailable, UnknownRun
from watcher.model import Document, Event
from watcher.statusdb.access import Access
from watcher.statusdb.store import Conflict, Unreadable

TRIES = 5
"""Of one change. Each is in vain only if the document was changed within the milliseconds since it was read."""

REFUSALS = {
    Event.RETRY: "only a failed run, or an encrypted one that has changed since, can be retried",
    Event.HOLD: "only a run that waits or has failed can be held; `cancel` is for one that a worker has",
    Event.UNHOLD: "only a held run can be released",
    Event.CANCEL: "only a run that a worker has can be cancelled",
}
"""What is said of a run whose status does not allow the event."""


def operate(access: Access, run_id: str, event: Event, change: Callable[[Document], Document]) -> Document:
    """Write `change(document)` over the run's document, and return what was written.

    Raises UnknownRun when there is no such run, its document is unreadable, or its status does not allow the event.
    """
    operation = _Operation(access, run_id, event, change)
    return access.patiently(operation)


def demanded(access: Access, run_id: str) -> Document:
    """Return the run's document. Raises UnknownRun when there is none, or it is unreadable."""
    found = access.look(run_id)
    if found is None:
        raise UnknownRun(
            f"run '{run_id}' is not in the status database; `dataflow_archive status --all` lists the runs"
        )
    if isinstance(found, Unreadable):
        raise UnknownRun(str(found))
    return found


class _Operation:
    """A change on its way to the store. Called again, it sees whether the last call was done, its answer lost."""

    def __init__(self, access: Access, run_id: str, event: Event, change: Callable[[Document], Document]) -> None:
        self._access = access
        self._run_id = run_id
        self._event = event
        self._change = change
        self._written: Document = {}

    def __call__(self) -> Document:
        for _ in range(TRIES):
            document = demanded(self._access, self._run_id)
            if {**self._written, "_rev": document["_rev"]} == document:
                return document
            self._written = self._changed(document)
            try:
                return {**self._written, "_rev": self._access.store.put(self._written).rev}
            except Conflict:
                continue
        raise StatusDBUnavailable(f"the document of run '{self._run_id}' is being changed; try again")

    def _changed(self, document: Document) -> Document:
        try:
            return self._change(document)
        except model.IllegalTransition as error:
            words = f"run '{self._run_id}' is '{document.get('status')}': {REFUSALS[self._event]}"
            raise UnknownRun(words) from error

"""What the holder of a claim writes: over its own last revision, and never over another worker's claim."""

from __future__ import annotations

from collections.abc import Callable

from watcher import model
from watcher.errors import ClaimLost, StatusDBUnavailable
from watcher.model import Document, Status
from watcher.statusdb.store import Conflict, DocumentStore, Found, Unreadable

Change = Callable[[Document], Document]


class Saving:
    """A holder's change on its way to the store. Called again, it goes on where the last call was cut off."""

    def __init__(
        self,
        store: DocumentStore,
        look: Callable[[str], Found | None],
        document: Document,
        token: str,
        change: Change,
    ) -> None:
        self._store = store
        self._look = look
        self._document = document
        self._token = token
        self._change = change

    def __call__(self) -> Document:
        """Return the document as written. Raises ClaimLost; StatusDBUnavailable if another call may help."""
        for _ in range(2):
            try:
                return self._put()
            except Conflict:
                if self._is_over():
                    return self._document
        raise StatusDBUnavailable(f"the document of run '{self._document['_id']}' is being changed")

    def _put(self) -> Document:
        # An end that too few nodes confirmed is confirmed by writing it again, not by ending it twice.
        has_ended = model.has_ended(self._document, self._token)
        changed = self._document if has_ended else self._change(self._document)
        written = self._store.put(changed)
        self._document = {**changed, "_rev": written.rev}
        if not written.confirmed:
            raise StatusDBUnavailable(f"too few nodes confirmed the write of run '{changed['_id']}'")
        return self._document

    def _is_over(self) -> bool:
        """Read the revision that caused the conflict; say whether another worker has it, since we ended our claim.

        If not, the next try is written over this revision. It may be our own write, whose answer was lost or which too
        few nodes confirmed. Raises ClaimLost if the claim is not ours any more.
        """
        run_id = self._document["_id"]
        found = self._look(run_id)
        if isinstance(found, Unreadable):
            raise ClaimLost(f"{found}: the claim is lost") from None
        has_ended = found is not None and model.has_ended(found, self._token)
        if found is None or not (has_ended or model.is_held(found, self._token)):
            raise ClaimLost(whose(run_id, found)) from None
        self._document = found
        return has_ended and model.status_of(found) is Status.PROCESSING


def whose(run_id: str, found: Document | None) -> str:
    """Return the words for a claim that is lost: whose the run is now."""
    if found is None:
        return f"the document of run '{run_id}' was deleted: the claim is lost"
    return f"run '{run_id}' is '{found.get('status')}' with worker '{found.get('worker_id')}' now: the claim is lost"

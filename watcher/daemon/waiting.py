"""The runs that wait for a free thread: those of our sequencing path, from their documents."""

from __future__ import annotations

from pathlib import Path

from watcher.daemon.dispatcher import Dispatcher
from watcher.model import Document, Run, path_of
from watcher.statusdb import StatusDB


class WaitingRuns:
    """Hands pending and stale documents to the dispatcher, if their runs lie below `sequencing_path`."""

    def __init__(self, sequencing_path: Path, statusdb: StatusDB, dispatcher: Dispatcher) -> None:
        self._sequencing_path = sequencing_path
        self._statusdb = statusdb
        self._dispatcher = dispatcher

    def put(self, document: Document) -> None:
        """Let the run of a pending document wait for a thread; first for its `not_before`, if it has one."""
        run = self._ours(document)
        if run is None:
            return
        wait = self._statusdb.seconds_until_due(document)
        if wait > 0:
            self._dispatcher.submit_later(run, wait)
        else:
            self._dispatcher.submit(run)

    def put_stale(self, document: Document) -> None:
        """Let a run whose claim is stale wait for a thread, which takes over exactly this revision."""
        if run := self._ours(document):
            self._dispatcher.submit(run, document["_rev"])

    def _ours(self, document: Document) -> Run | None:
        """Return the document's run if its path is two levels below our sequencing path. It need not be there."""
        path = path_of(document)
        is_ours = path.parent.parent == self._sequencing_path and path.name == document["_id"]
        return Run(path) if is_ours else None

"""Garbage: staged files that no claim wants any more. They are looked for once a day.

The next claim of a run removes what a dead attempt has left. Some files are left for ever: their runs were archived on
another disk, or their documents are gone. These are removed here.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from watcher import model
from watcher.archiving.files import remove
from watcher.archiving.names import PARTIAL_SUFFIX, RECEIPT_SUFFIX
from watcher.archiving.publication import ArchiveStore
from watcher.model import Document, Status
from watcher.statusdb import StatusDB

COLLECT_SECONDS = 86400.0
"""The time from one collection to the next. A file that was written within this time is no garbage."""

logger = logging.getLogger(__name__)


class GarbageCollector:
    """Removes staged files that no document names and no finished archive needs."""

    def __init__(self, statusdb: StatusDB, archive_store: ArchiveStore) -> None:
        self._statusdb = statusdb
        self._archive_store = archive_store
        self._collected_at = float("-inf")

    def collect(self) -> None:
        """Remove the garbage, unless that was done within the last day. Raises NotTheRunsFault."""
        if time.monotonic() - self._collected_at < COLLECT_SECONDS:
            return
        staged = self._archive_store.staged()  # before the database is asked: a file is always younger than its claim
        if old := [(path, token) for path, token in staged if _seconds_unchanged(path) > COLLECT_SECONDS]:
            wanted = self._wanted(staged)
            for path in (path for path, token in old if token not in wanted):
                logger.info("removing '%s': no run needs it any more", path)
                remove(path)
        self._collected_at = time.monotonic()

    def _wanted(self, staged: list[tuple[Path, str]]) -> set[str]:
        """Return those of the tokens that a document names, or whose archive is finished and may be adopted.

        An unreadable document may name any token: all that is staged for its run is wanted.
        """
        documents = self._open_documents()
        if not self._statusdb.is_unreadable_known:
            return {token for _, token in staged}
        unreadable = {one.run_id for one in self._statusdb.unreadable()}
        unknown = {token for path, token in staged if _run_name(path, token) in unreadable}
        named = {token for document in documents for token in model.live_tokens(document)}
        receipts = [(path, token) for path, token in staged if path.name.endswith(RECEIPT_SUFFIX + PARTIAL_SUFFIX)]
        return (
            named
            | unknown
            | {
                token
                for path, token in receipts
                if any(path == self._archive_store.staged_receipt(document["_id"], token) for document in documents)
            }
        )

    def _open_documents(self) -> list[Document]:
        # Forth and back: a run that changes its status between two questions must not be missed.
        there = (Status.FAILED, Status.HELD, Status.PENDING, Status.PROCESSING)
        statuses = (*there, *reversed(there))
        return [document for status in statuses for document in self._statusdb.with_status(status)]


def _run_name(path: Path, token: str) -> str:
    return path.name.removeprefix(".").rpartition(f".{token}.")[0]


def _seconds_unchanged(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0  # somebody else was quicker to remove it

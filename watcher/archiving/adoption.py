"""What an interrupted attempt has left: a finished archive is adopted, everything else is removed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from watcher.archiving.attempt import Attempt
from watcher.model import Archive, Phase

logger = logging.getLogger(__name__)


def adopted(attempt: Attempt) -> Archive | None:
    """Complete what an interrupted attempt has finished, and return it; remove what it has not finished."""
    archive_store = attempt.parts.archive_store
    for archive in _finished(attempt):
        if not _is_wanted(attempt, archive):
            logger.warning("an archive is older than the run as it is now, and made again", extra=attempt.extra)
        elif _adopt(attempt, archive):
            logger.info("adopted the archive of an interrupted attempt", extra=attempt.extra)
            return archive
        archive_store.drop(attempt.name, archive.token)
    for token in attempt.claim.earlier_tokens:
        archive_store.drop(attempt.name, token)
    if "archive" in attempt.lease.document:
        attempt.lease.write(attempt.parts.statusdb.announce, None)
    archive_store.refuse_foreign(attempt.name)
    return None


def _finished(attempt: Attempt) -> Iterator[Archive]:
    if attempt.claim.announced is not None:
        yield attempt.claim.announced
    yield from attempt.parts.archive_store.receipts(attempt.name, attempt.claim.earlier_tokens)


def _is_wanted(attempt: Attempt, archive: Archive) -> bool:
    """Say whether an archive is of the run as it is now. Once its publication has begun it is wanted all the same."""
    if attempt.still is None or attempt.parts.archive_store.has_begun(attempt.name):
        return True
    # Archives of earlier versions name no listing.
    return archive.sentinel == attempt.still.sentinel and archive.listing in ("", attempt.still.first.digest)


def _adopt(attempt: Attempt, archive: Archive) -> bool:
    if attempt.still is not None and not attempt.parts.archive_store.has_begun(attempt.name):
        attempt.await_quiet(attempt.still)
        attempt.still.require()
    if archive.to_document() != attempt.lease.document.get("archive"):
        attempt.lease.write(attempt.parts.statusdb.announce, archive)
    attempt.job.enter(Phase.VALIDATING, archive.size)
    return attempt.parts.archive_store.adopt(attempt.name, archive, attempt.job.moved)

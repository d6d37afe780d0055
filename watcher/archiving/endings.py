"""How an attempt ends: what each class of error leads to.

Staged files are removed before the claim is given back: that may take as long as the database is away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum

from watcher.archiving.attempt import Attempt
from watcher.archiving.story import archive_and_record
from watcher.errors import ClaimLost, Interrupted, NoSpace, NotTheRunsFault, RunFailed, RunNotSettled
from watcher.model import MAX_RETRY_DELAY_SECONDS

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What became of a run that a worker was given."""

    ENCRYPTED = "encrypted"
    NOT_HERE = "not here"
    NOT_OURS = "not ours"
    NOT_READY = "not ready"
    NO_ROOM = "no room"
    RELEASED = "released"
    FAILED = "failed"
    LOST = "lost"


def carry_out(attempt: Attempt) -> Outcome:
    """Make the attempt, and do what its end leads to. Raises nothing: a bug costs an attempt, too."""
    try:
        archive_and_record(attempt)
    except Exception as error:  # noqa: BLE001  # the last row of the table is for bugs
        return next(ending for kind, ending in ENDINGS if isinstance(error, kind))(attempt, error)
    return Outcome.ENCRYPTED


def _lost(attempt: Attempt, error: Exception) -> Outcome:
    """Stop. A finished archive stays for the new holder, unless the run is published already."""
    logger.warning("stopped: %s", error, extra=attempt.extra)
    _remove_staged(attempt, and_finished=lambda: attempt.parts.archive_store.is_published(attempt.name))
    return Outcome.LOST


def _not_settled(attempt: Attempt, error: Exception) -> Outcome:
    """Give the run back until it may have become quiet. After `settle_limit` it has failed."""
    assert isinstance(error, RunNotSettled)
    settings, statusdb = attempt.parts.settings, attempt.parts.statusdb
    _remove_staged(attempt, and_finished=lambda: True)
    changing = statusdb.unsettled_seconds(attempt.lease.document)
    if changing >= settings.settle_limit:
        failure = RunFailed(f"not settled after {changing / 3600:.1f} h: {error}")
        logger.warning("failed: %s", failure, extra=attempt.extra)
        return _count_failure(attempt, failure)
    # A look whether the run has become quiet costs little; to archive it in vain costs much.
    quiet, delay = settings.quiet_period, settings.retry_delay
    wait = min(max(delay, changing / 2), max(delay, quiet) if quiet else MAX_RETRY_DELAY_SECONDS)
    logger.warning("released, to be tried again in %g s: %s", wait, error, extra=attempt.extra)
    return _end(attempt, lambda: attempt.lease.write(statusdb.unsettled, error, wait), Outcome.RELEASED)


def _released(attempt: Attempt, error: Exception) -> Outcome:
    """Give the run back. No attempt counts, and a finished archive stays: the next holder adopts it."""
    assert isinstance(error, NotTheRunsFault)
    _remove_staged(attempt)
    logger.warning("released: %s", error, extra=attempt.extra)
    wait = 0.0 if isinstance(error, Interrupted) else attempt.parts.settings.retry_delay
    release = attempt.parts.statusdb.release
    return _end(attempt, lambda: attempt.lease.write(release, error, wait), Outcome.RELEASED)


def _failed(attempt: Attempt, error: Exception) -> Outcome:
    """Count an attempt."""
    logger.warning("failed: %s", error, extra=attempt.extra)
    return _fail(attempt, error)


def _is_a_bug(attempt: Attempt, error: Exception) -> Outcome:
    """Count an attempt, and show the whole traceback. A bug may not stop the other runs."""
    logger.error("failed: %s", error, exc_info=error, extra=attempt.extra)
    return _fail(attempt, error)


ENDINGS: tuple[tuple[type[Exception], Callable[[Attempt, Exception], Outcome]], ...] = (
    (ClaimLost, _lost),
    (RunNotSettled, _not_settled),
    (NotTheRunsFault, _released),
    (RunFailed, _failed),
    (Exception, _is_a_bug),
)
"""The first class that an error belongs to decides."""


def _fail(attempt: Attempt, error: Exception) -> Outcome:
    _remove_staged(attempt)
    attempt.job.forgive(error)
    return _count_failure(attempt, error)


def _count_failure(attempt: Attempt, error: Exception) -> Outcome:
    statusdb, delay = attempt.parts.statusdb, attempt.parts.settings.retry_delay

    def count() -> object:
        return attempt.lease.write(statusdb.fail, error, delay)

    return _end(attempt, lambda: attempt.wait_out(count, "count the failure"), Outcome.FAILED)


def _remove_staged(attempt: Attempt, and_finished: Callable[[], bool] = lambda: False) -> None:
    """Remove what this claim has staged: a finished archive only if `and_finished` returns True."""
    archive_store, name, token = attempt.parts.archive_store, attempt.name, attempt.claim.token
    try:
        if and_finished() or not archive_store.is_finished(name, token):
            archive_store.drop(name, token)
    except NoSpace as error:
        logger.warning("left for the next claim to remove: %s", error, extra=attempt.extra)


def _end(attempt: Attempt, write: Callable[[], object], outcome: Outcome) -> Outcome:
    """Write the end into the document; return the outcome, LOST if the claim is another's by now."""
    try:
        write()
    except ClaimLost as error:
        return _lost(attempt, error)
    except NotTheRunsFault as error:
        # Whoever finds the claim stale takes the run over; an attempt more or less is all that is lost.
        logger.warning("the claim is left to expire: %s", error, extra=attempt.extra)
    return outcome

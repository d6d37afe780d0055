"""Claiming: one worker gets the right to work on a run, or nobody does."""

from __future__ import annotations

import logging
import secrets
from datetime import datetime
from functools import partial

from watcher import model
from watcher.errors import StatusDBUnavailable
from watcher.model import Claim, Document, Run, Status
from watcher.statusdb.access import Access
from watcher.statusdb.registering import is_of
from watcher.statusdb.store import Conflict, Unreadable

logger = logging.getLogger(__name__)


def claim(access: Access, run: Run, worker_id: str, document: Document, now: datetime) -> Claim | None:
    """Claim the run over the revision of `document`; None when another worker has it, or it is recorded."""
    token = secrets.token_hex(16)
    taken = access.patiently(partial(_take, access, model.claimed(document, worker_id, token, now)))
    settled = access.settled(taken) if taken else None
    if settled is None or isinstance(settled, Unreadable):
        return None
    return Claim(run, token, settled, document) if model.is_held(settled, token) else None


def may_claim(document: Document, run: Run, stale_rev: str | None, now: datetime) -> bool:
    """Say whether the run is pending and due, or in `processing` with a revision that still is `stale_rev`."""
    if not is_of(document, run):
        return False
    if model.status_of(document) is Status.PROCESSING:
        return stale_rev is not None and bool(document["_rev"] == stale_rev)
    due = model.seconds_until_due(document, now) == 0
    return model.status_of(document) is Status.PENDING and due


def _take(access: Access, wanted: Document) -> Document | None:
    try:
        written = access.store.put(wanted)
    except Conflict:
        return _confirmed(access, wanted)
    if not written.confirmed:
        logger.warning("the claim was confirmed by too few nodes: left alone", extra={"run": wanted["_id"]})
        return None
    return {**wanted, "_rev": written.rev}


def _confirmed(access: Access, wanted: Document) -> Document | None:
    """Return the document if our own earlier write, whose answer was lost, caused the conflict; else None.

    We do not know how many nodes confirmed that write. So we write once more on top of it. The claim is ours if
    enough nodes confirm this, and no other worker's claim is beside it.
    """
    found = _own(access, wanted)
    try:
        if found is None or not access.store.put(found).confirmed:
            return None
    except Conflict as error:
        raise StatusDBUnavailable(f"the document of run '{wanted['_id']}' is being changed") from error
    found = _own(access, wanted)
    return None if found is None or "_conflicts" in found else found


def _own(access: Access, wanted: Document) -> Document | None:
    found = access.readable(wanted["_id"])
    return found if found is not None and model.is_held(found, wanted["claim"]["token"]) else None

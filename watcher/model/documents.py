"""Run documents, and what may happen to them: pure functions.

A run document is a plain JSON mapping. Functions here never change one that they are given; they
return a new one and keep every field that they do not know, since other programs may add theirs.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

from watcher.errors import WatcherError
from watcher.model.steps import with_step
from watcher.model.transitions import Event, IllegalTransition, next_status
from watcher.model.values import (
    MAX_INTEGER,
    Archive,
    Document,
    Phase,
    Progress,
    Run,
    Status,
    timestamp,
    writable,
)

MAX_RETRY_DELAY_SECONDS = 3600.0
"""No pause written into `not_before` is longer; one that looks longer comes from a clock that is off."""

MAX_DOUBLINGS = 60
"""Of a pause; more would leave the range of numbers, and people can write any `failure_count`."""


_OF_ARCHIVED = ("archive", "changed_since", "verified")


def status_of(document: Document) -> Status | None:
    """Return the document's status, or None for one that is not a run's (or not in our words)."""
    try:
        return Status(document.get("status", ""))
    except ValueError:
        return None


def path_of(document: Document) -> Path:
    """Return the run directory that a document names; an empty path if it names none."""
    path = document.get("path")
    return Path(path) if isinstance(path, str) else Path()


def token_of(document: Document) -> str | None:
    """Return the token of the claim that the document shows."""
    claim = document.get("claim")
    return claim.get("token") if isinstance(claim, dict) else None


def live_tokens(document: Document) -> set[str]:
    """Return the tokens whose staged files may be wanted: the holder's, the last one's, the announced archive's."""
    archive = document.get("archive")
    announced_by = archive.get("token") if isinstance(archive, dict) else None
    return {token for token in (token_of(document), document.get("last_claim"), announced_by) if token}


def is_held(document: Document, token: str) -> bool:
    """Say whether the claim `token` still holds the document."""
    return status_of(document) is Status.PROCESSING and token_of(document) == token


def phase_of(document: Document) -> str:
    """Return the phase that the document's claim was in when it was last renewed; empty without a claim."""
    return str((document.get("claim") or {}).get("phase", ""))


def has_ended(document: Document, token: str) -> bool:
    """Say whether the claim `token` has released, failed or recorded the document."""
    return document.get("last_claim") == token


def is_same_claim(one: Document, other: Document) -> bool:
    """Say whether the same claim wrote both documents last."""
    return _last_writer(one) == _last_writer(other)


def _last_writer(document: Document) -> str | None:
    return token_of(document) or document.get("last_claim")


def seconds_until_due(document: Document, now: datetime) -> float:
    """Return how long `not_before` still asks to wait: 0 when it has passed, is absent or cannot be true."""
    try:
        left = (datetime.fromisoformat(document["not_before"]) - now).total_seconds()
    except (KeyError, TypeError, ValueError):
        return 0.0
    return left if 0 < left <= MAX_RETRY_DELAY_SECONDS else 0.0


def attempt_number(document: Document) -> int:
    """Return which attempt the work on a run is; those that failed before count."""
    return _failures(document) + 1


def retry_delay(failures: int, first_seconds: float) -> float:
    """Return the pause in seconds after the failure number `failures`: doubled each time, an hour at most."""
    doublings = min(max(failures - 1, 0), MAX_DOUBLINGS)
    return min(first_seconds * 2.0**doublings, MAX_RETRY_DELAY_SECONDS)


def registered(run: Run, now: datetime) -> Document:
    """Return the document of a run that was not known."""
    document = {"_id": run.name, "path": str(run.path), "failure_count": 0, "created_at": timestamp(now)}
    return _moved(document, Event.REGISTER, now)


def claimed(document: Document, worker_id: str, token: str, now: datetime) -> Document:
    """Return the document with this claim in it; an announced archive stays for the holder to adopt."""
    changed = _moved({**document, "worker_id": worker_id}, Event.CLAIM, now)
    changed.pop("not_before", None)
    return {**changed, "claim": {"token": token, "phase": str(Phase.CLAIMED)}}


def renewed(document: Document, progress: Progress, now: datetime) -> Document:
    """Return the document with the claim's progress brought up to date."""
    changed = _moved(document, Event.RENEW, now)
    claim = {**changed["claim"], **dataclasses.asdict(progress), "phase": str(progress.phase)}
    return {**changed, "claim": claim}


def announced(document: Document, archive: Archive | None, now: datetime) -> Document:
    """Return the document that names the archive about to be published (None: it names none any more)."""
    changed = renewed(document, Progress(Phase.PUBLISHING if archive else Phase.CLAIMED), now)
    changed.pop("archive", None)
    return {**changed, "archive": archive.to_document()} if archive else changed


def released(document: Document, error: WatcherError | None, wait_seconds: float, now: datetime) -> Document:
    """Return the document given back: no attempt counted, not to be claimed for `wait_seconds`."""
    changed = _ended(_moved(document, Event.RELEASE, now, error=error))
    return _with_reason(changed, error, wait_seconds, now)


def failed(document: Document, error: Exception, first_delay_seconds: float, now: datetime) -> Document:
    """Return the document with one more failure: `pending` and not to be claimed for a while, or `failed`."""
    failures = _failures(document) + 1
    changed = _ended(_moved(document, Event.FAIL, now, failures, error=error))
    wait = retry_delay(failures, first_delay_seconds) if changed["status"] == Status.PENDING else 0
    changed.pop("unsettled_since", None)
    return _with_reason({**changed, "failure_count": failures}, error, wait, now)


def unsettled(document: Document, now: datetime) -> Document:
    """Return the document that remembers since when its run has been changing, and names no archive of it."""
    changed = _without(document, "archive")
    return {**changed, "unsettled_since": document.get("unsettled_since") or timestamp(now)}


def unsettled_seconds(document: Document, now: datetime) -> float:
    """Return for how long the run has been found changing: 0 if this is the first time, or cannot be told."""
    try:
        return max((now - datetime.fromisoformat(document["unsettled_since"])).total_seconds(), 0.0)
    except (KeyError, TypeError, ValueError):
        return 0.0


def recorded(document: Document, archive: Archive, now: datetime) -> Document:
    """Return the document of a run whose archive is published."""
    changed = _ended(_moved(document, Event.RECORD, now))
    for trace in ("last_error", "unsettled_since"):
        changed.pop(trace, None)
    return {**changed, "archive": archive.to_document()}


def retried(document: Document, by: str, now: datetime) -> Document:
    """Return the document of a run that the operator `by` wants tried again, its count of failures at zero.

    Raises IllegalTransition for an encrypted run whose source is what was archived. What was archived of one that
    has changed is forgotten: its files are people's to move away.
    """
    if status_of(document) is Status.ENCRYPTED and not document.get("changed_since"):
        raise IllegalTransition("a run that is 'encrypted', and has not changed since, is not tried again")
    traces = ("not_before", "unsettled_since", *(_OF_ARCHIVED if document.get("changed_since") else ()))
    changed = _moved(_without(document, *traces), Event.RETRY, now, by=by)
    return {**changed, "failure_count": 0}


def held(document: Document, by: str, now: datetime) -> Document:
    """Return the document of a run that the operator `by` wants nobody to take, until it is `unheld`."""
    return _moved(_without(document, "not_before"), Event.HOLD, now, by=by)


def unheld(document: Document, by: str, now: datetime) -> Document:
    """Return the document of a held run that may be taken again. What it has failed before still counts."""
    return _moved(document, Event.UNHOLD, now, by=by)


def cancelled(document: Document, token: str, by: str, now: datetime) -> Document:
    """Return the document of a run that was taken from its worker: held, and no attempt counted.

    It is as if the claim `token` had taken the run over, and had given it back. So the worker has lost its claim, and
    what it had finished is adopted once the run is `unheld`.
    """
    changed = _moved(_without(document, "claim"), Event.CANCEL, now, by=by)
    return {**changed, "last_claim": token}


def changed_since(document: Document, now: datetime) -> Document:
    """Return the document of an archived run whose source has been found to have changed since."""
    return {**document, "changed_since": timestamp(now), "updated_at": timestamp(now)}


def verified(document: Document, with_content: bool, problem: str, now: datetime) -> Document:
    """Return the document of an archived run that was compared with what is stored; `problem` is empty if it fits.

    `at` is when its files were compared last, `content_at` when what is in them was. What was wrong stays until a pass
    of the same kind finds it right. `updated_at` stays: it says when the run was archived.
    """
    at, words = timestamp(now), writable(problem)
    found = {**(document.get("verified") or {}), "at": at, "problem": words}
    content = {"content_at": at, "content_problem": words} if with_content else {}
    return {**document, "verified": {**found, **content}}


def verified_at(document: Document, with_content: bool) -> datetime:
    """Return when an archived run was proven last: verified (its content, if that counts), or else archived."""
    found = document.get("verified") or {}
    for text in (found.get("content_at" if with_content else "at"), document.get("updated_at")):
        try:
            at = datetime.fromisoformat(text or "")
        except ValueError:
            continue
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)


def noted(document: Document, error: WatcherError, now: datetime) -> Document:
    """Return the document with the reason why nobody works on it; its status stays."""
    return _with_reason(document, error, 0, now)


def _failures(document: Document) -> int:
    count = document.get("failure_count", 0)
    return count if isinstance(count, int) and 0 <= count <= MAX_INTEGER else 0


def _moved(
    document: Document,
    event: Event,
    now: datetime,
    failures: int = 0,
    by: str | None = None,
    error: Exception | None = None,
) -> Document:
    """Return the document after the event, with a step in its history. `by` is the worker's, if not given."""
    status, at = str(next_status(event, status_of(document), failures)), timestamp(now)
    changed = {**document, "status": status, "updated_at": at}
    if event is Event.RENEW:
        return changed
    who = document.get("worker_id") if by is None else by
    reason = {"kind": _kind(error), "reason": str(error)} if error else {}
    return with_step(changed, {"at": at, "event": str(event), "status": status, "by": who or "", **reason})


def _without(document: Document, *fields: str) -> Document:
    return {key: value for key, value in document.items() if key not in fields}


def _ended(document: Document) -> Document:
    # The token stays behind so that a holder whose answer was lost can see that its last write arrived.
    return {**_without(document, "claim", "not_before"), "last_claim": token_of(document)}


def _with_reason(document: Document, error: Exception | None, wait_seconds: float, now: datetime) -> Document:
    changed = dict(document)
    if error is not None:
        changed["last_error"] = {"kind": _kind(error), "message": writable(str(error)), "at": timestamp(now)}
    if wait_seconds > 0:
        wait = timedelta(seconds=min(wait_seconds, MAX_RETRY_DELAY_SECONDS))
        changed["not_before"] = timestamp(now + wait)
    return changed


def _kind(error: Exception) -> str:
    return error.kind if isinstance(error, WatcherError) else type(error).__name__

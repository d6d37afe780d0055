"""Why a run does not move, and what to do: one explanation for what its document says, one for each directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from watcher.figures import percent
from watcher.model import (
    MAX_FAILURES,
    Document,
    Event,
    Status,
    history,
    path_of,
    phase_of,
    seconds_until_due,
    status_of,
)
from watcher.overview.advice import advice_for
from watcher.overview.facts import Facts
from watcher.source import Observation, State, unusable_name
from watcher.statusdb import collision

NOT_ON_THIS_HOST = "its directory is not on this host"
RENAME = "rename one of them"
KEEP = "keep it; `dataflow_archive rearchive` archives it again, and keeps the old archive"
LOOK_FOR_DISK = "look for a disk or a network mount that hangs (dmesg)"
START = "start it: systemctl start dataflow-archive-watch"


class Cause(StrEnum):
    """Why a run does not move, or how it does."""

    UNKNOWN = "unknown"
    UNREADABLE = "unreadable"
    FOREIGN = "foreign document"
    SILENT = "disk does not answer"
    IGNORED = "ignored"
    UNUSABLE = "unusable"
    NO_SENTINEL = "no sentinel"
    UNSETTLED = "sentinel being written"
    SENTINEL = "held by its sentinel"
    UNREGISTERED = "not registered"
    COLLISION = "collision"
    NOT_HERE = "not on this host"
    PAUSED = "paused"
    NO_ROOM = "no room"
    QUEUED = "queued"
    WORKING = "working"
    STALE = "stale"
    FAILED = "failed"
    HELD = "held"
    ENCRYPTED = "encrypted"
    CHANGED = "changed"
    DAMAGED = "not as recorded"


@dataclass(frozen=True)
class Explanation:
    """Why, in words, and what to do about it; `remedy` is empty where nothing is to be done."""

    cause: Cause
    why: str
    remedy: str = ""


def explain(facts: Facts) -> tuple[Explanation, ...]:
    """Return why the run stands as it does: first what its document says, then each directory that is not archived."""
    by_document = _by_document(facts)
    by_place = tuple(_by_place(facts))
    return (*((by_document,) if by_document else ()), *by_place) or (_unknown(facts),)


def _unknown(facts: Facts) -> Explanation:
    why = "no directory of this name lies in sequencing_path on this host, and the status database does not know it"
    return Explanation(Cause.UNKNOWN, why, "look for a misspelt name, or ask on the host that has the run")


def _by_place(facts: Facts) -> Iterator[Explanation]:
    if facts.silent:
        yield Explanation(Cause.SILENT, f"'{facts.silent}' does not answer", LOOK_FOR_DISK)
    for path in facts.ignored:
        why = f"'{path}' is left out: its name, or its sequencer's, is in `ignore`"
        yield Explanation(Cause.IGNORED, why, "take the name out of `ignore`, and restart the watcher")
    for observation in facts.observations:
        if explanation := _of_directory(facts, observation):
            yield explanation


def _of_directory(facts: Facts, observation: Observation) -> Explanation | None:
    """Say why a directory is not archived; None if nothing but its document can say that."""
    path, document = observation.run.path, facts.document
    if reason := unusable_name(observation.run.name):
        return Explanation(Cause.UNUSABLE, f"'{path}': {reason}", "rename the run")
    if document is not None and status_of(document) and path_of(document) != path:
        if observation.state is State.READY:
            return Explanation(Cause.COLLISION, f"'{path}': {collision(observation.run, document)}", RENAME)
        document = None
    if document is not None and (status_of(document) is not Status.PENDING or observation.state is State.READY):
        return None
    if observation.state is State.READY:
        return _unregistered(facts, observation)
    cause, remedy = OF_STATES[observation.state]
    return Explanation(cause, f"'{path}': {observation.reason or WORDS_OF_STATES[observation.state]}", remedy)


OF_STATES: Mapping[State, tuple[Cause, str]] = {
    State.ABSENT: (Cause.NO_SENTINEL, "drop .metadata_rsync_exitcode into it when the transfer is complete"),
    State.HELD: (Cause.SENTINEL, "write 0 into .metadata_rsync_exitcode when the transfer is complete"),
    State.UNSETTLED: (Cause.UNSETTLED, "ask again in a second"),
    State.UNUSABLE: (Cause.UNUSABLE, "mend that; the next rescan looks again"),
}
"""Why a directory whose sentinel is in this state is not archived, and what to do."""

WORDS_OF_STATES: Mapping[State, str] = {
    State.ABSENT: "it has no sentinel, so its transfer is not complete",
    State.UNSETTLED: "its sentinel has just been written",
}


def _unregistered(facts: Facts, observation: Observation) -> Explanation:
    why = f"'{observation.run.path}' is ready, and no worker has registered it yet"
    if facts.has_watcher:
        return Explanation(
            Cause.UNREGISTERED, why, "wait for the next rescan (rescan_interval); the log says what delays it"
        )
    return Explanation(Cause.UNREGISTERED, f"{why}: no watcher runs on this host", START)


def _by_document(facts: Facts) -> Explanation | None:
    if facts.unreadable:
        why = f"its document is unreadable: {facts.unreadable}"
        return Explanation(Cause.UNREADABLE, why, "mend or delete the document; a rescan then registers the run anew")
    document = facts.document
    if document is None:
        return None
    status = status_of(document)
    if status is None:
        why = "the status database has a document of this name that is no run's"
        return Explanation(Cause.FOREIGN, why, "rename the run, or remove the document")
    return OF_STATUSES[status](facts, document)


def _pending(facts: Facts, document: Document) -> Explanation | None:
    here = [each for each in facts.observations if each.run.path == path_of(document)]
    if not facts.is_here:
        why = f"{NOT_ON_THIS_HOST}: '{path_of(document)}'"
        remedy = "ask on the host that has it; if it has gone, delete the run's document"
        return Explanation(Cause.NOT_HERE, _after(why, document), remedy)
    if here and here[0].state is not State.READY:
        return None  # its directory says more
    error = document.get("last_error") or {}
    if wait := seconds_until_due(document, facts.now):
        why = f"it is tried again at {document['not_before']}, in {_length(wait)}{_attempts(document)}"
        return Explanation(Cause.PAUSED, _after(why, document), advice_for(str(error.get("kind"))) if error else "")
    if error.get("kind") == "NoSpace":
        return Explanation(Cause.NO_ROOM, f"it waits for room: {error.get('message')}", advice_for("NoSpace"))
    why = f"it waits for a thread of a worker that is free{_attempts(document)}"
    if facts.has_watcher:
        return Explanation(Cause.QUEUED, _after(why, document), "nothing, while other runs are archived")
    return Explanation(Cause.QUEUED, _after(f"{why}: no watcher runs on this host", document), START)


def _processing(facts: Facts, document: Document) -> Explanation:
    worker, elsewhere = document.get("worker_id"), "" if facts.is_here else f"; {NOT_ON_THIS_HOST}"
    if facts.job:
        return Explanation(Cause.WORKING, f"worker '{worker}' is {facts.job.in_words}{elsewhere}")
    unchanged = age(document.get("updated_at"), facts.now)
    why = f"worker '{worker}' has it: {phase_of(document)}{_part(document)}, renewed {_length(unchanged)} ago"
    if facts.lease_seconds and unchanged > facts.lease_seconds:
        limit = f"its lease is {_length(facts.lease_seconds)}"
        remedy = "start that worker again, or another that has the path: it takes the run over"
        return Explanation(Cause.STALE, f"{why}, and {limit}: the worker is dead, or cannot reach the database", remedy)
    return Explanation(Cause.WORKING, why + elsewhere)


def _failed(_facts: Facts, document: Document) -> Explanation:
    kind = str((document.get("last_error") or {}).get("kind"))
    return Explanation(
        Cause.FAILED, f"{document.get('failure_count', 0)} attempts failed{_words(document)}", advice_for(kind)
    )


def _held(_facts: Facts, document: Document) -> Explanation:
    kept_back = (Event.HOLD, Event.CANCEL)
    step = next((each for each in reversed(history(document)) if each.get("event") in kept_back), {})
    who, at = step.get("by") or "somebody", step.get("at", document.get("updated_at"))
    said = step.get("event", Event.HOLD)
    return Explanation(Cause.HELD, f"{who} said `{said}` at {at}: no worker takes it", "`dataflow_archive release`")


def _encrypted(_facts: Facts, document: Document) -> Explanation:
    done = f"it was archived at {document.get('updated_at')}"
    verified = document.get("verified") or {}
    if since := document.get("changed_since"):
        why = f"{done}, and is not what was archived any more, as was seen at {since}"
        return Explanation(Cause.CHANGED, why, KEEP)
    if problem := verified.get("problem") or verified.get("content_problem"):
        why = f"{done}, and `verify` found at {verified.get('at')}: {problem}"
        return Explanation(Cause.DAMAGED, why, "keep the run; bring the archive's files back from a copy")
    return Explanation(Cause.ENCRYPTED, done)


OF_STATUSES: Mapping[Status, Callable[[Facts, Document], Explanation | None]] = {
    Status.PENDING: _pending,
    Status.PROCESSING: _processing,
    Status.FAILED: _failed,
    Status.HELD: _held,
    Status.ENCRYPTED: _encrypted,
}
"""What a document of each status says; None where the run's directory says more."""


def _part(document: Document) -> str:
    claim = document.get("claim") or {}
    total = claim.get("bytes_total")
    return f" {percent(claim.get('bytes_done', 0), total)}" if total else ""


def _after(why: str, document: Document) -> str:
    return f"{why}{_words(document)}"


def _words(document: Document) -> str:
    error = document.get("last_error")
    return f"; {error.get('kind')}: {error.get('message')}" if error else ""


def _attempts(document: Document) -> str:
    count = document.get("failure_count")
    return f", after {count} of {MAX_FAILURES} attempts" if count else ""


def age(at: str | None, now: datetime) -> float:
    """Return the seconds since a document's time; 0 if that cannot be read, or lies ahead."""
    try:
        moment = datetime.fromisoformat(at or "")
    except ValueError:
        return 0.0
    return max((now - (moment if moment.tzinfo else moment.replace(tzinfo=UTC))).total_seconds(), 0.0)


def _length(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

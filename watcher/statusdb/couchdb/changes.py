"""The changes feed: which documents have changed since a place in it."""

from __future__ import annotations

from watcher.statusdb.couchdb.answers import BadRequest, TimedOut, part
from watcher.statusdb.couchdb.connection import Connection
from watcher.statusdb.couchdb.documents import get_many
from watcher.statusdb.store import Changes, FeedLost, Undecodable, Unreadable

CHANGES_LIMIT = 1000
"""Changes taken in one answer; the rest comes with the next."""

WAIT_SHARE = 0.75
"""The server holds a request for at most this share of our time-out. If it takes longer, the server hangs."""


def changes(connection: Connection, since: str | None, wait_seconds: float) -> Changes:
    """Return what changed since `since`, in one request that the server holds up to `wait_seconds`.

    Raises FeedLost when the server cannot go on from there, or, not waiting, has not come that far.
    """
    if since is None:
        return Changes((), _now(connection))
    if wait_seconds <= 0 and _number(now := _now(connection)) < _number(since):
        # Only when we do not wait: one node of a cluster may count a little behind another.
        raise FeedLost(f"the database is at change {_number(now)}, and was at {_number(since)} before")
    wait = min(wait_seconds, connection.timeout_seconds * WAIT_SHARE)
    held = {"feed": "longpoll", "timeout": int(wait * 1000)} if wait > 0 else {}
    try:
        answer = connection.ask("GET", "_changes", since=since, include_docs="true", limit=CHANGES_LIMIT, **held)
    except Undecodable:
        return _one_by_one(connection, since)
    except BadRequest as error:
        raise FeedLost(f"the server refuses to go on from '{since}': {error}") from error
    except TimedOut:
        return Changes((), since)  # some servers and proxies hold the request for longer than asked
    documents = tuple(row["doc"] for row in part(answer, "results") if row.get("doc"))
    return Changes(documents, str(part(answer, "last_seq")))


def _one_by_one(connection: Connection, since: str) -> Changes:
    """Return the changes with the documents as they are now, and those set aside that cannot be decoded."""
    answer = connection.ask("GET", "_changes", since=since, limit=CHANGES_LIMIT)
    rows = part(answer, "results")
    gone = [{"_id": row["id"], "_deleted": True} for row in rows if row.get("deleted")]
    found = get_many(connection, [row["id"] for row in rows if not row.get("deleted")])
    return Changes(
        (*gone, *(one for one in found if not isinstance(one, Unreadable))),
        str(part(answer, "last_seq")),
        tuple(one for one in found if isinstance(one, Unreadable)),
    )


def _now(connection: Connection) -> str:
    return str(part(connection.ask("GET", "_changes", since="now", limit=1), "last_seq"))


def _number(place: str) -> int:
    """Return how many changes lie before a place: an integer, or in CouchDB an opaque text that begins with one."""
    digits = place.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0

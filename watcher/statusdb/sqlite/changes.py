"""What was written since a place in the file's changes. SQLite reports no writes, so we ask again and again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from watcher.statusdb.sqlite.connections import Connections
from watcher.statusdb.sqlite.rows import ROW, found
from watcher.statusdb.store import Changes, FeedLost, Found, Unreadable

LOOK_SECONDS = 0.5
"""How often a waiting `changes` looks: some 20 microseconds each time."""

CHANGES_LIMIT = 1000
"""Changes taken at once; the rest comes with the next question."""


@dataclass(frozen=True)
class _Place:
    """A place in the changes: the number of the last write, and how many documents had been deleted by then."""

    seq: int
    deletions: int

    @classmethod
    def of(cls, since: str) -> _Place | None:
        """Return the place that `str` made this text of; None if it is no such text."""
        parts = since.split("-")
        if len(parts) != len(fields(cls)) or not all(part.isascii() and part.isdigit() for part in parts):
            return None
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.seq}-{self.deletions}"


def changes(connections: Connections, since: str | None, wait_seconds: float, wait: Callable[[float], bool]) -> Changes:
    """Return what was written since `since` (None: from now on), looking for up to `wait_seconds`.

    `wait` pauses for so many seconds, and returns True if nobody wants an answer any more. Raises FeedLost if
    `since` is no place in this file's changes, or documents were deleted since.
    """
    now = _now(connections)
    if since is None:
        return Changes((), str(now))
    place = _Place.of(since)
    if place is None or place.seq > now.seq:
        raise FeedLost(f"'{since}' is no place in the changes of '{connections.path}'")
    waited = 0.0
    while not (written := _after(connections, place)) and waited < wait_seconds and not wait(LOOK_SECONDS):
        waited += LOOK_SECONDS
    last = replace(place, seq=written[-1][0]) if written else place
    return Changes(
        tuple(document for _, document in written if not isinstance(document, Unreadable)),
        str(last),
        tuple(document for _, document in written if isinstance(document, Unreadable)),
    )


def _now(connections: Connections) -> _Place:
    with connections.connection() as connection:
        row = connection.execute("select seq from sqlite_sequence where name = 'documents'").fetchone()
        return _Place(int(row[0]) if row else 0, _deletions(connection))


def _after(connections: Connections, place: _Place) -> list[tuple[int, Found]]:
    """Return what was written after the place. Raises FeedLost if documents were deleted since."""
    with connections.connection() as connection:
        if _deletions(connection) != place.deletions:
            raise FeedLost(f"documents were deleted from '{connections.path}' by hand: all are looked at anew")
        rows = connection.execute(
            f"select seq, {ROW} from documents where seq > ? order by seq limit ?",  # noqa: S608  # nothing of it is given
            (place.seq, CHANGES_LIMIT),
        )
        return [(seq, found(*row)) for seq, *row in rows]


def _deletions(connection: sqlite3.Connection) -> int:
    row = connection.execute("select number from deletions where id = 1").fetchone()
    return int(row[0]) if row else 0

"""The store as the status database asks for it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from watcher.errors import ConfigError
from watcher.model import Document, Status
from watcher.statusdb.sqlite import changes, schema
from watcher.statusdb.sqlite.connections import BUSY_SECONDS, Connections
from watcher.statusdb.sqlite.rows import REV, ROW, found, write
from watcher.statusdb.store import Changes, Conflict, Found, Written


class SQLiteStore:
    """Run documents in the file `path`. `wait` is a stop event's `wait`: true means give up waiting."""

    def __init__(self, path: Path, wait: Callable[[float], bool], busy_seconds: float = BUSY_SECONDS) -> None:
        self._path = path
        self._wait = wait
        self._connections = Connections(path, busy_seconds)

    def prepare(self) -> None:
        """Create the file and its tables. Raises ConfigError where that is not possible."""
        schema.prepare(self._connections, self._path, self._wait)

    def verify(self) -> None:
        """Raise ConfigError if the file or its table is missing."""
        if not self._path.is_file():
            raise ConfigError(f"statusdb.url: '{self._path}' does not exist yet; the watcher makes it")
        self.count_by_status()

    def describe(self) -> str:
        """Return the file and SQLite's version."""
        return f"SQLite {sqlite3.sqlite_version} in '{self._path}'"

    def get(self, run_id: str) -> Found | None:
        """Return the document, or None."""
        documents = self.get_many([run_id])
        return documents[0] if documents else None

    def get_many(self, run_ids: Sequence[str]) -> list[Found]:
        """Return those of the documents that exist."""
        with self._connections.connection() as connection:
            wanted = "select value from json_each(?)"
            rows = connection.execute(
                f"select {ROW} from documents where id in ({wanted})",  # noqa: S608  # nothing of it is given
                (json.dumps(list(run_ids)),),
            )
            return [found(*row) for row in rows]

    def with_status(self, status: Status) -> list[Found]:
        """Return all documents of this status."""
        with self._connections.connection() as connection:
            rows = connection.execute(
                f"select {ROW} from documents where status = ? order by seq",  # noqa: S608  # nothing of it is given
                (status,),
            )
            return [found(*row) for row in rows]

    def count_by_status(self) -> dict[str, int]:
        """Return how many documents have each status."""
        with self._connections.connection() as connection:
            rows = connection.execute(
                "select cast(status as blob), count(*) from documents where status not null group by status"
            )
            return {status.decode(errors="backslashreplace"): count for status, count in rows}

    def put(self, document: Document) -> Written:
        """Write a document over the revision that it names. Raises Conflict."""
        with self._connections.transaction() as connection:
            current = connection.execute(
                f"select {REV} from documents where id = ?",  # noqa: S608  # nothing of it is given
                (document["_id"],),
            ).fetchone()
            if (str(current[0]) if current else None) != document.get("_rev"):
                raise Conflict(f"run '{document['_id']}' has another revision")
            return Written(write(connection, document, current[0] + 1 if current else 1))

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        """Write new documents in one transaction; return the ids of those that were new."""
        new: set[str] = set()
        with self._connections.transaction() as connection:
            for document in documents:
                known = connection.execute("select 1 from documents where id = ?", (document["_id"],)).fetchone()
                if known is None:
                    write(connection, document, 1)
                    new.add(document["_id"])
        return new

    def settle(self, document: Document) -> Document:
        """Return the document: one file has no conflicting revisions."""
        return document

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since`, looking a few times a second for up to `wait_seconds`.

        Raises FeedLost if `since` is no place in this file's changes, or documents were deleted since.
        """
        return changes.changes(self._connections, since, wait_seconds, self._wait)

    def close(self) -> None:
        """Close all connections, each when what it is doing has ended."""
        self._connections.close()

"""The embedded store: one SQLite file, for the processes of one machine."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from watcher.errors import ConfigError, StatusDBUnavailable
from watcher.model import Document, Status
from watcher.statusdb.store import Changes, Conflict, FeedLost, Written

BUSY_SECONDS = 10.0
"""How long a write waits for another process's write; each takes milliseconds."""

LOOK_SECONDS = 0.25
"""How often a waiting `changes` looks at SQLite's change counter: some 10 microseconds each time."""

BATCH = 500
"""Ids in one query; SQLite allowed 999 variables before 3.32."""

_SCHEMA = """
create table if not exists documents (
    id text primary key, rev integer not null, status text, body text not null, seq integer not null unique
);
create index if not exists documents_by_status on documents (status);
"""


class SQLiteStore:
    """Run documents in the file `path`. `wait` is a stop event's `wait`: true means give up waiting."""

    def __init__(self, path: Path, wait: Callable[[float], bool]) -> None:
        self._path = path
        self._wait = wait
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Create the file and its table. Raises ConfigError where that is not possible."""
        if not self._path.parent.is_dir():
            raise ConfigError(
                f"statusdb.url: directory '{self._path.parent}' of the SQLite file does not exist; create it"
            )
        try:
            with self._connection() as connection:
                connection.executescript(_SCHEMA)
        except StatusDBUnavailable as error:
            raise ConfigError(f"statusdb.url: {error}; is it a writable SQLite file?") from error

    def verify(self) -> None:
        """Raise ConfigError if the file or its table is missing."""
        if not self._path.is_file():
            raise ConfigError(f"statusdb.url: '{self._path}' does not exist yet; the watcher makes it")
        self.count_by_status()

    def describe(self) -> str:
        """Return the file and SQLite's version."""
        return f"SQLite {sqlite3.sqlite_version} in '{self._path}'"

    def get(self, run_id: str) -> Document | None:
        """Return the document, or None."""
        found = self.get_many([run_id])
        return found[0] if found else None

    def get_many(self, run_ids: Sequence[str]) -> list[Document]:
        """Return those of the documents that exist."""
        found: list[Document] = []
        with self._connection() as connection:
            for start in range(0, len(run_ids), BATCH):
                ids = run_ids[start : start + BATCH]
                marks = ",".join("?" * len(ids))
                rows = connection.execute(f"select body, rev from documents where id in ({marks})", ids)
                found += [_document(*row) for row in rows]
        return found

    def with_status(self, status: Status) -> list[Document]:
        """Return all documents of this status."""
        with self._connection() as connection:
            rows = connection.execute("select body, rev from documents where status = ? order by seq", (status,))
            return [_document(*row) for row in rows]

    def count_by_status(self) -> dict[str, int]:
        """Return how many documents have each status."""
        with self._connection() as connection:
            return dict(connection.execute("select status, count(*) from documents group by status"))

    def put(self, document: Document) -> Written:
        """Write a document over the revision that it names. Raises Conflict."""
        with self._transaction() as connection:
            current = connection.execute("select rev from documents where id = ?", (document["_id"],)).fetchone()
            if (str(current[0]) if current else None) != document.get("_rev"):
                raise Conflict(f"run '{document['_id']}' has another revision")
            return Written(_write(connection, document, current[0] + 1 if current else 1))

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        """Write new documents in one transaction; return the ids of those that were new."""
        new: set[str] = set()
        with self._transaction() as connection:
            for document in documents:
                known = connection.execute("select 1 from documents where id = ?", (document["_id"],)).fetchone()
                if known is None:
                    _write(connection, document, 1)
                    new.add(document["_id"])
        return new

    def settle(self, document: Document) -> Document:
        """Return the document: one file has no conflicting revisions."""
        return document

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since`, looking a few times a second for up to `wait_seconds`."""
        last = self._last_seq() if since is None else _sequence(since)
        with self._connection() as connection:
            version = None
            for _ in range(max(int(wait_seconds / LOOK_SECONDS), 1)):
                before, version = version, connection.execute("pragma data_version").fetchone()[0]
                if version != before and (found := _after(connection, last)):
                    return Changes(tuple(document for _, document in found), str(found[-1][0]))
                if self._wait(LOOK_SECONDS):
                    break
        return Changes((), str(last))

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._local = threading.local()

    def _last_seq(self) -> int:
        with self._connection() as connection:
            return int(connection.execute("select coalesce(max(seq), 0) from documents").fetchone()[0])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._open()
        except sqlite3.Error as error:
            raise StatusDBUnavailable(f"SQLite file '{self._path}': {error}") from error

    def _open(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            with self._lock:
                self._connections.append(connection)
            connection.execute("pragma journal_mode = wal")
            # Each commit reaches the disk: a claim or a record that was answered must outlive the power.
            connection.execute("pragma synchronous = full")
            self._local.connection = connection
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("begin immediate")
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")


def _document(body: str, rev: int) -> Document:
    document: Document = json.loads(body)
    return {**document, "_rev": str(rev)}


def _write(connection: sqlite3.Connection, document: Document, rev: int) -> str:
    body = json.dumps({key: value for key, value in document.items() if key != "_rev"})
    connection.execute(
        "insert or replace into documents (id, rev, status, body, seq)"
        " values (?, ?, ?, ?, (select coalesce(max(seq), 0) + 1 from documents))",
        (document["_id"], rev, document.get("status"), body),
    )
    return str(rev)


def _after(connection: sqlite3.Connection, seq: int) -> list[tuple[int, Document]]:
    rows = connection.execute("select seq, body, rev from documents where seq > ? order by seq limit 1000", (seq,))
    return [(row[0], _document(row[1], row[2])) for row in rows]


def _sequence(since: str) -> int:
    if not since.isdigit():
        raise FeedLost(f"'{since}' is no place in the changes of a SQLite store")
    return int(since)

"""The store as the status database asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from watcher.errors import StatusDBUnavailable
from watcher.model import Document, Status
from watcher.statusdb.couchdb import changes, conflicts, design, documents
from watcher.statusdb.couchdb.answers import part
from watcher.statusdb.couchdb.connection import Connection, quoted
from watcher.statusdb.login import Login
from watcher.statusdb.store import Changes, Found, Written

CREATED = 201


class CouchDBStore:
    """Run documents in one CouchDB database.

    `timeout_seconds` bounds the wait for a connection and for each part of an answer.
    """

    def __init__(
        self, login: Login, timeout_seconds: float = 20.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = Connection(login, timeout_seconds, clock)

    def prepare(self) -> None:
        """Create the database and our view where they are missing and our rights allow it.

        Raises ConfigError with the command for an administrator where our rights do not allow it, and
        StatusDBRefused for a wrong user or password.
        """
        design.prepare(self._connection)

    def verify(self) -> None:
        """Raise ConfigError if the database or our view is missing."""
        design.verify(self._connection)

    def describe(self) -> str:
        """Return the server, its version and the database."""
        login = self._connection.login
        return f"CouchDB {self._connection.version()} at '{login.url}', database '{login.database}'"

    def get(self, run_id: str) -> Found | None:
        """Return the document, or None. It has `_conflicts` where a cluster has other revisions beside this one."""
        return documents.get(self._connection, run_id)

    def get_many(self, run_ids: Sequence[str]) -> list[Found]:
        """Return those of the documents that exist, a thousand a request."""
        return documents.get_many(self._connection, run_ids)

    def with_status(self, status: Status) -> list[Found]:
        """Return all documents of this status."""
        return documents.with_status(self._connection, status)

    def count_by_status(self) -> dict[str, int]:
        """Return how many documents have each status."""
        return documents.count_by_status(self._connection)

    def put(self, document: Document) -> Written:
        """Write a document over the revision that it names. Raises Conflict."""
        body = {key: value for key, value in document.items() if key != "_conflicts"}
        status, answer = self._connection.send("PUT", quoted(document["_id"]), body)
        return Written(part(answer, "rev"), confirmed=status == CREATED)

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        """Write new documents in one request; return the ids of those that were new."""
        _, answers = self._connection.send("POST", "_bulk_docs", {"docs": list(documents)})
        if not isinstance(answers, list):
            raise StatusDBUnavailable(f"'{self._connection.login.url}' answers a bulk write with no list")
        return {answer["id"] for answer in answers if "rev" in answer}

    def settle(self, document: Document) -> Document:
        """Make our branch the longest where others conflict with it, then delete the others' leaves."""
        return conflicts.settle(self._connection, self.put, document)

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since`, in one request that the server holds up to `wait_seconds`.

        Raises FeedLost when the server cannot go on from there, or, not waiting, has not come that far.
        """
        return changes.changes(self._connection, since, wait_seconds)

    def close(self) -> None:
        """Close this thread's connection; those of ended threads have closed with them."""
        self._connection.close()

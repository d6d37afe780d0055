"""The shared store: a CouchDB database through pycouchdb.

What this room knows of the server, and why it does not use `pycouchdb.client.Database` directly:
`save` does not tell 201 from 202, ids go into the path unquoted, TLS is not verified and nothing
times out unless asked. The answers were measured on Apache CouchDB 3.5.0.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from pycouchdb.client import Server
from pycouchdb.exceptions import Conflict as CouchConflict
from pycouchdb.exceptions import Error as CouchError
from pycouchdb.exceptions import GenericError, NotFound
from pycouchdb.resource import Resource

from watcher.errors import ConfigError, StatusDBRefused, StatusDBUnavailable
from watcher.model import Document, Status
from watcher.statusdb.store import Changes, Conflict, FeedLost, Written

BATCH = 1000
"""Ids or documents in one request."""

CHANGES_LIMIT = 1000
"""Changes taken in one answer; the rest comes with the next."""

REFUSED_SECONDS = 900.0
"""After a 401 nothing is sent for so long: CouchDB 3.5 counts five failed logins within minutes as an attack
and locks the account and the address out, even with the right password."""

DESIGN = "dataflow_archive"
DESIGN_DOCUMENT: Document = {
    "_id": f"_design/{DESIGN}",
    "language": "javascript",
    "views": {"by_status": {"map": "function (doc) { if (doc.status) emit(doc.status, null); }", "reduce": "_count"}},
}


@dataclass(frozen=True)
class Login:
    """Where the server is and who we are there. `password` never shows."""

    url: str
    database: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @property
    def who(self) -> str:
        """Return user and server for people."""
        return f"user '{self.username}' at '{self.url}'" if self.username else f"anonymous at '{self.url}'"


class CouchDBStore:
    """Run documents in one CouchDB database.

    `timeout_seconds` bounds the wait for a connection and for each part of an answer.
    """

    def __init__(
        self, login: Login, timeout_seconds: float = 20.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._login = login
        self._timeout = timeout_seconds
        self._clock = clock
        self._local = threading.local()
        self._refused_until = -1.0

    def prepare(self) -> None:
        """Create the database and our view where they are missing and our rights allow it.

        Raises ConfigError with the command for an administrator where they do not, and StatusDBRefused
        for a wrong user or password.
        """
        try:
            self._ask("GET", "")
        except _DatabaseMissing:
            self._create("", f"database '{self._login.database}' does not exist", None)
        if self._ask("GET", f"_design/{DESIGN}", absent=None) is None:
            self._create(f"_design/{DESIGN}", f"view '{DESIGN}/by_status' does not exist", DESIGN_DOCUMENT)

    def verify(self) -> None:
        """Raise ConfigError if the database or our view is missing."""
        try:
            self._ask("GET", "")
            self._ask("GET", f"_design/{DESIGN}")
        except (_DatabaseMissing, _Absent) as error:
            raise ConfigError(f"statusdb: {error}; the watcher makes it when it starts, if it may") from error

    def describe(self) -> str:
        """Return the server, its version and the database."""
        with self._translated("GET", "/"):
            answer = self._server().resource.get()[1] or {}
        return f"CouchDB {answer.get('version', '?')} at '{self._login.url}', database '{self._login.database}'"

    def get(self, run_id: str) -> Document | None:
        """Return the document, or None."""
        found: Document | None = self._ask("GET", _path(run_id), absent=None)
        return found

    def get_many(self, run_ids: Sequence[str]) -> list[Document]:
        """Return those of the documents that exist, a thousand a request."""
        found: list[Document] = []
        for start in range(0, len(run_ids), BATCH):
            keys = {"keys": list(run_ids[start : start + BATCH])}
            rows = self._ask("POST", "_all_docs", keys, include_docs="true")["rows"]
            found += [row["doc"] for row in rows if row.get("doc")]
        return found

    def with_status(self, status: Status) -> list[Document]:
        """Return all documents of this status."""
        view = f"_design/{DESIGN}/_view/by_status"
        answer = self._ask("GET", view, key=json.dumps(status), include_docs="true", reduce="false")
        # The view may trail the documents that come with it.
        return [row["doc"] for row in answer["rows"] if row.get("doc") and row["doc"].get("status") == status]

    def count_by_status(self) -> dict[str, int]:
        """Return how many documents have each status."""
        answer = self._ask("GET", f"_design/{DESIGN}/_view/by_status", group="true")
        return {row["key"]: row["value"] for row in answer["rows"]}

    def put(self, document: Document) -> Written:
        """Write a document over the revision that it names. Raises Conflict."""
        status, answer = self._send("PUT", _path(document["_id"]), document)
        return Written(answer["rev"], confirmed=status == 201)

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        """Write new documents in one request; return the ids of those that were new."""
        body = {"docs": list(documents)}
        with self._translated("POST", "_bulk_docs"):
            # The checked call would raise at the first conflict and keep the other answers from us.
            response, answers = self._database()._request_response("POST", "_bulk_docs", data=json.dumps(body))
            if response.status_code >= 300:
                self._database()._check_result(response, answers)
            return {answer["id"] for answer in answers or () if "rev" in answer}

    def settle(self, document: Document) -> Document:
        """Make our branch the longest where others conflict with it, then delete the others' leaves."""
        current = self._ask("GET", _path(document["_id"]), absent={}, conflicts="true")
        leaves = {current.get("_rev"), *current.get("_conflicts", ())} - {document["_rev"], None}
        if not leaves:
            return document
        settled = {**document, "_rev": self.put(document).rev}
        for rev in leaves - {settled["_rev"]}:
            self._ask("DELETE", _path(document["_id"]), absent={}, rev=rev)
        return settled

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since`, in one request that the server holds up to `wait_seconds`."""
        if since is None:
            return Changes((), str(self._ask("GET", "_changes", since="now", limit=1)["last_seq"]))
        # A hung connection must end: the server's own time-out comes first, ours a little later.
        wait = min(wait_seconds, self._timeout * 0.75)
        try:
            answer = self._ask(
                "GET", "_changes", feed="longpoll", since=since, include_docs="true",
                limit=CHANGES_LIMIT, timeout=int(wait * 1000),
            )  # fmt: skip
        except _BadRequest as error:
            raise FeedLost(f"the server refuses to go on from '{since}': {error}") from error
        documents = tuple(row["doc"] for row in answer["results"] if row.get("doc"))
        return Changes(documents, str(answer["last_seq"]))

    def close(self) -> None:
        """Close this thread's connection; those of ended threads have closed with them."""
        if server := getattr(self._local, "server", None):
            server.resource.session.close()
            del self._local.server

    def _ask(self, method: str, path: str, body: Any = None, *, absent: Any = ..., **params: Any) -> Any:
        try:
            return self._send(method, path, body, **params)[1]
        except _Absent:
            if absent is ...:
                raise
            return absent

    def _send(self, method: str, path: str, body: Any = None, **params: Any) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        with self._translated(method, path):
            response, answer = self._database().request(method, path or None, params=params, data=data)
            if response.status_code == 401:  # a proxy's, with no JSON for pycouchdb to find fault with
                raise GenericError({"error": "unauthorized", "reason": response.reason})
            if not isinstance(answer, dict):
                raise StatusDBUnavailable(f"'{self._login.url}' answers {method} '{path}' with no JSON object")
            return response.status_code, answer

    def _database(self) -> Resource:
        database: Resource = self._server().resource(quote(self._login.database, safe=""))
        return database

    def _server(self) -> Server:
        # A requests session is not promised to be safe between threads: one a thread.
        server: Server | None = getattr(self._local, "server", None)
        if server is None:
            verify: Any = self._login.ca_file or True
            server = Server(_with_credentials(self._login), verify=verify, timeout=self._timeout)
            self._local.server = server
        return server

    def _create(self, path: str, what: str, body: Document | None) -> None:
        try:
            self._ask("PUT", path, body)
        except (StatusDBRefused, _Forbidden) as error:
            target = f"{self._login.url}/{quote(self._login.database, safe='')}/{path}".rstrip("/")
            data = f" -H 'Content-Type: application/json' -d '{json.dumps(body)}'" if body else ""
            raise ConfigError(
                f"statusdb: {what} and {self._login.who} may not create it; "
                f"an administrator runs: curl -u ADMIN -X PUT '{target}'{data}"
            ) from error
        except Conflict:
            return  # another worker was as quick

    @contextmanager
    def _translated(self, method: str, path: str) -> Iterator[None]:
        if self._clock() < self._refused_until:
            raise StatusDBRefused(f"statusdb: {self._login.who} was refused; not asking again for some minutes")
        try:
            yield
        except CouchConflict as error:
            raise Conflict(f"{method} '{path}': {error}") from error
        except NotFound as error:
            missing = _DatabaseMissing if str(error) not in ("missing", "deleted", "missing_named_view") else _Absent
            raise missing(f"'{self._login.url}' has no '{self._login.database}/{path}': {error}") from error
        except CouchError as error:
            raise self._from_answer(method, path, error) from error
        except (requests.RequestException, OSError, ValueError, KeyError) as error:
            raise StatusDBUnavailable(f"no good answer from '{self._login.url}': {_short(error)}") from error

    def _from_answer(self, method: str, path: str, error: CouchError) -> Exception:
        answer = error.args[0] if error.args else None
        name = answer.get("error", "") if isinstance(answer, dict) else type(error).__name__
        reason = answer.get("reason", "") if isinstance(answer, dict) else str(answer or "")
        if name == "unauthorized":
            if reason != "You are not a server admin.":
                self._refused_until = self._clock() + REFUSED_SECONDS
            return StatusDBRefused(
                f"statusdb: {self._login.who} is refused: {reason or 'wrong name or password'}; "
                "check statusdb.username and the password"
            )
        if name == "forbidden":
            return _Forbidden(f"statusdb: {self._login.who} may not {method} '{self._login.database}/{path}': {reason}")
        if name in ("bad_request", "BadRequest"):
            return _BadRequest(f"{method} '{path}': {reason}")
        return StatusDBUnavailable(f"'{self._login.url}' answers {method} '{path}' with {name or 'an error'}: {reason}")


class _Absent(StatusDBUnavailable):
    """404: the document or view is not there."""


class _DatabaseMissing(StatusDBUnavailable):
    """404: the database itself is not there."""


class _Forbidden(StatusDBRefused):
    """403: the credentials are right, the rights are missing."""


class _BadRequest(StatusDBUnavailable):
    """400: the server does not understand the request."""


def _path(run_id: str) -> str:
    return quote(run_id, safe="")


def _with_credentials(login: Login) -> str:
    if login.username is None:
        return login.url
    parts = urlsplit(login.url)
    user = f"{quote(login.username, safe='')}:{quote(login.password or '', safe='')}"
    return parts._replace(netloc=f"{user}@{parts.netloc}").geturl()


def _short(error: Exception) -> str:
    # requests nests the cause three deep and prints object addresses; the innermost says what happened.
    while (inner := error.__cause__ or error.__context__) is not None and isinstance(inner, Exception):
        error = inner
    return f"{type(error).__name__}: {error}"

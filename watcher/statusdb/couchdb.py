"""The shared store: a CouchDB database through pycouchdb.

What this room knows of the server, and why it does not use `pycouchdb.client.Database` directly:
`save` does not tell 201 from 202, ids go into the path unquoted, TLS is not verified and nothing
times out unless asked. requests would send a password as Latin-1, where CouchDB reads UTF-8. The
answers were measured on Apache CouchDB 3.5.0.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import requests
from pycouchdb.client import Server
from pycouchdb.exceptions import Conflict as CouchConflict
from pycouchdb.exceptions import Error as CouchError
from pycouchdb.exceptions import NotFound
from pycouchdb.resource import Resource
from requests.auth import HTTPBasicAuth

from watcher import model
from watcher.errors import ConfigError, StatusDBRefused, StatusDBUnavailable
from watcher.model import Document, Status
from watcher.statusdb.login import Login
from watcher.statusdb.store import (
    Changes,
    Conflict,
    FeedLost,
    Found,
    Undecodable,
    Unreadable,
    Written,
    why_undecodable,
)

BATCH = 1000
"""Ids or documents in one request."""

CREATED = 201
UNAUTHORIZED = 401

PIECE_BYTES = 1 << 20
"""An answer is read in pieces of up to so much. After each piece, Python may let another thread go first."""

ANSWER_TIMEOUTS = 10
"""Times the time-out, which is for each part of an answer: then the whole of it must be there."""

CHANGES_LIMIT = 1000
"""Changes taken in one answer; the rest comes with the next."""

REFUSED_SECONDS = 900.0
"""After a 401 nothing is sent for so long: CouchDB 3.5 counts five failed logins within minutes as an attack
and locks the account and the address out, even with the right password."""

LOCKED_OUT = "temporarily locked"
"""What CouchDB 3.5 says then, with 403."""

RIGHTS_MISSING = "You are not"
"""What a 401 begins with when name and password are right, but do not allow this."""

DESIGN = "dataflow_archive"
VIEW = "by_status"
DESIGN_DOCUMENT: Document = {
    "_id": f"_design/{DESIGN}",
    "language": "javascript",
    "views": {VIEW: {"map": "function (doc) { if (doc.status) emit(doc.status, null); }", "reduce": "_count"}},
}


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
        self._refused_until = float("-inf")

    def prepare(self) -> None:
        """Create the database and our view where they are missing and our rights allow it.

        A design document of our name that lacks our view gets it, and keeps what else is in it. Raises
        ConfigError with the command for an administrator where our rights do not allow it, and
        StatusDBRefused for a wrong user or password.
        """
        try:
            self._ask("GET", "")
        except _DatabaseMissing:
            self._create("", f"database '{self._login.database}' does not exist", None)
        design = self._ask("GET", f"_design/{DESIGN}", absent={})
        if not _has_our_view(design):
            self._create(f"_design/{DESIGN}", f"view '{DESIGN}/{VIEW}' does not exist", _with_our_view(design))

    def verify(self) -> None:
        """Raise ConfigError if the database or our view is missing."""
        try:
            self._ask("GET", "")
            self._require_view(self._ask("GET", f"_design/{DESIGN}"))
        except (_DatabaseMissing, _Absent) as error:
            raise ConfigError(f"statusdb: {error}; the watcher makes it when it starts, if it may") from error

    def describe(self) -> str:
        """Return the server, its version and the database."""
        version = _part(self._send(self._server().resource, "GET", "")[1], "version")
        return f"CouchDB {version} at '{self._login.url}', database '{self._login.database}'"

    def get(self, run_id: str) -> Found | None:
        """Return the document, or None. It has `_conflicts` where a cluster has other revisions beside this one."""
        try:
            found: Document | None = self._ask("GET", _path(run_id), absent=None, conflicts="true")
        except Undecodable as error:
            return Unreadable(run_id, error.reason)
        if found is not None:
            _part(found, "_rev")
        return found

    def get_many(self, run_ids: Sequence[str]) -> list[Found]:
        """Return those of the documents that exist, a thousand a request."""
        found: list[Found] = []
        for start in range(0, len(run_ids), BATCH):
            found += self._some(list(run_ids[start : start + BATCH]))
        return found

    def _some(self, run_ids: list[str]) -> list[Found]:
        """Return those of the documents that exist. If the answer cannot be decoded, ask for each half of them."""
        try:
            rows = _part(self._ask("POST", "_all_docs", {"keys": run_ids}, include_docs="true"), "rows")
        except Undecodable as error:
            if len(run_ids) == 1:
                return [Unreadable(run_ids[0], error.reason)]
            half = len(run_ids) // 2
            return self._some(run_ids[:half]) + self._some(run_ids[half:])
        return [row["doc"] for row in rows if row.get("doc")]

    def with_status(self, status: Status) -> list[Found]:
        """Return all documents of this status."""
        view, wanted = f"_design/{DESIGN}/_view/{VIEW}", {"key": json.dumps(status), "reduce": "false"}
        try:
            rows = _part(self._ask("GET", view, include_docs="true", **wanted), "rows")
        except Undecodable:
            names = [row["id"] for row in _part(self._ask("GET", view, **wanted), "rows")]
            found = self.get_many(names)
        else:
            found = [row["doc"] for row in rows if row.get("doc")]
        # The view may trail the documents that come with it.
        return [one for one in found if isinstance(one, Unreadable) or one.get("status") == status]

    def count_by_status(self) -> dict[str, int]:
        """Return how many documents have each status."""
        view = f"_design/{DESIGN}/_view/{VIEW}"
        try:
            rows = _part(self._ask("GET", view, group="true"), "rows")
        except Undecodable:
            # Another program's `status` is in the answer. Ours are asked for one by one.
            asked = [_part(self._ask("GET", view, key=json.dumps(one), group="true"), "rows") for one in Status]
            rows = [row for some in asked for row in some]
        # Other programs' documents may have a `status` that is no word.
        return {row["key"]: row["value"] for row in rows if isinstance(row["key"], str)}

    def put(self, document: Document) -> Written:
        """Write a document over the revision that it names. Raises Conflict."""
        body = {key: value for key, value in document.items() if key != "_conflicts"}
        status, answer = self._send(self._database(), "PUT", _path(document["_id"]), body)
        return Written(_part(answer, "rev"), confirmed=status == CREATED)

    def insert_many(self, documents: Iterable[Document]) -> set[str]:
        """Write new documents in one request; return the ids of those that were new."""
        _, answers = self._send(self._database(), "POST", "_bulk_docs", {"docs": list(documents)})
        if not isinstance(answers, list):
            raise StatusDBUnavailable(f"'{self._login.url}' answers a bulk write with no list")
        return {answer["id"] for answer in answers if "rev" in answer}

    def settle(self, document: Document) -> Document:
        """Make our branch the longest where others conflict with it, then delete the others' leaves.

        A run that one of them has recorded stays recorded: nodes that were cut off from each other may have
        let two workers go on, and ours is then the branch that goes. Done again after a lost answer, it goes
        on from what the last try has left.
        """
        path = _path(document["_id"])
        current = self._ask("GET", path, absent=None, conflicts="true")
        if current is None:
            return document
        leaves = {current["_rev"], *current.pop("_conflicts", ())}
        ours = document if document["_rev"] in leaves else current
        if len(leaves) == 1 or not model.is_same_claim(ours, document):
            return document  # if it is somebody else's, our next write tells
        kept = self._recorded(path, leaves) or ours
        settled = kept if kept is not ours else {**ours, "_rev": self.put(ours).rev}
        for rev in leaves - {kept["_rev"]}:
            with suppress(Conflict):  # it has been deleted already, or is somebody's work: then our next write tells
                self._ask("DELETE", path, absent={}, rev=rev)
        return settled

    def _recorded(self, path: str, leaves: Iterable[str]) -> Document | None:
        found = (self._ask("GET", path, absent={}, rev=rev) for rev in leaves)
        return next((leaf for leaf in found if model.status_of(leaf) is Status.ENCRYPTED), None)

    def changes(self, since: str | None, wait_seconds: float) -> Changes:
        """Return what changed since `since`, in one request that the server holds up to `wait_seconds`.

        Raises FeedLost when the server cannot go on from there, or, not waiting, has not come that far.
        """
        if since is None:
            return Changes((), self._now())
        if wait_seconds <= 0 and _number(now := self._now()) < _number(since):
            # Not asked each time: of a cluster's nodes, one may count a little behind another.
            raise FeedLost(f"the database is at change {_number(now)}, and was at {_number(since)} before")
        # A hung connection must end: the server's own time-out comes first, ours a little later.
        wait = min(wait_seconds, self._timeout * 0.75)
        held = {"feed": "longpoll", "timeout": int(wait * 1000)} if wait > 0 else {}
        try:
            answer = self._ask("GET", "_changes", since=since, include_docs="true", limit=CHANGES_LIMIT, **held)
        except Undecodable:
            return self._changes_one_by_one(since)
        except _BadRequest as error:
            raise FeedLost(f"the server refuses to go on from '{since}': {error}") from error
        except _TimedOut:
            return Changes((), since)  # some servers and proxies hold the request for longer than asked
        documents = tuple(row["doc"] for row in _part(answer, "results") if row.get("doc"))
        return Changes(documents, str(_part(answer, "last_seq")))

    def _changes_one_by_one(self, since: str) -> Changes:
        """Return the changes with the documents as they are now, and those set aside that cannot be decoded."""
        answer = self._ask("GET", "_changes", since=since, limit=CHANGES_LIMIT)
        rows = _part(answer, "results")
        gone = [{"_id": row["id"], "_deleted": True} for row in rows if row.get("deleted")]
        found = self.get_many([row["id"] for row in rows if not row.get("deleted")])
        return Changes(
            (*gone, *(one for one in found if not isinstance(one, Unreadable))),
            str(_part(answer, "last_seq")),
            tuple(one for one in found if isinstance(one, Unreadable)),
        )

    def _now(self) -> str:
        return str(_part(self._ask("GET", "_changes", since="now", limit=1), "last_seq"))

    def close(self) -> None:
        """Close this thread's connection; those of ended threads have closed with them."""
        server: Server | None = getattr(self._local, "server", None)
        if server is not None:  # its truth value would be a request: pycouchdb counts the databases
            server.resource.session.close()
            del self._local.server

    def _ask(self, method: str, path: str, body: Any = None, *, absent: Any = ..., **params: Any) -> Any:
        try:
            _, answer = self._send(self._database(), method, path, body, **params)
        except _Absent:
            if absent is ...:
                raise
            return absent
        if not isinstance(answer, dict):
            raise StatusDBUnavailable(f"'{self._login.url}' answers {method} '{path}' with no JSON object")
        return answer

    def _send(self, where: Resource, method: str, path: str, body: Any = None, **params: Any) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        with self._translated(method, path):
            # With `stream`, pycouchdb looks at errors only: it would raise at the first conflict of a bulk write,
            # and take an answer that is no JSON for an empty one. `verify` is given with each request, since
            # requests prefers $REQUESTS_CA_BUNDLE to a session's.
            response, _ = where.request(
                method, path or None, params=params, data=data, stream=True, verify=self._login.ca_file or True
            )
            content = b"".join(self._pieces(response))
            try:
                return response.status_code, json.loads(content)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise StatusDBUnavailable(
                    f"'{self._login.url}' answers {method} '{path}' with {response.status_code} and no JSON"
                ) from error
            except (ValueError, RecursionError) as error:
                what = f"'{self._login.url}' answers {method} '{path}' with what cannot be decoded"
                raise Undecodable(what, why_undecodable(error)) from error

    def _pieces(self, response: requests.Response) -> Iterator[bytes]:
        limit = self._clock() + ANSWER_TIMEOUTS * self._timeout
        for piece in response.iter_content(PIECE_BYTES):
            yield piece
            if self._clock() > limit:
                raise requests.Timeout(f"the answer is not over after {ANSWER_TIMEOUTS} times the time-out")

    def _database(self) -> Resource:
        database: Resource = self._server().resource(quote(self._login.database, safe=""))
        return database

    def _server(self) -> Server:
        # A requests session is not promised to be safe between threads: one a thread.
        server: Server | None = getattr(self._local, "server", None)
        if server is None:
            server = Server(self._login.url, verify=True, timeout=self._timeout)
            session = server.resource.session
            session.hooks["response"].append(_look_for_refusal)
            # To compress a thousand documents takes a server longer than to send them.
            session.headers["Accept-Encoding"] = "identity"
            if self._login.username is not None:
                session.auth = HTTPBasicAuth(self._login.username.encode(), (self._login.password or "").encode())
            self._local.server = server
        return server

    def _require_view(self, design: Document) -> None:
        if not _has_our_view(design):
            raise _Absent(f"'{self._login.url}' has no view '{self._login.database}/_design/{DESIGN}/{VIEW}'")

    def _create(self, path: str, what: str, body: Document | None) -> None:
        try:
            self._ask("PUT", path, body)
        except _Forbidden as error:
            target = f"{self._login.url}/{quote(self._login.database, safe='')}/{path}".rstrip("/")
            command = ["curl", "-u", "ADMIN", "-X", "PUT", target]
            if body:
                command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
            raise ConfigError(
                f"statusdb: {what} and {self._login.who} may not create it; "
                f"an administrator runs: {shlex.join(command)}"
            ) from error
        except Conflict:
            return  # another worker was as quick

    @contextmanager
    def _translated(self, method: str, path: str) -> Iterator[None]:
        if self._clock() < self._refused_until:
            raise StatusDBRefused(f"statusdb: {self._login.who} was refused; not asking again for some minutes")
        try:
            yield
        except _Unauthorized as error:
            if error.reason.startswith(RIGHTS_MISSING):
                raise self._not_allowed(method, path, error.reason) from error
            raise self._refused(error.reason) from error
        except CouchConflict as error:
            raise Conflict(f"{method} '{path}': {error}") from error
        except NotFound as error:
            missing = _DatabaseMissing if str(error) not in ("missing", "deleted", "missing_named_view") else _Absent
            raise missing(f"'{self._login.url}' has no '{self._login.database}/{path}': {error}") from error
        except CouchError as error:
            raise self._from_answer(method, path, error) from error
        except (requests.RequestException, OSError, ValueError, KeyError) as error:
            kind = _TimedOut if _is_read_timeout(error) else StatusDBUnavailable
            raise kind(f"no good answer from '{self._login.url}': {_short(error)}") from error

    def _from_answer(self, method: str, path: str, error: CouchError) -> Exception:
        answer = error.args[0] if error.args else None
        name = answer.get("error", "") if isinstance(answer, dict) else type(error).__name__
        reason = answer.get("reason", "") if isinstance(answer, dict) else str(answer or "")
        if name == "forbidden" and LOCKED_OUT in reason:
            return self._refused(reason)
        if name == "forbidden":
            return self._not_allowed(method, path, reason)
        if name in ("bad_request", "BadRequest"):
            return _BadRequest(f"{method} '{path}': {reason}")
        return StatusDBUnavailable(f"'{self._login.url}' answers {method} '{path}' with {name or 'an error'}: {reason}")

    def _refused(self, reason: str) -> StatusDBRefused:
        """Return the error for a login that was refused, and see to it that it is not tried again for a while."""
        self._refused_until = self._clock() + REFUSED_SECONDS
        return StatusDBRefused(
            f"statusdb: {self._login.who} is refused: {reason}; check statusdb.username and the password"
        )

    def _not_allowed(self, method: str, path: str, reason: str) -> StatusDBRefused:
        what = f"'{self._login.database}/{path}'".replace("/'", "'")
        return _Forbidden(
            f"statusdb: {self._login.who} may not {method} {what}: {reason} "
            "An administrator gives the user the right to it, as a member of the database"
        )


class _Absent(StatusDBUnavailable):
    """404: the document or view is not there."""


class _DatabaseMissing(StatusDBUnavailable):
    """404: the database itself is not there."""


class _Forbidden(StatusDBRefused):
    """403, or a 401 that says so: the credentials are right, the rights are missing."""


class _BadRequest(StatusDBUnavailable):
    """400: the server does not understand the request."""


class _TimedOut(StatusDBUnavailable):
    """The server took the request and did not answer in time."""


class _Unauthorized(CouchError):
    """401, before pycouchdb sees the answer: it would not tell its status, and takes one without JSON for a success."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _look_for_refusal(response: requests.Response, **_options: Any) -> None:
    if response.status_code != UNAUTHORIZED:
        return
    try:
        reason = response.json()["reason"]
    except (ValueError, KeyError, TypeError):
        reason = response.reason
    raise _Unauthorized(str(reason))


def _has_our_view(design: Document) -> bool:
    return VIEW in (design.get("views") or {})


def _with_our_view(design: Document) -> Document:
    return {**DESIGN_DOCUMENT, **design, "views": {**(design.get("views") or {}), **DESIGN_DOCUMENT["views"]}}


def _path(run_id: str) -> str:
    return quote(run_id, safe="")


def _part(answer: Any, name: str) -> Any:
    try:
        return answer[name]
    except (KeyError, TypeError, IndexError) as error:
        raise StatusDBUnavailable(f"the server's answer has no '{name}': is it a CouchDB?") from error


def _number(place: str) -> int:
    """Return how many changes lie before a place: an integer, or in CouchDB an opaque text that begins with one."""
    digits = place.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _is_read_timeout(error: Exception) -> bool:
    return isinstance(_innermost(error), TimeoutError) and not isinstance(error, requests.ConnectTimeout)


def _short(error: Exception) -> str:
    inner = _innermost(error)
    return f"{type(inner).__name__}: {inner}"


def _innermost(error: BaseException) -> BaseException:
    # requests nests the cause three deep and prints object addresses; the innermost says what happened.
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error

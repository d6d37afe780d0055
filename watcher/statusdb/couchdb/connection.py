"""Requests to a CouchDB server, and what protects the account and the waiting thread.

Requests go through pycouchdb's `Resource` and not through its `Database`: `Database.save` does not tell 201 from 202,
puts ids into the path unquoted, does not verify TLS, and waits without a time-out. requests would send a password as
Latin-1, where CouchDB reads UTF-8.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import requests
from pycouchdb.client import Server
from pycouchdb.resource import Resource
from requests.auth import HTTPBasicAuth

from watcher.errors import StatusDBRefused, StatusDBUnavailable
from watcher.statusdb.couchdb.answers import Absent, LoginRefused, look_for_refusal, part, translated
from watcher.statusdb.login import Login
from watcher.statusdb.store import Undecodable, why_undecodable

PIECE_BYTES = 1 << 20
"""An answer is read in pieces of at most so many bytes. Between two pieces other threads can run."""

ANSWER_TIMEOUTS = 10
"""The time-out is for each part of an answer. The whole answer may take so many times as long."""

REFUSED_SECONDS = 900.0
"""After a refused login nothing is sent for so long: CouchDB 3.5 counts five failed logins within minutes as an attack
and locks the account and the address out, even with the right password."""


class Connection:
    """What sends requests to one database, with a TCP connection for each thread.

    `timeout_seconds` bounds the wait for a connection and for each part of an answer.
    """

    def __init__(self, login: Login, timeout_seconds: float, clock: Callable[[], float]) -> None:
        self.login = login
        self.timeout_seconds = timeout_seconds
        self._clock = clock
        self._local = threading.local()
        self._refused_until = float("-inf")

    def version(self) -> str:
        """Return the server's version."""
        _, answer = self._send(self._server().resource, "GET", "", None, {})
        return str(part(answer, "version"))

    def ask(self, method: str, path: str, body: Any = None, *, absent: Any = ..., **params: Any) -> Any:
        """Return the JSON object that the server answers; `absent`, if given, where there is no such document.

        `path` is below the database, quoted. Raises what `answers.translated` raises, and Undecodable.
        """
        try:
            _, answer = self.send(method, path, body, **params)
        except Absent:
            if absent is ...:
                raise
            return absent
        if not isinstance(answer, dict):
            raise StatusDBUnavailable(f"'{self.login.url}' answers {method} '{path}' with no JSON object")
        return answer

    def send(self, method: str, path: str, body: Any = None, **params: Any) -> tuple[int, Any]:
        """Return the HTTP status and the JSON value that the server answers. Raises as `ask` does."""
        database = self._server().resource(quote(self.login.database, safe=""))
        return self._send(database, method, path, body, params)

    def close(self) -> None:
        """Close this thread's connection."""
        server: Server | None = getattr(self._local, "server", None)
        if server is not None:  # compared with None: to ask for its truth value, pycouchdb sends a request
            server.resource.session.close()
            del self._local.server

    def _send(self, where: Resource, method: str, path: str, body: Any, params: dict[str, Any]) -> tuple[int, Any]:
        if self._clock() < self._refused_until:
            raise StatusDBRefused(f"statusdb: {self.login.who} was refused; not asking again for some minutes")
        data = None if body is None else json.dumps(body)
        try:
            with translated(self.login, method, path):
                # With `stream`, pycouchdb looks at errors only. Without it, it raises at the first conflict of a bulk
                # write, and takes an answer that is no JSON for an empty one. `verify` is given with each request,
                # since requests prefers $REQUESTS_CA_BUNDLE to a session's.
                response, _ = where.request(
                    method, path or None, params=params, data=data, stream=True, verify=self.login.ca_file or True
                )
                content = b"".join(self._pieces(response))
        except LoginRefused:
            self._refused_until = self._clock() + REFUSED_SECONDS
            raise
        return response.status_code, self._decoded(f"{method} '{path}'", response.status_code, content)

    def _decoded(self, request: str, status: int, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StatusDBUnavailable(f"'{self.login.url}' answers {request} with {status} and no JSON") from error
        except (ValueError, RecursionError) as error:
            what = f"'{self.login.url}' answers {request} with what cannot be decoded"
            raise Undecodable(what, why_undecodable(error)) from error

    def _pieces(self, response: requests.Response) -> Iterator[bytes]:
        limit = self._clock() + ANSWER_TIMEOUTS * self.timeout_seconds
        for piece in response.iter_content(PIECE_BYTES):
            yield piece
            if self._clock() > limit:
                raise requests.Timeout(f"the answer is not over after {ANSWER_TIMEOUTS} times the time-out")

    def _server(self) -> Server:
        # requests does not promise that threads may share a session.
        server: Server | None = getattr(self._local, "server", None)
        if server is None:
            server = Server(self.login.url, verify=True, timeout=self.timeout_seconds)
            session = server.resource.session
            session.hooks["response"].append(look_for_refusal)
            # To compress a thousand documents takes a server longer than to send them.
            session.headers["Accept-Encoding"] = "identity"
            if self.login.username is not None:
                session.auth = HTTPBasicAuth(self.login.username.encode(), (self.login.password or "").encode())
            self._local.server = server
        return server


def quoted(run_id: str) -> str:
    """Return a document's path below its database."""
    return quote(run_id, safe="")

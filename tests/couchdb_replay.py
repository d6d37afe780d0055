"""A real HTTP server that answers as Apache CouchDB 3.5.0 did; `tests/couchdb` has the recorded exchanges.

    with ReplayServer.script("server root", "create document", "update with a stale _rev") as server: ...
    with ReplayServer.session() as server: ...

A script answers the i-th request with the i-th exchange, whatever is asked. A session finds the exchange by
what is asked, and goes through the recorded ones in their order.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from fault_proxy import Client, RecordingServer, Request, framed, head

RECORDED = Path(__file__).parent / "couchdb/couchdb-3.5-exchanges.json"
SINGLE_NODE = "single_node"
CLUSTER = "three_node_cluster_n3_q2"
DATABASE = "archiving_status"  # the name in the recorded paths
RECOMPUTED = {"content-length", "transfer-encoding"}


@dataclass(frozen=True)
class Exchange:
    """One request and its exact answer. `request_body` is parsed JSON, or text where that was broken."""

    name: str
    group: str
    method: str
    path: str
    authenticated: bool
    request_body: Any
    status: int
    headers: tuple[tuple[str, str], ...]
    body: str

    def answering(self, body: object, status: int | None = None) -> Self:
        """Return this exchange with another answer: `body` as JSON, and `status` when given."""
        return replace(self, body=json.dumps(body) + "\n", status=status or self.status)

    @property
    def json(self) -> Any:
        """The answer's body, parsed."""
        return json.loads(self.body)

    @property
    def is_chunked(self) -> bool:
        """Whether CouchDB sent the body in chunks."""
        return ("Transfer-Encoding", "chunked") in self.headers

    def is_for(self, request: Request) -> bool:
        """Whether method, path, query (in any order) and having credentials are as in `request`."""
        return (self.method, _address(self.path), self.authenticated) == (
            request.method,
            _address(request.path),
            "authorization" in request.headers,
        )

    def sent_to(self, method: str) -> bytes:
        """Return the answer as it goes over the line."""
        kept = [(name, value) for name, value in self.headers if name.lower() not in RECOMPUTED]
        body = self.body.encode()
        if method == "HEAD":
            return head(self.status, self.headers)
        if not self.is_chunked:
            return head(self.status, [*kept, ("Content-Length", str(len(body)))]) + body
        chunks = [framed(line, True) for line in body.splitlines(keepends=True)]
        return head(self.status, [*kept, ("Transfer-Encoding", "chunked")]) + b"".join([*chunks, framed(b"", True)])


class ReplayServer(RecordingServer):
    """Answers each request with the exchange that `choose` gives for it; a context manager.

    A request for which there is none is answered with 501 and kept in `unexpected`; leaving the context then
    raises AssertionError. The paths recorded are those of a database named `archiving_status`.
    """

    def __init__(self, choose: Callable[[Request], Exchange | None]) -> None:
        self._choose = choose
        self.unexpected: list[Request] = []
        super().__init__()

    @classmethod
    def script(cls, *exchanges: str | Exchange) -> Self:
        """Return a server that answers the i-th request with the i-th of these (names, or `Exchange`s)."""
        answers = iter([exchange(given) if isinstance(given, str) else given for given in exchanges])
        return cls(lambda request: next(answers, None))

    @classmethod
    def session(cls, exchanges: Iterable[Exchange] | None = None) -> Self:
        """Return a server that finds the exchange by method, path, query, credentials and body.

        Those of the single node unless others are given. Asked for the same again, it gives the next that was
        recorded, at the end the last; an equal body is preferred to any other body.
        """
        return cls(_Session(exchanges or recorded(SINGLE_NODE)))

    def answer(self, client: Client, request: Request) -> None:
        """Send what was recorded."""
        with self._changed:
            chosen = self._choose(request)
            if chosen is None:
                self.unexpected.append(request)
        client.send(chosen.sent_to(request.method) if chosen else _NOT_RECORDED)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.unexpected and error is None:
            asked = ", ".join(f"{request.method} {request.path}" for request in self.unexpected)
            raise AssertionError(f"nothing is recorded for: {asked}")


def exchange(name: str) -> Exchange:
    """Return the recorded exchange of this name. Raises KeyError when there is none."""
    return {recording.name: recording for recording in recorded()}[name]


@cache
def recorded(group: str | None = None) -> tuple[Exchange, ...]:
    """Return all exchanges, or those of one `group`, in their order."""
    content = json.loads(RECORDED.read_text())
    groups = [group] if group else [SINGLE_NODE, CLUSTER]
    return tuple(itertools.chain.from_iterable(_group(name, content[name]) for name in groups))


class _Session:
    """Chooses among exchanges by what is asked, and how often it has been asked before."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self._exchanges = tuple(exchanges)
        self._asked: Counter[tuple[str, ...]] = Counter()

    def __call__(self, request: Request) -> Exchange | None:
        found = tuple(one for one in self._exchanges if one.is_for(request))
        body = _parsed(request.body)
        found = tuple(one for one in found if one.request_body == body) or found
        if not found:
            return None
        names = tuple(one.name for one in found)
        self._asked[names] += 1
        return found[min(self._asked[names], len(found)) - 1]


def _group(group: str, recordings: Iterable[dict[str, Any]]) -> Iterable[Exchange]:
    for recording in recordings:
        asked, answered = recording["request"], recording["response"]
        yield Exchange(
            name=recording["name"],
            group=group,
            method=asked["method"],
            path=asked["path"],
            authenticated=asked["authenticated"],
            request_body=asked["body"],
            status=answered["status"],
            headers=tuple(answered["headers"].items()),
            body=answered["body"],
        )


def _address(path: str) -> tuple[str, list[tuple[str, str]]]:
    parts = urlsplit(path)
    return parts.path, sorted(parse_qsl(parts.query, keep_blank_values=True))


def _parsed(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


_NOT_RECORDED = head(501, [("Content-Length", "0")])

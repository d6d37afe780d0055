"""A proxy before a real HTTP server that can break any single request, on purpose and repeatably."""

import contextlib
import enum
import http.client
import json
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

WAIT_SECONDS = 60  # how long a test waits for something that normally takes milliseconds
PIECE_BYTES = 64 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds; close() then sends RST
# Not passed on. Without "accept-encoding" http.client asks for identity, so that half a body is half its JSON
# and a feed's lines are not kept back by gzip.
HOP_BY_HOP = {"accept-encoding", "connection", "host", "keep-alive", "te", "transfer-encoding"}
WITHOUT_BODY = (204, 304)


class Fault(enum.Enum):
    """What happens to one request."""

    PASS = enum.auto()
    """Forwarded and answered."""
    DOWN = enum.auto()
    """As `FaultProxy.down`, at this request: it is not forwarded, and all later connections are refused."""
    RESET = enum.auto()
    """Not forwarded; the connection is reset."""
    RESET_AFTER = enum.auto()
    """Forwarded; the connection is reset before the answer: what was written is written."""
    HANG = enum.auto()
    """Held, then forwarded when released, even if its client has given up by then."""
    HANG_AFTER = enum.auto()
    """Forwarded; the answer is held until released: what was written is written."""
    ERROR_500 = enum.auto()
    """Not forwarded; answered with 500."""
    ERROR_503 = enum.auto()
    """Not forwarded; answered with 503."""
    UNAUTHORIZED = enum.auto()
    """Not forwarded; answered with 401."""
    ACCEPTED = enum.auto()
    """Forwarded; 201 becomes 202, the rest is as it is."""
    CUT_BODY = enum.auto()
    """Forwarded; the headers are whole, the connection is closed in the middle of the body."""
    BROKEN_JSON = enum.auto()
    """Forwarded; half of the body, in an answer that is correct HTTP."""


OWN_ANSWERS = {
    Fault.ERROR_500: (500, "internal_server_error", "No DB shards could be opened."),
    Fault.ERROR_503: (503, "service_unavailable", "The service is overloaded."),
    Fault.UNAUTHORIZED: (401, "unauthorized", "Name or password is incorrect."),
}


@dataclass(frozen=True)
class Request:
    """One request as it arrived, header names in lower case.

    `number` counts from 0: `server.requests[request.number] is request`.
    """

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, parsed; None when there is none. Raises ValueError when it is not JSON."""
        return json.loads(self.body) if self.body else None


class Reset(Exception):
    """The client's connection ends with RST."""


class Close(Exception):
    """The client's connection ends in good order, at a bad moment."""


@dataclass(eq=False)
class Client:
    """A client's connection, the thread that serves it, and the upstream socket while one is open."""

    connection: socket.socket
    thread: threading.Thread = field(default_factory=threading.current_thread)
    upstream: socket.socket | None = None
    is_cut: bool = False

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def cut(self) -> None:
        """Called by another thread: wake the one that serves this connection, which will then reset it."""
        self.is_cut = True
        for blocked_on, how in ((self.connection, socket.SHUT_RD), (self.upstream, socket.SHUT_RDWR)):
            if blocked_on:
                with contextlib.suppress(OSError):
                    blocked_on.shutdown(how)

    def check(self) -> None:
        """Raise `Reset` if this connection has been cut."""
        if self.is_cut:
            raise Reset

    @contextlib.contextmanager
    def resetting(self) -> Iterator[None]:
        """End the connection with RST if the body raises `Reset`, loses the upstream, or has been cut."""
        try:
            yield
            self.check()
        except Close:
            pass
        except (Reset, OSError, http.client.HTTPException):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


Plan = Callable[[Request], Fault]


class RecordingServer(ABC):
    """An HTTP server on a free port of 127.0.0.1 that records its requests; a context manager.

    Connections are kept alive and served concurrently, one thread each. A subclass says what to answer.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._clients: set[Client] = set()
        self._changed = threading.Condition(threading.RLock())
        self._is_up = False
        self._listener = _bound_to_a_free_port()
        self.port: int = self._listener.getsockname()[1]
        self._acceptor: threading.Thread | None = None
        self.up()

    @property
    def url(self) -> str:
        """The server's address, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def answer(self, client: Client, request: Request) -> None:
        """Send the answer to one request. Raises `Reset` or `Close` to end the connection."""

    def up(self) -> None:
        """Listen (again), on the same port."""
        with self._changed:
            if self._is_up:
                return
            self._listener.listen(128)
            self._is_up = True
            self._acceptor = threading.Thread(target=self._accept, daemon=True)
            self._acceptor.start()

    def down(self) -> None:
        """Reset all connections and refuse new ones; when it returns, it is so. The port stays reserved."""
        for thread in self.shut():
            thread.join(WAIT_SECONDS)

    def shut(self) -> list[threading.Thread]:
        """Stop listening and cut all connections; return the threads that end now (not the caller's own).

        Linux wakes `accept` when a listening socket is shut down, and keeps the port bound: no one else gets
        it, and a second `listen` opens it again.
        """
        with self._changed:
            if self._is_up:
                self._is_up = False
                self._listener.shutdown(socket.SHUT_RDWR)
            for client in self._clients:
                client.cut()
            threads = [client.thread for client in self._clients]
            if self._acceptor:
                threads.append(self._acceptor)
        return [thread for thread in threads if thread is not threading.current_thread()]

    def wait_until_requested(self, count: int) -> None:
        """Return when at least `count` requests have arrived since the start. Raises TimeoutError."""
        self.wait_until(lambda: len(self.requests) >= count, f"{count} requests")

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        """Return when `reached()` is true; asked again at each request. Raises TimeoutError naming `what`."""
        with self._changed:
            if not self._changed.wait_for(reached, WAIT_SECONDS):
                raise TimeoutError(f"waited {WAIT_SECONDS} s for {what}; requests so far: {len(self.requests)}")

    def close(self) -> None:
        """Drop all connections and free the port."""
        self.down()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # A second packet would wait for the acknowledgement of the first, which Linux delays for 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(connection)
            client.thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            with self._changed:
                self._clients.add(client)
                client.thread.start()
                if not self._is_up:
                    client.cut()

    def _serve(self, client: Client) -> None:
        try:
            with client.connection.makefile("rb") as stream, client.resetting():
                while request := self._read(stream):
                    self.answer(client, request)
        finally:
            with self._changed:
                self._clients.discard(client)
                client.connection.close()

    def _read(self, stream: BinaryIO) -> Request | None:
        """Return the next request of a connection, None at its end."""
        words = stream.readline().decode("latin-1").split()
        if len(words) != 3:
            return None
        headers = {name.lower(): value for name, value in http.client.parse_headers(stream).items()}
        body = stream.read(int(headers.get("content-length", 0)))
        with self._changed:
            request = Request(len(self.requests), words[0], words[1], headers, body)
            self.requests.append(request)
            self._changed.notify_all()
        return request


@dataclass
class _Queued:
    fault: Fault
    times: int
    when: Callable[[Request], bool]


class FaultProxy(RecordingServer):
    """A proxy before `upstream_url`, which may carry credentials and a path.

    Each request is first offered to what `next` has queued, then to `plan`; without either it passes.
    `faults` says what was given to which request, by its number.
    """

    def __init__(self, upstream_url: str, plan: Plan | None = None) -> None:
        self.upstream = urlsplit(upstream_url)
        self.plan: Plan = plan or (lambda request: Fault.PASS)
        self.faults: dict[int, Fault] = {}
        self._queue: list[_Queued] = []
        self._held: list[threading.Event] = []
        super().__init__()

    @property
    def url(self) -> str:
        """The proxy's address, with the upstream's credentials and path, without a trailing slash."""
        credentials, at, _ = self.upstream.netloc.rpartition("@")
        return f"http://{credentials}{at}127.0.0.1:{self.port}{self.upstream.path}".rstrip("/")

    def next(self, fault: Fault, times: int = 1, when: Callable[[Request], bool] | None = None) -> None:
        """Give `fault` to the next `times` requests (that `when` is true of), before `plan` is asked."""
        with self._changed:
            self._queue.append(_Queued(fault, times, when or (lambda request: True)))

    def release(self) -> None:
        """Let all requests that are held at this moment go on."""
        with self._changed:
            for held in self._held:
                held.set()
            self._held.clear()

    def wait_until_held(self, count: int = 1) -> None:
        """Return when at least `count` requests are held (HANG, HANG_AFTER). Raises TimeoutError."""
        self.wait_until(lambda: len(self._held) >= count, f"{count} requests to be held")

    def shut(self) -> list[threading.Thread]:
        """As the server's; held requests end without being forwarded."""
        with self._changed:
            ending = super().shut()
            self.release()
            return ending

    def answer(self, client: Client, request: Request) -> None:
        """Answer one request as its fault says."""
        fault = self._fault_for(request)
        if fault is Fault.DOWN:
            self.shut()
        if fault in (Fault.DOWN, Fault.RESET):
            raise Reset
        if fault in OWN_ANSWERS:
            return client.send(_own_answer(fault, request.method))
        if fault is Fault.HANG:
            self._hold(client)
        with self._forward(client, request) as response:
            if fault is Fault.RESET_AFTER:
                raise Reset
            if fault is Fault.HANG_AFTER:
                self._hold(client)
            _relay(response, client, fault, request.method)

    def _fault_for(self, request: Request) -> Fault:
        with self._changed:
            fault = self._queued_for(request) or self.plan(request)
            self.faults[request.number] = fault
            return fault

    def _queued_for(self, request: Request) -> Fault | None:
        for queued in self._queue:
            if queued.when(request):
                queued.times -= 1
                if not queued.times:
                    self._queue.remove(queued)
                return queued.fault
        return None

    def _hold(self, client: Client) -> None:
        held = threading.Event()
        with self._changed:
            client.check()
            self._held.append(held)
            self._changed.notify_all()
        held.wait()
        client.check()

    @contextlib.contextmanager
    def _forward(self, client: Client, request: Request) -> Iterator[http.client.HTTPResponse]:
        """Send the request upstream on a connection of its own, and give the response, its body unread."""
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        with contextlib.closing(self._connection()) as connection:
            connection.connect()
            with self._changed:
                client.check()
                client.upstream = connection.sock
            try:
                connection.request(request.method, request.path, request.body or None, headers)
                with connection.getresponse() as response:
                    yield response
            finally:
                client.upstream = None

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.upstream.scheme == "https" else http.client.HTTPConnection
        assert self.upstream.hostname
        return kind(self.upstream.hostname, self.upstream.port)


def _bound_to_a_free_port() -> socket.socket:
    """Linux keeps a port over `shutdown` and `listen` only for who asked for it by number: two steps."""
    with socket.socket() as finder, contextlib.ExitStack() as on_error:
        listener = on_error.enter_context(socket.socket())
        for bound in (finder, listener):
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        finder.bind(("127.0.0.1", 0))
        listener.bind(finder.getsockname())
        on_error.pop_all()
    return listener


def _own_answer(fault: Fault, method: str) -> bytes:
    status, error, reason = OWN_ANSWERS[fault]
    body = json.dumps({"error": error, "reason": reason}).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return head(status, headers) + (b"" if method == "HEAD" else body)


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return an answer's status line and headers, with the empty line after them."""
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _relay(response: http.client.HTTPResponse, client: Client, fault: Fault, method: str) -> None:
    """Send the upstream's answer on, piece by piece as it comes, with what `fault` changes in it."""
    status = 202 if fault is Fault.ACCEPTED and response.status == 201 else response.status
    headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
    if method == "HEAD" or status in WITHOUT_BODY:
        return client.send(head(status, headers))
    if fault is Fault.BROKEN_JSON:
        return client.send(_broken(status, headers, response.read()))
    is_chunked = response.headers.get("Content-Length") is None
    if is_chunked:
        headers.append(("Transfer-Encoding", "chunked"))
    client.send(head(status, headers))
    while piece := response.read1(PIECE_BYTES):
        if fault is Fault.CUT_BODY:
            client.send(framed(piece, is_chunked)[: len(piece) // 2])
            raise Close
        client.send(framed(piece, is_chunked))
    if response.length:
        raise Reset  # the upstream's connection ended early
    if is_chunked:
        client.send(framed(b"", is_chunked))


def _broken(status: int, headers: list[tuple[str, str]], body: bytes) -> bytes:
    half = body[: len(body) // 2]
    kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
    return head(status, [*kept, ("Content-Length", str(len(half)))]) + half


def framed(piece: bytes, is_chunked: bool) -> bytes:
    """Return a piece of a body as it goes over the line; an empty chunk ends a chunked body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece

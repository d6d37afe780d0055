"""Each fault as a client sees it, with a real client on a kept-alive connection and a real server behind."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError

import pytest
import requests
from couchdb_server import Database
from fault_proxy import Fault, FaultProxy, Request

TIMEOUT = 30
SHORT_TIMEOUT = 0.2  # for requests that are held: it only has to end

LOST = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


@pytest.fixture
def proxy(couchdb_database: Database) -> Iterator[FaultProxy]:
    with FaultProxy(couchdb_database.url) as running:
        yield running


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@pytest.fixture
def through(proxy: FaultProxy, couchdb_database: Database) -> str:
    """The database's address through the proxy."""
    return f"{proxy.url}/{couchdb_database.name}"


@pytest.fixture
def stored(couchdb_database: Database) -> Callable[[str], bool]:
    """Return a function that says, past the proxy, whether a document exists."""

    def exists(document: str) -> bool:
        url = f"{couchdb_database.url}/{couchdb_database.name}/{document}"
        return requests.get(url, timeout=TIMEOUT).status_code == 200

    return exists


def put(session: requests.Session, url: str, **body: object) -> requests.Response:
    return session.put(url, json=body, timeout=TIMEOUT)


def is_put(request: Request) -> bool:
    return request.method == "PUT"


def test_requests_pass_and_are_recorded_in_order(proxy: FaultProxy, session: requests.Session, through: str) -> None:
    assert put(session, f"{through}/a%2Bb", status="pending").status_code == 201
    assert session.get(f"{through}/a%2Bb", timeout=TIMEOUT).json()["status"] == "pending"
    assert session.head(through, timeout=TIMEOUT).ok
    assert [(request.number, request.method) for request in proxy.requests] == [
        (0, "PUT"),
        (1, "GET"),
        (2, "HEAD"),
    ]
    assert proxy.requests[0].path.endswith("/a%2Bb")
    assert proxy.requests[0].json() == {"status": "pending"}
    assert proxy.requests[1].json() is None


def test_a_record_cannot_be_changed(proxy: FaultProxy, session: requests.Session, through: str) -> None:
    session.get(through, timeout=TIMEOUT)
    with pytest.raises(FrozenInstanceError):
        proxy.requests[0].method = "PUT"  # type: ignore[misc]


def test_a_reset_request_is_not_forwarded(
    proxy: FaultProxy, session: requests.Session, through: str, stored: Callable[[str], bool]
) -> None:
    proxy.next(Fault.RESET)
    with pytest.raises(LOST, match="reset"):
        put(session, f"{through}/run")
    assert not stored("run")
    assert put(session, f"{through}/run").status_code == 201


def test_a_kept_alive_connection_is_reset_too(proxy: FaultProxy, session: requests.Session, through: str) -> None:
    session.get(through, timeout=TIMEOUT)
    proxy.next(Fault.RESET)
    with pytest.raises(LOST):
        session.get(through, timeout=TIMEOUT)


def test_a_request_whose_answer_is_lost_was_written(
    proxy: FaultProxy, session: requests.Session, through: str, stored: Callable[[str], bool]
) -> None:
    proxy.next(Fault.RESET_AFTER)
    with pytest.raises(LOST):
        put(session, f"{through}/run")
    assert stored("run")


@pytest.mark.parametrize(
    ("fault", "status"), [(Fault.ERROR_500, 500), (Fault.ERROR_503, 503), (Fault.UNAUTHORIZED, 401)]
)
def test_an_error_is_answered_without_forwarding(
    proxy: FaultProxy,
    session: requests.Session,
    through: str,
    stored: Callable[[str], bool],
    fault: Fault,
    status: int,
) -> None:
    proxy.next(fault)
    answer = put(session, f"{through}/run")
    assert (answer.status_code, set(answer.json())) == (status, {"error", "reason"})
    assert not stored("run")
    proxy.next(fault)
    assert session.head(through, timeout=TIMEOUT).status_code == status
    assert put(session, f"{through}/run").status_code == 201


def test_201_becomes_202_with_the_same_body(
    proxy: FaultProxy, session: requests.Session, through: str, stored: Callable[[str], bool]
) -> None:
    proxy.next(Fault.ACCEPTED)
    answer = put(session, f"{through}/run")
    assert (answer.status_code, answer.json()["id"]) == (202, "run")
    assert stored("run")


def test_a_conflict_stays_a_conflict_when_201_would_become_202(
    proxy: FaultProxy, session: requests.Session, through: str
) -> None:
    put(session, f"{through}/run")
    proxy.next(Fault.ACCEPTED)
    assert put(session, f"{through}/run").status_code == 409


@pytest.mark.parametrize("path", ["/run", "/_changes?include_docs=true"])
def test_a_cut_body_is_an_incomplete_answer(
    proxy: FaultProxy, session: requests.Session, through: str, path: str
) -> None:
    put(session, f"{through}/run", status="pending")
    proxy.next(Fault.CUT_BODY)
    with pytest.raises(LOST):
        session.get(through + path, timeout=TIMEOUT)


def test_broken_json_is_a_complete_answer(proxy: FaultProxy, session: requests.Session, through: str) -> None:
    put(session, f"{through}/run", status="pending")
    proxy.next(Fault.BROKEN_JSON)
    answer = session.get(f"{through}/run", timeout=TIMEOUT)
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_a_held_request_is_forwarded_when_released_though_its_client_gave_up(
    proxy: FaultProxy,
    session: requests.Session,
    through: str,
    stored: Callable[[str], bool],
    couchdb_database: Database,
) -> None:
    proxy.next(Fault.HANG)
    with pytest.raises(requests.Timeout):
        session.put(f"{through}/run", json={}, timeout=SHORT_TIMEOUT)
    proxy.wait_until_held()
    assert not stored("run")
    changes = f"{couchdb_database.url}/{couchdb_database.name}/_changes?feed=longpoll&timeout={TIMEOUT}000"
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(requests.get, changes, timeout=TIMEOUT)
        proxy.release()
        assert [row["id"] for row in change.result().json()["results"]] == ["run"]


def test_a_held_answer_arrives_when_released(
    proxy: FaultProxy, session: requests.Session, through: str, stored: Callable[[str], bool]
) -> None:
    proxy.next(Fault.HANG_AFTER)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(put, session, f"{through}/run")
        proxy.wait_until_held()
        assert stored("run")
        assert not answer.done()
        proxy.release()
        assert answer.result().status_code == 201


def test_others_are_served_while_one_is_held(proxy: FaultProxy, through: str) -> None:
    proxy.next(Fault.HANG)
    with ThreadPoolExecutor(9) as pool:
        held = pool.submit(requests.get, through, timeout=TIMEOUT)
        proxy.wait_until_held()
        others = [pool.submit(requests.get, through, timeout=TIMEOUT) for _ in range(8)]
        assert all(other.result().ok for other in others)
        assert not held.done()
        proxy.release()
        assert held.result().ok
    assert [request.number for request in proxy.requests] == list(range(9))


def test_nothing_connects_while_it_is_down_and_the_port_is_the_same_afterwards(
    proxy: FaultProxy, session: requests.Session, through: str
) -> None:
    session.get(through, timeout=TIMEOUT)
    for _ in range(3):
        proxy.down()
        with pytest.raises(requests.ConnectionError, match="refused"):
            session.get(through, timeout=TIMEOUT)
        proxy.up()
        assert session.get(through, timeout=TIMEOUT).ok
    assert len(proxy.requests) == 4


def test_going_down_cuts_a_request_that_is_held_without_forwarding_it(
    proxy: FaultProxy, session: requests.Session, through: str, stored: Callable[[str], bool]
) -> None:
    proxy.next(Fault.HANG)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(put, session, f"{through}/run")
        proxy.wait_until_held()
        proxy.down()
        with pytest.raises(LOST):
            answer.result()
    assert not stored("run")


def test_going_down_cuts_a_long_poll(proxy: FaultProxy, session: requests.Session, through: str) -> None:
    url = f"{through}/_changes?feed=longpoll&since=now&timeout={TIMEOUT}000"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(session.get, url, timeout=TIMEOUT)
        proxy.wait_until_requested(1)
        proxy.down()
        with pytest.raises(LOST):
            answer.result()


def test_it_goes_down_at_the_request_that_the_plan_names(
    proxy: FaultProxy, session: requests.Session, through: str, stored: Callable[[str], bool]
) -> None:
    proxy.plan = lambda request: Fault.DOWN if is_put(request) else Fault.PASS
    assert session.get(through, timeout=TIMEOUT).ok
    with pytest.raises(LOST):
        put(session, f"{through}/run")
    with pytest.raises(requests.ConnectionError, match="refused"):
        session.get(through, timeout=TIMEOUT)
    assert not stored("run")
    proxy.up()
    assert session.get(through, timeout=TIMEOUT).ok


def test_queued_faults_wait_for_the_requests_they_are_meant_for(
    proxy: FaultProxy, session: requests.Session, through: str
) -> None:
    proxy.next(Fault.ERROR_500, times=2, when=is_put)
    proxy.next(Fault.ERROR_503, when=is_put)
    assert session.get(through, timeout=TIMEOUT).ok
    assert [put(session, f"{through}/run").status_code for _ in range(4)] == [500, 500, 503, 201]
    assert list(proxy.faults.values()) == [
        Fault.PASS,
        Fault.ERROR_500,
        Fault.ERROR_500,
        Fault.ERROR_503,
        Fault.PASS,
    ]


def test_the_plan_is_asked_by_number_when_nothing_is_queued(
    proxy: FaultProxy, session: requests.Session, through: str
) -> None:
    proxy.plan = lambda request: Fault.ERROR_500 if request.number == 1 else Fault.PASS
    assert [session.get(through, timeout=TIMEOUT).status_code for _ in range(3)] == [200, 500, 200]


def test_a_continuous_feed_arrives_line_by_line(proxy: FaultProxy, session: requests.Session, through: str) -> None:
    url = f"{through}/_changes?feed=continuous&heartbeat=1000&since=0"
    put(session, f"{through}/first")
    with requests.get(url, stream=True, timeout=TIMEOUT) as feed:
        lines = feed.iter_lines(chunk_size=1)
        assert b"first" in next(line for line in lines if line)
        put(session, f"{through}/second")
        assert b"second" in next(line for line in lines if line)


def test_a_large_body_arrives_unchanged(proxy: FaultProxy, session: requests.Session, through: str) -> None:
    text = "0123456789abcdef" * 20_000
    put(session, f"{through}/run", text=text)
    assert session.get(f"{through}/run", timeout=TIMEOUT).json()["text"] == text
    rows = session.get(f"{through}/_all_docs?include_docs=true", timeout=TIMEOUT).json()["rows"]
    assert rows[0]["doc"]["text"] == text


def test_credentials_of_the_upstream_are_kept_in_the_address() -> None:
    with FaultProxy("http://user:p%40ss@127.0.0.1:1/prefix/") as proxy:
        assert proxy.url == f"http://user:p%40ss@127.0.0.1:{proxy.port}/prefix"


def test_a_missing_upstream_is_a_lost_connection() -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy, pytest.raises(LOST):
        requests.get(proxy.url, timeout=TIMEOUT)


def test_a_server_that_dies_during_a_long_poll_is_a_lost_connection(
    proxy: FaultProxy, couchdb_database: Database
) -> None:
    """The inner proxy is the server that dies."""
    with FaultProxy(proxy.url) as outer, ThreadPoolExecutor(1) as pool:
        url = f"{outer.url}/{couchdb_database.name}/_changes?feed=longpoll&since=now&heartbeat=1000"
        answer = pool.submit(requests.get, url, timeout=TIMEOUT)
        proxy.wait_until_requested(1)
        proxy.down()
        with pytest.raises(LOST):
            answer.result()


def test_closing_leaves_no_thread_behind(couchdb_database: Database) -> None:
    before = set(threading.enumerate())
    with FaultProxy(couchdb_database.url) as proxy, requests.Session() as session:
        session.get(proxy.url, timeout=TIMEOUT)
        proxy.next(Fault.HANG)
        with pytest.raises(requests.Timeout):
            session.get(proxy.url, timeout=SHORT_TIMEOUT)
        proxy.wait_until_held()
    assert set(threading.enumerate()) <= before

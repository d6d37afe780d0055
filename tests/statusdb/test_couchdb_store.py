"""What is CouchDB's own: its exact answers, refused logins, rights, conflicts, TLS, and every way a request can end."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import logging
import shlex
import shutil
import ssl
import subprocess
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
import requests
from couchdb_replay import DATABASE, Exchange, ReplayServer, exchange
from couchdb_server import Database, PouchServer, Unavailable
from databases import (
    RUN,
    CouchDatabase,
    Direct,
    Pauses,
    in_processes,
    in_threads,
    login_of,
    new_document,
    prepare_and_write,
    statusdb_of,
    stored,
)
from fault_proxy import Fault, FaultProxy, Request
from sites import PATIENCE_SECONDS

from watcher.errors import ConfigError, StatusDBRefused, StatusDBUnavailable, UnknownRun, WatcherError
from watcher.model import Archive, Document, Run, Status
from watcher.statusdb import CouchDBStore, FeedLost, Login, StatusDB
from watcher.statusdb.couchdb import DESIGN_DOCUMENT, REFUSED_SECONDS
from watcher.statusdb.database import PAUSES_SECONDS
from watcher.statusdb.store import Conflict

USER = "ops@example.org"
PASSWORD = "p@ss:w/rd%+ü"
IMPATIENCE_SECONDS = 1.0
"""A client's time-out where a test makes the server hang; a slow machine answers other requests within it."""

HANGING = (Fault.HANG, Fault.HANG_AFTER)
BROKEN = (Fault.RESET, Fault.RESET_AFTER, Fault.ERROR_500, Fault.ERROR_503, Fault.CUT_BODY, Fault.BROKEN_JSON)

ARCHIVE = Archive("run_001.tar.gpg", 1, "a" * 64, "b" * 64, 2, "run_001.key.gpg", "c" * 64, "F" * 40, 3, token="d" * 32)

LOCKED_OUT = "Account is temporarily locked due to multiple authentication failures"
"""What CouchDB 3.5 says to a right password too, after five wrong ones."""

THEIRS: Document = {"views": {"theirs": {"map": "function (doc) { emit(1, null); }"}}, "made_by": "the site"}
"""A design document of our name, made by somebody else."""

HTML = (("Content-Type", "text/html"),)
JSON = (("Content-Type", "application/json"),)

READS: Mapping[str, Callable[[StatusDB], object]] = {
    "get": lambda statusdb: statusdb.get("run_001"),
    "pending": lambda statusdb: statusdb.pending(),
    "known": lambda statusdb: sorted(statusdb.known([RUN])),
    "count": lambda statusdb: statusdb.count_by_status(),
    "changes": lambda statusdb: statusdb.changes("0", 0).documents,
}
WRITES: Mapping[str, Callable[[StatusDB], object]] = {
    "register": lambda statusdb: statusdb.register([Run(Path("/data/sequencer_A/run_002"))]).collisions,
    "retry": lambda statusdb: statusdb.retry("run_001")["status"],
}
EVERYTHING = {**READS, **WRITES}
RETRIED = tuple(name for name in EVERYTHING if name != "changes")
"""Who follows the changes waits by himself."""

everything = pytest.mark.parametrize("ask", EVERYTHING.values(), ids=EVERYTHING)


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def login_at(url: str, **changes: Any) -> Login:
    return dataclasses.replace(Login(url, DATABASE, USER, PASSWORD), **changes)


def answer(status: int, body: str = "", headers: tuple[tuple[str, str], ...] = JSON) -> Exchange:
    """Return an answer that nobody has recorded."""
    return Exchange("", "", "GET", "/", True, None, status, headers, body)


def always(given: Exchange) -> ReplayServer:
    """Return a server that answers everything with this."""
    return ReplayServer(lambda request: given)


def script(*answers: str | Exchange) -> ReplayServer:
    return ReplayServer.script(*answers)


def secrets_of(login: Login) -> tuple[str, ...]:
    """Return the password in every shape in which it may show."""
    assert login.password
    basic = f"{login.username}:{login.password}"
    encoded = [base64.b64encode(basic.encode(encoding)).decode() for encoding in ("utf-8", "latin-1")]
    quoted = quote(login.password, safe="")
    return (login.password, quoted, *encoded)


def method_and_name(request: Request) -> tuple[str, str]:
    return request.method, urlsplit(request.path).path.removeprefix(f"/{DATABASE}").removeprefix("/")


@pytest.fixture
def proxy(couch: CouchDatabase, couchdb_database: Database) -> Iterator[FaultProxy]:
    """A proxy before a database that has one pending run."""
    statusdb_of(couch.open()).register([RUN])
    with FaultProxy(couchdb_database.url) as proxy:
        yield proxy


def through(proxy: FaultProxy, couch: CouchDatabase, timeout_seconds: float = 20.0) -> CouchDBStore:
    return CouchDBStore(dataclasses.replace(couch.login, url=f"http://127.0.0.1:{proxy.port}"), timeout_seconds)


@pytest.fixture(scope="module")
def guarded(unavailable: Callable[[str], NoReturn]) -> Iterator[Login]:
    """The login of a server that checks passwords."""
    try:
        server = PouchServer()
    except Unavailable as error:
        unavailable(str(error))
    with server:
        user = f"{server.url}/_config/admins/{quote(USER, safe='')}"
        requests.put(user, json=PASSWORD, timeout=PATIENCE_SECONDS).raise_for_status()
        yield login_at(server.url)


# Whatever befalls a request


@pytest.mark.parametrize(
    ("name", "fault"),
    [*itertools.product(RETRIED, BROKEN), *itertools.product(("get", "register", "retry"), HANGING)],
    ids=str,
)
def test_a_request_that_comes_to_grief_is_made_again_and_then_answered(
    proxy: FaultProxy, couch: CouchDatabase, name: str, fault: Fault
) -> None:
    pauses = Pauses()
    statusdb = StatusDB(through(proxy, couch, IMPATIENCE_SECONDS if fault in HANGING else 20.0), pauses)
    proxy.next(fault)
    answered = EVERYTHING[name](statusdb)
    proxy.release()
    assert pauses.asked == [PAUSES_SECONDS[0]]
    assert answered == EVERYTHING[name](statusdb_of(couch.open()))


@pytest.mark.parametrize("name", ["", ".", "..", "../etc", "_all_docs", "_design/dataflow_archive", "run_\udcff"])
def test_a_name_that_no_run_can_have_is_not_asked_for(proxy: FaultProxy, couch: CouchDatabase, name: str) -> None:
    statusdb = statusdb_of(through(proxy, couch))
    for ask in (statusdb.demand, statusdb.retry):
        with pytest.raises(UnknownRun, match="is not in the status database"):
            ask(name)
    assert statusdb.get(name) is None
    assert proxy.requests == []


@pytest.mark.parametrize("fault", [fault for fault in BROKEN if fault is not Fault.RESET_AFTER])
@pytest.mark.parametrize("name", RETRIED)
def test_trouble_that_lasts_is_told_after_the_pauses_and_over_when_it_is(
    proxy: FaultProxy, couch: CouchDatabase, name: str, fault: Fault
) -> None:
    ask = EVERYTHING[name]
    pauses = Pauses()
    statusdb = StatusDB(through(proxy, couch), pauses)
    proxy.plan = lambda request: fault
    with pytest.raises(StatusDBUnavailable, match=f"127.0.0.1:{proxy.port}"):
        ask(statusdb)
    assert pauses.asked == list(PAUSES_SECONDS)
    assert len(proxy.requests) == 1 + len(PAUSES_SECONDS)
    proxy.plan = lambda request: Fault.PASS
    ask(statusdb)


def test_a_server_that_is_down_is_away_and_used_again_when_it_is_up(proxy: FaultProxy, couch: CouchDatabase) -> None:
    statusdb = statusdb_of(through(proxy, couch))
    assert len(statusdb.pending()) == 1
    proxy.down()
    with pytest.raises(StatusDBUnavailable, match="Connection refused"):
        statusdb.pending()
    proxy.up()
    assert len(statusdb.pending()) == 1


def told_by(ask: Callable[[], object]) -> str:
    with pytest.raises(StatusDBUnavailable) as caught:
        ask()
    return str(caught.value)


def test_a_server_that_never_answers_is_not_waited_for_without_end(proxy: FaultProxy, couch: CouchDatabase) -> None:
    statusdb = statusdb_of(through(proxy, couch, timeout_seconds=0.2))
    proxy.plan = lambda request: Fault.HANG
    told: list[str] = []
    asking = threading.Thread(target=lambda: told.append(told_by(statusdb.pending)), daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    assert "timed out" in told[0]
    assert len(proxy.requests) == 1 + len(PAUSES_SECONDS)


@pytest.mark.parametrize("status", [200, 201, 202, 400, 403, 404, 409, 412, 502])
@pytest.mark.parametrize("headers", [HTML, JSON, ()], ids=["html", "json", "untyped"])
@everything
def test_a_page_that_is_no_json_is_no_answer(
    ask: Callable[[StatusDB], object], status: int, headers: tuple[tuple[str, str], ...]
) -> None:
    with always(answer(status, "<html>gateway</html>", headers)) as server:
        statusdb = statusdb_of(CouchDBStore(login_at(server.url)))
        with pytest.raises(StatusDBUnavailable, match=server.url) as caught:
            ask(statusdb)
        assert not isinstance(caught.value, StatusDBRefused)


@pytest.mark.parametrize("body", ["{}", "[]", "null", "42", '"text"', '[{"id": 5}]', '{"ok": false}', ""])
@pytest.mark.parametrize("status", [200, 201])
@everything
def test_json_that_is_no_couchdbs_is_no_answer(ask: Callable[[StatusDB], object], status: int, body: str) -> None:
    with always(answer(status, body)) as server, pytest.raises(StatusDBUnavailable):
        ask(statusdb_of(CouchDBStore(login_at(server.url))))


def test_a_redirect_to_the_document_is_not_taken_for_a_write() -> None:
    document = answer(200, json.dumps(new_document("run_001")))
    moved = answer(302, "{}", (*JSON, ("Location", f"/{DATABASE}/run_001")))
    with script(moved, document) as server, pytest.raises(StatusDBUnavailable, match="has no 'rev'"):
        CouchDBStore(login_at(server.url)).put(new_document("run_001"))


# Refused logins


@pytest.mark.parametrize(
    "refusal",
    [
        exchange("wrong password"),
        exchange("server root without credentials"),
        answer(401, "<html>401</html>", HTML),
        answer(401, '{"message": "who are you?"}'),
        answer(401, "[]"),
        answer(401),
        answer(403, json.dumps({"error": "forbidden", "reason": LOCKED_OUT})),
    ],
    ids=["wrong", "none", "html", "other json", "list", "empty", "locked out"],
)  # fmt: skip
@everything
def test_a_refused_login_is_told_at_once_and_not_tried_again(
    ask: Callable[[StatusDB], object], refusal: Exchange
) -> None:
    with always(refusal) as server:
        login, pauses = login_at(server.url), Pauses()
        statusdb = StatusDB(CouchDBStore(login), pauses)
        with pytest.raises(StatusDBRefused) as caught:
            ask(statusdb)
        assert (pauses.asked, len(server.requests)) == ([], 1)
        with pytest.raises(StatusDBRefused):
            ask(statusdb)
        assert len(server.requests) == 1
        told = str(caught.value)
        assert f"user '{USER}' at '{server.url}'" in told
        assert not any(secret in told for secret in secrets_of(login))


def test_no_thread_sends_anything_after_a_refused_login_until_its_time_is_over() -> None:
    clock = Clock()
    with always(exchange("wrong password")) as server:
        store = CouchDBStore(login_at(server.url), clock=clock)
        statusdb = statusdb_of(store)

        def refused(_thread: int = 0) -> bool:
            with pytest.raises(StatusDBRefused):
                statusdb.pending()
            return True

        refused()
        assert in_threads(refused, 8) == [True] * 8
        clock.seconds += REFUSED_SECONDS - 1
        in_threads(refused, 2)
        for operation in EVERYTHING.values():
            with pytest.raises(StatusDBRefused):
                operation(statusdb)
        for prepare in (store.prepare, store.verify, store.describe):
            with pytest.raises(StatusDBRefused):
                prepare()
        assert len(server.requests) == 1
        clock.seconds += 1
        refused()
        assert len(server.requests) == 2


def test_a_login_that_is_right_again_is_used_when_the_time_is_over() -> None:
    clock = Clock()
    with script("wrong password", "read missing") as server:
        store = CouchDBStore(login_at(server.url), clock=clock)
        with pytest.raises(StatusDBRefused):
            store.get("run_001")
        clock.seconds += REFUSED_SECONDS
        assert store.get("run_001") is None


def test_a_claim_is_not_asked_for_twice_when_the_login_is_refused(proxy: FaultProxy, couch: CouchDatabase) -> None:
    statusdb = statusdb_of(through(proxy, couch))
    document = statusdb.claimable(RUN)
    assert document is not None
    before = len(proxy.requests)
    proxy.plan = lambda request: Fault.UNAUTHORIZED
    with pytest.raises(StatusDBRefused):
        statusdb.claim(RUN, "worker_1", document)
    assert len(proxy.requests) == before + 1


@pytest.mark.parametrize("login", [login_at("http://h"), Login("http://h", DATABASE)], ids=["user", "anonymous"])
def test_a_login_does_not_show_its_password(login: Login) -> None:
    assert PASSWORD not in repr(login)
    assert login.who in (f"user '{USER}' at 'http://h'", "anonymous at 'http://h'")


@pytest.mark.parametrize("password", [PASSWORD, "łódź €", "a:b:c", "100%25", " ", "x" * 200, '"\\'])
def test_user_and_password_are_sent_as_they_are(password: str) -> None:
    with script("read missing") as server:
        CouchDBStore(login_at(server.url, password=password)).get("run_001")
        kind, _, value = server.requests[0].headers["authorization"].partition(" ")
        assert (kind, base64.b64decode(value).decode("utf-8")) == ("Basic", f"{USER}:{password}")
        assert urlsplit(server.requests[0].path).path == f"/{DATABASE}/run_001"


def test_a_server_that_checks_passwords_takes_ours_and_no_other(guarded: Login) -> None:
    store = CouchDBStore(guarded)
    store.prepare()
    written = stored(store, new_document("run_001"))
    assert store.get("run_001") == written
    for wrong in ({"password": PASSWORD.replace("ü", "u")}, {"password": ""}, {"username": "ops"}):
        with pytest.raises(StatusDBRefused):
            CouchDBStore(dataclasses.replace(guarded, **wrong)).get("run_001")


def test_without_a_user_no_credentials_are_sent() -> None:
    with script("read missing") as server:
        CouchDBStore(Login(server.url, DATABASE)).get("run_001")
        assert "authorization" not in server.requests[0].headers


def test_no_secret_is_in_any_log_line_or_error(guarded: Login, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told = []
    with FaultProxy(guarded.url) as proxy:
        login = dataclasses.replace(guarded, url=proxy.url)
        others = [fault for fault in Fault if fault not in (Fault.DOWN, Fault.UNAUTHORIZED)]
        for fault in (*others, Fault.UNAUTHORIZED):  # the last one: nothing is asked after it
            statusdb = statusdb_of(CouchDBStore(login, IMPATIENCE_SECONDS))
            statusdb.prepare()
            asks = (StatusDB.describe, StatusDB.verify, *EVERYTHING.values())
            for ask in asks[:1] if fault in HANGING else asks:
                proxy.next(fault)
                try:
                    ask(statusdb)
                except WatcherError as error:
                    told.append("".join(traceback.format_exception(error)))
                proxy.release()
        assert {"authorization" in request.headers for request in proxy.requests} == {True}
    all_of_it = caplog.text + "".join(told)
    for part in ("http request method=GET", "timed out", "is refused"):
        assert part in all_of_it
    assert not [secret for secret in secrets_of(login) if secret in all_of_it]


# Rights


def test_a_database_that_we_may_not_make_is_a_matter_for_an_administrator() -> None:
    with script("database missing: GET", "member creates a database") as server:
        store = CouchDBStore(login_at(server.url))
        with pytest.raises(ConfigError) as caught:
            store.prepare()
        [problem] = caught.value.problems
        assert f"database '{DATABASE}' does not exist and user '{USER}' at '{server.url}' may not create it" in problem
        assert problem.endswith(f"an administrator runs: curl -u ADMIN -X PUT {server.url}/{DATABASE}")
        assert PASSWORD not in problem


def test_a_missing_right_is_not_taken_for_a_wrong_password() -> None:
    with script("database missing: GET", "member creates a database", "read missing") as server:
        store = CouchDBStore(login_at(server.url), clock=Clock())
        with pytest.raises(ConfigError):
            store.prepare()
        assert store.get("run_001") is None


def test_a_view_that_we_may_not_make_is_a_matter_for_an_administrator() -> None:
    with script(
        "database missing: GET", "create database", "read missing", "member writes a design document"
    ) as server:
        with pytest.raises(
            ConfigError, match=f"may not create it; an administrator runs: curl .*{server.url}"
        ) as caught:
            CouchDBStore(login_at(server.url)).prepare()
        assert json.dumps(DESIGN_DOCUMENT) in shlex.split(str(caught.value).partition("runs: ")[2])


@pytest.mark.parametrize("existing", [None, THEIRS], ids=["no design document", "one without our view"])
def test_the_command_for_an_administrator_makes_the_view(
    existing: Document | None,
    couchdb_database: Database,
    direct: Direct,
    unavailable: Callable[[str], NoReturn],
) -> None:
    if not shutil.which("curl"):
        unavailable("there is no 'curl' for the administrator's command")
    there: str | Exchange = "read missing"
    if existing is not None:
        direct.ask("PUT", "_design/dataflow_archive", existing)
        there = answer(200, json.dumps(direct.ask("GET", "_design/dataflow_archive")))
    with script(answer(200, "{}"), there, "member writes a design document") as server:
        with pytest.raises(ConfigError) as caught:
            CouchDBStore(login_at(server.url)).prepare()
        typed = str(caught.value).partition("an administrator runs: ")[2]
        typed = typed.replace(f"{server.url}/{DATABASE}", Direct(couchdb_database).address)
    administrator = urlsplit(couchdb_database.url).netloc.rpartition("@")[0]
    typed = typed.replace("-u ADMIN", f"-u {shlex.quote(unquote(administrator))}" if administrator else "")
    subprocess.run(f"{typed} --silent --show-error --fail", shell=True, check=True, timeout=PATIENCE_SECONDS)
    store = CouchDBStore(login_of(couchdb_database))
    store.verify()
    assert store.count_by_status() == {}
    views = direct.ask("GET", "_design/dataflow_archive")["views"]
    assert set(views) == ({"by_status", "theirs"} if existing else {"by_status"})


def test_a_database_that_we_may_not_read_refuses_us_by_name() -> None:
    with script("non-member reads the database", "read missing") as server:
        store = CouchDBStore(login_at(server.url), clock=Clock())
        with pytest.raises(StatusDBRefused, match=f"user '{USER}'.*may not GET '{DATABASE}'.*not allowed"):
            store.prepare()
        assert store.get("run_001") is None  # the login is right: there is nothing to wait for


# The database itself


def test_a_missing_database_is_made_with_our_view() -> None:
    missing = ["database missing: GET", "create database", "read missing", "put design document"]
    with script(*missing) as server:
        CouchDBStore(login_at(server.url)).prepare()
        assert [method_and_name(request) for request in server.requests] == [
            ("GET", ""),
            ("PUT", ""),
            ("GET", "_design/dataflow_archive"),
            ("PUT", "_design/dataflow_archive"),
        ]


def test_a_database_that_another_worker_makes_at_the_same_moment_is_no_error() -> None:
    conflict = exchange("update with a stale _rev")
    with script("database missing: GET", "create database again", "read missing", conflict) as server:
        CouchDBStore(login_at(server.url)).prepare()
        assert len(server.requests) == 4


def test_workers_that_prepare_at_once_all_succeed(couchdb_url: str) -> None:
    database = Database(couchdb_url, f"test_{uuid.uuid4().hex}")
    try:
        revisions = in_processes(prepare_and_write, CouchDatabase(login_of(database)), 3)
        assert all(rev.startswith("1-") for rev in revisions)
    finally:
        requests.delete(f"{database.url}/{database.name}", timeout=PATIENCE_SECONDS)


def test_design_documents_of_others_are_never_overwritten(couch: CouchDatabase, direct: Direct) -> None:
    views = {"views": {"runfolder_id": {"map": "function (doc) { emit(doc._id, null); }"}}}
    direct.ask("PUT", "_design/lookup", views)
    ours = direct.ask("GET", "_design/dataflow_archive")
    changed = {**ours, "views": {**ours["views"], "theirs": {"map": "function (doc) { emit(1, null); }"}}}
    direct.ask("PUT", "_design/dataflow_archive", changed)
    before = [direct.ask("GET", f"_design/{name}") for name in ("lookup", "dataflow_archive")]
    couch.open().prepare()
    assert [direct.ask("GET", f"_design/{name}") for name in ("lookup", "dataflow_archive")] == before
    assert couch.open().count_by_status() == {}


def test_a_design_document_of_our_name_without_our_view_gets_it_and_keeps_what_it_has(
    couchdb_database: Database, direct: Direct
) -> None:
    direct.ask("PUT", "_design/dataflow_archive", THEIRS)
    store = CouchDBStore(login_of(couchdb_database))
    with pytest.raises(ConfigError, match="_design/dataflow_archive/by_status"):
        store.verify()
    store.prepare()
    store.verify()
    assert store.count_by_status() == {}
    left = direct.ask("GET", "_design/dataflow_archive")
    assert set(left["views"]) == {"theirs", "by_status"}
    assert left["made_by"] == "the site"


def test_looking_makes_nothing(couchdb_database: Database, direct: Direct) -> None:
    store = CouchDBStore(login_of(couchdb_database))
    with pytest.raises(ConfigError, match="dataflow_archive"):
        store.verify()
    with pytest.raises(requests.HTTPError, match="404"):
        direct.ask("GET", "_design/dataflow_archive")
    with pytest.raises(ConfigError, match="nowhere"):
        CouchDBStore(dataclasses.replace(login_of(couchdb_database), database="nowhere")).verify()


@everything
def test_a_database_that_is_deleted_while_we_run_is_away(couchdb_url: str, ask: Callable[[StatusDB], object]) -> None:
    database = Database(couchdb_url, f"test_{uuid.uuid4().hex}")
    store = CouchDBStore(login_of(database))
    store.prepare()
    statusdb = statusdb_of(store)
    statusdb.register([RUN])
    requests.delete(f"{database.url}/{database.name}", timeout=PATIENCE_SECONDS).raise_for_status()
    with pytest.raises(StatusDBUnavailable, match=database.name):
        ask(statusdb)


@pytest.mark.parametrize("name", ["database missing: GET", "put a document in a missing database"])
@everything
def test_couchdbs_words_for_a_missing_database_mean_that_it_is_away(
    ask: Callable[[StatusDB], object], name: str
) -> None:
    with always(exchange(name)) as server, pytest.raises(StatusDBUnavailable, match="Database does not exist"):
        ask(statusdb_of(CouchDBStore(login_at(server.url))))


# CouchDB's own answers


@pytest.mark.parametrize("name", ["read missing", "read deleted"])
def test_a_document_that_is_missing_or_deleted_is_none(name: str) -> None:
    with script(name) as server:
        assert CouchDBStore(login_at(server.url)).get("run_001") is None


@pytest.mark.parametrize(
    ("name", "confirmed"),
    [
        ("create document", True),
        ("update with the current _rev", True),
        ("cluster: create document", True),
        ("cluster: two of three nodes down, create", False),
        ("cluster: two of three nodes down, update", False),
    ],
)
def test_a_write_is_confirmed_with_201_and_not_with_202(name: str, confirmed: bool) -> None:
    with script(name) as server:
        written = CouchDBStore(login_at(server.url)).put(new_document("run_001"))
        assert (written.rev, written.confirmed) == (exchange(name).json["rev"], confirmed)


@pytest.mark.parametrize("name", ["create it again (no _rev)", "update with a stale _rev"])
def test_a_stale_revision_is_a_conflict(name: str) -> None:
    with script(name) as server, pytest.raises(Conflict, match="run_001"):
        CouchDBStore(login_at(server.url)).put(new_document("run_001"))


@pytest.mark.parametrize(
    "name", ["id starting with underscore", "document field starting with underscore", "broken JSON"]
)
def test_a_document_that_couchdb_does_not_take_is_told_with_its_reason(name: str) -> None:
    with script(name) as server, pytest.raises(StatusDBUnavailable) as caught:
        CouchDBStore(login_at(server.url)).put(new_document("run_001"))
    assert exchange(name).json["reason"] in str(caught.value)


def test_of_a_bulk_write_the_new_ones_are_told() -> None:
    with script("bulk write, one conflict") as server:
        store = CouchDBStore(login_at(server.url))
        assert store.insert_many([new_document("run_010"), new_document("run_001")]) == {"run_010"}


def test_of_many_ids_the_absent_and_the_deleted_are_left_out() -> None:
    with script("many ids at once", "many ids, one deleted") as server:
        store = CouchDBStore(login_at(server.url))
        assert [document["_id"] for document in store.get_many(["run_001", "run_010", "absent"])] == [
            "run_001",
            "run_010",
        ]
        assert store.get_many(["run_010"]) == []


def test_a_view_gives_the_documents_of_a_status() -> None:
    with script("view by key") as server:
        found = CouchDBStore(login_at(server.url)).with_status(Status.PENDING)
        assert {document["status"] for document in found} == {"pending"}
        assert "a/b" in {document["_id"] for document in found}


@pytest.mark.parametrize("name", ["view of a missing design document", "view that the design document lacks"])
def test_a_view_that_somebody_has_removed_is_no_empty_answer(name: str) -> None:
    with script(name) as server, pytest.raises(StatusDBUnavailable, match="by_status"):
        CouchDBStore(login_at(server.url)).with_status(Status.PENDING)


def test_places_in_the_changes_are_opaque() -> None:
    quiet = exchange("changes since now, longpoll with timeout")
    with script(quiet, quiet) as server:
        store = CouchDBStore(login_at(server.url))
        since = store.changes(None, 30).since
        assert since == quiet.json["last_seq"]
        assert store.changes(since, 30).documents == ()
        asked = parse_qs(urlsplit(server.requests[1].path).query)
        assert asked["since"] == [since]


def test_a_place_that_couchdb_does_not_know_is_lost() -> None:
    with script("changes since a made-up token") as server, pytest.raises(FeedLost, match=r"garbage.*Malformed"):
        CouchDBStore(login_at(server.url)).changes("garbage", 30)


def test_the_server_ends_the_waiting_before_we_do() -> None:
    quiet = exchange("changes since now, longpoll with timeout")
    with script(quiet, quiet) as server:
        store = CouchDBStore(login_at(server.url), timeout_seconds=10.0)
        for wait_seconds in (30.0, 2.0):
            store.changes("7-abc", wait_seconds)
        asked = [parse_qs(urlsplit(request.path).query) for request in server.requests]
        assert [query["feed"] + query["timeout"] for query in asked] == [["longpoll", "7500"], ["longpoll", "2000"]]


def test_a_server_that_holds_the_question_for_too_long_has_nothing_to_tell(
    proxy: FaultProxy, couch: CouchDatabase
) -> None:
    store = through(proxy, couch, IMPATIENCE_SECONDS)
    since = store.changes(None, 0).since
    proxy.next(Fault.HANG)
    assert store.changes(since, 30.0) == dataclasses.replace(store.changes(None, 0), since=since)
    proxy.release()
    written = stored(couch.open(), new_document("run_002"))
    assert list(store.changes(since, 30.0).documents) == [written]


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.ERROR_503, Fault.CUT_BODY, Fault.BROKEN_JSON])
def test_changes_that_were_cut_off_are_told_with_the_next_question(
    proxy: FaultProxy, couch: CouchDatabase, fault: Fault
) -> None:
    store = through(proxy, couch)
    since = store.changes(None, 0).since
    written = stored(couch.open(), new_document("run_002"))
    proxy.next(fault)
    with pytest.raises(StatusDBUnavailable):
        store.changes(since, 30.0)
    assert list(store.changes(since, 30.0).documents) == [written]


def test_a_deleted_document_is_told_as_such(couch: CouchDatabase, direct: Direct) -> None:
    store = couch.open()
    written = stored(store, new_document("run_001"))
    since = store.changes(None, 0).since
    direct.ask("DELETE", "run_001", rev=written["_rev"])
    [told] = store.changes(since, 30.0).documents
    assert (told["_id"], told["_deleted"]) == ("run_001", True)
    assert store.get("run_001") is None
    assert store.get_many(["run_001"]) == []
    assert store.insert_many([new_document("run_001")]) == {"run_001"}


@pytest.mark.usefixtures("guarded")  # it says what to do when there is no server to be had
def test_changes_go_on_when_the_server_was_started_anew(tmp_path: Path) -> None:
    with PouchServer(tmp_path / "databases") as server:
        store = CouchDBStore(Login(server.url, DATABASE))
        store.prepare()
        store.put(new_document("run_001"))
        since = store.changes("0", 30.0).since
        server.kill()
        with pytest.raises(StatusDBUnavailable, match="refused"):
            store.changes(since, 30.0)
        server.start()
        written = stored(store, new_document("run_002"))
        assert list(store.changes(since, 30.0).documents) == [written]


@pytest.mark.parametrize(
    "name", ["run+1", "run 1", "run%2B1", "a?b", "a#b", "-rf", "x:y", "two\nlines", "Größe", "'\"\\"]
)
def test_a_name_is_quoted_whole_on_its_way(proxy: FaultProxy, couch: CouchDatabase, name: str) -> None:
    store = through(proxy, couch)
    store.put(new_document(name))
    path = urlsplit(proxy.requests[-1].path).path
    assert unquote(path.rpartition("/")[2]) == name
    assert not set(path) & set("+ ?#\n'\"\\")


# Conflicting revisions


def processing(token: str, rev: str, **fields: Any) -> Document:
    return new_document("run_001", status="processing", claim={"token": token}, _rev=rev, **fields)


@pytest.mark.parametrize(
    "beside",
    [("2-0000",), ("2-ffff",), ("2-0000", "2-ffff"), ("5-ffff",), ("2-0000", "3-8888", "7-0000")],
    ids=",".join,
)
def test_our_branch_becomes_the_current_one_and_the_others_go(
    couch: CouchDatabase, direct: Direct, beside: tuple[str, ...]
) -> None:
    store = couch.open()
    first = stored(store, new_document("run_001"))
    ours = stored(store, {**first, "status": "processing", "claim": {"token": "ours"}, "note": "kept"})
    direct.insert_conflicts(*(processing(f"theirs_{rev}", rev) for rev in beside))
    assert len(direct.leaves("run_001")) == 1 + len(beside)
    settled = store.settle(ours)
    [left] = direct.leaves("run_001")
    assert left == settled
    assert (left["claim"], left["note"]) == ({"token": "ours"}, "kept")


def test_conflicting_revisions_show_when_a_document_is_read_and_are_not_written(
    proxy: FaultProxy, couch: CouchDatabase, direct: Direct
) -> None:
    store = through(proxy, couch)
    direct.insert_conflicts(processing("theirs", "2-0000"))
    found = store.get("run_001")
    assert found is not None
    assert len(found["_conflicts"]) == 1
    store.put(found)
    assert "_conflicts" not in proxy.requests[-1].json()


def test_a_run_that_another_claim_has_is_not_settled_in_our_favour(couch: CouchDatabase, direct: Direct) -> None:
    store = couch.open()
    first = stored(store, new_document("run_001"))
    ours = stored(store, {**first, "status": "processing", "claim": {"token": "ours"}})
    stored(store, {**ours, "claim": {"token": "theirs"}})
    direct.insert_conflicts(processing("third", "2-0000"))
    before = direct.leaves("run_001")
    assert store.settle(ours) == ours
    assert direct.leaves("run_001") == before


@pytest.mark.parametrize("rev", ["2-0000", "2-ffff", "9-0000"])
def test_a_run_that_cut_off_nodes_have_recorded_stays_recorded(couch: CouchDatabase, direct: Direct, rev: str) -> None:
    store = couch.open()
    first = stored(store, new_document("run_001"))
    ours = stored(store, {**first, "status": "processing", "claim": {"token": "ours"}})
    direct.insert_conflicts(
        new_document("run_001", status="encrypted", last_claim="theirs", _rev=rev), processing("third", "2-8888")
    )
    settled = store.settle(ours)
    [left] = direct.leaves("run_001")
    assert left == settled
    assert (left["status"], left["last_claim"]) == ("encrypted", "theirs")


def test_our_own_record_is_settled_like_any_other_write(couch: CouchDatabase, direct: Direct) -> None:
    store = couch.open()
    first = stored(store, new_document("run_001"))
    ours = stored(store, {**first, "status": "encrypted", "last_claim": "ours"})
    direct.insert_conflicts(processing("theirs", "5-0000"))
    settled = store.settle(ours)
    [left] = direct.leaves("run_001")
    assert left == settled
    assert (left["status"], left["last_claim"]) == ("encrypted", "ours")


def test_a_document_that_is_gone_is_not_brought_back_by_settling(couch: CouchDatabase, direct: Direct) -> None:
    store = couch.open()
    ours = stored(store, new_document("run_001", claim={"token": "ours"}))
    direct.ask("DELETE", "run_001", rev=ours["_rev"])
    assert store.settle(ours) == ours
    assert store.get("run_001") is None


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.RESET_AFTER, Fault.ERROR_500, Fault.ACCEPTED])
@pytest.mark.parametrize("number", range(6))
def test_a_claim_with_conflicts_survives_a_fault_at_each_of_its_requests(
    proxy: FaultProxy, couch: CouchDatabase, direct: Direct, fault: Fault, number: int
) -> None:
    """Another node's 202 stands beside our 201; whatever is lost then, the run is ours and in the end alone there."""
    statusdb = statusdb_of(through(proxy, couch))
    document = statusdb.claimable(RUN)
    assert document is not None
    asked_before = len(proxy.requests)
    conflict = {**document, "_rev": "2-0000", "status": "processing", "claim": {"token": "theirs"}}

    def fault_at_number(request: Request) -> Fault:
        if request.number == asked_before + 1:
            direct.insert_conflicts(conflict)
        assert direct.leaves("run_001")  # whatever happens, the document is never deleted
        return fault if request.number == asked_before + 1 + number else Fault.PASS

    proxy.plan = fault_at_number
    claim = statusdb.claim(RUN, "worker_1", document)
    assert claim is not None
    proxy.plan = lambda request: Fault.PASS
    [left] = direct.leaves("run_001")
    assert left["claim"]["token"] == claim.token


@pytest.mark.usefixtures("proxy")  # it registers the run
def test_conflicts_that_come_late_are_gone_when_the_run_is_recorded(couch: CouchDatabase, direct: Direct) -> None:
    statusdb = statusdb_of(couch.open())
    document = statusdb.claimable(RUN)
    assert document is not None
    claim = statusdb.claim(RUN, "worker_1", document)
    assert claim is not None
    direct.insert_conflicts({**document, "_rev": "2-0000", "status": "processing", "claim": {"token": "theirs"}})
    statusdb.record(claim.document, claim.token, ARCHIVE)
    [left] = direct.leaves("run_001")
    assert left["status"] == "encrypted"


@pytest.mark.parametrize("rev", ["2-0000", "2-ffff"])
def test_our_branch_is_the_current_one_before_any_other_goes(
    proxy: FaultProxy, couch: CouchDatabase, direct: Direct, rev: str
) -> None:
    statusdb = statusdb_of(through(proxy, couch))
    document = statusdb.claimable(RUN)
    assert document is not None

    def conflict_then_no_deletions(request: Request) -> Fault:
        if request.method == "GET" and len(direct.leaves("run_001")) == 1:
            direct.insert_conflicts({**document, "_rev": rev, "status": "processing", "claim": {"token": "theirs"}})
        return Fault.ERROR_500 if request.method == "DELETE" else Fault.PASS

    proxy.plan = conflict_then_no_deletions
    claim = statusdb.claim(RUN, "worker_1", document)
    assert claim is not None
    tokens = [leaf["claim"]["token"] for leaf in direct.leaves("run_001")]
    assert tokens == [claim.token, "theirs"]


# TLS


class _Welcome(BaseHTTPRequestHandler):
    """Answers as CouchDB's root does, and remembers that it was asked."""

    def do_GET(self) -> None:  # the standard library's name
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        body = exchange("server root").body.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


Certificate = Callable[[str], Path]


@pytest.fixture
def certificate(tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Certificate:
    """Return what makes a certificate for a host."""
    if not shutil.which("openssl"):
        unavailable("there is no 'openssl' to make a certificate with")
    return partial(make_certificate, tmp_path)


def make_certificate(directory: Path, name: str) -> Path:
    """Make a self-signed certificate and its key, in one file, for a host."""
    file = directory / "certificate.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName={name}"
        f" -keyout {file}.key -out {file}.crt"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    file.write_text(Path(f"{file}.key").read_text() + Path(f"{file}.crt").read_text())
    return file


@contextmanager
def https_server(pem: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve with this certificate; give the address and the paths that were asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Welcome)
    server.asked = []  # type: ignore[attr-defined]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_sent(certificate: Certificate) -> None:
    with https_server(certificate("IP:127.0.0.1")) as (url, asked):
        with pytest.raises(StatusDBUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            CouchDBStore(login_at(url)).describe()
        assert asked == []


def test_a_certificate_that_the_ca_file_vouches_for_is_accepted(certificate: Certificate) -> None:
    pem = certificate("IP:127.0.0.1")
    with https_server(pem) as (url, asked):
        described = CouchDBStore(login_at(url, ca_file=f"{pem}.crt")).describe()
        assert described == f"CouchDB 3.5.0 at '{url}', database '{DATABASE}'"
        assert asked == ["/"]


def test_a_certificate_of_another_host_is_refused(certificate: Certificate) -> None:
    pem = certificate("DNS:couch.example.org")
    with https_server(pem) as (url, asked):
        with pytest.raises(StatusDBUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            CouchDBStore(login_at(url, ca_file=f"{pem}.crt")).describe()
        assert asked == []
